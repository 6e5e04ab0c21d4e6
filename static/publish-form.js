/*
 * publish-form.js - publishes an event by POST /events, and says what became of it.
 */

import { JsonField } from './json-field.js';
import { Refused, address, eventPath, request, whyNotPublished } from './requests.js';

export class PublishForm {
    #form = document.getElementById('publish-form');
    #channel = document.getElementById('publish-channel');
    #type = document.getElementById('publish-type');
    #data = new JsonField('publish-data');
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
        this.#channel.addEventListener('input', () => { this.#channelChosen = true; });
    }

    suggestChannel(channel) {
        if (!this.#channelChosen && channel !== undefined)
            this.#channel.value = channel;
    }

    async #submit() {
        if (this.#busy)
            return;
        if (!this.#data.isGood()) {
            this.#show('', '');
            return;
        }
        this.#busy = true;
        this.#show('busy', 'Publishing …');
        try {
            const { text } = await request('POST', 'events', {}, this.#body());
            this.#showPublished(JSON.parse(text));
        } catch (error) {
            this.#show(error instanceof Refused ? 'refused' : 'failed',
                       whyNotPublished(error));
        } finally {
            this.#busy = false;
        }
    }

    /* The data goes out as it was typed and is not parsed and written anew, which would
     * round large numbers and drop duplicate keys. */
    #body() {
        const members = [`"data":${this.#data.text}`];
        if (this.#type.value !== '')
            members.unshift(`"type":${JSON.stringify(this.#type.value)}`);
        if (this.#channel.value !== '')
            members.unshift(`"channel":${JSON.stringify(this.#channel.value)}`);
        return `{${members.join(',')}}`;
    }

    #showPublished({ id, channel }) {
        const link = document.createElement('a');
        link.href = address(eventPath(id));
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
}
