/** A dialog that shows one result large, for pictures that are not the one on the canvas. */

import { addresses } from './api.js';
import { resultName } from './command.js';
import { $, onClick } from './dom.js';

export class Viewer {
	#shown = null;

	/** onUse(job, result) and onSave(job, result) do what the dialog's buttons say; nameOf(id) names a picture. */
	constructor({ onUse, onSave, nameOf }) {
		this.nameOf = nameOf;
		onClick('viewer-previous', () => this.step(-1));
		onClick('viewer-next', () => this.step(1));
		onClick('viewer-close', () => $('viewer').close());
		onClick('viewer-use', () => {
			$('viewer').close();
			onUse(this.#shown.job, this.#result);
		});
		onClick('viewer-save', () => onSave(this.#shown.job, this.#result));
		$('viewer').addEventListener('keydown', (event) => {
			const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
			if (step) this.step(step);
		});
	}

	get #result() {
		return this.#shown.job.results[this.#shown.index];
	}

	show(job, index) {
		this.#shown = { job, index };
		const result = this.#result;
		const count = job.results.length;
		const title = `Picture ${index + 1} of ${count}`;
		$('viewer-title').textContent = `${title}, ${result.width} × ${result.height} pixels`;
		$('viewer-image').src = addresses.result(result.id);
		$('viewer-image').alt = title;
		$('viewer-image').classList.toggle('pixels', Math.max(result.width, result.height) < 400);
		$('viewer-download').href = addresses.file(result.id);
		$('viewer-download').download = resultName(job, result, this.nameOf(job.image));
		$('viewer-previous').disabled = index === 0;
		$('viewer-next').disabled = index === count - 1;
		if (!$('viewer').open) $('viewer').showModal();
	}

	step(by) {
		const index = this.#shown.index + by;
		if (this.#shown.job.results[index]) this.show(this.#shown.job, index);
	}
}
