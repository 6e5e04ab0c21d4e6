/*
 * watched-tables.js - tables that gateway.watch() watches, row by row, as anybody changes
 * them.
 *
 *     insert, update, delete, truncate ──fold──> rows, newest on top
 *
 * An event tells the row before and after, and not which column is its key. So a row is
 * found by what it held before, where that is told; else by its column `id`; and where an
 * update does not tell the row before and there is no `id`, by its first column.
 *
 * Always true:
 *   - only rows that changed among the events seen are here, and not more than fit below.
 *   - when events were missed, all begins anew: they may have changed any row.
 */

import { layOut, membersOf, shorten } from './json-text.js';

const MAX_TABLES = 8;
const MAX_ROWS = 100;
const MAX_COLUMNS = 50;
const MAX_CHARS = 2 * 1024 * 1024; /* of a table's rows */
const CELL_CHARS = 160;
const CELL_LINES = 4;

/* What came longer ago happened before this page was looked at: nothing moves for it. */
const FRESH_MS = 5000;
const GONE_MS = 1500; /* so long a deleted row is still seen, struck out */

const OPERATIONS = new Set(['insert', 'update', 'delete', 'truncate']);

export class WatchedTables {
    #place = document.getElementById('tables');
    #none = document.getElementById('tables-none');
    #tables = new Map(); /* by name */

    /* Events of any kind, in their order. */
    add(events) {
        for (const event of events) {
            const change = changeOf(event);
            if (change !== null)
                this.#tableOf(change.table)?.apply(change);
        }
        this.#none.hidden = this.#tables.size > 0;
    }

    clear() {
        this.#tables.clear();
        this.#place.replaceChildren();
        this.#none.hidden = false;
    }

    #tableOf(name) {
        if (!this.#tables.has(name) && this.#tables.size < MAX_TABLES)
            this.#tables.set(name, new LiveTable(name, this.#place));
        return this.#tables.get(name);
    }
}

class LiveTable {
    #columns = [];
    #rows = []; /* {element, text, cells}, oldest first */
    #chars = 0;
    #head;
    #body;
    #count;

    constructor(name, place) {
        const element = document.getElementById('watched-table')
            .content.firstElementChild.cloneNode(true);
        element.dataset.table = name;
        element.setAttribute('aria-label', `Table ${name}`);
        element.querySelector('caption bdi').textContent = name;
        this.#head = element.querySelector('thead tr');
        this.#body = element.querySelector('tbody');
        this.#count = element.querySelector('.row-count');
        place.append(element);
    }

    apply({ op, before, after, fresh }) {
        if (op === 'truncate') {
            while (this.#rows.length > 0)
                this.#drop(this.#rows[0], fresh);
        } else {
            const row = this.#find(op, before, after);
            if (op === 'delete' && row !== undefined)
                this.#drop(row, fresh);
            else if (op !== 'delete' && row !== undefined)
                this.#change(row, after, fresh);
            else if (op !== 'delete')
                this.#insert(after, fresh);
        }
        while (this.#rows.length > MAX_ROWS ||
               (this.#chars > MAX_CHARS && this.#rows.length > 1))
            this.#drop(this.#rows[0], false);
        const count = this.#rows.length;
        this.#count.textContent = count === 1 ? '1 row' : `${count} rows`;
    }

    #find(op, before, after) {
        const by = (column) => {
            const value = (before ?? after).cells.get(column);
            return value === undefined ? undefined
                : this.#rows.find((row) => row.cells.get(column) === value);
        };
        const same = before === null ? undefined
            : this.#rows.find((row) => row.text === before.text);
        const guess = op === 'update' && before === null && !after.cells.has('id');
        return same ?? by(guess ? after.cells.keys().next().value : 'id');
    }

    #insert(after, fresh) {
        this.#addColumns(after);
        const element = document.createElement('tr');
        const row = { element, ...after };
        element.classList.toggle('fresh', fresh);
        element.append(...this.#columns.map((column) => cellOf(after.cells.get(column))));
        this.#body.prepend(element);
        this.#rows.push(row);
        this.#chars += row.text.length;
    }

    #change(row, after, fresh) {
        this.#addColumns(after);
        this.#columns.forEach((column, at) => {
            const value = after.cells.get(column);
            if (value === row.cells.get(column))
                return;
            const cell = cellOf(value);
            cell.classList.toggle('fresh', fresh);
            row.element.children[at].replaceWith(cell);
        });
        this.#chars += after.text.length - row.text.length;
        Object.assign(row, after);
    }

    #drop(row, seen) {
        this.#rows.splice(this.#rows.indexOf(row), 1);
        this.#chars -= row.text.length;
        if (!seen) {
            row.element.remove();
            return;
        }
        row.element.classList.add('gone');
        setTimeout(() => row.element.remove(), GONE_MS);
    }

    #addColumns({ cells }) {
        for (const name of cells.keys()) {
            if (this.#columns.includes(name) || this.#columns.length === MAX_COLUMNS)
                continue;
            const heading = document.createElement('th');
            heading.scope = 'col';
            heading.textContent = shorten(name, CELL_CHARS, 1);
            heading.dir = 'auto';
            this.#head.append(heading);
            this.#columns.push(name);
            for (const element of this.#body.children)
                element.append(cellOf(undefined));
        }
    }
}

/* The event as {table, op, before, after, fresh}, or null when it is none of a watched
 * table: anybody may publish with these types. */
function changeOf({ type, data, time }) {
    const members = OPERATIONS.has(type) ? membersOf(data) : null;
    if (members?.get('op') !== JSON.stringify(type) ||
        !members.get('table')?.startsWith('"'))
        return null;
    const before = rowOf(members.get('old'));
    const after = rowOf(members.get('new'));
    const told = { insert: after, update: after, delete: before, truncate: true }[type];
    return told === null ? null : {
        table: JSON.parse(members.get('table')), op: type, before, after,
        fresh: time !== null && Date.now() - time < FRESH_MS,
    };
}

function rowOf(text = 'null') {
    const cells = membersOf(text);
    return cells === null ? null : { text, cells };
}

/* undefined: the row does not have that column. */
function cellOf(value) {
    const cell = document.createElement('td');
    const text = value?.startsWith('"') ? JSON.parse(value) : layOut(value ?? '', 4 * CELL_CHARS);
    cell.textContent = shorten(text, CELL_CHARS, CELL_LINES);
    cell.dir = 'auto';
    if (value === 'null')
        cell.className = 'null';
    return cell;
}
