/*
 * stream-worker.js - the SharedWorker: all tabs of this browser that follow the same
 * channels share one stream. Without it each tab holds one of the six connections that a
 * browser opens to one HTTP/1.1 host, and the seventh tab hangs.
 */

import { serveViewer } from './feed.js';

globalThis.addEventListener('connect', (event) => serveViewer(event.ports[0]));
