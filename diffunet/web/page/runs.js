/** The tab Runs: the runs on the server, and the report of those that are chosen. */

import { addresses, get } from './api.js';
import { $, attempt, element, onClick } from './dom.js';
import { keep, kept } from './state.js';

function line({ id, name, about }, checked) {
	const label = element('label', { className: 'check' }, element('input', { type: 'checkbox', value: id, checked }), name);
	return element('li', {}, label, element('p', { className: 'hint', textContent: about }));
}

export class Runs {
	#most;

	constructor() {
		onClick('runs-refresh', () => this.run());
		$('runs').addEventListener('change', () => this.#show());
	}

	/** Lists the runs, and shows the report as it is now. */
	run() {
		return attempt(async () => {
			const { runs, most } = await get('runs');
			this.#most = most;
			const before = runs.filter(({ id }) => kept.runs?.includes(id));
			const chosen = before.length ? before : runs.slice(0, 1);
			$('runs').replaceChildren(...runs.map((run) => line(run, chosen.includes(run))));
			this.#show();
		});
	}

	#show() {
		const boxes = [...$('runs').querySelectorAll('input')];
		const ids = boxes.filter(({ checked }) => checked).map(({ value }) => value);
		for (const box of boxes) box.disabled = !box.checked && ids.length >= this.#most;
		keep({ runs: ids });
		const src = ids.length ? addresses.report(ids) : 'about:blank';
		// Another address in the same frame would be a step back in the history.
		$('runs-report').replaceWith(element('iframe', { id: 'runs-report', title: 'Report', src }));
		$('runs-alone').href = src;
	}
}
