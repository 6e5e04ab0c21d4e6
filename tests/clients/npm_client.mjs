// npm_client.mjs PACKAGE URL - reads the stream at URL with one of the npm packages, and writes
// what the package hands out: one JSON text a line, as recording.py reads it.
//
// Each package is used as its own documentation shows it. What is done besides says why.

const [name, url] = process.argv.slice(2);

// An EventSource hands out only the types that somebody listens to.
const TYPES = ['message', 'created', 'updated', 'gap', 'checkpoint'];

const tell = (what) => process.stdout.write(JSON.stringify(what) + '\n');
const tellEvent = (id, type, data) => tell({event: [id, type, data]});

// `closed`: what to do once it has given up, which it may show only after its error.
function listen(source, {noteId = () => {}, closed = () => tell({error: '', dead: true})} = {}) {
    source.onopen = () => tell({open: true});
    source.onerror = (event) => {
        tell({error: event.message ?? event.error?.message ?? ''});
        setTimeout(() => {
            if (source.readyState === 2 && closed !== null) {
                closed();
                closed = null;
            }
        }, 0);
    };
    for (const type of TYPES) {
        source.addEventListener(type, (event) => {
            noteId(event.lastEventId);
            tellEvent(event.lastEventId, event.type, event.data);
        });
    }
}

const clients = {
    async eventsource() {
        const {EventSource} = await import('eventsource');
        listen(new EventSource(url));
    },

    // Version 6 closes for ever when a connection is refused (7 does not): whoever uses it opens
    // it anew then, with the last id in the query, because a new one sends no header. And its wait
    // before it comes back keeps no process alive that has nothing else to do.
    async undici() {
        setInterval(() => {}, 60_000);
        const {EventSource} = await import('undici');
        let lastId = '';
        const open = () => {
            const source = new EventSource(
                lastId === '' ? url : `${url}&last_event_id=${encodeURIComponent(lastId)}`);
            listen(source, {
                noteId: (id) => (lastId = id),
                closed: () => setTimeout(open, 200),
            });
        };
        open();
    },

    async 'eventsource-client'() {
        const {createEventSource} = await import('eventsource-client');
        createEventSource({
            url,
            onConnect: () => tell({open: true}),
            onDisconnect: () => tell({error: 'disconnected'}),
            onMessage: ({id, event, data}) => tellEvent(id ?? '', event ?? 'message', data),
        });
    },

    // `ownId`: it takes an id when the id's line comes, not when the event is whole, and so asks
    // to go on after an event that it never handed out. Whoever uses it keeps the id himself.
    async '@microsoft/fetch-event-source'(ownId = true) {
        globalThis.window = globalThis;
        globalThis.document = {hidden: false, addEventListener() {}, removeEventListener() {}};
        const {fetchEventSource} = await import('@microsoft/fetch-event-source');
        let lastId = null;
        const fetchWithOwnId = (input, {headers, ...rest}) => {
            const {'last-event-id': itsId, ...others} = headers;
            return fetch(input, {
                ...rest,
                headers: lastId === null ? others : {...others, 'last-event-id': lastId},
            });
        };
        await fetchEventSource(url, {
            openWhenHidden: true,
            ...(ownId ? {fetch: fetchWithOwnId} : {}),
            async onopen(response) {
                const type = response.headers.get('content-type') ?? '';
                if (!response.ok || !type.startsWith('text/event-stream')) {
                    throw new Error(`${response.status} ${type}`);
                }
                tell({open: true});
            },
            onmessage({id, event, data}) {
                lastId = id || lastId;
                tellEvent(id, event || 'message', data);
            },
            // A clean end is the end to it, unless this throws.
            onclose() {
                throw new Error('closed');
            },
            // Nothing returned: it comes back after the time that `retry:` named.
            onerror(error) {
                tell({error: error.message});
            },
        });
    },

    async '@microsoft/fetch-event-source:own-id'() {
        await clients['@microsoft/fetch-event-source'](false);
    },
};

await clients[name]();
