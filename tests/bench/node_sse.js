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

// One event a line: its data, or an event with its channel.
async function publish(channel, request, response) {
    let body = "";
    request.setEncoding("utf8");
    for await (const part of request) body += part;
    const lines = body.split("\n").filter((line) => line);
    const events = lines.map((line) => {
        if (channel) return JSON.stringify({ channel, data: line });
        const event = JSON.parse(line);
        return JSON.stringify({ channel: event.channel, data: JSON.stringify(event.data) });
    });
    await pool.query("SELECT pg_notify('events', event) FROM unnest($1::text[]) AS event", [events]);
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
