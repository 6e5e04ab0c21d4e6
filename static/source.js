/*
 * source.js - the page's end of a feed: through the SharedWorker where there is one, and
 * else (Chrome on Android, some private windows) by a feed in the page itself.
 */

import { serveViewer } from './feed.js';

/* Raised when the messages of feed.js change: a worker of an older page may still run. */
const PROTOCOL = 2;

/* At most so often are new events shown; what comes meanwhile comes together. */
const SHOW_EVERY_MS = 100;

export class Source {
    #onState;
    #onEvents;
    #port = null;
    #channels = [];
    #turn = 0;

    /* onState(state, detail, lastId), onEvents(events, skipped, lastId) */
    constructor(onState, onEvents) {
        this.#onState = onState;
        this.#onEvents = onEvents;
        this.#usePort(this.#workerPort() ?? localPort());
        /* A page that is kept in the back/forward cache does not run and must hold no
         * stream; when it is shown again it begins anew. */
        window.addEventListener('pagehide', () => this.#send({ do: 'leave' }));
        window.addEventListener('pageshow', (event) => {
            if (event.persisted)
                this.follow(this.#channels);
        });
    }

    follow(channels) {
        this.#channels = channels;
        this.#turn += 1;
        this.#send({ do: 'follow', channels, turn: this.#turn });
    }

    retry() {
        this.#send({ do: 'retry' });
    }

    #send(message) {
        this.#port.postMessage(message);
    }

    #usePort(port) {
        this.#port = port;
        port.addEventListener('message', ({ data }) => {
            if (data.turn !== this.#turn || port !== this.#port)
                return;
            if (data.say === 'state') {
                this.#onState(data.state, data.detail, data.lastId);
                return;
            }
            this.#onEvents(data.events, data.skipped, data.lastId);
            setTimeout(() => port.postMessage({ do: 'taken' }), SHOW_EVERY_MS);
        });
        port.start();
    }

    /* null: no SharedWorker here. One that cannot load its script (a browser without
     * modules in workers, a gateway that just went away) says so later, by an error. */
    #workerPort() {
        if (typeof SharedWorker === 'undefined')
            return null;
        try {
            const url = new URL('stream-worker.js', import.meta.url);
            const name = `pg-sse-gateway ${PROTOCOL}`;
            const worker = new SharedWorker(url, { type: 'module', name });
            worker.addEventListener('error', () => {
                this.#usePort(localPort());
                this.follow(this.#channels);
            }, { once: true });
            stayOutOfCache();
            return worker.port;
        } catch {
            return null;
        }
    }
}

/* Chromium keeps a page that was left in its back/forward cache and freezes the worker
 * with its last page, perhaps before it heard the goodbye: the stream would stay open for
 * minutes, unread. A page that is sent a broadcast while it is in that cache is dropped
 * from it at once, and the worker with it; so a page sends itself one when it is left. */
function stayOutOfCache() {
    const ear = new BroadcastChannel('pg-sse-gateway page left');
    const mouth = new BroadcastChannel('pg-sse-gateway page left');
    ear.addEventListener('message', () => {});
    window.addEventListener('pagehide', () => mouth.postMessage(null));
}

function localPort() {
    const { port1, port2 } = new MessageChannel();
    serveViewer(port1);
    return port2;
}
