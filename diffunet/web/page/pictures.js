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
		await this.#show(await post('images', blob), name, { blob });
	}

	/** Opens a result as the next picture. */
	async openResult(result, name) {
		const image = await post(`images?result=${result.id}`);
		const response = await fetch(addresses.file(result.id));
		await this.#show(image, name, { blob: await response.blob() });
	}

	async openFromFolder(number, name) {
		await this.#show(await post(`images?folder=${number}`), name, { folder: number });
	}

	/** Opens the picture that the command line names. */
	async openGiven(image) {
		keep({ given: described(image) });
		await this.#show(image, image.name, {});
	}

	/** Opens what was kept, else what the command line names. */
	async start(given) {
		forgetOld();
		const picture = await keptLarge('picture');
		if (picture && (!given || described(given) === kept.given)) {
			const bits = await keptLarge('mask');
			const image = await attempt(() => this.#again(picture, given));
			if (image) {
				await this.#show(image, picture.name, picture.source, bits);
				return;
			}
		}
		if (given) await this.openGiven(given);
	}

	/** Makes sure that the server still has the picture, which it may have dropped for others, and returns its id. */
	async ensure() {
		const image = await this.#again({ image: this.image, source: this.#source });
		if (!image) throw new Problem('The server has forgotten the picture; open it again.');
		if (image.id !== this.image.id) this.#rename(image, this.name);
		this.image = image;
		return image.id;
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

	async #show(image, name, source, bits) {
		const picture = await loadImage(addresses.picture(image.id));
		this.image = image;
		this.#source = source;
		this.#rename(image, name ?? image.name);
		this.#editor.open(picture, image.mask.width, image.mask.height, image.transparent);
		if (bits?.length === Math.ceil((image.mask.width * image.mask.height) / 8)) this.#editor.restore(bits);
		keepLarge('picture', { image, name: this.name, source });
		say(`${this.name}, ${image.width} × ${image.height} pixels, is open.`);
		this.dispatchEvent(new Event('open'));
	}

	#rename(image, name) {
		// Names of many pictures would fill the storage, so only those of the latest are kept.
		keep({ names: Object.fromEntries([...Object.entries(kept.names), [image.id, name]].slice(-100)) });
	}

	#keepMask() {
		if (this.#editor.mask) keepLarge('mask', this.#editor.mask.bits());
	}
}
