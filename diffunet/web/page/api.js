/** Requests to the server. Addresses are relative, so that the page works behind a proxy that puts it in a folder. */

export const GONE = 'The server does not answer; it may have been stopped.';

/** A reason why something cannot be done that is no fault of the page; of an answer of the server with its status. */
export class Problem extends Error {
	constructor(message, status) {
		super(message);
		this.status = status;
	}
}

async function request(method, path, { body, signal } = {}) {
	const raw = body === undefined || body instanceof Blob;
	let response;
	try {
		response = await fetch(`api/${path}`, {
			method,
			signal,
			body: raw ? body : JSON.stringify(body),
			// The server asks for this header, because the form of a foreign page cannot send it.
			headers: { 'X-Diffunet': '1', ...(raw ? {} : { 'Content-Type': 'application/json' }) },
		});
	} catch (error) {
		if (error.name === 'AbortError') throw error;
		throw new Problem(GONE);
	}
	if (response.status === 204) return null;
	if (response.status === 401) {
		throw new Problem('Open the page again by the address that the command printed.', 401);
	}
	const answer = await response.json().catch(() => ({}));
	if (response.ok) return answer;
	throw new Problem(answer.error || `The server answered with the error ${response.status}.`, response.status);
}

export const get = (path, options) => request('GET', path, options);
export const post = (path, body, options) => request('POST', path, { body, ...options });
export const remove = (path, options) => request('DELETE', path, options);

/** Addresses for <img> and <a download>. */
export const addresses = {
	picture: (id) => `api/images/${id}/view`,
	preview: (job, number) => `api/jobs/${job.id}/previews/${number}?step=${job.previews[number]}`,
	result: (id) => `api/results/${id}/view`,
	file: (id) => `api/results/${id}/file`,
	zip: (job) => `api/jobs/${job.id}/zip`,
	thumbnail: (number) => `api/folder/${number}/view`,
	report: (ids) => `api/runs/report?ids=${ids}`,
};
