/** Small helpers for the document. Text always goes in as text, never as HTML. */

import { Problem } from './api.js';

export const $ = (id) => document.getElementById(id);

export const onClick = (id, action) => $(id).addEventListener('click', action);

/** Returns a new element with the properties, or attributes where it has no such property, and the children given. */
export function element(tag, properties = {}, ...children) {
	const made = document.createElement(tag);
	for (const [name, value] of Object.entries(properties)) {
		if (name in made) made[name] = value;
		else made.setAttribute(name, value);
	}
	made.append(...children);
	return made;
}

/** Says a line where screen readers announce it; it stays in sight until the next. */
export function say(text) {
	if ($('status').textContent !== text) $('status').textContent = text;
}

/** Shows a line as an alert until it is dismissed, or takes it away where the text is empty. */
export function alertLine(text) {
	$('error').textContent = text;
	$('alert').hidden = !text;
}

/** Runs what the user asked for, and shows why where it cannot be done. */
export async function attempt(action) {
	try {
		return await action();
	} catch (error) {
		if (error.name === 'AbortError') return undefined;
		alertLine(error.message);
		if (!(error instanceof Problem)) console.error(error);
		return undefined;
	}
}

export const fromBase64 = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

/** Gives the user a file under the name. */
export function downloadBlob(blob, name) {
	const link = element('a', { href: URL.createObjectURL(blob), download: name });
	link.click();
	setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

/** Puts text on the clipboard, also where the page came over plain HTTP and browsers refuse the modern way. */
export async function copyText(text) {
	try {
		await navigator.clipboard.writeText(text);
	} catch {
		const area = element('textarea', { value: text, className: 'off-screen' });
		const focused = document.activeElement;
		(document.querySelector('dialog[open]') ?? document.body).append(area);
		area.select();
		document.execCommand('copy');
		area.remove();
		focused?.focus();
	}
}

/** Returns a picture that is ready to be drawn. */
export async function loadImage(address) {
	const image = new Image();
	image.src = address;
	try {
		await image.decode();
	} catch {
		throw new Problem('The picture could not be loaded from the server.');
	}
	return image;
}

/** Returns a function that calls another once the calls have paused for as many milliseconds. */
export function debounced(action, pause) {
	let timer;
	return (...values) => {
		clearTimeout(timer);
		timer = setTimeout(() => action(...values), pause);
	};
}

/** Returns the number in a field, at least its min and at most its max, or null where there is none. */
export function numberIn(field) {
	if (field.value.trim() === '' || !Number.isFinite(field.valueAsNumber)) return null;
	const [min, max] = [field.min || '-Infinity', field.max || 'Infinity'].map(Number);
	return Math.min(max, Math.max(min, field.valueAsNumber));
}
