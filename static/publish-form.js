/*
 * publish-form.js - publishes an event by POST /events, and says what became of it.
 */

import { isJson } from './json-text.js';
import { problemText } from './sse.js';

const TIMEOUT_MS = 30_000;

export class PublishForm {
    #form = document.getElementById('publish-form');
    #channel = document.getElementById('publish-channel');
    #type = document.getElementById('publish-type');
    #data = document.getElementById('publish-data');
    #dataError = document.getElementById('publish-data-error');
    #result = document.getElementById('publish-result');
    #channelChosen = false; /* by the user; until then it follows the list's channels */
    #busy = false;
    #isFollowed;

    /* isFollowed(channel): whether an event on it will stand in the list. */
    constructor(isFollowed) {
        this.#isFollowed = isFollowed;
        this.#form.addEventListener('submit', (event) => {
            event.preventDefault();
            this.#submit();
        });
        this.#form.addEventListener('keydown', (event) => {
            if (event.key !== 'Enter' || !(event.ctrlKey || event.metaKey))
                return;
            event.preventDefault();
            this.#form.requestSubmit();
        });
        this.#channel.addEventListener('input', () => { this.#channelChosen = true; });
        this.#data.addEventListener('input', () => {
            if (this.#data.getAttribute('aria-invalid') === 'true')
                this.#checkData();
        });
    }

    suggestChannel(channel) {
        if (!this.#channelChosen && channel !== undefined)
            this.#channel.value = channel;
    }

    async #submit() {
        if (this.#busy)
            return;
        if (!this.#checkData()) {
            this.#show('', '');
            this.#data.focus();
            return;
        }
        this.#busy = true;
        this.#show('busy', 'Publishing …');
        try {
            this.#showAnswer(await this.#post());
        } catch (error) {
            this.#show('failed', error.name === 'TimeoutError'
                ? 'No answer in time. The event may or may not be published.'
                : 'The gateway cannot be reached. Nothing is known to be published.');
        } finally {
            this.#busy = false;
        }
    }

    async #post() {
        const response = await fetch(new URL('events', import.meta.url), {
            method: 'POST',
            headers: { 'Content-Type': 'application/json', Accept: 'application/json' },
            body: this.#body(),
            signal: AbortSignal.timeout(TIMEOUT_MS),
        });
        if (response.status !== 201)
            return { problem: await problemText(response) };
        return await response.json();
    }

    /* The data goes out as it was typed and is not parsed and written anew, which would
     * round large numbers and drop duplicate keys. #checkData() saw that it is one whole
     * JSON value, so nothing typed can reach the members around it. */
    #body() {
        const members = [`"data":${this.#data.value}`];
        if (this.#type.value !== '')
            members.unshift(`"type":${JSON.stringify(this.#type.value)}`);
        if (this.#channel.value !== '')
            members.unshift(`"channel":${JSON.stringify(this.#channel.value)}`);
        return `{${members.join(',')}}`;
    }

    #showAnswer({ problem, id, channel }) {
        if (problem !== undefined) {
            this.#show('refused', problem);
            return;
        }
        const link = document.createElement('a');
        link.href = new URL(`events/${encodeURIComponent(id)}`, import.meta.url);
        link.textContent = id;
        const name = document.createElement('bdi');
        name.textContent = channel;
        this.#show('done', 'Published as event ', link, ' on ', name,
                   this.#isFollowed(channel)
                       ? '.' : '. This page does not follow that channel.');
    }

    #show(outcome, ...content) {
        this.#result.dataset.outcome = outcome;
        this.#result.replaceChildren(...content);
    }

    #checkData() {
        const text = this.#data.value;
        const message = isJson(text) ? '' : whyNotJson(text);
        this.#dataError.textContent = message;
        this.#dataError.hidden = message === '';
        if (message === '')
            this.#data.removeAttribute('aria-invalid');
        else
            this.#data.setAttribute('aria-invalid', 'true');
        return message === '';
    }
}

function whyNotJson(text) {
    if (text.trim() === '')
        return 'Data is empty. Write a JSON value, for example {"n": 1}.';
    if (/^\s*[\p{L}']/u.test(text) && !/^\s*(true|false|null)\b/.test(text))
        return 'This is not JSON. Text stands in double quotes: "hello".';
    try {
        JSON.parse(text);
        return '';
    } catch (error) {
        return `This is not JSON: ${error.message}.`;
    }
}
