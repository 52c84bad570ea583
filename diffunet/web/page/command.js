/** The command line that does what the page did. */

/** Returns a word as a POSIX shell reads it. */
export function quote(word) {
	return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
}

/** Returns the name of a file without its folder and its ending. */
export function stem(name) {
	return (name ?? '').split(/[\\/]/).pop().replace(/\.[^.]*$/, '') || 'picture';
}

/** Returns the ending of a file's name with its dot, or the other where it has none. */
export function ending(name, other = '.png') {
	return /\.[^./\\]+$/.exec(name ?? '')?.[0] ?? other;
}

/** Returns the name under which a result is downloaded. */
export function resultName(job, result, pictureName) {
	const name = job.kind === 'fill' ? `${stem(pictureName)}-filled` : `generated-${job.options.seed ?? 0}`;
	const number = (job.options.num ?? 1) > 1 ? `-${result.number}` : '';
	return `${name}${number}${ending(result.name)}`;
}

/** Returns the name under which the mask of a picture is downloaded, which is also what the command calls it. */
export const maskName = (pictureName) => `${stem(pictureName)}-mask.png`;

/** Returns the command of a job, with the names that the page gives to its files. */
export function command(job, pictureName) {
	const several = job.kind !== 'fill' || (job.options.num ?? 1) > 1;
	const out = job.kind === 'fill' ? `${stem(pictureName)}-filled` : 'generated';
	const names = {
		'{image}': pictureName ?? 'picture.png',
		'{mask}': maskName(pictureName),
		'{out}': several ? out : out + ending(job.results[0]?.name),
	};
	return job.command.map((word) => quote(names[word] ?? word)).join(' ');
}
