/** The picture that is being edited: opening it from wherever it comes, and keeping it over a reload. */

import { addresses, get, post, Problem } from './api.js';
import { attempt, loadImage, say } from './dom.js';
import { forgetOld, keep, keepLarge, kept, keptLarge } from './state.js';

/** Ids change with each start of the server, so pictures that the server has itself are known by this. */
const described = ({ name, width, height }) => `${name} ${width} ${height}`;

/** Event 'open' when another picture was opened. */
export class Pictures extends EventTarget {
	#editor;
	#limits;
	/** What the server gets again where it has forgotten the picture: {blob} or {folder}. */
	#source = null;
	/** How many pictures were asked for, and the number of the one that is shown. */
	#asked = 0;
	#shown = 0;

	constructor(editor, limits) {
		super();
		this.#editor = editor;
		this.#limits = limits;
		/** The server's IMAGE, or null; its name is the one that the user knows. */
		this.image = null;
		editor.addEventListener('mask', () => this.#keepMask());
	}

	get name() {
		return this.image ? this.nameOf(this.image.id) : null;
	}

	/** Returns the name of a picture of this page by its id. */
	nameOf(id) {
		return kept.names[id] ?? 'picture.png';
	}

	/** Opens a file of the user's. */
	async openFile(blob, name) {
		if (blob.size > this.#limits.body) {
			const megabytes = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;
			const most = megabytes(this.#limits.body);
			throw new Problem(`${name} has ${megabytes(blob.size)}; the server takes at most ${most}.`);
		}
		say(`Opening ${name} …`);
		await this.#show(async () => ({ image: await post('images', blob), name, source: { blob } }));
	}

	/** Opens a result as the next picture. */
	openResult(result, name) {
		return this.#show(async () => {
			const image = await post(`images?result=${result.id}`);
			const response = await fetch(addresses.file(result.id));
			return { image, name, source: { blob: await response.blob() } };
		});
	}

	/** Opens a picture of the folder, and returns whether it is shown. */
	openFromFolder(number, name) {
		return this.#show(async () => ({ image: await post(`images?folder=${number}`), name, source: { folder: number } }));
	}

	/** Opens what was kept, else what the command line names. */
	start(given) {
		forgetOld();
		return this.#show(async () => {
			const picture = await keptLarge('picture');
			if (picture && (!given || described(given) === kept.given)) {
				const bits = await keptLarge('mask');
				const image = await attempt(() => this.#again(picture, given));
				if (image) return { ...picture, image, bits };
			}
			if (given) keep({ given: described(given) });
			return given && { image: given, name: given.name, source: {} };
		});
	}

	/** Makes sure that the server still has the picture, which it may have dropped for others, and returns its id. */
	async ensure() {
		const { image } = this;
		const found = await this.#again({ image, source: this.#source });
		if (!found) throw new Problem('The server has forgotten the picture; open it again.');
		if (found.id !== image.id) this.#rename(found, this.nameOf(image.id));
		if (this.image === image) this.image = found; // another may have been opened meanwhile
		return found.id;
	}

	async #again({ image, source }, given) {
		const known = await post(`images?known=${image.id}`);
		if (known) return known;
		if (source.blob) return post('images', source.blob);
		// What is in the folder may have changed, and the server may have been started with another picture.
		const found = source.folder === undefined
			? given ?? (await get('model')).image
			: await post(`images?folder=${source.folder}`);
		return found && described(found) === described(image) ? found : null;
	}

	/** Shows the picture that find() gets, unless one that was asked for later is shown by then; returns whether it is. */
	async #show(find) {
		this.#asked += 1;
		const number = this.#asked;
		const found = await find();
		const picture = found && await loadImage(addresses.picture(found.image.id));
		if (!picture || number < this.#shown) return false;
		const { image, name, source, bits } = found;
		this.#shown = number;
		this.image = image;
		this.#source = source;
		this.#rename(image, name ?? image.name);
		this.#editor.open(picture, image.mask.width, image.mask.height, image.transparent);
		if (bits?.length === Math.ceil((image.mask.width * image.mask.height) / 8)) this.#editor.restore(bits);
		keepLarge('picture', { image, name: this.name, source });
		say(`${this.name}, ${image.width} × ${image.height} pixels, is open.`);
		this.dispatchEvent(new Event('open'));
		return true;
	}

	#rename(image, name) {
		// Names of many pictures would fill the storage, so only those of the latest are kept.
		keep({ names: Object.fromEntries([...Object.entries(kept.names), [image.id, name]].slice(-100)) });
	}

	#keepMask() {
		if (this.#editor.mask) keepLarge('mask', this.#editor.mask.bits());
	}
}
