/** The editor: a picture, its mask, and the tools that draw on it. It knows neither of fields nor of the server. */

import { Mask } from './mask.js';
import { Pointers } from './pointers.js';
import { View } from './view.js';

/**
 * Events: 'mask' when the mask was changed by a finished step, 'tool' when the tool or its size was changed, 'split'
 * when the user moved the split, 'draw' when a stroke begins.
 */
export class Editor extends EventTarget {
	#pointers;
	/** The stroke that is being drawn, as {value, points}, or null. */
	#stroke = null;
	/** Where the last stroke of the brush ended, from which a straight line can be drawn. */
	#last = null;
	#hover = null;

	constructor(canvas) {
		super();
		this.view = new View(canvas);
		this.mask = null;
		this.tool = 'brush';
		this.size = 20;
		this.#pointers = new Pointers(canvas, this.view, {
			begin: (...values) => this.#begin(...values),
			move: (points) => this.#move(points),
			end: () => this.#end(),
			cancel: () => this.#cancel(),
			hover: (x, y) => this.#hoverAt(x, y),
		}, {
			onSplit: (share) => {
				this.view.show({ split: share });
				this.#tell('split');
			},
			onSize: (steps) => this.resize(steps),
		});
		this.view.addEventListener('move', () => this.#showCursor());
	}

	get hovers() {
		return this.#pointers.hovers;
	}

	/** The largest brush that makes sense for the picture. */
	get largestSize() {
		return this.mask ? Math.max(64, Math.round(Math.max(this.mask.width, this.mask.height) / 2)) : 500;
	}

	open(picture, width, height, transparent) {
		this.mask = new Mask(width, height);
		this.#last = null;
		this.#stroke = null;
		this.view.open(picture, this.mask, transparent);
		this.setSize(Math.min(this.size, this.largestSize));
		this.#tell('mask');
	}

	setTool(tool) {
		this.tool = tool;
		this.#showCursor();
		this.#tell('tool');
	}

	setSize(size) {
		this.size = Math.min(this.largestSize, Math.max(1, Math.round(size)));
		this.#showCursor();
		this.#tell('tool');
	}

	/** Makes the brush larger by so many steps, each of a pixel, or of a tenth where it is large. */
	resize(steps) {
		this.setSize(this.size + steps * Math.max(1, Math.round(this.size / 10)));
	}

	/** Runs an action on the mask as one step of its history. */
	change(action) {
		if (!this.mask) return;
		this.#cancel();
		this.view.maskChanged(action(this.mask));
		if (this.mask.commit()) this.#tell('mask');
	}

	undo() {
		this.#flip('undo');
	}

	redo() {
		this.#flip('redo');
	}

	/** Puts in the mask that was kept, which is no step to be undone. */
	restore(bits) {
		this.change((mask) => mask.setBits(bits));
		this.mask.past = [];
		this.#tell('mask');
	}

	holdSpace(held) {
		this.#pointers.holdSpace(held);
	}

	/** Takes back the stroke that is being drawn, and returns whether there was one. */
	cancelStroke() {
		return this.#pointers.cancel();
	}

	#flip(way) {
		if (!this.mask || this.#stroke) return;
		const rectangle = this.mask[way]();
		this.view.maskChanged(rectangle);
		if (rectangle) this.#tell('mask');
	}

	#begin(point, { erases, straight }) {
		this.#tell('draw');
		this.#stroke = { value: erases || this.tool === 'eraser' ? 0 : 255, points: [point] };
		if (!this.#brushes) {
			this.view.show({ outline: [point] });
			return;
		}
		this.#brush(straight && this.#last ? this.#last : point, point);
	}

	get #brushes() {
		return this.tool === 'brush' || this.tool === 'eraser';
	}

	#brush(from, to) {
		this.view.maskChanged(this.mask.stroke(...from, ...to, this.size, this.#stroke.value));
		this.#last = to;
	}

	#move(points) {
		if (!this.#stroke) return;
		const drawn = this.#stroke.points;
		if (this.#brushes) {
			for (const point of points) {
				this.#brush(drawn.at(-1), point);
				drawn[0] = point;
			}
		} else if (this.tool === 'rectangle') {
			const [[ax, ay], [bx, by]] = [drawn[0], points.at(-1)];
			this.#stroke.points = [drawn[0], [bx, by]];
			this.view.show({ outline: [[ax, ay], [bx, ay], [bx, by], [ax, by]] });
		} else {
			drawn.push(...points);
			this.view.show({ outline: drawn });
		}
	}

	#end() {
		if (!this.#stroke) return;
		const { points, value } = this.#stroke;
		this.#stroke = null;
		this.view.show({ outline: null });
		if (this.tool === 'rectangle' && points.length === 2) {
			this.view.maskChanged(this.mask.rectangle(...points[0], ...points[1], value));
		} else if (this.tool === 'lasso') {
			this.view.maskChanged(this.mask.polygon(points, value));
		}
		if (this.mask.commit()) this.#tell('mask');
	}

	#cancel() {
		this.#stroke = null;
		this.view.show({ outline: null });
		this.view.maskChanged(this.mask?.rollback());
	}

	#hoverAt(x, y) {
		this.#hover = x === null ? null : { x, y };
		this.#showCursor();
	}

	#showCursor() {
		const shown = this.#hover && this.#brushes && this.mask;
		this.view.setCursor(shown ? { ...this.#hover, diameter: this.size } : null);
	}

	#tell(type) {
		this.dispatchEvent(new Event(type));
	}
}
