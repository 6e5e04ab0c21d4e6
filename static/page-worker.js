/*
 * page-worker.js - a worker of the group, whose work is done by the hands of who looks at
 * the page: each delivery is acknowledged or given back with a button.
 *
 *     GET /events?channel=&group= ──> a delivery ──> POST /events/<delivery>/ack or /nack
 *
 * Its stream is the page's own and not shared with other tabs: two workers are two.
 */

import { layOut, shorten } from './json-text.js';
import { EventStream } from './sse.js';
import { address, eventPath, request } from './requests.js';

const RESULT = '{"done_by": "the page"}';
const DATA_CHARS = 400;
const DATA_LINES = 8;

export class PageWorker {
    #toggle = document.getElementById('work');
    #state = document.getElementById('work-state');
    #delivery = document.getElementById('delivery');
    #data = document.getElementById('delivery-data');
    #buttons = [...document.querySelectorAll('#delivery button')];
    #stream = null;
    #group = '';
    #id = null; /* of the delivery in hand */
    #whose;
    #onDone;

    /* whose() -> {channel, group}; onDone(): it acknowledged or gave back. */
    constructor(whose, onDone) {
        this.#whose = whose;
        this.#onDone = onDone;
        this.#toggle.addEventListener('click', () => {
            if (this.#stream === null)
                this.#start();
            else
                this.#stop();
        });
        for (const button of this.#buttons)
            button.addEventListener('click', () => this.#finish(button.dataset.what));
        window.addEventListener('pagehide', () => this.#stop());
    }

    #start() {
        const { channel, group } = this.#whose();
        this.#group = group;
        this.#stream = new EventStream(address('events', { channel, group }), {
            onState: (state, detail) => this.#onState(state, detail),
            onEvent: (event) => this.#take(event),
        });
        this.#toggle.setAttribute('aria-pressed', 'true');
        this.#stream.start();
    }

    #onState(state, detail) {
        if (state === 'stopped')
            this.#stop();
        else if (state !== 'live')
            this.#putDown(); /* the delivery went back with the connection */
        this.#say(WORDS[state] ?? detail);
    }

    /* The gateway gives what was in hand to another at once. */
    #stop() {
        this.#stream?.stop();
        this.#stream = null;
        this.#toggle.setAttribute('aria-pressed', 'false');
        this.#putDown();
        this.#say('');
    }

    #take({ id, data }) {
        const [event, attempt] = id.split('.');
        this.#id = id;
        this.#data.textContent =
            shorten(layOut(data, 4 * DATA_CHARS), DATA_CHARS, DATA_LINES);
        this.#delivery.dataset.event = event;
        this.#delivery.hidden = false;
        this.#say(`In hand: job ${event}, attempt ${attempt}.`);
    }

    #putDown() {
        if (this.#delivery.contains(document.activeElement))
            this.#toggle.focus();
        this.#id = null;
        this.#delivery.hidden = true;
    }

    /* What comes next replaces the delivery, perhaps before this is answered. */
    async #finish(what) {
        const id = this.#id;
        if (id === null)
            return;
        this.#putDown();
        this.#say(WORDS.live);
        try {
            await request('POST', eventPath(id, `/${what}`), { group: this.#group },
                          what === 'ack' ? RESULT : undefined);
        } catch (error) {
            this.#say(error.message);
        }
        this.#onDone();
    }

    #say(text) {
        this.#state.textContent = text;
    }
}

const WORDS = {
    connecting: 'Joining the group …',
    live: 'Waiting for a job.',
};
