/*
 * page.js - puts the page together: channels to source, source to list and state.
 *
 *     channel-choice ──> source ──(port)──> feed ──> sse     in the SharedWorker
 *                          │
 *                          └──> event-list, watched-tables, state, notices
 *     publish-form ──> POST /events
 *     job-panel ──> POST /events?wait=, group-state, page-worker
 *
 * Everything shown is set as text, never as HTML; the page works under a content security
 * policy without any inline script or style.
 */

import { ChannelChoice } from './channel-choice.js';
import { EventList } from './event-list.js';
import { JobPanel } from './job-panel.js';
import { PublishForm } from './publish-form.js';
import { Source } from './source.js';
import { WatchedTables } from './watched-tables.js';

const STATE_WORDS = {
    connecting: 'Connecting',
    live: 'Live',
    reconnecting: 'Reconnecting',
    stopped: 'Stopped',
};

const MAX_NOTICES = 5;

const element = (id) => document.getElementById(id);

/* A stream that is back at once is not worth a box that moves the whole page. */
const DETAIL_AFTER_MS = 3000;
let detailTimer = null;

function showState(state, detail, lastId) {
    const label = element('state');
    label.dataset.state = state;
    if (label.textContent !== STATE_WORDS[state])
        label.textContent = STATE_WORDS[state];
    element('state-why').textContent = detail;
    showLastId(lastId);

    if (state === 'reconnecting') {
        detailTimer ??= setTimeout(() => { element('state-detail').hidden = false; },
                                   DETAIL_AFTER_MS);
        return;
    }
    clearTimeout(detailTimer);
    detailTimer = null;
    element('state-detail').hidden = state !== 'stopped';
}

function showLastId(lastId) {
    element('last-id').textContent = lastId === '' ? 'none yet' : lastId;
}

/* The gateway says that it could not send everything that was missed. */
function showGap({ data }) {
    const gap = JSON.parse(data);
    const notice = element('gap-notice').content.firstElementChild.cloneNode(true);
    notice.querySelector('.requested').textContent = asText(gap.requested);
    notice.querySelector('.oldest').textContent = asText(gap.oldest);
    notice.querySelector('.reason').textContent = asText(gap.reason);
    notice.querySelector('button').addEventListener('click', () => {
        notice.remove();
        element('events-heading').focus();
    });
    const notices = element('notices');
    notices.append(notice);
    while (notices.children.length > MAX_NOTICES)
        notices.firstElementChild.remove();
}

function asText(value) {
    return typeof value === 'string' ? value : JSON.stringify(value);
}

const isExact = (channel) => !channel.endsWith('*');

function isFollowed(channel) {
    return choice.channels.some((name) => isExact(name)
        ? name === channel : channel.startsWith(name.slice(0, -1)));
}

/* The same from a terminal, with this address and these channels, ready to be copied. */
function showCommands(channels) {
    const stream = new URL('events', document.baseURI);
    channels.forEach((name) => stream.searchParams.append('channel', name));
    const channel = channels.find(isExact) ?? 'events';
    const event = { channel, type: 'created', data: { n: 1 } };

    element('command-follow').textContent = `curl -N ${shellQuote(stream.href)}`;
    element('command-publish').textContent =
        `curl -H 'Content-Type: application/json' -d ${shellQuote(JSON.stringify(event))} ` +
        new URL('events', document.baseURI).href;
    element('command-insert').textContent =
        'INSERT INTO gateway.events (channel, type, data)\n' +
        `VALUES (${sqlQuote(channel)}, 'created', '{"n": 1}');`;
    element('command-watch').textContent = `SELECT gateway.watch(${
        isTableName(channel) ? sqlQuote(channel)
                             : `'guests', channel => ${sqlQuote(channel)}`});`;
}

/* A watched table's channel has its name, if no other was chosen. */
const isTableName = (channel) =>
    channel !== 'events' && /^[a-z_][a-z0-9_]*(\.[a-z_][a-z0-9_]*)?$/.test(channel);

const shellQuote = (text) => `'${text.replaceAll("'", "'\\''")}'`;
const sqlQuote = (text) => `'${text.replaceAll("'", "''")}'`;

function follow(channels) {
    source.follow(channels);
    publish.suggestChannel(channels.find(isExact));
    showCommands(channels);
}

const list = new EventList();
const tables = new WatchedTables();
const publish = new PublishForm(isFollowed);
const source = new Source(showState, (events, skipped, lastId) => {
    const gaps = events.filter((event) => event.kind === 'gap');
    gaps.forEach(showGap);
    list.add(events.filter((event) => event.kind === 'event'), skipped);
    if (skipped > 0 || gaps.length > 0)
        tables.clear();
    tables.add(events.slice(events.indexOf(gaps.at(-1)) + 1));
    showLastId(lastId);
});
const choice = new ChannelChoice((channels) => {
    list.clear();
    tables.clear();
    element('notices').replaceChildren();
    follow(channels);
});

new JobPanel();
element('retry').addEventListener('click', () => source.retry());
/* On a phone the list comes first: the form waits behind its heading. */
element('publish').open = !window.matchMedia('(max-width: 56rem)').matches;
follow(choice.channels);
