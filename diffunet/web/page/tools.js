/** The tool panel: its buttons and fields drive the editor, and show what the editor is set to. */

import { post, Problem } from './api.js';
import { maskName } from './command.js';
import { $, attempt, downloadBlob, element, fromBase64, numberIn, onClick, say } from './dom.js';
import { encodeGrey } from './png.js';

/** Where there is no picture, this is what all tools have to say. */
export const NO_PICTURE = 'There is no picture yet; open one first.';

export class Tools {
	#editor;
	#pictures;
	/** The last mask that was sent, as {mask, revision, id}; masks that have not changed are not sent again. */
	#sent = {};

	constructor(editor, pictures) {
		this.#editor = editor;
		this.#pictures = pictures;
		for (const button of document.querySelectorAll('[data-tool]')) {
			button.addEventListener('click', () => editor.setTool(button.dataset.tool));
		}
		this.#bindSize();
		const onMask = {
			undo: () => editor.undo(),
			redo: () => editor.redo(),
			invert: () => editor.change((mask) => mask.invert()),
			clear: () => editor.change((mask) => mask.clear()),
			grow: () => editor.change((mask) => mask.grow(numberIn($('amount')) ?? 1)),
			shrink: () => editor.change((mask) => mask.grow(-(numberIn($('amount')) ?? 1))),
			transparent: () => attempt(() => this.#takeHole(null)),
			'load-mask': () => $('mask-file').click(),
			'save-mask': () => this.save(),
			'add-box': () => this.#addBox(),
			'zoom-in': () => editor.view.zoom(1.25),
			'zoom-out': () => editor.view.zoom(0.8),
			'zoom-100': () => editor.view.zoom(1 / editor.view.scale),
			'zoom-fit': () => editor.view.fit(),
		};
		for (const [id, action] of Object.entries(onMask)) {
			onClick(id, () => (editor.mask ? action() : say(NO_PICTURE)));
		}
		$('mask-file').addEventListener('change', () => attempt(async () => {
			const [file] = $('mask-file').files;
			$('mask-file').value = '';
			if (file) await this.#takeHole(file);
		}));
		const colour = () => editor.view.setColour($('colour').value, Number($('opacity').value));
		for (const id of ['colour', 'opacity']) $(id).addEventListener('input', colour);
		colour();
		editor.addEventListener('tool', () => this.#showTool());
		editor.addEventListener('mask', () => this.#showMask());
		editor.view.addEventListener('move', () => {
			$('zoom-100').textContent = `${Math.round(editor.view.scale * 100)}%`;
		});
		this.#showTool();
		this.#showMask();
	}

	/**
	 * Takes the mask as it is now, and returns the function that does an action with it: action(id) is called with its id
	 * on the server, or null where nothing is marked.
	 */
	takeMask() {
		const { mask } = this.#editor;
		if (!mask?.count) return (action) => action(null);
		const { width, height, revision } = mask;
		const bytes = mask.committed.slice();
		const send = async () => {
			if (this.#sent.mask !== mask || this.#sent.revision !== revision) {
				const { id } = await post('masks', await encodeGrey(width, height, bytes));
				this.#sent = { mask, revision, id };
			}
			return this.#sent.id;
		};
		return async (action) => {
			try {
				return await action(await send());
			} catch (error) {
				// The server drops masks that have not been used for long; such a one is sent again.
				if (error.status !== 404) throw error;
				this.forgetSent();
				return action(await send());
			}
		};
	}

	/** Forgets which mask was sent, because the server does not have it any more. */
	forgetSent() {
		this.#sent = {};
	}

	/** Gives the user the mask as a file. */
	save() {
		return attempt(async () => {
			const { width, height, committed } = this.#editor.mask;
			downloadBlob(await encodeGrey(width, height, committed), maskName(this.#pictures.name));
		});
	}

	#bindSize() {
		const editor = this.#editor;
		// The range is logarithmic, because one pixel more is much for a small brush and little for a large one.
		$('brush-range').addEventListener('input', () => {
			editor.setSize(editor.largestSize ** (Number($('brush-range').value) / 100));
		});
		$('brush-size').addEventListener('input', () => {
			const size = numberIn($('brush-size'));
			if (size) editor.setSize(size);
		});
		$('brush-size').addEventListener('blur', () => this.#showTool());
		const kept = numberIn($('brush-size'));
		if (kept) editor.setSize(kept);
	}

	/** Marks what the file of a mask does or, without one, what is transparent. */
	async #takeHole(file) {
		const raster = this.#editor.mask;
		const mask = file && (await post('masks', file)).id;
		const id = await this.#pictures.ensure();
		const { bits, said } = await post(`images/${id}/hole`, { mask, invert: false });
		if (raster !== this.#editor.mask) throw new Problem('Nothing was marked: another picture was opened meanwhile.');
		this.#editor.change(() => raster.setBits(fromBase64(bits)));
		showSaid(said);
		say(said[0] ?? `${this.#editor.mask.count} pixels are marked.`);
	}

	#addBox() {
		const [x0, y0, x1, y1] = ['x0', 'y0', 'x1', 'y1'].map((side) => numberIn($(`box-${side}`)));
		const { width, height } = this.#editor.mask;
		const inside = [x0, y0, x1, y1].every(Number.isInteger) && Math.max(0, x0) < Math.min(width, x1)
			&& Math.max(0, y0) < Math.min(height, y1);
		if (!inside) {
			say(`A box has whole numbers with x0 < x1 and y0 < y1, within ${width} × ${height} pixels.`);
			return;
		}
		this.#editor.change((mask) => mask.box(x0, y0, x1, y1));
		say(`The box ${x0}, ${y0}, ${x1}, ${y1} is marked.`);
	}

	#showTool() {
		const { tool, size, largestSize } = this.#editor;
		for (const button of document.querySelectorAll('[data-tool]')) {
			button.setAttribute('aria-pressed', button.dataset.tool === tool);
		}
		if (document.activeElement !== $('brush-size')) {
			$('brush-size').value = size;
			$('brush-size').dispatchEvent(new Event('change', { bubbles: true }));
		}
		$('brush-size').max = largestSize;
		$('brush-range').value = (100 * Math.log(size)) / Math.log(largestSize);
		$('brush-range').setAttribute('aria-valuetext', `${size} pixels`);
	}

	#showMask() {
		const { mask } = this.#editor;
		$('undo').disabled = !mask?.past.length;
		$('redo').disabled = !mask?.future.length;
		const { image, name } = this.#pictures;
		$('transparent').hidden = !image?.transparent;
		if (!mask || !image) return;
		const share = (100 * mask.count) / mask.bytes.length;
		const marked = mask.count ? `${share < 1 ? share.toFixed(1) : Math.round(share)}% marked` : 'nothing marked';
		$('facts').textContent = `${name} · ${image.width} × ${image.height} · ${marked}`;
	}
}

/** Shows the lines about how a mask was understood. */
export function showSaid(lines) {
	$('said').replaceChildren(...lines.map((line) => element('li', { textContent: line })));
	$('said').hidden = !lines.length;
}
