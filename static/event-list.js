/*
 * event-list.js - the live list: newest on top, bounded, filtered by type, and quiet while
 * it is paused.
 *
 * Whatever an event holds is only ever set as text (textContent, dataset), never as HTML.
 */

import { cut, layOut } from './json-text.js';
import { KEPT_CHARS, KEPT_EVENTS } from './feed.js';

const CUT_CHARS = 600;
const CUT_LINES = 10;
const TINTS = 6;
const ANNOUNCE_EVERY_MS = 5000;

const clock = new Intl.DateTimeFormat(undefined, {
    hour: '2-digit', minute: '2-digit', second: '2-digit', hourCycle: 'h23',
});
const fullTime = new Intl.DateTimeFormat(undefined, {
    dateStyle: 'medium', timeStyle: 'medium',
});
const number = new Intl.NumberFormat();

export class EventList {
    #rows = document.getElementById('events');
    #template = document.getElementById('event-row');
    #summary = document.getElementById('summary');
    #empty = document.getElementById('empty');
    #pause = document.getElementById('pause');
    #unseen = document.getElementById('unseen');
    #filter = document.getElementById('type-filter');
    #announcer = new Announcer(document.getElementById('announcer'));

    #entries = []; /* {row, chars}, oldest first, as kept in the list */
    #waiting = []; /* what came while paused */
    #waitingCount = 0;
    #chars = 0;
    #received = 0;
    #skipped = 0;
    #paused = false;

    constructor() {
        this.#pause.addEventListener('click', () => this.#setPaused(!this.#paused));
        document.getElementById('clear').addEventListener('click', () => this.clear());
        this.#filter.addEventListener('input', () => this.#applyFilter());
        this.#showSummary();
    }

    add(events, skipped) {
        this.#received += events.length + skipped;
        this.#skipped += skipped;
        if (this.#paused)
            this.#hold(events, skipped);
        else
            this.#insert(events);
        this.#showSummary();
    }

    /* Forgets everything; a paused list stays paused. */
    clear() {
        this.#rows.replaceChildren();
        this.#entries = [];
        this.#waiting = [];
        this.#waitingCount = this.#chars = this.#received = this.#skipped = 0;
        this.#showPause();
        this.#showSummary();
    }

    #setPaused(paused) {
        this.#paused = paused;
        if (!paused) {
            this.#insert(this.#waiting);
            this.#waiting = [];
            this.#waitingCount = 0;
        }
        this.#showPause();
        this.#showSummary();
    }

    /* Not more is held than the list could show. */
    #hold(events, skipped) {
        this.#waitingCount += events.length + skipped;
        this.#waiting.push(...events);
        let chars = this.#waiting.reduce((sum, event) => sum + event.data.length, 0);
        while (this.#waiting.length > KEPT_EVENTS ||
               (chars > KEPT_CHARS && this.#waiting.length > 1))
            chars -= this.#waiting.shift().data.length;
        this.#showPause();
    }

    #insert(events) {
        if (events.length === 0)
            return;
        const fragment = document.createDocumentFragment();
        for (const event of events) {
            const row = this.#makeRow(event);
            this.#entries.push({ row, chars: event.data.length });
            this.#chars += event.data.length;
            fragment.prepend(row);
        }
        this.#rows.prepend(fragment);
        this.#dropOldest();
        this.#announcer.add(events.filter((event) => this.#wanted(event.type)));
    }

    #dropOldest() {
        while (this.#entries.length > KEPT_EVENTS ||
               (this.#chars > KEPT_CHARS && this.#entries.length > 1)) {
            const { row, chars } = this.#entries.shift();
            this.#chars -= chars;
            if (row.contains(document.activeElement))
                document.getElementById('events-heading').focus();
            row.remove();
        }
    }

    #makeRow({ id, type, data, time }) {
        const row = this.#template.content.firstElementChild.cloneNode(true);
        const typeElement = row.querySelector('.event-type');

        row.dataset.id = id ?? '';
        row.dataset.type = type;
        row.hidden = !this.#wanted(type);
        showTime(row.querySelector('time'), time);
        typeElement.textContent = type;
        typeElement.dataset.tint = tintOf(type);
        row.querySelector('.event-id').textContent = id ?? 'no id';
        showData(row, data, id);
        return row;
    }

    #wanted(type) {
        const names = this.#filter.value.split(',').map((name) => name.trim());
        const given = names.filter((name) => name !== '');
        return given.length === 0 || given.some((name) => name.endsWith('*')
            ? type.startsWith(name.slice(0, -1)) : type === name);
    }

    #applyFilter() {
        for (const { row } of this.#entries)
            row.hidden = !this.#wanted(row.dataset.type);
        this.#showSummary();
    }

    #showPause() {
        const count = this.#waitingCount;
        this.#pause.setAttribute('aria-pressed', String(this.#paused));
        this.#unseen.hidden = count === 0;
        this.#unseen.textContent = `${number.format(count)} new`;
        document.title = count > 0 ? `(${number.format(count)}) pg-sse-gateway`
                                   : 'pg-sse-gateway';
    }

    #showSummary() {
        const kept = this.#entries.length;
        const shown = this.#entries.filter(({ row }) => !row.hidden).length;
        const parts = [];
        if (this.#received > kept + this.#waitingCount)
            parts.push(`the newest ${number.format(kept)} of ` +
                       `${number.format(this.#received)}`);
        else if (kept > 0)
            parts.push(kept === 1 ? '1 event' : `${number.format(kept)} events`);
        if (shown < kept)
            parts.push(`${number.format(shown)} of this type`);
        if (this.#skipped > 0)
            parts.push(`${number.format(this.#skipped)} came too fast to be shown`);
        this.#summary.textContent = parts.join(', ');
        this.#empty.hidden = shown > 0;
        this.#empty.dataset.why = kept > 0 ? 'filter' : 'nothing';
    }
}

/* null: it was there before this page looked, and when it came is not told. */
function showTime(element, time) {
    if (time === null) {
        element.textContent = 'earlier';
        return;
    }
    const when = new Date(time);
    const milliseconds = String(when.getMilliseconds()).padStart(3, '0');
    element.dateTime = when.toISOString();
    element.title = fullTime.format(when);
    element.textContent = `${clock.format(when)}.${milliseconds}`;
}

/* Puts the data into the row: cut when it is long, with a button for the rest. */
function showData(row, data, id) {
    const element = row.querySelector('.event-data');
    const button = row.querySelector('.event-more');
    const enough = layOut(data, 4 * CUT_CHARS);
    const short = cut(enough, CUT_CHARS, CUT_LINES);

    element.textContent = short;
    if (short === enough)
        return;
    let all = false;
    const show = () => {
        element.textContent = all ? layOut(data) : `${short} …`;
        element.classList.toggle('all', all);
        element.tabIndex = all ? 0 : -1; /* it scrolls then, and the keyboard must reach it */
        button.setAttribute('aria-expanded', String(all));
        button.querySelector('.label').textContent =
            all ? 'Show less' : `Show all, ${sizeOf(data)}`;
    };
    element.setAttribute('role', 'group');
    element.setAttribute('aria-label', id === null ? 'Data' : `Data of event ${id}`);
    if (id !== null)
        button.querySelector('.visually-hidden').textContent = `of event ${id}`;
    button.hidden = false;
    button.addEventListener('click', () => {
        all = !all;
        show();
    });
    show();
}

function sizeOf(text) {
    const bytes = new Blob([text]).size;
    if (bytes < 1024)
        return `${bytes} bytes`;
    const [size, unit] = bytes < 1024 * 1024 ? [bytes / 1024, 'KiB']
                                             : [bytes / 1024 / 1024, 'MiB'];
    return `${size.toLocaleString(undefined, { maximumFractionDigits: 1 })} ${unit}`;
}

/* The same type has the same colour each time and in each tab. */
function tintOf(type) {
    let hash = 7;
    for (let i = 0; i < type.length; i++)
        hash = (hash * 31 + type.charCodeAt(i)) % 65521;
    return String(hash % TINTS);
}

/* Tells a screen reader now and then what came, in one sentence. */
class Announcer {
    #element;
    #count = 0;
    #latest = null;
    #timer = null;
    #spoken = 0;

    constructor(element) {
        this.#element = element;
    }

    add(events) {
        if (events.length === 0)
            return;
        this.#count += events.length;
        this.#latest = events.at(-1);
        const delay = Math.max(0, this.#spoken + ANNOUNCE_EVERY_MS - Date.now());
        this.#timer ??= setTimeout(() => this.#speak(), delay);
    }

    #speak() {
        const type = cut(this.#latest.type, 60, 1);
        const latest = `event ${this.#latest.id ?? 'without an id'} of type ${type}`;
        this.#element.textContent = this.#count === 1
            ? `New: ${latest}.` : `${this.#count} new events, the latest: ${latest}.`;
        this.#count = 0;
        this.#timer = null;
        this.#spoken = Date.now();
    }
}
