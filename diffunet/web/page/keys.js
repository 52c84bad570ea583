/** Keys, and the dialog that lists them. */

import { $, element, onClick } from './dom.js';

/** A press of Tab shorter than this moves the focus, as Tab does; held longer, it only shows the original. */
const TAP = 250;

/** What the dialog shows: keys and what they do. */
const LIST = [
	['Ctrl Enter, Shift R', 'Run'],
	['Esc', 'Cancel the run, else show all of the picture'],
	['B, E', 'Brush, eraser; X changes to and fro'],
	['R, L', 'Rectangle, lasso'],
	['[ ]', 'Smaller and larger brush; Ctrl or Alt with the wheel'],
	['Shift click', 'Straight line from the end of the last stroke'],
	['Right button', 'Erase, with any tool'],
	['Ctrl Z, Ctrl Shift Z', 'Undo, redo'],
	['I, Delete', 'Invert, clear'],
	['Wheel, + −', 'Zoom'],
	['0, 1', 'All of the picture, one pixel to one'],
	['Space drag', 'Pan; middle button, or the arrows on the canvas'],
	['← →', 'Through the fillings'],
	['Tab held, O held', 'Show the original'],
	['Ctrl V', 'Open the picture from the clipboard'],
	['Ctrl C', 'Copy the command of the fillings'],
	['H, ?', 'This list'],
];

/** The buttons of the tab Fill that keys press. */
const BUTTONS = {
	b: 'tool-brush', e: 'tool-eraser', r: 'tool-rectangle', l: 'tool-lasso', i: 'invert', delete: 'clear',
	'+': 'zoom-in', '=': 'zoom-in', '-': 'zoom-out', 0: 'zoom-fit', 1: 'zoom-100',
};

const isTyping = (target) => target.matches?.(
	'select, textarea, input:not([type=range], [type=checkbox], [type=color], [type=file])',
);

/**
 * `app` has the editor and the fill tab; tab() returns the tab that is shown, as an object with run(), cancel() and
 * copy().
 */
export function bindKeys({ editor, fill, tab }) {
	$('keys-list').replaceChildren(...LIST.flatMap(([keys, what]) => [
		element('dt', {}, ...keys.split(', ').flatMap((key, i) => [i ? ' ' : '', element('kbd', { textContent: key })])),
		element('dd', { textContent: what }),
	]));
	const help = () => $('keys').showModal();
	onClick('help', help);
	onClick('keys-close', () => $('keys').close());

	const nobodyHasFocus = () => [document.body, $('canvas')].includes(document.activeElement);
	const isFill = () => tab() === fill;
	let tabbed = 0;

	/** Returns whether the key did something, so that the browser does not. */
	const press = (event) => {
		const { key, target } = event;
		const control = event.ctrlKey || event.metaKey;
		const name = key.toLowerCase();
		if ((control && key === 'Enter') || (name === 'r' && event.shiftKey && !control && !isTyping(target))) {
			tab().run();
			return true;
		}
		if (key === 'Escape') {
			if (editor.cancelStroke() || tab().cancel?.()) return true;
			if (isFill() && !isTyping(target)) editor.view.fit();
			return false;
		}
		if (isTyping(target)) return false;
		if (control) {
			if (isFill() && (name === 'z' || name === 'y')) {
				editor[name === 'y' || event.shiftKey ? 'redo' : 'undo']();
				return true;
			}
			return name === 'c' && getSelection().isCollapsed && (!isFill() || fill.shows) && Boolean(tab().copy?.());
		}
		if (event.altKey) return false;
		if (name === 'h' || key === '?') return help() ?? true;
		if (!isFill()) return false;
		if (key === 'Tab' && !event.shiftKey && fill.shows && nobodyHasFocus()) {
			if (!event.repeat) tabbed = event.timeStamp;
			editor.view.show({ peeking: true });
			return true;
		}
		if (key === ' ') {
			// A button that was reached by keyboard is pressed by Space, also while the mouse happens to be on the canvas.
			const pans = nobodyHasFocus() || (editor.hovers && !document.activeElement.matches(':focus-visible'));
			if (pans) editor.holdSpace(true);
			return pans;
		}
		if (key.startsWith('Arrow')) return arrow(key, target);
		if (key === '[' || key === ']') editor.resize(key === '[' ? -1 : 1);
		else if (name === 'o') editor.view.show({ peeking: true });
		else if (name === 'x') $(editor.tool === 'eraser' ? 'tool-brush' : 'tool-eraser').click();
		else if (BUTTONS[name]) $(BUTTONS[name]).click();
		else return false;
		return true;
	};

	const arrow = (key, target) => {
		if (target.matches?.('input, [role=tab], code')) return false;
		if (fill.shows || target !== $('canvas')) {
			return ['ArrowLeft', 'ArrowRight'].includes(key) && fill.step(key === 'ArrowLeft' ? -1 : 1);
		}
		const [dx, dy] = { ArrowLeft: [40, 0], ArrowRight: [-40, 0], ArrowUp: [0, 40], ArrowDown: [0, -40] }[key];
		editor.view.pan(dx, dy);
		return true;
	};

	addEventListener('keydown', (event) => {
		if (document.querySelector('dialog[open]') || event.isComposing) return;
		if (press(event)) event.preventDefault();
	});
	addEventListener('keyup', (event) => {
		if (event.key === ' ') editor.holdSpace(false);
		if (event.key.toLowerCase() === 'o') editor.view.show({ peeking: false });
		if (event.key === 'Tab' && tabbed) {
			editor.view.show({ peeking: false });
			// Nobody is kept on the canvas: a short press goes on to what comes after it, or from nowhere to the beginning.
			const next = document.activeElement === $('canvas') ? $('compare') : $('tab-fill');
			if (event.timeStamp - tabbed < TAP) next.focus();
			tabbed = 0;
		}
	});
	addEventListener('blur', () => editor.view.show({ peeking: false }));
}
