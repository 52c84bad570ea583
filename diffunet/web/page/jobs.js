/** The jobs of this page, as the server's event stream tells of them. */

import { GONE, post, remove } from './api.js';
import { $, alertLine } from './dom.js';
import { keep, kept } from './state.js';

const RETRY = 2000;

export const isActive = (job) => job.state === 'queued' || job.state === 'running';

/** Event 'job' with the job as detail when one is new or has changed, 'reset' when all of them are gone. */
export class Jobs extends EventTarget {
	#jobs = new Map();
	#stream = null;
	#checking = false;

	/** Jobs of a kind, the oldest first. */
	of(kind) {
		return [...this.#jobs.values()].filter((job) => job.kind === kind);
	}

	byId(id) {
		return this.#jobs.get(id);
	}

	/** The jobs of a kind that are queued or running, the oldest first. */
	active(kind) {
		return this.of(kind).filter(isActive);
	}

	async start() {
		await this.#knowPage();
		this.#listen();
	}

	async submit(body) {
		await this.#knowPage();
		const job = await post('jobs', { page: kept.page, ...body });
		this.#take(job);
		return job;
	}

	async cancel(job) {
		this.#take(await remove(`jobs/${job.id}`));
	}

	/** Makes sure that the server knows this page; it does not where it was started again. */
	async #knowPage() {
		const { page } = await post('pages', kept.page ? { page: kept.page } : {});
		if (page === kept.page) return;
		keep({ page });
		if (this.#stream) this.#listen();
		this.#jobs.clear();
		this.dispatchEvent(new Event('reset'));
	}

	#listen() {
		this.#stream?.close();
		const stream = new EventSource(`api/events?page=${encodeURIComponent(kept.page)}`);
		stream.addEventListener('job', (event) => this.#take(JSON.parse(event.data)));
		stream.addEventListener('open', () => {
			if ($('error').textContent === GONE) alertLine('');
		});
		stream.addEventListener('error', () => this.#check());
		this.#stream = stream;
	}

	/** Finds out why the stream has ended, and goes on until there is one again. */
	async #check() {
		if (this.#checking) return;
		this.#checking = true;
		try {
			await new Promise((resolve) => setTimeout(resolve, RETRY));
			if (this.#stream.readyState === EventSource.OPEN) return;
			await this.#knowPage();
			if (this.#stream.readyState === EventSource.CLOSED) this.#listen();
		} catch (error) {
			alertLine(error.message);
			if (error.status !== 401) setTimeout(() => this.#check(), RETRY);
		} finally {
			this.#checking = false;
		}
	}

	#take(job) {
		const before = this.#jobs.get(job.id);
		// The answer to a request may come after the event that tells of what followed.
		if (before && !isActive(before) && isActive(job)) return;
		this.#jobs.set(job.id, job);
		this.dispatchEvent(new CustomEvent('job', { detail: { job, before } }));
	}
}

/** Returns how far a job is, in words. */
export function progressText(job) {
	if (job.state === 'queued') {
		return job.position > 1 ? `Queued, ${job.position - 1} before it` : 'Queued, the next';
	}
	if (job.state === 'cancelled') return 'Cancelled';
	if (job.state === 'failed') return 'Failed';
	if (job.kind === 'folder' && job.files) {
		const failed = job.files.failed ? `, ${job.files.failed} failed` : '';
		return `${job.files.done} of ${job.files.total} pictures${failed}`;
	}
	return job.state === 'done' ? 'Done' : `Step ${job.step} of ${job.steps}`;
}

/** Returns the line to announce for a change of a job, or null: its beginning, each quarter, and its end. */
export function announcement(job, before) {
	const quarter = (each) => Math.floor((4 * (each?.step ?? 0)) / Math.max(1, each?.steps ?? 1));
	const what = { fill: 'The filling', generate: 'The generating', folder: 'The filling of the folder' }[job.kind];
	if (before?.state !== job.state) {
		if (job.state === 'done') {
			const count = job.results.length;
			return count ? `${count} ${count === 1 ? 'picture is' : 'pictures are'} ready.` : `${what} is done.`;
		}
		const how = { queued: 'is queued', running: 'has begun', cancelled: 'was cancelled' }[job.state];
		return how ? `${what} ${how}.` : null;
	}
	const now = quarter(job);
	if (job.state !== 'running' || now <= quarter(before) || now > 3) return null;
	return `${now * 25}% of the steps are done.`;
}
