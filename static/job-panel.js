/*
 * job-panel.js - sends a job to a group and shows what becomes of it.
 *
 *     POST /events?wait= ──200──> acknowledged, with its result
 *                        └─202──> GET /events/<id>/result, each second while this is shown
 *
 * One who only wants the result waits with one POST for up to a minute. The page waits
 * shortly and then asks, because it shows the way there, too.
 */

import { GroupState } from './group-state.js';
import { JsonField } from './json-field.js';
import { layOut, membersOf, shorten } from './json-text.js';
import { PageWorker } from './page-worker.js';
import { Refused, address, eventPath, request, whyNotPublished } from './requests.js';

const WAIT = '1s';
const LOOK_EVERY_MS = 1000;
const MAX_JOBS = 5;
const RESULT_CHARS = 300;
const RESULT_LINES = 6;

export class JobPanel {
    #panel = document.getElementById('job');
    #form = document.getElementById('job-form');
    #channel = document.getElementById('job-channel');
    #group = document.getElementById('job-group');
    #data = new JsonField('job-data');
    #problem = document.getElementById('job-problem');
    #list = document.getElementById('jobs');
    #jobs = []; /* the newest first */
    #groupState = new GroupState();
    #looking = false;

    constructor() {
        new PageWorker(() => this.#whose(), () => this.#look());
        this.#form.addEventListener('submit', (event) => {
            event.preventDefault();
            this.#send();
        });
        this.#panel.addEventListener('toggle', () => this.#keepLooking());
        document.addEventListener('visibilitychange', () => this.#keepLooking());
    }

    #whose() {
        return { channel: this.#channel.value, group: this.#group.value };
    }

    async #send() {
        this.#problem.textContent = '';
        if (!this.#data.isGood())
            return;
        const job = new Job(this.#whose());
        try {
            const sent = job.send(this.#data.text);
            this.#list.prepend(job.element);
            this.#jobs.unshift(job);
            while (this.#jobs.length > MAX_JOBS)
                this.#jobs.pop().element.remove();
            await sent;
        } catch (error) {
            this.#jobs = this.#jobs.filter((each) => each !== job);
            job.element.remove();
            this.#problem.textContent = whyNotPublished(error);
        }
    }

    get #shown() {
        return this.#panel.open && !document.hidden;
    }

    async #keepLooking() {
        if (this.#looking)
            return;
        this.#looking = true;
        while (this.#shown) {
            await this.#look();
            await new Promise((resolve) => setTimeout(resolve, LOOK_EVERY_MS));
        }
        this.#looking = false;
    }

    async #look() {
        const { channel, group } = this.#whose();
        if (channel === '' || group === '')
            return;
        const exists = await this.#groupState.look(channel, group);
        const open = this.#jobs.filter(
            (job) => job.isOpen && (exists || job.group !== group));
        await Promise.all(open.map((job) => job.look()));
    }
}

const WORDS = {
    sending: 'Sending',
    waiting: 'Waiting',
    delivered: 'Delivered',
    acknowledged: 'Done',
    dead: 'Dead',
    outside: 'Not for it',
};

const FINAL = ['acknowledged', 'dead', 'outside'];

class Job {
    element = document.getElementById('job-row').content.firstElementChild.cloneNode(true);
    group;
    #channel;
    #id = null;
    #state = 'sending';

    constructor({ channel, group }) {
        this.#channel = channel;
        this.group = group;
        this.#show('sending');
    }

    /* It has an id to ask for, and something may still become of it. */
    get isOpen() {
        return this.#id !== null && !FINAL.includes(this.#state);
    }

    async send(data) {
        const begin = performance.now();
        const query = { channel: this.#channel, group: this.group, wait: WAIT };
        const { status, text } = await request('POST', 'events', query, data);
        const members = membersOf(text);
        this.#id = JSON.parse(members.get('id'));
        this.#showId();
        this.#show(JSON.parse(members.get('state')), members.get('result'), status === 200
            ? `after ${Math.round(performance.now() - begin)} ms` : '');
    }

    async look() {
        try {
            const { text } = await request('GET', eventPath(this.#id, '/result'),
                                           { group: this.group });
            const members = membersOf(text);
            const attempt = members.get('attempt');
            this.#show(JSON.parse(members.get('state')), members.get('result'),
                       attempt === 'null' || attempt === '0' ? '' : `attempt ${attempt}`);
        } catch (error) {
            if (error instanceof Refused && error.status === 404)
                this.#show('outside', undefined,
                           'the group began later');
        }
    }

    #showId() {
        const link = this.element.querySelector('a');
        link.href = address(eventPath(this.#id));
        link.textContent = this.#id;
        this.element.dataset.id = this.#id;
    }

    #show(state, result, detail = '') {
        this.#state = this.element.dataset.state = state;
        setText(this.element.querySelector('.job-state'), WORDS[state]);
        setText(this.element.querySelector('.note'), detail);
        const shown = this.element.querySelector('.job-result');
        shown.hidden = state !== 'acknowledged';
        if (state === 'acknowledged')
            shown.textContent = shorten(layOut(result, 4 * RESULT_CHARS), RESULT_CHARS,
                                        RESULT_LINES);
    }
}

/* What did not change is not read out again. */
function setText(element, text) {
    if (element.textContent !== text)
        element.textContent = text;
}
