"""The bytes of a stream, cut into frames, fast: a million frames in a few seconds.

No event's data puts a CR or an empty line on the wire, because the gateway splits data at
both. So a chunked body is cut at CRLF and a body at empty lines, by bytes.split().
"""


class WireError(Exception):
    """The bytes are not what the interface promises."""


class Unchunker:
    """feed() returns what the chunks that are whole by now hold."""

    def __init__(self):
        self._buffer = b""
        self.ended = False

    def feed(self, data):
        pieces = (self._buffer + data).split(b"\r\n")
        whole = (len(pieces) - 1) // 2 * 2
        self._buffer = b"\r\n".join(pieces[whole:])
        sizes, chunks = pieces[0:whole:2], pieces[1:whole:2]
        try:
            if [int(size, 16) for size in sizes] != [len(chunk) for chunk in chunks]:
                raise WireError(f"a chunk's size is wrong near {pieces[:2]!r}")
        except ValueError:
            raise WireError(f"not a chunk's size among {sizes[:3]!r}") from None
        if sizes and not chunks[-1]:
            self.ended = True
        return b"".join(chunks)


class Framer:
    """feed() returns the frames that are whole by now, from their `id:` line on, without
    their closing empty line."""

    def __init__(self):
        self._buffer = b""
        self.comments = 0

    def feed(self, body):
        frames = (self._buffer + body).split(b"\n\n")
        self._buffer = frames.pop()
        if self._buffer.startswith((b":", b"r")):
            self._buffer = self._strip(self._buffer)
        for index, frame in enumerate(frames):
            if not frame.startswith(b"id: "):
                frames[index] = self._strip(frame)
                if not frames[index].startswith(b"id: "):
                    raise WireError(f"a frame without an id: {frame[:200]!r}")
        return frames

    def _strip(self, block):
        """Without the heartbeats and the `retry:` line that may stand before a frame."""
        while block.startswith((b":", b"retry: ")):
            line, newline, rest = block.partition(b"\n")
            if not newline:
                break
            if line != b":" and not line[7:].isdigit():
                raise WireError(f"not a line that may stand before a frame: {line[:80]!r}")
            self.comments += 1
            block = rest
        return block
