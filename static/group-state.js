/*
 * group-state.js - how far the group is: what GET /groups says of it.
 */

import { request } from './requests.js';

const FIGURES = ['lag', 'in_flight', 'due', 'dead'];
const MAX_COUNTED = 10_000; /* the gateway counts no further */
const number = new Intl.NumberFormat();

export class GroupState {
    #name = document.getElementById('group-name');
    #figures = document.getElementById('group-figures');
    #none = document.getElementById('group-none');

    /* Whether the group exists; null: the gateway did not say. */
    async look(channel, group) {
        let found;
        try {
            const { text } = await request('GET', 'groups', { channel });
            found = JSON.parse(text).groups.find((each) => each.group === group);
        } catch {
            return null;
        }
        this.#show(group, found);
        return found !== undefined;
    }

    #show(group, found) {
        this.#name.textContent = group;
        this.#figures.hidden = found === undefined;
        this.#none.hidden = found !== undefined;
        for (const name of FIGURES) {
            const count = found?.[name] ?? 0;
            const figure = this.#figures.querySelector(`[data-figure="${name}"]`);
            figure.textContent = number.format(count) + (count >= MAX_COUNTED ? '+' : '');
            figure.classList.toggle('some', count > 0);
        }
    }
}
