/*
 * json-text.js - JSON as text, made readable without being understood.
 *
 * JSON.parse and JSON.stringify would show something else than was published: large
 * numbers rounded, duplicate keys dropped, 1.0 as 1. So only white space between the tokens
 * is changed here, never a token.
 */

const LINE_CHARS = 60; /* what is not longer stays on one line */

/* Punctuation and literals; strings are found by hand, because a regular expression that
 * repeats an alternative overflows its stack in a string of some megabytes. */
const TOKEN = /[{}[\],:]|[^\s{}[\],:"]+|"/g;

/* The text laid out, or as it is when it is no JSON. With a limit: about so much of it. */
export function layOut(text, limit = Infinity) {
    return isJson(text) ? layOutTokens(tokensOf(text, limit)) : text;
}

/* The members of an object by their names, each value as text; null for anything else. */
export function membersOf(text) {
    const tokens = isJson(text) ? tokensOf(text, Infinity) : [];
    if (tokens[0] !== '{')
        return null;
    const members = new Map();
    let name = null;
    let value = [];
    let depth = 0;
    for (const token of tokens.slice(1)) {
        if (depth === 0 && (token === ',' || token === '}')) {
            if (name !== null)
                members.set(name, value.join(''));
            name = null;
            value = [];
        } else if (name === null) {
            name = JSON.parse(token);
        } else if (depth > 0 || token !== ':') {
            depth += Number(opens(token)) - Number(closes(token));
            value.push(token);
        }
    }
    return members;
}

export function isJson(text) {
    try {
        JSON.parse(text);
        return true;
    } catch {
        return false;
    }
}

function tokensOf(text, limit) {
    const tokens = [];
    const pattern = new RegExp(TOKEN);
    let length = 0;
    for (let found = pattern.exec(text); found !== null; found = pattern.exec(text)) {
        let token = found[0];
        if (token === '"') {
            const end = endOfString(text, found.index);
            token = text.slice(found.index, end);
            pattern.lastIndex = end;
        }
        tokens.push(token);
        length += token.length;
        if (length > limit)
            break;
    }
    return tokens;
}

/* The index behind the closing quote of the string that begins at `begin`. */
function endOfString(text, begin) {
    const mark = /["\\]/g;
    mark.lastIndex = begin + 1;
    for (let found = mark.exec(text); found !== null; found = mark.exec(text)) {
        if (found[0] === '"')
            return found.index + 1;
        mark.lastIndex = found.index + 2;
    }
    return text.length;
}

const opens = (token) => token === '{' || token === '[';
const closes = (token) => token === '}' || token === ']';
const spaced = (token) => token === ':' || token === ',' ? `${token} ` : token;

function layOutTokens(tokens) {
    const out = [];
    let depth = 0;
    const newLine = () => `\n${'  '.repeat(depth)}`;

    for (let at = 0; at < tokens.length; at++) {
        const token = tokens[at];
        const group = opens(token) ? oneLine(tokens, at, LINE_CHARS - 2 * depth) : null;
        if (group !== null) {
            out.push(group.text);
            at = group.last;
        } else if (opens(token)) {
            depth += 1;
            out.push(token, newLine());
        } else if (closes(token)) {
            depth -= 1;
            out.push(newLine(), token);
        } else if (token === ',') {
            out.push(token, newLine());
        } else {
            out.push(spaced(token));
        }
    }
    return out.join('');
}

/* The object or array that begins at `first`, if it fits into one line. */
function oneLine(tokens, first, chars) {
    let text = '';
    let depth = 0;
    for (let at = first; at < tokens.length; at++) {
        depth += opens(tokens[at]) ? 1 : 0;
        depth -= closes(tokens[at]) ? 1 : 0;
        text += spaced(tokens[at]);
        if (depth === 0)
            return { text, last: at };
        if (text.length > chars)
            return null;
    }
    return null;
}

/* At most `chars` characters and `lines` lines of the text, and no half character. */
export function cut(text, chars, lines) {
    let end = Math.min(text.length, chars);
    let seen = 0;
    for (let at = text.indexOf('\n'); at >= 0 && at < end; at = text.indexOf('\n', at + 1)) {
        seen += 1;
        if (seen === lines)
            end = at;
    }
    const last = text.charCodeAt(end - 1);
    if (end < text.length && last >= 0xd800 && last < 0xdc00)
        end -= 1;
    return text.slice(0, end);
}

/* The same, with a mark where it was cut. */
export function shorten(text, chars, lines) {
    const short = cut(text, chars, lines);
    return short === text ? text : `${short} …`;
}
