/**
 * An encoder of grey PNG files. The mask is not sent by way of a canvas, because browsers alter what is read back from
 * one where their user has asked for privacy; here each byte arrives as it was drawn.
 */

const SIGNATURE = [137, 80, 78, 71, 13, 10, 26, 10];

/** The remainders of all bytes by the polynomial of CRC-32. */
const REMAINDERS = Uint32Array.from({ length: 256 }, (_, n) => {
	for (let bit = 0; bit < 8; bit += 1) n = n & 1 ? (n >>> 1) ^ 0xedb88320 : n >>> 1;
	return n;
});

function crc32(bytes) {
	let sum = 0xffffffff;
	for (const byte of bytes) sum = REMAINDERS[(sum ^ byte) & 255] ^ (sum >>> 8);
	return ~sum >>> 0;
}

/** Returns a chunk of the file: length, name, data and checksum. */
function chunk(name, data) {
	const bytes = new Uint8Array(data.length + 12);
	const numbers = new DataView(bytes.buffer);
	numbers.setUint32(0, data.length);
	bytes.set([...name].map((letter) => letter.charCodeAt(0)), 4);
	bytes.set(data, 8);
	numbers.setUint32(data.length + 8, crc32(bytes.subarray(4, data.length + 8)));
	return bytes;
}

/** Returns a Blob with a PNG of 8 bits grey whose pixels are the bytes, row after row. */
export async function encodeGrey(width, height, bytes) {
	const rows = new Uint8Array((width + 1) * height);
	for (let y = 0; y < height; y += 1) {
		// The byte before each row says how it is filtered; 0 is not at all.
		rows.set(bytes.subarray(y * width, (y + 1) * width), y * (width + 1) + 1);
	}
	const stream = new Blob([rows]).stream().pipeThrough(new CompressionStream('deflate'));
	const packed = new Uint8Array(await new Response(stream).arrayBuffer());
	const header = new Uint8Array(13);
	new DataView(header.buffer).setUint32(0, width);
	new DataView(header.buffer).setUint32(4, height);
	header[8] = 8; // Bits for each pixel; the four numbers after it are 0: grey, deflate, usual filters, no interlacing.
	const parts = [new Uint8Array(SIGNATURE), chunk('IHDR', header), chunk('IDAT', packed), chunk('IEND', [])];
	return new Blob(parts, { type: 'image/png' });
}
