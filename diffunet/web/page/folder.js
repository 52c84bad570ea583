/** The tab Folder: the pictures of a folder on the server, and filling them all with one mask. */

import { addresses, get, Problem } from './api.js';
import { $, alertLine, attempt, element, onClick, say } from './dom.js';
import { bindForm, Progress } from './run.js';

const PAGE = 60;

const NO_OUT = 'To fill in all pictures, start diffunet web with --out DIR, the folder where they go.';

export class Folder {
	#app;
	#start = 0;
	#progress;
	#onOpen;

	/** onOpen() is called when one of the pictures was opened. */
	constructor(app, onOpen) {
		this.#app = app;
		this.#onOpen = onOpen;
		this.#progress = new Progress(app.jobs, 'folder', 'folder-');
		if (!app.model.saves) {
			$('folder-fill').disabled = true;
			$('folder-hint').textContent = NO_OUT;
		}
		onClick('folder-previous', () => this.#show(this.#start - PAGE));
		onClick('folder-next', () => this.#show(this.#start + PAGE));
		bindForm(document.querySelector('#panel-folder form'), () => this.run());
	}

	/** Loads the first page when the tab is shown for the first time. */
	shown() {
		if (!$('folder-images').children.length) this.#show(this.#start);
	}

	run() {
		return attempt(async () => {
			const { editor, fill, jobs, model, tools } = this.#app;
			if (!model.saves) throw new Problem(NO_OUT);
			if (!editor.mask?.count) {
				throw new Problem('Open one of the pictures and draw the mask first; it is empty.');
			}
			alertLine('');
			if (!fill.isValid()) {
				throw new Problem('An option in the tab Fill, which the folder is filled with, is out of its range.');
			}
			const options = fill.options();
			delete options.resize_mask;
			if ($('folder-resize').checked) options.resize_mask = true;
			await tools.takeMask()((mask) => jobs.submit({ kind: 'folder', mask, options }));
		});
	}

	cancel() {
		return this.#progress.cancel();
	}

	#show(start) {
		return attempt(async () => {
			const { count, images } = await get(`folder?start=${start}&count=${PAGE}`);
			this.#start = start;
			$('folder-images').replaceChildren(...images.map((image) => this.#card(image)));
			const last = start + images.length;
			$('folder-range').textContent = count ? `${start + 1} to ${last} of ${count}` : 'The folder is empty.';
			$('folder-previous').disabled = start === 0;
			$('folder-next').disabled = last >= count;
			$('folder-previous').parentElement.classList.toggle('single', count <= PAGE);
		});
	}

	#card({ number, name }) {
		const image = element('img', { alt: '', loading: 'lazy' });
		image.src = addresses.thumbnail(number);
		const caption = element('span', { className: 'caption', textContent: name });
		const button = element('button', { type: 'button', title: `Open ${name}` }, image, caption);
		button.addEventListener('click', () => attempt(async () => {
			say(`Opening ${name} …`);
			if (await this.#app.pictures.openFromFolder(number, name)) this.#onOpen();
		}));
		return element('li', {}, button);
	}
}
