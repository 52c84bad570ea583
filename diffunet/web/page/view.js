/**
 * The canvas: zoom, pan, and all that is painted. Lengths on the screen are CSS pixels from the canvas's upper left
 * corner; those of the picture are pixels of the mask, and screen = mask * scale + (x, y).
 */

import { union } from './mask.js';

const MARGIN = 20;
const LARGEST_SCALE = 64;
const CHECKER = 8;
/** So near to the split a pointer takes hold of it. */
const REACH = 12;
const EVERYWHERE = { x0: -Infinity, y0: -Infinity, x1: Infinity, y1: Infinity };

export class View extends EventTarget {
	#context;
	#ratio = 1;
	#dirty = null;
	#maskDirty = null;
	#frame = 0;
	#overlay = document.createElement('canvas');
	#overlayContext = this.#overlay.getContext('2d');
	#scratch = document.createElement('canvas');
	#colour = [224, 33, 138];
	#opacity = 0.5;
	#cursor = null;
	#fitted = true;
	#smallestScale = 0.01;
	#dark = matchMedia('(prefers-color-scheme: dark)');

	constructor(canvas) {
		super();
		this.canvas = canvas;
		this.#context = canvas.getContext('2d');
		Object.assign(this, { scale: 1, x: 0, y: 0, mask: null, picture: null, transparent: false });
		/** The filling that is shown in place of the picture, right of `split`, a share of the width; or null. */
		this.filling = null;
		this.split = 0;
		/** Whether the original is shown for a moment in place of the filling. */
		this.peeking = false;
		/** What a running filling looks like inside a box of the mask, {image, box}; seen where the mask is. Or null. */
		this.preview = null;
		/** The boxes of the mask that the net will see. */
		this.regions = [];
		/** The shape that is being drawn, as points of the mask, or null. */
		this.outline = null;
		new ResizeObserver(() => this.#resize()).observe(canvas);
		// The ratio of pixels changes where a window goes to another screen.
		addEventListener('resize', () => this.#resize());
		this.#dark.addEventListener('change', () => this.repaint());
		this.#resize();
	}

	/** Shows a picture, and a mask of the same size over it. */
	open(picture, mask, transparent) {
		Object.assign(this, { picture, mask, transparent, filling: null, preview: null, regions: [], outline: null });
		this.#overlay.width = mask.width;
		this.#overlay.height = mask.height;
		this.fit();
		this.maskChanged({ x0: 0, y0: 0, x1: mask.width, y1: mask.height });
	}

	toMask(x, y) {
		return [(x - this.x) / this.scale, (y - this.y) / this.scale];
	}

	fit() {
		if (!this.mask) return;
		const { clientWidth: width, clientHeight: height } = this.canvas;
		const across = Math.max(1, width - 2 * MARGIN) / this.mask.width;
		const down = Math.max(1, height - 2 * MARGIN) / this.mask.height;
		this.scale = Math.min(LARGEST_SCALE, across, down);
		this.#smallestScale = Math.min(this.scale, 1) / 4;
		this.x = (width - this.mask.width * this.scale) / 2;
		this.y = (height - this.mask.height * this.scale) / 2;
		this.#fitted = true;
		this.#moved();
	}

	/** Zooms by a factor; what is at the point of the screen stays there. */
	zoom(factor, x = this.canvas.clientWidth / 2, y = this.canvas.clientHeight / 2) {
		if (!this.mask) return;
		const scale = Math.min(LARGEST_SCALE, Math.max(this.#smallestScale, this.scale * factor));
		this.x = x - ((x - this.x) * scale) / this.scale;
		this.y = y - ((y - this.y) * scale) / this.scale;
		this.scale = scale;
		this.#fitted = false;
		this.#moved();
	}

	pan(dx, dy) {
		if (!this.mask) return;
		this.x += dx;
		this.y += dy;
		this.#fitted = false;
		this.#moved();
	}

	setColour(colour, opacity) {
		this.#colour = [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));
		this.#opacity = opacity;
		if (this.mask) this.maskChanged({ x0: 0, y0: 0, x1: this.mask.width, y1: this.mask.height });
	}

	maskChanged(rectangle) {
		if (!rectangle) return;
		this.#maskDirty = union(this.#maskDirty, rectangle);
		const [x0, y0, x1, y1] = [rectangle.x0, rectangle.y0, rectangle.x1, rectangle.y1].map((n) => n * this.scale);
		this.repaint({ x0: this.x + x0 - 2, y0: this.y + y0 - 2, x1: this.x + x1 + 2, y1: this.y + y1 + 2 });
	}

	/** Shows the brush of the diameter at a point of the screen, or none. */
	setCursor(cursor) {
		this.#repaintCursor();
		this.#cursor = cursor;
		this.#repaintCursor();
	}

	/** Shows other things; they are the fields that the constructor explains. */
	show(changes) {
		Object.assign(this, changes);
		this.repaint();
	}

	/** Returns whether a pointer at the point takes hold of the split. */
	isAtSplit(x) {
		return Boolean(this.filling) && Math.abs(x - this.#splitX()) <= REACH;
	}

	splitAt(x) {
		return Math.min(1, Math.max(0, (x - this.x) / (this.mask.width * this.scale)));
	}

	/** Paints a rectangle of the screen again in the next frame, or all of it. */
	repaint(rectangle = EVERYWHERE) {
		this.#dirty = union(this.#dirty, rectangle);
		this.#frame ||= requestAnimationFrame(() => {
			this.#frame = 0;
			this.#paint();
		});
	}

	#resize() {
		const { width, height } = this.canvas.getBoundingClientRect();
		if (!width || !height) return; // The tab is hidden; it is measured again when it is shown.
		this.#ratio = devicePixelRatio;
		const size = [Math.round(width * this.#ratio), Math.round(height * this.#ratio)];
		if (this.canvas.width !== size[0] || this.canvas.height !== size[1]) {
			[this.canvas.width, this.canvas.height] = size;
		}
		if (this.#fitted) this.fit();
		else this.#moved();
	}

	/** Keeps some of the picture in sight, and tells how the view has moved. */
	#moved() {
		const inSight = (start, length, whole) => {
			const least = Math.min(48, length, whole);
			return Math.min(whole - least, Math.max(least - length, start));
		};
		if (this.mask) {
			this.x = inSight(this.x, this.mask.width * this.scale, this.canvas.clientWidth);
			this.y = inSight(this.y, this.mask.height * this.scale, this.canvas.clientHeight);
		}
		this.dispatchEvent(new Event('move'));
		this.repaint();
	}

	#splitX() {
		return this.x + this.split * this.mask.width * this.scale;
	}

	#repaintCursor() {
		if (!this.#cursor) return;
		const { x, y, diameter } = this.#cursor;
		const reach = (diameter * this.scale) / 2 + 4;
		this.repaint({ x0: x - reach, y0: y - reach, x1: x + reach, y1: y + reach });
	}

	#paint() {
		const context = this.#context;
		const ratio = this.#ratio;
		this.#paintOverlay();
		const { x0, y0, x1, y1 } = this.#dirty;
		this.#dirty = null;
		const left = Math.max(0, Math.floor(x0 * ratio));
		const top = Math.max(0, Math.floor(y0 * ratio));
		const width = Math.min(this.canvas.width, Math.ceil(x1 * ratio)) - left;
		const height = Math.min(this.canvas.height, Math.ceil(y1 * ratio)) - top;
		if (width <= 0 || height <= 0) return;
		context.save();
		context.setTransform(1, 0, 0, 1, 0, 0);
		context.beginPath();
		context.rect(left, top, width, height);
		context.clip();
		context.clearRect(left, top, width, height);
		if (this.mask) {
			this.#paintPicture(this.picture, 0);
			if (this.filling && !this.peeking) this.#paintPicture(this.filling, this.split);
			if (!this.filling) this.#paintMask();
			context.setTransform(ratio, 0, 0, ratio, 0, 0);
			if (!this.filling) this.#paintLines();
			else if (!this.peeking) this.#paintSplit();
		}
		context.restore();
	}

	/** Takes over into the coloured overlay what has changed of the mask. */
	#paintOverlay() {
		if (!this.#maskDirty) return;
		const { x0, y0, x1, y1 } = this.#maskDirty;
		this.#maskDirty = null;
		const pixels = new ImageData(x1 - x0, y1 - y0);
		const words = new Uint32Array(pixels.data.buffer);
		const [word] = new Uint32Array(new Uint8Array([...this.#colour, 255]).buffer);
		for (let y = y0, i = 0; y < y1; y += 1) {
			for (let j = y * this.mask.width + x0, end = j + x1 - x0; j < end; i += 1, j += 1) {
				if (this.mask.bytes[j]) words[i] = word;
			}
		}
		this.#overlayContext.putImageData(pixels, x0, y0);
	}

	/** From here on lengths are those of the mask, and its pixels are squares where they are large enough. */
	#toMaskSpace() {
		const ratio = this.#ratio;
		this.#context.setTransform(this.scale * ratio, 0, 0, this.scale * ratio, this.x * ratio, this.y * ratio);
		this.#context.imageSmoothingEnabled = this.scale <= 1;
	}

	/** Paints a picture from a share of the width on. */
	#paintPicture(picture, from) {
		const context = this.#context;
		const { width, height } = this.mask;
		context.save();
		this.#toMaskSpace();
		context.beginPath();
		context.rect(width * from, 0, width * (1 - from), height);
		context.clip();
		if (this.transparent) {
			context.save();
			context.setTransform(1, 0, 0, 1, 0, 0);
			context.fillStyle = this.#checkerboard();
			context.fillRect(0, 0, this.canvas.width, this.canvas.height);
			context.restore();
		}
		context.drawImage(picture, 0, 0, width, height);
		context.restore();
	}

	#checkerboard() {
		const size = Math.round(CHECKER * this.#ratio);
		const tile = Object.assign(document.createElement('canvas'), { width: 2 * size, height: 2 * size });
		const context = tile.getContext('2d');
		const colours = this.#dark.matches ? ['#3a3d42', '#2c2f33'] : ['#ffffff', '#dedede'];
		for (const i of [0, 1, 2, 3]) {
			context.fillStyle = colours[(i ^ (i >> 1)) & 1];
			context.fillRect((i & 1) * size, (i >> 1) * size, size, size);
		}
		return this.#context.createPattern(tile, 'repeat');
	}

	#paintMask() {
		const context = this.#context;
		this.#toMaskSpace();
		context.globalAlpha = this.#opacity;
		context.drawImage(this.#overlay, 0, 0);
		context.globalAlpha = 1;
		if (this.preview) this.#paintPreview();
	}

	#paintPreview() {
		const { image, box } = this.preview;
		const [left, top] = [Math.round(box.x0), Math.round(box.y0)];
		const scratch = this.#scratch;
		scratch.width = Math.max(1, Math.round(box.x1) - left);
		scratch.height = Math.max(1, Math.round(box.y1) - top);
		const context = scratch.getContext('2d');
		if (this.mask.count) {
			context.drawImage(this.#overlay, -left, -top);
			context.globalCompositeOperation = 'source-in';
		}
		context.drawImage(image, 0, 0, scratch.width, scratch.height);
		this.#context.drawImage(scratch, left, top);
	}

	/** Paints what is of the screen's own size: regions, the shape that is being drawn, and the brush. */
	#paintLines() {
		const { scale, x, y } = this;
		for (const { x0, y0, x1, y1 } of this.regions) {
			this.#line((path) => path.rect(x + x0 * scale, y + y0 * scale, (x1 - x0) * scale, (y1 - y0) * scale), [6, 5]);
		}
		if (this.outline) {
			this.#line((path) => {
				for (const [px, py] of this.outline) path.lineTo(x + px * scale, y + py * scale);
				path.closePath();
			}, [4, 4]);
		}
		if (this.#cursor) {
			const { x: cx, y: cy, diameter } = this.#cursor;
			this.#line((path) => path.arc(cx, cy, Math.max(1, (diameter * scale) / 2), 0, 2 * Math.PI));
		}
	}

	/** Draws a path dark and light, so that it is seen on any picture. */
	#line(draw, dashes = []) {
		const context = this.#context;
		context.beginPath();
		draw(context);
		context.lineWidth = dashes.length ? 1.5 : 2.5;
		context.strokeStyle = 'rgba(0, 0, 0, 0.75)';
		context.stroke();
		context.setLineDash(dashes);
		context.lineWidth = dashes.length ? 1.5 : 1;
		context.strokeStyle = '#ffffff';
		context.stroke();
		context.setLineDash([]);
	}

	#paintSplit() {
		const context = this.#context;
		const x = this.#splitX();
		const height = this.mask.height * this.scale;
		this.#line((path) => {
			path.moveTo(x, this.y);
			path.lineTo(x, this.y + height);
		});
		const y = Math.min(this.canvas.clientHeight - 24, Math.max(24, this.y + height / 2));
		context.beginPath();
		context.arc(x, y, 11, 0, 2 * Math.PI);
		context.fillStyle = '#ffffff';
		context.fill();
		context.lineWidth = 1;
		context.strokeStyle = 'rgba(0, 0, 0, 0.75)';
		context.stroke();
		context.beginPath();
		for (const side of [-1, 1]) {
			context.moveTo(x + 3 * side, y - 4);
			context.lineTo(x + 7 * side, y);
			context.lineTo(x + 3 * side, y + 4);
		}
		context.lineWidth = 1.5;
		context.strokeStyle = '#1d1d1f';
		context.stroke();
	}
}
