"""HTTP/1.1 by the byte: for what no client library would send, and to see what came back
exactly as it came."""

import json
import re
import socket
import struct

from .waiting import PATIENCE, Deadline


class Closed(Exception):
    """The peer closed (or reset) the connection where bytes were still expected."""

    def __init__(self, what, received=b""):
        super().__init__(f"{what}; received until then: {bytes(received[:200])!r}")
        self.received = bytes(received)


def connect(address, timeout=PATIENCE, receive_buffer=None):
    """address: (host, port), or the path of a Unix socket."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    if family == socket.AF_INET and ":" in address[0]:
        family = socket.AF_INET6
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.settimeout(Deadline(timeout).left())
        sock.connect(address)
        if family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except BaseException:
        sock.close()
        raise
    return sock


class Headers:
    """Header fields in the order they came; names compare without case."""

    def __init__(self, pairs):
        self.pairs = pairs

    def all(self, name):
        return [value for key, value in self.pairs if key.lower() == name.lower()]

    def get(self, name, default=None):
        values = self.all(name)
        assert len(values) <= 1, f"{name} came {len(values)} times: {values}"
        return values[0] if values else default

    def __getitem__(self, name):
        value = self.get(name)
        assert value is not None, f"there is no {name} among {self.pairs}"
        return value

    def __contains__(self, name):
        return bool(self.all(name))

    def names_in(self, name):
        """The members of a comma-separated field, lower case."""
        return {word.strip().lower() for value in self.all(name) for word in value.split(",")}

    def __repr__(self):
        return repr(self.pairs)


_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-5][0-9][0-9]) ([^\r\n]*)")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n\0]*?)[ \t]*")


def parse_head(head):
    """Status, reason and headers of a response's head, without its closing empty line."""
    first, *lines = head.split(b"\r\n")
    match = _STATUS_LINE.fullmatch(first)
    assert match, f"not a status line: {first!r}"
    pairs = []
    for line in lines:
        field = _FIELD.fullmatch(line)
        assert field, f"not a header field: {line!r}"
        pairs.append((field[1].decode(), field[2].decode("utf-8")))
    return int(match[1]), match[2].decode(), Headers(pairs)


class Response:
    def __init__(self, status, reason, headers, body):
        self.status = status
        self.reason = reason
        self.headers = headers
        self.body = body

    @property
    def text(self):
        return self.body.decode("utf-8")

    def json(self):
        assert self.headers["Content-Type"].partition(";")[0].strip() in (
            "application/json", "application/problem+json"), repr(self)
        return json.loads(self.body)

    def problem(self, status=None):
        """The problem document (RFC 9457), its shape checked; `status` may be a tuple."""
        if status is not None:
            allowed = status if isinstance(status, tuple) else (status,)
            assert self.status in allowed, repr(self)
        assert self.headers["Content-Type"] == "application/problem+json", repr(self)
        problem = json.loads(self.body)
        assert isinstance(problem["type"], str) and problem["type"], problem
        assert isinstance(problem["title"], str) and problem["title"], problem
        assert isinstance(problem["detail"], str) and problem["detail"], problem
        assert problem["status"] == self.status, problem
        assert problem["title"] != "Internal Server Error" or self.status == 500, problem
        return problem

    def __repr__(self):
        return f"<{self.status} {self.reason} {self.headers!r} {self.body[:400]!r}>"


class RawConnection:
    """One connection. Everything waits at most until its deadline."""

    def __init__(self, address, timeout=PATIENCE, receive_buffer=None):
        self.sock = connect(address, timeout, receive_buffer)
        self.buffer = bytearray()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.sock.close()

    def reset(self):
        """Closes with RST instead of FIN."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def send(self, data, timeout=PATIENCE):
        self.sock.settimeout(Deadline(timeout).left())
        self.sock.sendall(data)

    def send_as_much_as_taken(self, data):
        """As send(), but a peer that has answered and closed already is no failure."""
        try:
            self.send(data)
        except (BrokenPipeError, ConnectionResetError):
            pass

    def _fill(self, deadline, what):
        """More bytes into the buffer; False at the end of the stream."""
        self.sock.settimeout(deadline.left_or_raise(what))
        try:
            data = self.sock.recv(262144)
        except ConnectionResetError:
            return False
        except socket.timeout:
            raise TimeoutError(f"{what}: not within {deadline.seconds:g} s;"
                               f" received: {bytes(self.buffer[:200])!r}") from None
        self.buffer += data
        return bool(data)

    def read_until(self, mark, deadline, what):
        while True:
            end = self.buffer.find(mark)
            if end >= 0:
                taken = bytes(self.buffer[:end])
                del self.buffer[: end + len(mark)]
                return taken
            if not self._fill(deadline, what):
                raise Closed(f"the connection ended before {what}", self.buffer)

    def read_exactly(self, count, deadline, what):
        while len(self.buffer) < count:
            if not self._fill(deadline, what):
                raise Closed(f"the connection ended before {what}", self.buffer)
        taken = bytes(self.buffer[:count])
        del self.buffer[:count]
        return taken

    def read_response(self, timeout=PATIENCE, method="GET"):
        """The next response. A 100 Continue is a response of its own."""
        deadline = Deadline(timeout)
        head = self.read_until(b"\r\n\r\n", deadline, "a response's head")
        status, reason, headers = parse_head(head)
        body = b""
        if method == "HEAD" or status in (204, 304) or status < 200:
            pass
        elif "Transfer-Encoding" in headers:
            assert headers["Transfer-Encoding"] == "chunked"
            assert "Content-Length" not in headers
            body = self._read_chunks(deadline)
        elif "Content-Length" in headers:
            body = self.read_exactly(int(headers["Content-Length"]), deadline, "the body's end")
        else:
            body = self.read_to_end(deadline)
        return Response(status, reason, headers, body)

    def _read_chunks(self, deadline):
        body = bytearray()
        while True:
            size = int(self.read_until(b"\r\n", deadline, "a chunk's size"), 16)
            body += self.read_exactly(size, deadline, "a chunk's bytes")
            assert self.read_exactly(2, deadline, "a chunk's end") == b"\r\n"
            if size == 0:
                return bytes(body)

    def read_to_end(self, deadline=None):
        deadline = deadline or Deadline()
        while self._fill(deadline, "the end of the connection"):
            pass
        taken = bytes(self.buffer)
        self.buffer.clear()
        return taken

    def wait_closed(self, timeout=PATIENCE):
        """Waits until the peer closes; what came until then."""
        return self.read_to_end(Deadline(timeout))

    def closed_now(self):
        """True if the peer has closed already; waits for nothing."""
        self.sock.setblocking(False)
        try:
            data = self.sock.recv(65536)
        except BlockingIOError:
            return False
        except ConnectionResetError:
            return True
        self.buffer += data
        return not data


def build_request(method, target, headers=(), body=None, version="1.1", host="gateway.test"):
    """The request's bytes. Host and Content-Length are added unless given."""
    given = {name.lower() for name, _ in headers}
    fields = []
    if "host" not in given and version == "1.1":
        fields.append(("Host", host))
    fields += headers
    if body is not None and not given & {"content-length", "transfer-encoding"}:
        fields.append(("Content-Length", str(len(body))))
    lines = [f"{method} {target} HTTP/{version}".encode()]
    lines += [name.encode() + b": " + (value if isinstance(value, bytes) else value.encode())
              for name, value in fields]
    return b"\r\n".join(lines) + b"\r\n\r\n" + (body or b"")


def chunked(body, size=65536):
    """The body in HTTP/1.1 chunks, with the last one."""
    out = bytearray()
    for start in range(0, len(body), size):
        piece = body[start:start + size]
        out += b"%x\r\n" % len(piece) + piece + b"\r\n"
    return bytes(out + b"0\r\n\r\n")
