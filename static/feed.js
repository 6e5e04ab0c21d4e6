/*
 * feed.js - one stream a set of channels, shown to any number of viewers.
 *
 *     gateway ── EventStream ──> recent: | 41 | 42 | 43 |      bounded, oldest dropped
 *                                           ^         ^
 *                                        viewer    viewer      a viewer is a message port
 *                                                              and a position
 *
 * Runs in the SharedWorker, where the viewers are the tabs of this browser; where there is
 * none it runs in the page itself, with that page as its only viewer. Both speak over a
 * MessagePort, so neither can tell the difference:
 *
 *     viewer to feed     {do: 'follow', channels: [..], turn}   before anything else
 *                        {do: 'taken'}                          the last events are shown
 *                        {do: 'retry'}                          connect now
 *                        {do: 'leave'}
 *     feed to viewer     {say: 'state', state, detail, lastId, turn}
 *                        {say: 'events', events: [{kind, id, type, data, time}],
 *                         skipped, lastId, turn}                kind: 'event' or 'gap'
 *
 * A feed begins with the newest BEFORE events that are there already. Their `time` is null:
 * the stream does not tell when they came.
 *
 * `turn` is the viewer's own number for one `follow`: it tells what was still under way for
 * the channels followed before.
 *
 * Always true:
 *   - a viewer gets the events in their order, and no new ones before it has taken the
 *     last. So a tab that is frozen or slow costs nothing, and many events come as one
 *     message; one that falls behind what is kept is told how many it skipped.
 *   - a viewer that comes later begins with what is kept: all tabs show the same.
 */

import { EventStream } from './sse.js';

/* A stream begins with so many old events, and they are there within so long. */
const BEFORE = 100;
const BEFORE_MS = 1000;

export const KEPT_EVENTS = 500;
export const KEPT_CHARS = 16 * 1024 * 1024;

const feeds = new Map(); /* by the query of their URL */

class Feed {
    #query;
    #stream;
    #state = { state: 'connecting', detail: '' };
    #beforeUntil = 0; /* what comes until then is old */
    #viewers = new Set();
    #recent = [];
    #first = 0; /* the number of recent[0], counted from the first ever */
    #chars = 0;

    static of(channels) {
        const query = new URLSearchParams(channels.map((name) => ['channel', name]));
        const key = query.toString();
        if (!feeds.has(key))
            feeds.set(key, new Feed(key));
        return feeds.get(key);
    }

    constructor(query) {
        const url = new URL('events', import.meta.url);
        url.search = `${query}&last=${BEFORE}`;
        this.#query = query;
        this.#stream = new EventStream(url, this);
        this.#stream.start();
    }

    add(viewer) {
        viewer.next = this.#first;
        viewer.ready = true;
        this.#viewers.add(viewer);
        this.#tellState(viewer);
        this.#tellEvents(viewer);
    }

    remove(viewer) {
        this.#viewers.delete(viewer);
        if (this.#viewers.size > 0 || feeds.get(this.#query) !== this)
            return;
        feeds.delete(this.#query);
        this.#stream.stop();
    }

    taken(viewer) {
        viewer.ready = true;
        this.#tellEvents(viewer);
    }

    retry() {
        this.#stream.retryNow();
    }

    onState(state, detail) {
        if (state === 'live' && this.#stream.lastEventId === '')
            this.#beforeUntil = Date.now() + BEFORE_MS;
        this.#state = { state, detail };
        this.#viewers.forEach((viewer) => this.#tellState(viewer));
    }

    onEvent({ id, type, data }) {
        /* Data is JSON and so never empty: an empty one is the gateway's own checkpoint,
         * and not somebody's event of that name. It only moves the last id. */
        if (type === 'checkpoint' && data === '') {
            this.#viewers.forEach((viewer) => this.#tellState(viewer));
            return;
        }
        const kind = type === 'gap' && isGap(data) ? 'gap' : 'event';
        const now = Date.now();
        this.#keep({ kind, id, type, data, time: now < this.#beforeUntil ? null : now });
        this.#viewers.forEach((viewer) => this.#tellEvents(viewer));
    }

    #keep(event) {
        this.#recent.push(event);
        this.#chars += event.data.length;
        while (this.#recent.length > KEPT_EVENTS ||
               (this.#chars > KEPT_CHARS && this.#recent.length > 1)) {
            this.#chars -= this.#recent.shift().data.length;
            this.#first += 1;
        }
    }

    #tellState(viewer) {
        this.#tell(viewer, { say: 'state', ...this.#state });
    }

    #tellEvents(viewer) {
        const end = this.#first + this.#recent.length;
        if (!viewer.ready || viewer.next === end)
            return;
        const skipped = Math.max(0, this.#first - viewer.next);
        const events = this.#recent.slice(viewer.next + skipped - this.#first);
        viewer.ready = false;
        viewer.next = end;
        this.#tell(viewer, { say: 'events', events, skipped });
    }

    #tell(viewer, message) {
        const lastId = this.#stream.lastEventId;
        viewer.port.postMessage({ ...message, lastId, turn: viewer.turn });
    }
}

function isGap(data) {
    try {
        const gap = JSON.parse(data);
        return gap !== null && typeof gap === 'object' && 'requested' in gap &&
            'oldest' in gap && 'reason' in gap;
    } catch {
        return false;
    }
}

/* Serves the viewer at the other end of the port until it leaves. */
export function serveViewer(port) {
    const viewer = { port, turn: 0, next: 0, ready: true };
    let feed = null;

    const leave = () => {
        feed?.remove(viewer);
        feed = null;
    };
    port.addEventListener('message', ({ data }) => {
        if (data.do === 'follow') {
            leave();
            viewer.turn = data.turn;
            feed = Feed.of(data.channels);
            feed.add(viewer);
        } else if (data.do === 'taken') {
            feed?.taken(viewer);
        } else if (data.do === 'retry') {
            feed?.retry();
        } else if (data.do === 'leave') {
            leave();
        }
    });
    /* A tab says goodbye itself; this is for one that crashed, where browsers tell. */
    port.addEventListener('close', leave);
    port.start();
}

globalThis.addEventListener?.('online', () => feeds.forEach((feed) => feed.retry()));
