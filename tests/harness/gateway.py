"""One pg-sse-gateway process: its folder, its ini, its log, and its end.

Leaving is part of every test: SIGTERM must end the process with status 0 within the drain
time, and neither its log nor a sanitizer may have anything to complain about.
"""

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path
from urllib.parse import quote

from .raw_http import RawConnection, build_request
from .sse import Stream
from .tools import die_with_parent, find_gateway
from .waiting import PATIENCE, scaled, wait_until

# What must never stand in a log or in a sanitizer's report.
DISASTERS = re.compile(
    r"assertion .*failed|Assertion|ERROR: AddressSanitizer|WARNING: ThreadSanitizer"
    r"|ERROR: LeakSanitizer|SUMMARY: \w+Sanitizer|runtime error:|[Ss]egmentation fault"
    r"|stack smashing|double free|corrupted|Fatal error in GNU libmicrohttpd|panic")

# Of a sanitizer's own: the exit status that cannot be mistaken for the gateway's 0, 1, 2.
SANITIZER_STATUS = 77

# The drain time the tests' gateways are given, and what may be added to it by a busy machine.
DRAIN_SECONDS = 2
DRAIN_SLACK_SECONDS = 15


def clean_environment(directory, extra=None):
    """The environment of a program under test: nothing of the caller's PG*, PGSSE_* or
    DATABASE_URL, and sanitizers that write into the directory."""
    dropped = re.compile(r"PG|PGSSE_|DATABASE_URL$|NOTIFY_SOCKET$|WATCHDOG_|LISTEN_|JOURNAL_")
    env = {name: value for name, value in os.environ.items() if not dropped.match(name)}
    common = f"log_path={directory}/sanitizer:exitcode={SANITIZER_STATUS}:handle_abort=1"
    options = {
        "ASAN_OPTIONS": common + ":quarantine_size_mb=16:detect_leaks=1",
        "UBSAN_OPTIONS": common + ":print_stacktrace=1",
        "TSAN_OPTIONS": common + ":halt_on_error=0:second_deadlock_stack=1",
    }
    for name, value in options.items():
        # What the caller says (suppressions, say) stays; where the reports go is ours.
        env[name] = ":".join(filter(None, [os.environ.get(name), value]))
    env["LC_ALL"] = "C.UTF-8"
    env.update(extra or {})
    return env


def ini_text(settings):
    """{"stream.heartbeat": "1s", …} as an ini file."""
    sections = {}
    for name, value in settings.items():
        section, _, key = name.partition(".")
        sections.setdefault(section, []).append(f"{key} = {value}\n")
    return "\n".join(f"[{section}]\n" + "".join(lines) for section, lines in sections.items())


def keep_report(path):
    """A copy where `make test` gathers the sanitizers' reports: the folder is removed."""
    if path.name != "log" and os.environ.get("PGSSE_REPORTS"):
        shutil.copy(path, Path(os.environ["PGSSE_REPORTS"]) / f"pytest-{path.name}")


def check_disasters(directory, what):
    """Fails if a log in the directory tells of a crash or of a sanitizer's finding."""
    logs = [directory / "log", *directory.glob("sanitizer*")]
    for path in filter(Path.exists, logs):
        text = path.read_text(errors="replace")
        found = DISASTERS.search(text)
        if found or (path.name != "log" and text.strip()):
            keep_report(path)
            start = max(0, found.start() - 500) if found else 0
            raise AssertionError(f"{what}: {path.name} says:\n{text[start:start + 12000]}")


def run_gateway(directory, *arguments, settings=None, env=None, timeout=60, binary=None):
    """Runs a command that ends by itself (migrate, check-config, …) and returns it with
    .returncode, .stdout and .stderr."""
    directory.mkdir(parents=True, exist_ok=True)
    command = [str(binary or find_gateway())]
    if settings is not None:
        (directory / "gateway.ini").write_text(ini_text(settings))
        command += ["--config", str(directory / "gateway.ini")]
    done = subprocess.run([*command, *map(str, arguments)], cwd=directory, text=True,
                          env=clean_environment(directory, env), stdin=subprocess.DEVNULL,
                          capture_output=True, timeout=scaled(timeout))
    (directory / "log").write_text(done.stderr)
    check_disasters(directory, f"pg-sse-gateway {' '.join(map(str, arguments))}")
    assert done.returncode in (0, 1, 2), (done.returncode, done.stderr)
    return done


class Gateway:
    """A gateway that serves. `launcher` goes before the program (a wrapper of its own);
    `address` is given when the log does not tell where it listens."""

    def __init__(self, directory, settings, env=None, launcher=(), arguments=(), address=None,
                 binary=None, pass_fds=()):
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.log_path = self.directory / "log"
        self.ini_path = self.directory / "gateway.ini"
        self.ini_path.write_text(ini_text(settings))
        self.drain = DRAIN_SECONDS
        self.address = address
        self.stopped = False
        command = [*launcher, str(binary or find_gateway()), "--config", str(self.ini_path),
                   *arguments]
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=clean_environment(self.directory, env), pass_fds=pass_fds,
                preexec_fn=die_with_parent())

    # -- life ---------------------------------------------------------------------------

    @property
    def pid(self):
        return self.process.pid

    @property
    def port(self):
        return self.address[1]

    @property
    def url(self):
        return f"http://{self.address[0]}:{self.address[1]}"

    def log(self):
        return self.log_path.read_text(errors="replace")

    def alive_or_raise(self):
        if self.process.poll() is not None:
            raise AssertionError(f"the gateway ended with {self.process.returncode}:\n{self.log()}")

    def wait_log(self, pattern, timeout=PATIENCE):
        def look():
            found = re.search(pattern, self.log())
            if not found:
                self.alive_or_raise()
            return found

        try:
            return wait_until(look, f"{pattern!r} in the log", timeout)
        except TimeoutError as error:
            raise AssertionError(f"{error}\n{self.log()}") from None

    def wait_listening(self):
        """Until it accepts connections; the database may still be away."""
        if self.address is None:
            found = self.wait_log(r"listening on (?:http://)?127\.0\.0\.1:([0-9]+)")
            self.address = ("127.0.0.1", int(found[1]))
        wait_until(lambda: self.get("/healthz").status == 200, "/healthz says 200")
        return self

    def wait_ready(self, timeout=30):
        self.wait_listening()

        def ready():
            self.alive_or_raise()
            return self.get("/readyz").status == 200

        try:
            wait_until(ready, "/readyz says 200", timeout)
        except TimeoutError as error:
            raise AssertionError(f"{error}: {self.get('/readyz')}\n{self.log()}") from None
        return self

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)

    def wait_exit(self, timeout):
        try:
            return self.process.wait(scaled(timeout))
        except subprocess.TimeoutExpired:
            stacks = self._stacks()
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"the gateway did not end within {scaled(timeout):g} s;"
                                 f" its threads: {stacks}\n{self.log()}") from None

    def _stacks(self):
        """Where each thread hangs, as far as the kernel tells: for the failure's text."""
        threads = []
        for task in sorted(Path(f"/proc/{self.pid}/task").iterdir()):
            try:
                threads.append(f"{(task / 'comm').read_text().strip()}:"
                               f" {(task / 'wchan').read_text()}")
            except OSError:
                pass
        return threads

    def stop(self):
        """The end every gateway of a test must come to."""
        if self.stopped:
            return
        self.stopped = True
        if self.process.poll() is None:
            self.terminate()
        status = self.wait_exit(self.drain + DRAIN_SLACK_SECONDS)
        self.check()
        assert status == 0, f"the gateway ended with status {status}:\n{self.log()}"

    def kill(self):
        """As kill -9 or a power cut would: no goodbyes."""
        self.stopped = True
        self.process.kill()
        self.process.wait()
        self.check()

    def check(self):
        check_disasters(self.directory, "the gateway")

    # -- requests -----------------------------------------------------------------------

    def connection(self, timeout=PATIENCE, receive_buffer=None):
        return RawConnection(self.address, timeout, receive_buffer)

    def request(self, method, target, headers=(), body=None, version="1.1", timeout=PATIENCE):
        """One request on a connection of its own."""
        with self.connection(timeout) as connection:
            fields = [*headers]
            if not any(name.lower() == "connection" for name, _ in fields):
                fields.append(("Connection", "close"))
            connection.send_as_much_as_taken(
                build_request(method, target, fields, body, version))
            return connection.read_response(timeout, method)

    def get(self, target, headers=(), timeout=PATIENCE):
        return self.request("GET", target, headers, timeout=timeout)

    def post(self, body, content_type="application/json", channel=None, type=None, headers=(),
             timeout=PATIENCE):
        """POST /events; body: text or bytes."""
        query = [f"{name}={quote(value, safe='')}"
                 for name, value in (("channel", channel), ("type", type)) if value is not None]
        target = "/events" + ("?" + "&".join(query) if query else "")
        fields = [*headers]
        if content_type is not None:
            fields.append(("Content-Type", content_type))
        body = body.encode() if isinstance(body, str) else body
        return self.request("POST", target, fields, body, timeout=timeout)

    def publish(self, channel, data, type="message"):
        """Publishes the JSON text `data`, which must succeed; its id."""
        response = self.post(data, channel=channel, type=type)
        assert response.status == 201, repr(response)
        return response.json()["id"]

    def subscribe(self, *channels, started=True, **options):
        """An open stream; `started` waits for its first bytes."""
        stream = Stream(self.address, channels, **options)
        if started:
            try:
                assert stream.status == 200, (stream.status, stream.headers)
                stream.wait_started()
            except BaseException:
                stream.close()
                raise
        return stream

    # -- looking inside -----------------------------------------------------------------

    def metrics(self):
        """{'pgsse_streams': 3.0, …}; labels stay in the name."""
        response = self.get("/metrics")
        assert response.status == 200, repr(response)
        values = {}
        for line in response.text.splitlines():
            if line and not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                # Ids are too large for a float.
                values[name] = int(value) if value.isdigit() else float(value)
        return values

    def metric(self, name):
        return self.metrics()[name]

    def wait_metric(self, name, expected, timeout=PATIENCE):
        """Waits until the figure is `expected`, or until expected(figure) holds."""
        test = expected if callable(expected) else lambda value: value == expected
        wait_until(lambda: test(self.metric(name)), f"{name} is as expected", timeout)

    def connection_memory(self, others):
        """The account of connections' memory, once `others` are open and the one that asks."""
        def look():
            figures = self.metrics()
            return figures["pgsse_connections"] == others + 1 and figures

        found = wait_until(look, f"{others} connections are open")
        return found["pgsse_connection_memory_bytes"]

    def fd_count(self):
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def rss_bytes(self):
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("VmRSS is not in /proc/PID/status")

    def answers(self):
        """Still there, and in its right mind."""
        self.alive_or_raise()
        assert self.get("/healthz").status == 200
