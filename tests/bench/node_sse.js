// The server that most people would write: http, a set of responses for each channel, and `pg`
// with one connection that LISTENs. Each event reaches its subscribers through PostgreSQL.
"use strict";

const http = require("http");
const { Client, Pool } = require("pg");

const pool = new Pool({ max: 1 }); // one connection, so that what is published stays in order
const listener = new Client();
const subscribers = new Map(); // channel -> responses
let id = 0;

listener.on("notification", ({ payload }) => {
    const { channel, data } = JSON.parse(payload);
    const frame = `id: ${++id}\ndata: ${data}\n\n`;
    for (const response of subscribers.get(channel) ?? []) response.write(frame);
});

function subscribe(channel, response) {
    response.writeHead(200, { "Content-Type": "text/event-stream", "Cache-Control": "no-cache" });
    response.flushHeaders();
    if (!subscribers.has(channel)) subscribers.set(channel, new Set());
    subscribers.get(channel).add(response);
    response.on("close", () => subscribers.get(channel).delete(response));
}

// One event a line.
async function publish(channel, request, response) {
    let body = "";
    request.setEncoding("utf8");
    for await (const part of request) body += part;
    await pool.query(
        `SELECT pg_notify('events', json_build_object('channel', $1::text, 'data', line)::text)
         FROM unnest($2::text[]) AS line`,
        [channel, body.split("\n").filter((line) => line)],
    );
    response.writeHead(204).end();
}

async function main() {
    await listener.connect();
    await listener.query("LISTEN events");
    const server = http.createServer((request, response) => {
        const channel = new URL(request.url, "http://host").searchParams.get("channel");
        if (request.method !== "POST") return subscribe(channel, response);
        publish(channel, request, response).catch((error) => {
            console.error(error);
            response.writeHead(503).end();
        });
    });
    server.keepAliveTimeout = 60000; // the publisher keeps its connection
    server.listen(Number(process.argv[2]), "127.0.0.1", 4096);
}

main();
