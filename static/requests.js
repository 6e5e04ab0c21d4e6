/*
 * requests.js - what the page asks of the gateway beside its stream.
 *
 * Answers come as text and stay it: JSON.parse would round a large number in them.
 */

import { problemText } from './sse.js';

const TIMEOUT_MS = 30_000;

/* The gateway's "no", with its reason in words. */
export class Refused extends Error {
    constructor(status, why) {
        super(why);
        this.status = status;
    }
}

/* {status, text}. Throws Refused, or what fetch throws when there is no answer. */
export async function request(method, path, query = {}, json = undefined) {
    const response = await fetch(address(path, query), {
        method,
        headers: {
            Accept: 'application/json',
            ...(json === undefined ? {} : { 'Content-Type': 'application/json' }),
        },
        body: json,
        cache: 'no-store',
        signal: AbortSignal.timeout(TIMEOUT_MS),
    });
    if (!response.ok)
        throw new Refused(response.status, await problemText(response));
    return { status: response.status, text: await response.text() };
}

export function address(path, query = {}) {
    const url = new URL(path, import.meta.url);
    url.search = new URLSearchParams(query);
    return url;
}

export const eventPath = (id, what = '') => `events/${encodeURIComponent(id)}${what}`;

/* For what was to be published: whether it is, is known only from an answer. */
export function whyNotPublished(error) {
    if (error instanceof Refused)
        return error.message;
    return error.name === 'TimeoutError'
        ? 'No answer in time. The event may or may not be published.'
        : 'The gateway cannot be reached. Nothing is known to be published.';
}
