/**
 * The raster of the mask: one byte for each pixel, 255 where the net fills and 0 where the picture is kept. Nothing
 * here knows of the screen, and nothing is antialiased, so that what is drawn depends on the numbers alone.
 *
 * Coordinates are those of the mask: pixel (i, j) covers [i, i + 1) x [j, j + 1), and its centre is (i + 0.5, j + 0.5).
 *
 * - A stroke of a brush of diameter d from a to b marks each pixel whose centre is within d / 2 of the segment from a
 *   to b (a capsule; for a tap, where a = b, a disc), and always the two pixels that hold a and b, so that a brush of
 *   diameter 1 marks at least the pixel under the pointer.
 * - A lasso is closed, and marks each pixel from whose centre a ray to the left crosses its outline an odd number of
 *   times (even-odd); a crossing at the centre itself counts.
 * - Growing by n marks each pixel whose centre is within n of a marked one's. Shrinking by n clears each pixel whose
 *   centre is within n of a cleared one's; what is outside the picture clears nothing.
 */

/** The history may hold as many bytes as this; the oldest strokes are forgotten first. */
const HISTORY_BYTES = 64 * 2 ** 20;

const FULL = 255;

/** Returns the smallest rectangle that holds both; either may be null, which is the empty one. */
export function union(a, b) {
	if (!a || !b) return a || b;
	return {
		x0: Math.min(a.x0, b.x0), y0: Math.min(a.y0, b.y0), x1: Math.max(a.x1, b.x1), y1: Math.max(a.y1, b.y1),
	};
}

/** A mask with its history. What is drawn is open to `rollback` until `commit` makes one step of the history of it. */
export class Mask {
	constructor(width, height) {
		this.width = width;
		this.height = height;
		this.bytes = new Uint8Array(width * height);
		/** How many pixels are marked, as of the last commit. */
		this.count = 0;
		/** Another number after each commit, undo and redo: equal revisions are equal masks. */
		this.revision = 0;
		this.committed = new Uint8Array(width * height);
		this.dirty = null;
		this.past = [];
		this.future = [];
	}

	/** Marks (value 255) or clears (0) what a brush covers between two points, and returns the rectangle touched. */
	stroke(ax, ay, bx, by, diameter, value = FULL) {
		const radius = diameter / 2;
		const [dx, dy] = [bx - ax, by - ay];
		const squared = dx * dx + dy * dy;
		const inside = (x, y) => {
			const t = squared ? Math.min(1, Math.max(0, ((x - ax) * dx + (y - ay) * dy) / squared)) : 0;
			return (x - ax - t * dx) ** 2 + (y - ay - t * dy) ** 2 <= radius * radius;
		};
		const rows = this.#within(
			Math.min(ax, bx) - radius, Math.min(ay, by) - radius, Math.max(ax, bx) + radius, Math.max(ay, by) + radius,
		);
		for (let row = rows.y0; row < rows.y1; row += 1) {
			// Only the part of the segment that is within the radius of the row, up or down, can mark pixels of it.
			const y = row + 0.5;
			const sides = [y - radius, y + radius].map((side) => {
				const t = dy ? Math.min(1, Math.max(0, (side - ay) / dy)) : Number(side > y);
				return ax + t * dx;
			});
			// A capsule is convex, so that what it covers of a row is one interval.
			let first = Math.max(0, Math.floor(Math.min(...sides) - radius));
			let last = Math.min(this.width - 1, Math.floor(Math.max(...sides) + radius));
			while (first <= last && !inside(first + 0.5, y)) first += 1;
			while (last >= first && !inside(last + 0.5, y)) last -= 1;
			this.#span(row, first, last + 1, value);
		}
		const ends = [[ax, ay], [bx, by]].map(([x, y]) => this.#pixel(Math.floor(x), Math.floor(y), value));
		return this.#touch(ends.reduce(union, rows));
	}

	/** Marks or clears the rectangle between two points, the pixels that hold them included. */
	rectangle(ax, ay, bx, by, value = FULL) {
		return this.box(
			Math.floor(Math.min(ax, bx)), Math.floor(Math.min(ay, by)),
			Math.floor(Math.max(ax, bx)) + 1, Math.floor(Math.max(ay, by)) + 1, value,
		);
	}

	/** Marks or clears the pixels from (x0, y0) to (x1, y1), which is not included. */
	box(x0, y0, x1, y1, value = FULL) {
		const rows = this.#within(x0, y0, x1 - 1, y1 - 1);
		for (let row = rows.y0; row < rows.y1; row += 1) this.#span(row, rows.x0, rows.x1, value);
		return this.#touch(rows);
	}

	/** Marks or clears the inside of the closed polygon through the points [[x, y], ...]. */
	polygon(points, value = FULL) {
		const around = points.map(([x, y]) => ({ x0: x, y0: y, x1: x, y1: y })).reduce(union);
		const rows = this.#within(around.x0, around.y0, around.x1, around.y1);
		for (let row = rows.y0; row < rows.y1; row += 1) {
			const y = row + 0.5;
			const crossings = [];
			for (let i = 0; i < points.length; i += 1) {
				const [ax, ay] = points[i];
				const [bx, by] = points[(i + 1) % points.length];
				if ((ay <= y) !== (by <= y)) crossings.push(ax + ((y - ay) * (bx - ax)) / (by - ay));
			}
			crossings.sort((a, b) => a - b);
			for (let i = 0; i + 1 < crossings.length; i += 2) {
				this.#span(row, Math.ceil(crossings[i] - 0.5), Math.ceil(crossings[i + 1] - 0.5), value);
			}
		}
		return this.#touch(rows);
	}

	clear() {
		this.bytes.fill(0);
		return this.#touch(this.#all());
	}

	invert() {
		for (let i = 0; i < this.bytes.length; i += 1) this.bytes[i] ^= FULL;
		return this.#touch(this.#all());
	}

	/** Takes over one bit for each pixel, row after row without gaps, the most significant bit first. */
	setBits(bits) {
		for (let i = 0; i < this.bytes.length; i += 1) this.bytes[i] = (bits[i >> 3] >> (7 - (i & 7))) & 1 ? FULL : 0;
		return this.#touch(this.#all());
	}

	/** Returns one bit for each pixel, as `setBits` takes them. */
	bits() {
		const bits = new Uint8Array(Math.ceil(this.bytes.length / 8));
		for (let i = 0; i < this.bytes.length; i += 1) if (this.bytes[i]) bits[i >> 3] |= 128 >> (i & 7);
		return bits;
	}

	/**
	 * Grows what is marked by a disc of radius n, or shrinks it where n is negative. The time it takes does not depend
	 * on n: first the distance to the nearest marked pixel of the same column, then along each row the union of the
	 * intervals that those distances leave of the disc.
	 */
	grow(n) {
		const { width, height, bytes } = this;
		const wanted = n > 0 ? FULL : 0;
		const radius = Math.abs(n);
		const far = radius + 1;
		const distances = new Uint16Array(width * height);
		for (let i = 0; i < distances.length; i += 1) {
			const above = i < width ? far : distances[i - width];
			distances[i] = bytes[i] === wanted ? 0 : Math.min(far, above + 1);
		}
		for (let i = distances.length - width - 1; i >= 0; i -= 1) {
			distances[i] = Math.min(distances[i], distances[i + width] + 1);
		}
		const halves = Array.from({ length: far }, (_, y) => Math.floor(Math.sqrt(radius * radius - y * y)));
		const changes = new Int32Array(width + 1);
		for (let row = 0; row < height; row += 1) {
			changes.fill(0);
			for (let x = 0; x < width; x += 1) {
				const half = halves[distances[row * width + x]];
				if (half === undefined) continue;
				changes[Math.max(0, x - half)] += 1;
				changes[Math.min(width, x + half + 1)] -= 1;
			}
			for (let x = 0, covers = 0; x < width; x += 1) {
				covers += changes[x];
				if (covers) bytes[row * width + x] = wanted;
			}
		}
		return this.#touch(this.#all());
	}

	/** Makes one step of the history of all that was drawn since the last, and returns whether anything was. */
	commit() {
		const step = this.dirty;
		this.dirty = null;
		if (!step) return false;
		const bits = new Uint8Array(Math.ceil(((step.x1 - step.x0) * (step.y1 - step.y0)) / 8));
		const before = this.revision;
		this.#each(step, (i, bit) => {
			if (this.bytes[i] === this.committed[i]) return;
			bits[bit >> 3] |= 128 >> (bit & 7);
			this.#settle(i);
			this.revision = before + 1;
		});
		if (this.revision === before) return false;
		this.past.push({ ...step, bits });
		this.future = [];
		let size = this.past.reduce((sum, { bits: { length } }) => sum + length, 0);
		while (size > HISTORY_BYTES) size -= this.past.shift().bits.length;
		return true;
	}

	/** Takes back what was drawn since the last commit, and returns the rectangle that it changed, or null. */
	rollback() {
		const rectangle = this.dirty;
		this.dirty = null;
		for (let y = rectangle?.y0; y < rectangle?.y1; y += 1) {
			const [start, end] = [y * this.width + rectangle.x0, y * this.width + rectangle.x1];
			this.bytes.set(this.committed.subarray(start, end), start);
		}
		return rectangle;
	}

	/** Takes back the last step, and returns the rectangle that it changed, or null where there is none. */
	undo() {
		return this.#flip(this.past, this.future);
	}

	/** Does again the step last taken back. */
	redo() {
		return this.#flip(this.future, this.past);
	}

	/** A step is the set of pixels that it changed, so that undoing it and redoing it are the same flip of them. */
	#flip(from, to) {
		this.rollback();
		const step = from.pop();
		if (!step) return null;
		to.push(step);
		this.#each(step, (i, bit) => {
			if (!(step.bits[bit >> 3] & (128 >> (bit & 7)))) return;
			this.bytes[i] ^= FULL;
			this.#settle(i);
		});
		this.revision += 1;
		return step;
	}

	/** Calls action(i, bit) for each pixel of a rectangle: its place in the mask and its place in the rectangle. */
	#each({ x0, y0, x1, y1 }, action) {
		let bit = 0;
		for (let y = y0; y < y1; y += 1) {
			for (let i = y * this.width + x0, end = i + x1 - x0; i < end; i += 1, bit += 1) action(i, bit);
		}
	}

	/** Takes over a pixel that was changed into what is committed. */
	#settle(i) {
		this.committed[i] = this.bytes[i];
		this.count += this.bytes[i] ? 1 : -1;
	}

	/** Returns the rectangle of the pixels that hold the points from (x0, y0) to (x1, y1), as far as there are any. */
	#within(x0, y0, x1, y1) {
		return {
			x0: Math.max(0, Math.floor(x0)), y0: Math.max(0, Math.floor(y0)),
			x1: Math.min(this.width, Math.floor(x1) + 1), y1: Math.min(this.height, Math.floor(y1) + 1),
		};
	}

	#all() {
		return { x0: 0, y0: 0, x1: this.width, y1: this.height };
	}

	#span(row, first, end, value) {
		const [from, to] = [Math.max(0, first), Math.min(this.width, end)];
		if (from < to) this.bytes.fill(value, row * this.width + from, row * this.width + to);
	}

	#pixel(x, y, value) {
		if (x < 0 || y < 0 || x >= this.width || y >= this.height) return null;
		this.bytes[y * this.width + x] = value;
		return { x0: x, y0: y, x1: x + 1, y1: y + 1 };
	}

	#touch(rectangle) {
		if (!rectangle || rectangle.x0 >= rectangle.x1 || rectangle.y0 >= rectangle.y1) return null;
		this.dirty = union(this.dirty, rectangle);
		return rectangle;
	}
}
