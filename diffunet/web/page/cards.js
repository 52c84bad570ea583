/** Cards of the pictures of a job: live previews while it runs, then its results; and the strip of former jobs. */

import { addresses } from './api.js';
import { element } from './dom.js';
import { isActive } from './jobs.js';

/** So many jobs are kept in sight, the shown one among them. */
const SHOWN_JOBS = 8;

export class Cards {
	#list;
	#noun;
	#onPick;

	/** onPick(index) is called where the user picks a card; `noun` is what one of the pictures is called. */
	constructor(list, noun, onPick) {
		this.#list = list;
		this.#noun = noun;
		this.#onPick = onPick;
		list.addEventListener('click', (event) => {
			const card = event.target.closest('button');
			if (card) this.#onPick(Number(card.dataset.index));
		});
	}

	/** The <img> of a card, which shows a preview or the result. */
	image(index) {
		return this.#list.children[index]?.querySelector('img');
	}

	/** Shows the pictures of a job, or nothing. */
	show(job, selected = null) {
		const count = job ? Math.max(job.results.length, isActive(job) ? job.options.num ?? 1 : 0) : 0;
		if (this.#list.dataset.job !== (job?.id ?? '') || this.#list.children.length !== count) {
			this.#list.dataset.job = job?.id ?? '';
			this.#list.replaceChildren(...Array.from({ length: count }, (_, index) => this.#card(index)));
		}
		for (let index = 0; index < count; index += 1) this.#update(job, index, selected === index);
	}

	focus(index) {
		this.#list.children[index]?.querySelector('button').focus();
	}

	get hasFocus() {
		return this.#list.contains(document.activeElement);
	}

	#card(index) {
		const image = element('img', { alt: '', hidden: true });
		image.addEventListener('load', () => { image.hidden = false; });
		const caption = element('span', { className: 'caption', textContent: `${index + 1}` });
		return element('li', {}, element('button', { type: 'button' }, image, caption));
	}

	#update(job, index, selected) {
		const card = this.#list.children[index].firstChild;
		const result = job.results[index];
		card.dataset.index = index;
		card.disabled = !result;
		card.setAttribute('aria-pressed', selected);
		card.setAttribute('aria-label', `${this.#noun} ${index + 1}${result ? '' : ', not ready yet'}`);
		const image = card.firstChild;
		let address = result && addresses.result(result.id);
		// Where the last preview has not come yet, this one is skipped: another will follow.
		if (!result && index in job.previews && image.complete) address = addresses.preview(job, index);
		if (address && image.getAttribute('src') !== address) image.src = address;
	}
}

/** Shows former jobs as a strip of their first pictures; onPick(job) is called for the one that the user picks. */
export function showHistory(list, jobs, shown, onPick) {
	const former = jobs.filter((job) => job.results.length && job !== shown).slice(1 - SHOWN_JOBS).reverse();
	const key = former.map((job) => job.id).join(' ');
	if (list.dataset.jobs === key) return;
	list.dataset.jobs = key;
	list.parentElement.hidden = !former.length;
	list.replaceChildren(...former.map((job) => {
		const image = element('img', { alt: '', src: addresses.result(job.results[0].id) });
		const label = `Earlier: ${job.results.length} with the seed ${job.options.seed ?? 0}`;
		const button = element('button', { type: 'button', 'aria-label': label, title: label }, image);
		button.addEventListener('click', () => onPick(job));
		return element('li', {}, button);
	}));
}
