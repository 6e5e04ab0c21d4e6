/*
 * sse.js - one event stream, read with fetch(), and kept up.
 *
 * Why not EventSource: it dispatches by type, so a listener must be added for every type
 * that may ever come. This page does not know the types (anyone publishes what they like),
 * and an event of a type without a listener would vanish. So the stream is read here, by
 * the rules of the HTML standard, 9.2 (Server-sent events), and every event is seen.
 *
 * What EventSource does and this does too: Last-Event-ID on every reconnection, so that
 * nothing is lost in between, and the server's `retry:`. What it does better: a refusal is
 * shown with its reason, what passes by itself (429, 5xx) is tried again, and a connection
 * that died without a word is noticed because the heartbeats stop.
 */

const DEFAULT_RETRY_MS = 2000;
const MAX_RETRY_MS = 20_000;
const STEADY_MS = 10_000; /* a connection that lived this long was a good one */

/* Silence after which a connection counts as dead: four heartbeats of the default setting.
 * It doubles each time it was used, so a gateway with rarer heartbeats is found out. */
const PATIENCE_MS = 60_000;
const MAX_PATIENCE_MS = 600_000;

/* Text in pieces of any size to events. onEvent({id, type, data}): `id` is null when the
 * event had none of its own. */
export class SseParser {
    lastEventId;
    #onEvent;
    #onRetry;
    #line = [];       /* pieces of a line whose end has not come yet */
    #afterCr = false; /* the last piece ended in CR: an LF to come belongs to it */
    #id = null;
    #type = '';
    #data = null;

    constructor(lastEventId, onEvent, onRetry) {
        this.lastEventId = lastEventId;
        this.#onEvent = onEvent;
        this.#onRetry = onRetry;
    }

    push(text) {
        if (text === '')
            return;
        const lineEnd = /\r\n|\r|\n/g;
        let start = this.#afterCr && text[0] === '\n' ? 1 : 0;
        lineEnd.lastIndex = start;
        for (let end = lineEnd.exec(text); end !== null; end = lineEnd.exec(text)) {
            this.#line.push(text.slice(start, end.index));
            this.#takeLine(this.#line.join(''));
            this.#line = [];
            start = lineEnd.lastIndex;
        }
        if (start < text.length)
            this.#line.push(text.slice(start));
        this.#afterCr = text.endsWith('\r');
    }

    #takeLine(line) {
        if (line === '') {
            this.#dispatch();
            return;
        }
        const colon = line.indexOf(':');
        if (colon === 0)
            return; /* a comment: the heartbeat */
        const field = colon < 0 ? line : line.slice(0, colon);
        const begin = line[colon + 1] === ' ' ? colon + 2 : colon + 1;
        const value = colon < 0 ? '' : line.slice(begin);

        if (field === 'data')
            (this.#data ??= []).push(value);
        else if (field === 'event')
            this.#type = value;
        else if (field === 'id' && !value.includes('\0'))
            this.#id = value;
        else if (field === 'retry' && /^[0-9]+$/.test(value))
            this.#onRetry(Number(value));
    }

    #dispatch() {
        const id = this.#id;
        const type = this.#type || 'message';
        const data = this.#data;
        this.#id = null;
        this.#type = '';
        this.#data = null;
        if (id !== null)
            this.lastEventId = id;
        if (data !== null)
            this.#onEvent({ id, type, data: data.join('\n') });
    }
}

/*
 * Keeps one stream open until stop(). Calls, on the object given:
 *   onState(state, detail)   connecting, live, reconnecting or stopped; why, in words
 *   onEvent({id, type, data})
 */
export class EventStream {
    #url;
    #listener;
    #lastEventId = '';
    #retryMs = DEFAULT_RETRY_MS;
    #patienceMs = PATIENCE_MS;
    #failures = 0;
    #running = false;
    #abort = null; /* ends the connection, while there is one */
    #wake = null;  /* ends the wait for the next attempt, while there is one */

    constructor(url, listener) {
        this.#url = url;
        this.#listener = listener;
    }

    get lastEventId() {
        return this.#lastEventId;
    }

    start() {
        if (!this.#running)
            this.#run();
    }

    stop() {
        this.#running = false;
        this.#abort?.abort();
        this.#wake?.();
    }

    /* The next attempt is made now: the user asked, or the network is back. */
    retryNow() {
        this.#failures = 0;
        this.#wake?.();
        this.start();
    }

    async #run() {
        this.#running = true;
        this.#listener.onState('connecting', '');
        while (this.#running) {
            const end = await this.#connect();
            if (!this.#running)
                return;
            if (end.final) {
                this.#running = false;
                this.#listener.onState('stopped', end.why);
                return;
            }
            const delay = Math.max(end.retryAfterMs ?? 0, this.#nextDelay());
            const seconds = Math.max(1, Math.round(delay / 1000));
            this.#listener.onState('reconnecting',
                                   `${end.why} Next attempt in ${seconds} s.`);
            await this.#wait(delay);
        }
    }

    /* One connection from its beginning to its end; the answer says what ended it. */
    async #connect() {
        const abort = new AbortController();
        this.#abort = abort;
        const guard = new Guard(this.#patienceMs, () => abort.abort());
        const headers = { Accept: 'text/event-stream' };
        if (this.#lastEventId !== '')
            headers['Last-Event-ID'] = this.#lastEventId;
        try {
            const response = await fetch(this.#url, { headers, cache: 'no-store',
                                                      signal: abort.signal });
            const refused = await refusal(response);
            if (refused !== null)
                return refused;
            await this.#read(response.body, guard);
            return { why: 'The gateway closed the stream.' };
        } catch {
            if (!guard.bitten)
                return { why: 'The gateway cannot be reached.' };
            this.#patienceMs = Math.min(this.#patienceMs * 2, MAX_PATIENCE_MS);
            return { why: 'The connection went silent.' };
        } finally {
            guard.done();
            abort.abort();
        }
    }

    async #read(body, guard) {
        const parser = new SseParser(
            this.#lastEventId,
            (event) => {
                this.#failures = 0;
                this.#lastEventId = parser.lastEventId;
                this.#listener.onEvent(event);
            },
            (ms) => { this.#retryMs = Math.min(ms, MAX_RETRY_MS); });
        const decoder = new TextDecoder();
        const reader = body.getReader();
        const begin = Date.now();
        let first = true;
        for (let piece = await reader.read(); !piece.done; piece = await reader.read()) {
            guard.pat();
            if (first)
                this.#listener.onState('live', '');
            first = false;
            if (Date.now() - begin > STEADY_MS)
                this.#failures = 0;
            parser.push(decoder.decode(piece.value, { stream: true }));
        }
    }

    /* The server's `retry:` first (it is jittered there); then twice as long each time,
     * jittered here, so that those who lost the same gateway do not return as one. */
    #nextDelay() {
        const grown = this.#retryMs * 2 ** Math.min(this.#failures, 10);
        const jitter = this.#failures === 0 ? 1 : 0.75 + Math.random() / 2;
        this.#failures += 1;
        return Math.min(grown, MAX_RETRY_MS) * jitter;
    }

    #wait(ms) {
        return new Promise((resolve) => {
            const timer = setTimeout(resolve, ms);
            this.#wake = () => {
                clearTimeout(timer);
                resolve();
            };
        }).finally(() => { this.#wake = null; });
    }
}

/* Calls `bite` when it was not patted for `ms`. */
class Guard {
    bitten = false;
    #ms;
    #bite;
    #timer;

    constructor(ms, bite) {
        this.#ms = ms;
        this.#bite = bite;
        this.pat();
    }

    pat() {
        clearTimeout(this.#timer);
        this.#timer = setTimeout(() => {
            this.bitten = true;
            this.#bite();
        }, this.#ms);
    }

    done() {
        clearTimeout(this.#timer);
    }
}

/* null: the answer is a stream. What the same request will get again is final. */
async function refusal(response) {
    const type = response.headers.get('Content-Type') ?? '';
    if (response.status === 200 && type.startsWith('text/event-stream'))
        return null;
    const passing = response.status >= 500 || [408, 425, 429].includes(response.status);
    const seconds = Number(response.headers.get('Retry-After'));
    return {
        final: !passing,
        why: await problemText(response),
        retryAfterMs: seconds > 0 ? Math.min(seconds, 120) * 1000 : 0,
    };
}

/* What a problem document (RFC 9457) says, or the status where there is none. */
export async function problemText(response) {
    const fallback = response.ok
        ? `The gateway answered ${response.status}, but not as expected.`
        : `The gateway answered ${response.status} ${response.statusText}`.trim() + '.';
    if (!/^application\/(problem\+)?json/.test(response.headers.get('Content-Type') ?? ''))
        return fallback;
    try {
        const problem = await response.json();
        const text = problem.detail || problem.title;
        return typeof text === 'string' && text !== '' ? text : fallback;
    } catch {
        return fallback;
    }
}
