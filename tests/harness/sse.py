"""A strict reader of event streams: it accepts what the gateway promises to send, byte for
byte, and nothing else that a lenient browser might also take.

    Stream          one GET /events; a context manager
    Stream.next_event(), next_comment(), wait_end()

Nothing is read in the background: a stream that is not asked does not read.
"""

import re
import socket
from urllib.parse import quote, urlencode

from .raw_http import Headers, connect, parse_head
from .waiting import PATIENCE, Deadline


class ProtocolError(AssertionError):
    """The bytes are not what the interface promises."""


class StreamEnded(Exception):
    """The stream is over. `clean`: with the last chunk, or at HTTP/1.0's end of file."""

    def __init__(self, clean, what):
        super().__init__(f"the stream ended {'cleanly' if clean else 'broken off'}, {what}")
        self.clean = clean


class Event:
    """One frame. `data` is what a browser would hand out: its lines joined by LF."""

    def __init__(self, raw, id, type, data, retry):
        self.raw = raw
        self.id = id
        self.type = type
        self.data = data
        self.retry = retry

    def __repr__(self):
        return f"<event id={self.id} type={self.type} data={self.data[:120]!r} retry={self.retry}>"


_ID = re.compile(rb"[0-9A-Za-z._-]{1,127}")
_CHUNK_SIZE = re.compile(rb"[1-9A-Fa-f][0-9A-Fa-f]{0,7}|0")


def parse_frame(block, retry):
    """The lines between two empty lines, without `retry:` lines, as an Event."""
    if b"\r" in block or b"\0" in block:
        raise ProtocolError(f"CR or NUL inside a frame: {block[:200]!r}")
    lines = block.split(b"\n")
    event_id = None
    event_type = "message"
    if lines and lines[0].startswith(b"id: "):
        event_id = lines.pop(0)[4:]
        if not _ID.fullmatch(event_id):
            raise ProtocolError(f"not an id: {event_id!r}")
        event_id = event_id.decode()
    if lines and lines[0].startswith(b"event: "):
        event_type = lines.pop(0)[7:].decode("utf-8")
        if event_type == "message":
            raise ProtocolError("'event: message' is written out")
    if not lines:
        raise ProtocolError(f"a frame without data: {block[:200]!r}")
    if event_type == "checkpoint":
        if lines != [b"data:"] or event_id is None:
            raise ProtocolError(f"not a checkpoint: {block[:200]!r}")
        return Event(block + b"\n\n", event_id, event_type, "", retry)
    for line in lines:
        if not line.startswith(b"data: "):
            raise ProtocolError(f"expected 'data: ' but got {line[:80]!r} in {block[:200]!r}")
    data = b"\n".join(line[6:] for line in lines).decode("utf-8")
    return Event(block + b"\n\n", event_id, event_type, data, retry)


def events_target(channels=(), types=(), parameters=()):
    query = [("channel", name) for name in channels] + [("type", name) for name in types]
    query += parameters
    return "/events" + ("?" + urlencode(query, quote_via=quote, safe="*") if query else "")


class Stream:
    """Opens a stream and reads its head. Each wait has a deadline."""

    def __init__(self, address, channels=(), types=(), last_event_id=None, http10=False,
                 parameters=(), headers=(), method="GET", timeout=PATIENCE, receive_buffer=None,
                 target=None):
        self.wire = bytearray()  # everything after the head, as it came
        self.keep_wire = True
        self.comments = 0        # heartbeat lines seen
        self.checkpoints = []    # ids of the checkpoint frames seen
        self.last_id = last_event_id  # what a client would come back with
        self.retries = []        # milliseconds of every `retry:` line
        self.body_bytes = 0
        self.ended = None        # None while it is open; then True for a clean end
        self._http10 = http10
        self._buffer = bytearray()  # received, not yet out of its chunk
        self._body = bytearray()    # out of its chunk, not yet a whole frame
        self._scanned = 0           # of _body, where no end of a frame begins
        self._chunk_left = 0        # bytes of the current chunk still to come
        self._chunk_end = False     # the CRLF after a chunk is still to come
        self._retry = None          # of a `retry:` line, until the frame that it began ends
        self._events = []
        target = target or events_target(channels, types, parameters)
        lines = [f"{method} {target} HTTP/{'1.0' if http10 else '1.1'}", "Host: gateway.test",
                 "Accept: text/event-stream"]
        if last_event_id is not None:
            lines.append(f"Last-Event-ID: {last_event_id}")
        lines += [f"{name}: {value}" for name, value in headers]
        self.sock = connect(address, timeout, receive_buffer)
        try:
            self.sock.sendall("\r\n".join(lines + ["", ""]).encode())
            self._read_head(Deadline(timeout))
        except BaseException:
            self.sock.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.sock.close()

    # -- head ---------------------------------------------------------------------------

    def _read_head(self, deadline):
        while b"\r\n\r\n" not in self._buffer:
            if not self._receive(deadline, "a response's head"):
                raise ProtocolError(f"closed before its head was whole: {bytes(self._buffer)!r}")
        head, _, rest = bytes(self._buffer).partition(b"\r\n\r\n")
        self.status, self.reason, self.headers = parse_head(head)
        assert isinstance(self.headers, Headers)
        self._chunked = "Transfer-Encoding" in self.headers
        if self._chunked and (self._http10 or self.headers["Transfer-Encoding"] != "chunked"):
            raise ProtocolError(f"unwanted transfer coding: {self.headers!r}")
        self._length = self.headers.get("Content-Length")
        self._buffer = bytearray(rest)
        self._unwrap()

    # -- bytes --------------------------------------------------------------------------

    def _receive(self, deadline, what):
        self.sock.settimeout(deadline.left_or_raise(what))
        try:
            data = self.sock.recv(262144)
        except ConnectionResetError:
            return False
        except socket.timeout:
            raise TimeoutError(f"{what}: not within {deadline.seconds:g} s") from None
        self._buffer += data
        return bool(data)

    def sip(self, size, timeout=PATIENCE):
        """Takes no more than that from the socket."""
        self.sock.settimeout(Deadline(timeout).seconds)
        self._buffer += self.sock.recv(size)
        self._unwrap()

    def _unwrap(self):
        """Moves what has arrived from the transfer coding into the body, then parses."""
        if self.keep_wire:
            self.wire += self._buffer
        if not self._chunked:
            self._take(self._buffer)
            self._buffer = bytearray()
            if self._length is not None and self.body_bytes >= int(self._length):
                self.ended = self.body_bytes == int(self._length)
        else:
            at = 0
            while at < len(self._buffer) and self.ended is None:
                moved = self._unwrap_at(at)
                if moved == at:
                    break
                at = moved
            del self._buffer[:at]
        self._parse()

    def _unwrap_at(self, at):
        """One step of chunked decoding; where it got to, `at` if more bytes are needed."""
        buffer = self._buffer
        if self._chunk_left:
            count = min(self._chunk_left, len(buffer) - at)
            self._take(memoryview(buffer)[at:at + count])
            self._chunk_left -= count
            self._chunk_end = self._chunk_left == 0
            return at + count
        if self._chunk_end:
            if len(buffer) - at < 2:
                return at
            if buffer[at:at + 2] != b"\r\n":
                raise ProtocolError(f"a chunk ends in {bytes(buffer[at:at + 2])!r}")
            self._chunk_end = False
            return at + 2
        end = buffer.find(b"\r\n", at, at + 12)
        if end < 0:
            if len(buffer) - at >= 12:
                raise ProtocolError(f"not a chunk's size: {bytes(buffer[at:at + 12])!r}")
            return at
        size = bytes(buffer[at:end])
        if not _CHUNK_SIZE.fullmatch(size):
            raise ProtocolError(f"not a chunk's size: {size!r}")
        if int(size, 16) > 0:
            self._chunk_left = int(size, 16)
            return end + 2
        if len(buffer) < end + 4:
            return at
        if bytes(buffer[end:]) != b"\r\n\r\n":
            raise ProtocolError(f"after the last chunk: {bytes(buffer[end:])!r}")
        self.ended = True
        return len(buffer)

    def _take(self, data):
        self.body_bytes += len(data)
        self._body += data

    def _parse(self):
        """Cuts whole frames off the body, and the lines that stand before a frame."""
        at = 0
        while at < len(self._body):
            if self._body[at] in b":r":
                end = self._body.find(b"\n", at)
                if end < 0:
                    break
                self._take_line(bytes(self._body[at:end]))
                at = end + 1
                continue
            if self._body[at] == ord("\n"):
                raise ProtocolError("an empty block, which some clients take for a message")
            end = self._body.find(b"\n\n", max(at, self._scanned))
            if end < 0:
                self._scanned = max(at, len(self._body) - 1)
                break
            self._take_frame(parse_frame(bytes(self._body[at:end]), self._retry))
            self._retry = None
            at = end + 2
        del self._body[:at]
        self._scanned = max(0, self._scanned - at)

    def _take_frame(self, event):
        """A checkpoint moves the id and is no event."""
        if event.id is not None:
            self.last_id = event.id
        if event.type == "checkpoint":
            self.checkpoints.append(event.id)
        else:
            self._events.append(event)

    def _take_line(self, line):
        """A heartbeat, or a `retry:` line: it takes effect at once, and rides on the next
        frame, because a block of its own would be an empty message to some clients."""
        if line == b":":
            self.comments += 1
        elif re.fullmatch(rb"retry: [1-9][0-9]*", line):
            self._retry = int(line[7:])
            self.retries.append(self._retry)
        else:
            raise ProtocolError(f"not a line that may stand before a frame: {line!r}")

    # -- waiting ------------------------------------------------------------------------

    def _advance(self, deadline, what):
        """Reads once. StreamEnded when nothing more will come."""
        if self.ended is None:
            if self._receive(deadline, what):
                self._unwrap()
                return
            if self.ended is None:
                self.ended = not self._chunked and self._length is None and not self._body
        raise StreamEnded(self.ended, f"waiting for {what}; left over: {bytes(self._body[:80])!r}")

    def wait_started(self, timeout=PATIENCE):
        """The first byte of the body: from here on nothing that is committed is missed."""
        deadline = Deadline(timeout)
        while self.body_bytes == 0:
            self._advance(deadline, "the first bytes of the stream")
        return self

    def wait_checkpoint(self, timeout=PATIENCE):
        """The first checkpoint: what is notified on a relayed channel from now on comes."""
        deadline = Deadline(timeout)
        while not self.checkpoints:
            self._advance(deadline, "a checkpoint")
        return self

    def next_event(self, timeout=PATIENCE):
        deadline = Deadline(timeout)
        while not self._events:
            self._advance(deadline, "an event")
        return self._events.pop(0)

    def take(self, count, timeout=PATIENCE):
        return [self.next_event(timeout) for _ in range(count)]

    def until(self, predicate, timeout=PATIENCE):
        """Events up to and with the first for which the predicate holds."""
        events = []
        while not events or not predicate(events[-1]):
            events.append(self.next_event(timeout))
        return events

    def next_comment(self, timeout=PATIENCE):
        """Waits for one more heartbeat line."""
        deadline = Deadline(timeout)
        seen = self.comments
        while self.comments == seen:
            self._advance(deadline, "a heartbeat")

    def wait_end(self, timeout=PATIENCE):
        """Reads until the stream ends; True for a clean end. Events read on the way stay."""
        deadline = Deadline(timeout)
        try:
            while True:
                self._advance(deadline, "its end")
        except StreamEnded as end:
            return end.clean

    def pending(self):
        """Events that were read but not yet asked for."""
        return list(self._events)
