/** The tab Fill: its options, its fillings, and which of them is on the canvas. */

import { addresses, post, Problem } from './api.js';
import { Cards, showHistory } from './cards.js';
import { command, maskName, resultName } from './command.js';
import {
	$, alertLine, attempt, debounced, downloadBlob, fromBase64, loadImage, onClick, say,
} from './dom.js';
import { isActive } from './jobs.js';
import { Mask } from './mask.js';
import { encodeGrey } from './png.js';
import {
	bindOptions, copyCommand, fillSelect, isValid, optionsIn, Progress, showCommand,
} from './run.js';
import { NO_PICTURE, showSaid } from './tools.js';

/** Returns a box of the picture in pixels of its mask, which are larger where the picture is very large. */
function inMask({ width, height, mask }, [x0, y0, x1, y1]) {
	const [across, down] = [mask.width / width, mask.height / height];
	return { x0: x0 * across, y0: y0 * down, x1: x1 * across, y1: y1 * down };
}

export class Fill {
	#app;
	#cards;
	#progress;
	/** The job whose pictures are shown, or null; `#chosen` whether the user picked it among the former ones. */
	#job = null;
	#chosen = false;
	/** The filling that is on the canvas, as an index into the job's results, or null. */
	#index = null;
	/** The revision of the mask with which a job was started: its first filling is shown if nothing was drawn since. */
	#revisions = new Map();
	#regions = null;
	#form = document.querySelector('#panel-fill form');

	/** `app` has the model, the editor, the pictures, the tools, the jobs and the viewer. */
	constructor(app) {
		this.#app = app;
		const { editor, jobs, model, pictures } = app;
		$('num').max = model.limits.fillings;
		fillSelect($('method'), model.methods);
		fillSelect($('fit'), model.fits);
		bindOptions(this.#form, '', model, 'any', () => this.run());
		this.#progress = new Progress(jobs, 'fill');
		this.#cards = new Cards($('results'), 'Filling', (index) => this.select(index === this.#index ? null : index));

		// Previews are painted on the canvas from the card that has loaded them.
		$('results').addEventListener('load', () => this.#showPreview(), true);
		$('compare').addEventListener('input', () => editor.view.show({ split: $('compare').value / 100 }));
		editor.addEventListener('split', () => { $('compare').value = editor.view.split * 100; });
		// Whoever works on the mask wants to see it.
		for (const type of ['draw', 'tool', 'mask']) editor.addEventListener(type, () => this.select(null));
		onClick('back', () => {
			this.select(null);
			$('canvas').focus();
		});
		$('save').hidden = !model.saves;
		onClick('save', () => this.save(this.#job, this.#result));
		onClick('use', () => this.use(this.#job, this.#result));
		onClick('copy', () => this.copy());
		onClick('copy-mask', () => attempt(() => this.#saveMask()));

		jobs.addEventListener('job', ({ detail: { job, before } }) => {
			if (job.kind === 'fill') this.#changed(job, before);
		});
		jobs.addEventListener('reset', () => this.#pick());
		pictures.addEventListener('open', () => {
			showSaid([]);
			this.select(null);
			this.#chosen = false;
			this.#pick();
		});
		const regions = debounced(() => this.#showRegions(), 300);
		editor.addEventListener('mask', regions);
		this.#form.addEventListener('input', regions);
	}

	get #result() {
		return this.#job?.results[this.#index];
	}

	/** Whether a finished filling is on the canvas. */
	get shows() {
		return this.#index !== null;
	}

	/** Whether all options are valid; what is wrong is said at its field. */
	isValid() {
		return isValid(this.#form);
	}

	/** The options as the server takes them. */
	options() {
		const { image } = this.#app.pictures;
		const options = optionsIn(this.#form);
		if (image && image.mask.width !== image.width) options.resize_mask = true;
		return options;
	}

	run() {
		return attempt(async () => {
			const { editor, jobs, pictures, tools } = this.#app;
			if (!pictures.image) throw new Problem(NO_PICTURE);
			if (!this.isValid()) return;
			if (!editor.mask.count && !pictures.image.transparent) {
				throw new Problem('Draw over what is to be filled first: the mask is empty.');
			}
			alertLine('');
			this.select(null);
			const { revision } = editor.mask;
			const options = this.options();
			const withMask = tools.takeMask();
			const image = await pictures.ensure();
			const job = await withMask((mask) => jobs.submit({ kind: 'fill', image, mask, options }));
			this.#revisions.set(job.id, revision);
			this.#chosen = false;
			this.#pick();
		});
	}

	cancel() {
		return this.#progress.cancel();
	}

	/** Shows a filling on the canvas, or the mask again where the index is null. */
	async select(index) {
		if (index === this.#index) return;
		const { editor, pictures, viewer } = this.#app;
		if (index !== null && this.#job.image !== pictures.image?.id) {
			viewer.show(this.#job, index);
			return;
		}
		this.#index = index;
		this.#render();
		if (index === null) {
			editor.view.show({ filling: null });
			return;
		}
		const filling = await attempt(() => loadImage(addresses.result(this.#result.id)));
		if (filling && this.#index === index) editor.view.show({ filling, peeking: false });
	}

	/** Goes to another filling: 1 is the next, -1 the one before. Returns whether there are any. */
	step(by) {
		const count = this.#job?.results.length ?? 0;
		if (!count || this.#job.image !== this.#app.pictures.image?.id) return false;
		const index = this.#index === null ? (by > 0 ? 0 : count - 1) : (this.#index + by + count) % count;
		const moves = this.#cards.hasFocus;
		this.select(index);
		if (moves) this.#cards.focus(index);
		say(`Filling ${index + 1} of ${count} is shown.`);
		return true;
	}

	copy() {
		return copyCommand($('command-block'));
	}

	use(job, result) {
		return attempt(() => this.#app.pictures.openResult(result, this.#nameOf(job, result)));
	}

	save(job, result) {
		return attempt(async () => {
			const { name } = await post(`results/${result.id}/save`, {});
			say(`Saved as ${name} in ${this.#app.model.out}.`);
		});
	}

	#nameOf(job, result) {
		return resultName(job, result, this.#app.pictures.nameOf(job.image));
	}

	#changed(job, before) {
		// Of earlier jobs, which come again with the connection, and of other pictures it was said at its time.
		const isOfNow = before && job.image === this.#app.pictures.image?.id;
		if (isOfNow && (before.state === 'queued' || String(job.said) !== String(before.said))) showSaid(job.said);
		this.#pick();
		const { editor } = this.#app;
		const ended = before && isActive(before) && job.state === 'done';
		const untouched = this.#revisions.get(job.id) === editor.mask?.revision;
		if (ended && untouched && job === this.#job && job.image === this.#app.pictures.image?.id) {
			editor.view.show({ split: 0 });
			$('compare').value = 0;
			this.select(0);
		}
	}

	/** Chooses which job is shown: the one that the user picked, else the latest of the picture that is open. */
	#pick() {
		const { jobs, pictures } = this.#app;
		const chosen = this.#chosen && this.#job && jobs.byId(this.#job.id);
		const suitable = (job) => job.image === pictures.image?.id && (isActive(job) || job.results.length);
		const job = chosen || jobs.of('fill').filter(suitable).at(-1) || null;
		this.#chosen = Boolean(chosen);
		if (job?.id !== this.#job?.id) this.select(null);
		this.#job = job;
		this.#render();
	}

	#render() {
		const job = this.#job;
		const { jobs, pictures } = this.#app;
		this.#cards.show(job, this.#index);
		showHistory($('history'), jobs.of('fill'), job, (former) => {
			this.select(null);
			this.#job = former;
			this.#chosen = true;
			this.#pick();
			this.select(0);
		});
		this.#showPreview();
		const done = job && !isActive(job) && job.results.length > 0;
		showCommand($('command-block'), done ? command(job, pictures.nameOf(job.image)) : '');
		$('result-bar').hidden = !this.shows;
		$('dock').hidden = !job && $('history').parentElement.hidden;
		if (done) {
			$('zip').href = addresses.zip(job);
			$('zip').hidden = job.results.length < 2;
			$('copy-mask').hidden = !job.mask;
		}
		if (!this.shows) return;
		$('result-title').textContent = `Filling ${this.#index + 1} of ${job.results.length}`;
		$('download').href = addresses.file(this.#result.id);
		$('download').download = this.#nameOf(job, this.#result);
	}

	/** Gives the user the mask of the job that is shown, which may not be the one on the canvas any more. */
	async #saveMask() {
		const { image, mask } = this.#job;
		const { width, height, bits } = await post(`images/${image}/hole`, { mask, invert: false });
		const raster = new Mask(width, height);
		raster.setBits(fromBase64(bits));
		downloadBlob(await encodeGrey(width, height, raster.bytes), maskName(this.#app.pictures.nameOf(image)));
	}

	/** Shows on the canvas what the first filling of a running job looks like now. */
	#showPreview() {
		const { editor, pictures } = this.#app;
		const job = this.#job;
		const { image } = pictures;
		const preview = this.#cards.image(0);
		if (!job || !isActive(job) || !job.box || job.image !== image?.id || !preview?.naturalWidth) {
			editor.view.show({ preview: null });
			return;
		}
		editor.view.show({ preview: { image: preview, box: inMask(image, job.box) } });
	}

	/** Shows which parts of the picture the net will see; a request that a later change outdates is given up. */
	async #showRegions() {
		const { editor, pictures, tools } = this.#app;
		this.#regions?.abort();
		this.#regions = new AbortController();
		const { signal } = this.#regions;
		const { image } = pictures;
		if (!image || (!editor.mask.count && !image.transparent)) {
			editor.view.show({ regions: [] });
			return;
		}
		try {
			const options = this.options();
			const ask = (mask) => post(`images/${image.id}/regions`, { mask, options }, { signal });
			const { regions } = await tools.takeMask()(ask);
			editor.view.show({ regions: regions.map(({ x0, y0, x1, y1 }) => inMask(image, [x0, y0, x1, y1])) });
		} catch {
			// The regions are only a hint; what is wrong with the options is said where they are used.
			if (!signal.aborted) editor.view.show({ regions: [] });
		}
	}
}
