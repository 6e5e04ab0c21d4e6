/*
 * channel-choice.js - which channels the page follows. They stand in the address
 * (?channel=a&channel=b), so that a view can be shared, reloaded and gone back to.
 */

const DEFAULT_CHANNEL = 'events';

export class ChannelChoice {
    #onChange;
    #chips = document.getElementById('channels');
    #template = document.getElementById('channel-chip');
    #form = document.getElementById('channel-form');
    #input = document.getElementById('channel-add');

    /* onChange(channels): after each change, not for the first ones. */
    constructor(onChange) {
        this.#onChange = onChange;
        this.#form.addEventListener('submit', (event) => {
            event.preventDefault();
            this.#addTyped();
        });
        window.addEventListener('popstate', () => this.#changed());
        this.#showChips();
    }

    get channels() {
        const named = new URLSearchParams(location.search).getAll('channel');
        const names = [...new Set(named.filter((name) => name !== ''))].sort();
        return names.length > 0 ? names : [DEFAULT_CHANNEL];
    }

    #addTyped() {
        const typed = this.#input.value.split(',').map((name) => name.trim());
        const added = typed.filter((name) => name !== '');
        this.#input.value = '';
        this.#input.focus();
        if (added.length > 0)
            this.#choose([...this.channels, ...added]);
    }

    #remove(channel) {
        const place = this.channels.indexOf(channel);
        this.#choose(this.channels.filter((name) => name !== channel));
        /* The button that was pressed is gone: go on at its neighbour. */
        const buttons = [...this.#chips.querySelectorAll('button')];
        (buttons[Math.min(place, buttons.length - 1)] ?? this.#input).focus();
    }

    #choose(channels) {
        const before = this.channels.join('\n');
        const url = new URL(location.href);
        url.searchParams.delete('channel');
        [...new Set(channels)].sort()
            .forEach((name) => url.searchParams.append('channel', name));
        if (url.href !== location.href)
            history.pushState(null, '', url);
        if (this.channels.join('\n') !== before)
            this.#changed();
    }

    #changed() {
        this.#showChips();
        this.#onChange(this.channels);
    }

    #showChips() {
        const channels = this.channels;
        this.#chips.replaceChildren(...channels.map((name) => {
            const chip = this.#template.content.firstElementChild.cloneNode(true);
            const button = chip.querySelector('button');
            chip.dataset.channel = name;
            chip.querySelector('bdi').textContent = name;
            button.setAttribute('aria-label', `Stop following ${name}`);
            button.hidden = channels.length === 1;
            button.addEventListener('click', () => this.#remove(name));
            return chip;
        }));
    }
}
