/** Puts the page together. */

import { get } from './api.js';
import { $, alertLine, attempt, onClick } from './dom.js';
import { Editor } from './editor.js';
import { Fill } from './fill.js';
import { Folder } from './folder.js';
import { Generate } from './generate.js';
import { Jobs } from './jobs.js';
import { bindKeys } from './keys.js';
import { Pictures } from './pictures.js';
import { Runs } from './runs.js';
import { keep, keepFields, kept, ownKey } from './state.js';
import { Tools } from './tools.js';
import { Viewer } from './viewer.js';

const TABS = ['fill', 'generate', 'folder', 'runs'];

/** Makes the tabs work as a tablist does: one of them is in the order of focus, and arrows go from one to the next. */
function bindTabs(onShow) {
	const tabs = () => TABS.map((name) => $(`tab-${name}`)).filter((tab) => !tab.hidden);
	const show = (name) => {
		for (const each of TABS) {
			$(`tab-${each}`).setAttribute('aria-selected', each === name);
			$(`tab-${each}`).tabIndex = each === name ? 0 : -1;
			$(`panel-${each}`).hidden = each !== name;
		}
		keep({ tab: name });
		onShow(name);
	};
	for (const name of TABS) {
		$(`tab-${name}`).setAttribute('aria-controls', `panel-${name}`);
		$(`panel-${name}`).setAttribute('aria-labelledby', `tab-${name}`);
		onClick(`tab-${name}`, () => show(name));
	}
	$('tabs').addEventListener('keydown', (event) => {
		const all = tabs();
		const at = all.indexOf(event.target);
		const next = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: all.length - 1 }[event.key];
		if (next === undefined || at < 0) return;
		event.preventDefault();
		all.at(next % all.length).focus();
		all.at(next % all.length).click();
	});
	return show;
}

/** Opens pictures from files, by dropping and by pasting. */
function bindOpening(pictures, showTab) {
	const open = (file) => attempt(async () => {
		showTab('fill');
		alertLine('');
		await pictures.openFile(file, file.name || 'pasted.png');
	});
	for (const id of ['open', 'empty-open']) onClick(id, () => $('file').click());
	$('file').addEventListener('change', () => {
		const [file] = $('file').files;
		$('file').value = '';
		if (file) open(file);
	});
	const carriesFiles = (event) => [...event.dataTransfer.types].includes('Files');
	const mark = (on) => document.body.classList.toggle('dropping', on);
	addEventListener('dragover', (event) => {
		if (!carriesFiles(event)) return;
		event.preventDefault();
		mark(true);
	});
	addEventListener('dragleave', (event) => {
		if (!event.relatedTarget) mark(false);
	});
	addEventListener('drop', (event) => {
		mark(false);
		if (!carriesFiles(event)) return;
		event.preventDefault();
		if (event.dataTransfer.files.length) open(event.dataTransfer.files[0]);
	});
	addEventListener('paste', (event) => {
		const file = [...event.clipboardData.files].find(({ type }) => type.startsWith('image/'));
		if (!file) return;
		event.preventDefault();
		open(file);
	});
}

async function start(editor) {
	await ownKey();
	const model = await get('model');
	$('model').textContent = model.name;
	document.title = `${model.name} · diffunet`;
	const pictures = new Pictures(editor, model.limits);
	const jobs = new Jobs();
	const app = { model, editor, pictures, jobs };
	const showEmpty = () => { $('empty').hidden = Boolean(pictures.image); };

	// The choices of the fields come from the model, so what was kept is put in after them and before the tools read it.
	let fill = null;
	app.viewer = new Viewer({
		nameOf: (id) => pictures.nameOf(id),
		onSave: (job, result) => fill.save(job, result),
		onUse: (job, result) => {
			showTab('fill');
			fill.use(job, result);
		},
	});
	$('viewer-save').hidden = !model.saves;
	fill = new Fill(app);
	app.fill = fill;
	const generate = new Generate(app);
	keepFields();
	app.tools = new Tools(editor, pictures);
	const folder = new Folder(app, () => showTab('fill'));
	const runs = new Runs();
	for (const name of ['folder', 'runs']) $(`tab-${name}`).hidden = !model[name];
	const showTab = bindTabs((name) => {
		if (name === 'folder') folder.shown();
		if (name === 'runs') runs.run();
	});
	const tab = () => ({ fill, generate, folder, runs })[kept.tab];
	showTab(TABS.includes(kept.tab) && !$(`tab-${kept.tab}`).hidden ? kept.tab : 'fill');
	bindKeys({ editor, fill, tab });
	bindOpening(pictures, showTab);
	onClick('empty-generate', () => {
		showTab('generate');
		$('tab-generate').focus();
	});
	pictures.addEventListener('open', showEmpty);
	jobs.addEventListener('reset', () => app.tools.forgetSent());

	await attempt(() => pictures.start(model.image));
	showEmpty();
	await attempt(() => jobs.start());
}

const editor = new Editor($('canvas'));
onClick('dismiss', () => alertLine(''));

/**
 * The page's handle for tests and for curious people: mask() is a copy of the mask, view() how it lies on the canvas
 * (screen = mask * scale + (x, y), in CSS pixels from the canvas's corner), and ready resolves once the page is set up.
 */
window.diffunet = {
	mask: () => editor.mask && {
		width: editor.mask.width, height: editor.mask.height, bytes: editor.mask.bytes.slice(),
	},
	view: () => ({ scale: editor.view.scale, x: editor.view.x, y: editor.view.y }),
	ready: attempt(() => start(editor)),
};
