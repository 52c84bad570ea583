/** The tab Generate: its options and the pictures that come of them. */

import { addresses } from './api.js';
import { Cards, showHistory } from './cards.js';
import { command } from './command.js';
import { $, alertLine, attempt, onClick } from './dom.js';
import { isActive } from './jobs.js';
import {
	bindOptions, bindSeed, copyCommand, fillSelect, isValid, optionsIn, Progress, showCommand,
} from './run.js';

export class Generate {
	#jobs;
	#cards;
	#progress;
	#job = null;
	#chosen = null;
	#form = document.querySelector('#panel-generate form');

	constructor({ jobs, model, viewer }) {
		this.#jobs = jobs;
		$('generate-num').max = model.limits.pictures;
		$('generate-steps').placeholder = model.steps;
		fillSelect($('generate-sampler'), model.samplers);
		$('generate-sampler').value = model.sampler;
		bindOptions(this.#form, 'generate-', model, 'all in turn', () => this.run());
		bindSeed($('generate-next'), $('generate-seed'), (seed) => seed + 1);
		this.#progress = new Progress(jobs, 'generate', 'generate-');
		this.#cards = new Cards($('generate-results'), 'Picture', (index) => viewer.show(this.#job, index));
		onClick('generate-copy', () => this.copy());
		jobs.addEventListener('job', ({ detail: { job } }) => job.kind === 'generate' && this.#render());
		jobs.addEventListener('reset', () => this.#render());
	}

	run() {
		return attempt(async () => {
			if (!isValid(this.#form)) return;
			alertLine('');
			this.#chosen = null;
			await this.#jobs.submit({ kind: 'generate', options: optionsIn(this.#form) });
		});
	}

	cancel() {
		return this.#progress.cancel();
	}

	copy() {
		return copyCommand($('generate-command-block'));
	}

	#render() {
		const all = this.#jobs.of('generate');
		const job = all.find(({ id }) => id === this.#chosen)
			?? all.filter((each) => isActive(each) || each.results.length).at(-1) ?? null;
		this.#job = job;
		this.#cards.show(job);
		$('generate-empty').hidden = Boolean(job);
		const done = job && !isActive(job) && job.results.length > 0;
		showCommand($('generate-command-block'), done ? command(job) : '');
		if (done) $('generate-zip').href = addresses.zip(job);
		showHistory($('generate-history'), all, job, (former) => {
			this.#chosen = former.id;
			this.#render();
		});
	}
}
