/**
 * What pointers do on the canvas: a mouse, a pen and fingers. It knows of gestures (strokes, panning, pinching, moving
 * the split), and tells the editor of strokes in pixels of the mask.
 */

/** While a pen is down, and so long after it was near, touches are those of the hand that holds it. */
const PEN_PAUSE = 1000;
const RIGHT = 2;
const MIDDLE = 1;
const PEN_ERASER = 5;

export class Pointers {
	#canvas;
	#view;
	#strokes;
	#touches = new Map();
	/** What is going on, as {kind: 'stroke' | 'pan' | 'split' | 'pinch', id, x, y}, or null. */
	#gesture = null;
	#penSeen = -Infinity;
	#space = false;
	#control = false;

	/**
	 * `strokes` has the methods begin(point, {erases, straight}), move(points), end(), cancel() and hover(x, y), the last
	 * of which is called with null where no pointer is over the canvas; onSplit(share) is told where the split is moved,
	 * and onSize(steps) that the brush is to be larger or smaller.
	 */
	constructor(canvas, view, strokes, { onSplit, onSize }) {
		this.#canvas = canvas;
		this.#view = view;
		this.#strokes = strokes;
		this.onSplit = onSplit;
		this.onSize = onSize;
		this.hovers = false;
		const heard = {
			pointerdown: (event) => this.#down(event),
			pointermove: (event) => this.#move(event),
			pointerup: (event) => this.#up(event),
			pointercancel: (event) => this.#up(event, true),
			pointerleave: () => this.#leave(),
			contextmenu: (event) => event.preventDefault(),
			wheel: (event) => this.#wheel(event),
		};
		for (const [type, hear] of Object.entries(heard)) canvas.addEventListener(type, hear, { passive: false });
		// A pinch on a touchpad comes as a wheel with ctrlKey set though the key is up, so the key itself is watched.
		for (const type of ['keydown', 'keyup']) {
			addEventListener(type, (event) => {
				if (event.key === 'Control') this.#control = type === 'keydown';
			}, true);
		}
		addEventListener('blur', () => {
			this.#control = false;
			this.holdSpace(false);
		});
	}

	get draws() {
		return this.#gesture?.kind === 'stroke';
	}

	/** While Space is held, dragging pans. */
	holdSpace(held) {
		this.#space = held;
		this.#showCursor();
	}

	/** Takes back the stroke that is being drawn, and returns whether there was one. */
	cancel() {
		if (!this.draws) return false;
		this.#gesture = null;
		this.#strokes.cancel();
		return true;
	}

	#place(event) {
		const { left, top } = this.#canvas.getBoundingClientRect();
		return { x: event.clientX - left - this.#canvas.clientLeft, y: event.clientY - top - this.#canvas.clientTop };
	}

	#ignores(event) {
		if (event.pointerType === 'pen') this.#penSeen = event.timeStamp;
		return event.pointerType === 'touch' && event.timeStamp - this.#penSeen < PEN_PAUSE;
	}

	#down(event) {
		if (this.#ignores(event) || !this.#view.mask) return;
		const { x, y } = this.#place(event);
		this.#canvas.setPointerCapture(event.pointerId);
		if (event.pointerType === 'touch') {
			this.#touches.set(event.pointerId, { x, y });
			if (this.#touches.size === 2) {
				// The first finger's stroke was the beginning of a pinch, and nothing is left of it.
				this.cancel();
				this.#gesture = { kind: 'pinch', ...this.#pinch() };
				return;
			}
		} else if (event.pointerType === 'pen' && this.#touches.size) {
			this.cancel();
			this.#gesture = null;
			this.#touches.clear();
		}
		if (this.#gesture) return;
		const { pointerId: id, button } = event;
		if (button === MIDDLE || (this.#space && button === 0)) {
			event.preventDefault();
			this.#gesture = { kind: 'pan', id, x, y };
		} else if (button === 0 && this.#view.isAtSplit(x)) {
			this.#gesture = { kind: 'split', id };
		} else if (button === 0 || button === RIGHT || button === PEN_ERASER) {
			this.#gesture = { kind: 'stroke', id };
			this.#strokes.begin(this.#view.toMask(x, y), { erases: button !== 0, straight: event.shiftKey });
		}
		this.#showCursor();
	}

	#move(event) {
		if (this.#ignores(event)) return;
		const { x, y } = this.#place(event);
		this.hovers = event.pointerType !== 'touch';
		if (this.#touches.has(event.pointerId)) this.#touches.set(event.pointerId, { x, y });
		const gesture = this.#gesture;
		if (gesture?.kind === 'pinch') {
			this.#pinched(gesture);
		} else if (gesture && gesture.id === event.pointerId) {
			if (gesture.kind === 'pan') {
				this.#view.pan(x - gesture.x, y - gesture.y);
				Object.assign(gesture, { x, y });
			} else if (gesture.kind === 'split') {
				this.onSplit(this.#view.splitAt(x));
			} else {
				const events = event.getCoalescedEvents?.() ?? [];
				this.#strokes.move((events.length ? events : [event]).map((each) => {
					const place = this.#place(each);
					return this.#view.toMask(place.x, place.y);
				}));
			}
		}
		if (this.hovers) this.#strokes.hover(x, y);
		this.#showCursor(this.#view.isAtSplit(x));
	}

	#up(event, cancelled = false) {
		const touched = this.#touches.delete(event.pointerId);
		const gesture = this.#gesture;
		if (gesture?.kind === 'pinch') {
			// The gesture lasts until both fingers are off, so that the one that is left does not draw.
			if (!this.#touches.size) this.#gesture = null;
		} else if (gesture?.id === event.pointerId) {
			this.#gesture = null;
			// The system cancels the touch of a palm; a mouse or a pen whose stroke is broken off has still drawn it.
			if (gesture.kind === 'stroke') {
				if (cancelled && touched) this.#strokes.cancel();
				else this.#strokes.end();
			}
		}
		this.#showCursor();
	}

	#leave() {
		this.hovers = false;
		this.#strokes.hover(null);
	}

	/** Returns the middle between two fingers and how far they are apart. */
	#pinch() {
		const [a, b] = this.#touches.values();
		return { x: (a.x + b.x) / 2, y: (a.y + b.y) / 2, apart: Math.max(1, Math.hypot(a.x - b.x, a.y - b.y)) };
	}

	#pinched(gesture) {
		if (this.#touches.size < 2) return;
		const now = this.#pinch();
		this.#view.pan(now.x - gesture.x, now.y - gesture.y);
		this.#view.zoom(now.apart / gesture.apart, now.x, now.y);
		Object.assign(gesture, now);
	}

	#wheel(event) {
		event.preventDefault();
		const lines = event.deltaMode === WheelEvent.DOM_DELTA_LINE;
		const delta = event.deltaY * (lines ? 33 : 1);
		if (!delta) return;
		if (event.altKey || (event.ctrlKey && this.#control)) {
			this.onSize(-Math.sign(delta));
			return;
		}
		const { x, y } = this.#place(event);
		this.#view.zoom(Math.exp(-delta * (event.ctrlKey ? 0.01 : 0.0015)), x, y);
	}

	#showCursor(atSplit = false) {
		const kind = this.#gesture?.kind;
		const resting = this.#space ? 'grab' : (atSplit ? 'ew-resize' : 'crosshair');
		this.#canvas.style.cursor = { pan: 'grabbing', split: 'ew-resize', stroke: 'crosshair' }[kind] ?? resting;
	}
}
