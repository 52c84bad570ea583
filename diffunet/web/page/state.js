/**
 * What survives a reload: small things in sessionStorage, which each tab of the browser has for itself, and the
 * picture's file and the mask in IndexedDB, under a key of the tab. Where the browser keeps neither, nothing is kept.
 */

const NAME = 'diffunet';
const WEEK = 7 * 24 * 3600 * 1000;

/**
 * The small things: `key` of the tab, `page` id, `tab` shown, `fields` by their ids, `names` of pictures by the ids of
 * images, and `given`, the picture that the command line named when it was last opened.
 */
export const kept = { fields: {}, names: {}, ...read() };

const newKey = () => Array.from(crypto.getRandomValues(new Uint32Array(4)), (n) => n.toString(36)).join('');

if (!kept.key) keep({ key: newKey() });

function read() {
	try {
		return JSON.parse(sessionStorage.getItem(NAME)) ?? {};
	} catch {
		return {};
	}
}

/** Keeps small things. */
export function keep(changes) {
	Object.assign(kept, changes);
	try {
		sessionStorage.setItem(NAME, JSON.stringify(kept));
	} catch {
		// Storage is full or forbidden; the page works without it until it is closed.
	}
}

/** Keeps the values of all fields but those that follow the canvas, and puts in those that were kept. */
export function keepFields() {
	for (const field of document.querySelectorAll('input:not([type=file], #compare, #brush-range), select')) {
		const which = field.type === 'checkbox' ? 'checked' : 'value';
		const was = kept.fields[field.id];
		// The model may have other choices than when it was kept.
		const fits = !field.options || [...field.options].some(({ value }) => value === was);
		if (was !== undefined && fits) field[which] = was;
		const save = () => keep({ fields: { ...kept.fields, [field.id]: field[which] } });
		field.addEventListener('input', save);
		field.addEventListener('change', save);
	}
}

/** Puts a value into a field as if the user had typed it, so that it is kept and all who listen learn of it. */
export function setField(field, value) {
	field.value = value;
	field.dispatchEvent(new Event('input', { bubbles: true }));
}

let opened;

function database() {
	opened ??= new Promise((resolve, reject) => {
		const request = indexedDB.open(NAME, 1);
		request.onupgradeneeded = () => request.result.createObjectStore('kept');
		request.onsuccess = () => resolve(request.result);
		request.onerror = () => reject(request.error);
	});
	return opened;
}

async function run(mode, action) {
	try {
		const transaction = (await database()).transaction('kept', mode);
		return await new Promise((resolve, reject) => {
			const request = action(transaction.objectStore('kept'));
			transaction.oncomplete = () => resolve(request.result);
			transaction.onabort = () => reject(transaction.error);
		});
	} catch {
		return undefined;
	}
}

/** Keeps a large thing of this tab: 'picture' or 'mask'. */
export const keepLarge = (what, value) => run(
	'readwrite', (store) => store.put({ value, time: Date.now() }, `${kept.key}/${what}`),
);

/** Returns a large thing that was kept, or undefined. */
export const keptLarge = async (what) => (await run('readonly', (store) => store.get(`${kept.key}/${what}`)))?.value;

/** Returns whether this tab has its key from now on; another may hold it, and one that is being left for a moment. */
function holdsKey() {
	return new Promise((resolve) => {
		const hold = () => {
			resolve(true);
			return new Promise(() => {}); // until the tab is closed
		};
		const giveUp = new AbortController();
		setTimeout(() => giveUp.abort(), 1000);
		navigator.locks.request(`${NAME} ${kept.key}`, { signal: giveUp.signal }, hold).catch(() => resolve(false));
	});
}

/** Gives a tab that was duplicated, and shares the key of the first one, a key and copies of its own. */
export async function ownKey() {
	if (!navigator.locks || await holdsKey()) return; // browsers have no locks over plain HTTP
	const copies = await Promise.all(['picture', 'mask'].map(keptLarge));
	keep({ key: newKey(), page: undefined });
	await holdsKey();
	await Promise.all(['picture', 'mask'].map((what, i) => copies[i] && keepLarge(what, copies[i])));
}

/** Removes what tabs left that nobody has used for a week. */
export const forgetOld = () => run('readwrite', (store) => {
	const request = store.openCursor();
	request.onsuccess = () => {
		const cursor = request.result;
		if (cursor?.value.time < Date.now() - WEEK) cursor.delete();
		cursor?.continue();
	};
	return request;
});
