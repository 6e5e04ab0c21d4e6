/*
 * json-field.js - a text area for JSON: says what is wrong with it, and sends its form by
 * Ctrl+Enter.
 */

import { isJson } from './json-text.js';

export class JsonField {
    #area;
    #error;

    /* The area's id; `<id>-error` is where it says what is wrong. */
    constructor(id) {
        this.#area = document.getElementById(id);
        this.#error = document.getElementById(`${id}-error`);
        this.#area.addEventListener('input', () => {
            if (this.#area.getAttribute('aria-invalid') === 'true')
                this.#check();
        });
        this.#area.form.addEventListener('keydown', (event) => {
            if (event.key !== 'Enter' || !(event.ctrlKey || event.metaKey))
                return;
            event.preventDefault();
            this.#area.form.requestSubmit();
        });
    }

    /* As it was typed. It is one whole JSON value if isGood() said so, so it can be put
     * between others without reaching them. */
    get text() {
        return this.#area.value;
    }

    /* false: it is no JSON, which is told and has the focus now. */
    isGood() {
        if (this.#check())
            return true;
        this.#area.focus();
        return false;
    }

    #check() {
        const message = isJson(this.text) ? '' : whyNotJson(this.text);
        this.#error.textContent = message;
        this.#error.hidden = message === '';
        if (message === '')
            this.#area.removeAttribute('aria-invalid');
        else
            this.#area.setAttribute('aria-invalid', 'true');
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
