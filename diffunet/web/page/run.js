/** What tabs have in common: a job's progress, its buttons, and fields of options. */

import { $, alertLine, attempt, copyText, element, numberIn, say } from './dom.js';
import { announcement, isActive, progressText } from './jobs.js';
import { setField } from './state.js';

/** Puts choices into a <select>, given as texts or as [value, text]. */
export function fillSelect(select, choices) {
	select.replaceChildren(...choices.map((choice) => {
		const [value, textContent] = [choice].flat().length === 2 ? choice : [choice, choice];
		return element('option', { value, textContent });
	}));
}

/** Makes a button put into a field a seed that is made of the one before. */
export function bindSeed(button, field, make) {
	button.addEventListener('click', () => {
		setField(field, make(Number(field.value)));
		say(`The seed is ${field.value}.`);
	});
}

/** Makes a form run instead of being sent; `run` asks `isValid`, as it is called by keys, too. */
export function bindForm(form, run) {
	form.noValidate = true;
	form.addEventListener('submit', (event) => {
		event.preventDefault();
		run();
	});
}

/** Sets up what the forms of Fill and Generate have in common: no label is called `none`, and ids have the prefix. */
export function bindOptions(form, prefix, model, none, run) {
	const field = (name) => $(prefix + name);
	fillSelect(field('label'), [['', none], ...model.classes.map(String)]);
	field('label').closest('.row').hidden = !model.classes.length;
	field('guidance').closest('.row').hidden = !model.classes.length && !model.weaker;
	bindSeed(field('dice'), field('seed'), () => crypto.getRandomValues(new Uint32Array(1))[0] % 1000000);
	bindForm(form, run);
}

/** Returns whether all fields of a form that can be seen are valid; says at the first one what is wrong with it. */
export function isValid(form) {
	const wrong = [...form.elements].find((field) => !field.closest('.row')?.hidden && !field.checkValidity());
	wrong?.closest('details')?.setAttribute('open', '');
	wrong?.reportValidity();
	return !wrong;
}

/** Options that are as the server has them anyway are not sent, so that the command stays short. */
const STANDARD = { feather: 0, fit: 'auto', grow: 0, guidance: 1, label: '', method: 'auto', shrink: 0 };

/** Returns the options in the fields of a form, by their names; what is hidden is none of the model's. */
export function optionsIn(form) {
	const fields = [...form.elements].filter((field) => field.name && !field.closest('.row').hidden);
	const all = fields.map((field) => [field.name, field.type === 'number' ? numberIn(field) : field.value]);
	const chosen = all.filter(([name, value]) => value !== null && value !== STANDARD[name]);
	return { num: 1, seed: 0, ...Object.fromEntries(chosen) };
}

/** Shows the progress of jobs of one kind, and lets the user cancel them. */
export class Progress {
	#jobs;
	#kind;
	#cancel;
	#bar;
	#text;

	/** What it shows stands behind the button 'cancel'; the ids have the prefix given. */
	constructor(jobs, kind, prefix = '') {
		this.#jobs = jobs;
		this.#kind = kind;
		this.#cancel = $(`${prefix}cancel`);
		this.#bar = element('progress', { id: `${prefix}progress`, 'aria-label': 'Progress' });
		this.#text = element('span', { id: `${prefix}progress-text` });
		this.#cancel.after(element('div', { className: 'progress', hidden: true }, this.#bar, this.#text));
		this.#cancel.addEventListener('click', () => this.cancel());
		jobs.addEventListener('job', ({ detail: { job, before } }) => {
			if (job.kind !== kind) return;
			const line = (before || isActive(job)) && announcement(job, before);
			if (line) say(line);
			if (before && job.error && !before.error) alertLine(job.error);
			this.#show();
		});
		jobs.addEventListener('reset', () => this.#show());
	}

	/** Cancels the first job that is queued or running, and returns whether there is one. */
	cancel() {
		const [job] = this.#jobs.active(this.#kind);
		if (job) attempt(() => this.#jobs.cancel(job));
		return Boolean(job);
	}

	#show() {
		const active = this.#jobs.active(this.#kind);
		const [job] = active;
		// A button that vanishes takes the focus with it, so it is given to the button that starts the next run.
		if (!job && document.activeElement === this.#cancel) this.#cancel.previousElementSibling.focus();
		this.#cancel.hidden = !job;
		this.#bar.parentElement.hidden = !job;
		if (!job) return;
		const [value, max] = job.files ? [job.files.done, job.files.total] : [job.step, job.steps];
		this.#bar.max = Math.max(1, max);
		this.#bar.value = value;
		const more = active.length > 1 ? ` · ${active.length - 1} more queued` : '';
		this.#text.textContent = progressText(job) + more;
	}
}

/** Shows the command of a job in a block, or hides the block. */
export function showCommand(block, text) {
	block.hidden = !text;
	block.querySelector('code').textContent = text;
}

/** Copies the command in a block, and returns whether there is one. */
export function copyCommand(block) {
	if (block.hidden) return false;
	copyText(block.querySelector('code').textContent);
	say('The command is copied.');
	return true;
}
