"""How each client is started, and which version it is.

A client runs in a process group of its own, which ends with it: browsers are families.
"""

import http.server
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit

from harness.tools import REPOSITORY, die_with_parent, find_tool

from .recording import Recording

HERE = Path(__file__).resolve().parent
PACKAGES = REPOSITORY / "build" / "clients"

NPM = ("eventsource", "undici", "eventsource-client", "@microsoft/fetch-event-source")

# Left to itself it loses events; not part of the sum. See npm_client.mjs.
OWN_ID = "@microsoft/fetch-event-source:own-id"

# Without the network ones, Chromium keeps asking its maker's servers; as root it needs
# --no-sandbox.
CHROMIUM_OPTIONS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--lang=en",
)

# The same for Firefox, and no pages of its own at the start.
FIREFOX_PREFERENCES = {
    "app.update.enabled": False,
    "browser.aboutwelcome.enabled": False,
    "browser.shell.checkDefaultBrowser": False,
    "datareporting.policy.dataSubmissionEnabled": False,
    "extensions.update.enabled": False,
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    "toolkit.telemetry.enabled": False,
    "browser.startup.homepage_override.mstone": "ignore",
    "termsofuse.bypassNotification": True,
}


def install_packages():
    """The npm packages of package-lock.json, below build/, with the script that uses them."""
    PACKAGES.mkdir(parents=True, exist_ok=True)
    shutil.copy(HERE / "npm_client.mjs", PACKAGES)
    lock = (HERE / "package-lock.json").read_bytes()
    stamp = PACKAGES / "installed-lock.json"
    if stamp.exists() and stamp.read_bytes() == lock:
        return
    for name in ("package.json", "package-lock.json"):
        shutil.copy(HERE / name, PACKAGES)
    subprocess.run([find_tool("npm"), "ci", "--ignore-scripts", "--no-audit", "--no-fund",
                    "--loglevel=error"], cwd=PACKAGES, check=True, stdin=subprocess.DEVNULL,
                   timeout=300)
    stamp.write_bytes(lock)


def first_number(*command):
    said = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    found = re.search(r"[0-9]+(\.[0-9]+)+", said)
    return found[0] if found else "?"


class Pages:
    """Serves page.html to browsers and takes what it reports."""

    def __init__(self):
        self.recordings = {}
        pages = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self, body=b"", type="text/html; charset=utf-8", status=200):
                self.send_response(status)
                self.send_header("Content-Type", type)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self):
                if urlsplit(self.path).path == "/page.html":
                    self.answer((HERE / "page.html").read_bytes())
                else:
                    self.answer(status=404)

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                name = parse_qs(urlsplit(self.path).query)["client"][0]
                for line in body.decode().splitlines():
                    pages.recordings[name].line(line)
                self.answer()

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def url(self, client, stream_url, recording):
        self.recordings[client] = recording
        query = urlencode({"client": client, "url": stream_url})
        return f"http://127.0.0.1:{self.server.server_address[1]}/page.html?{query}"

    def close(self):
        self.server.shutdown()
        self.server.server_close()


class Client:
    """One running client; subclasses say which program it is."""

    def __init__(self, name):
        self.name = name
        self.recording = Recording()
        self.process = None
        self.home = None
        self.stuck = ""  # said by whoever waited for it in vain

    def version(self):
        raise NotImplementedError

    def command(self, url):
        raise NotImplementedError

    def start(self, url):
        self.home = Path(tempfile.mkdtemp(prefix="pgsse-client-"))
        self.log = self.home / "log"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                self.command(url), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log,
                start_new_session=True, env=self.environment(), preexec_fn=die_with_parent())
        self.take_output(self.process.stdout)

    def take_output(self, pipe):
        self.recording.follow(pipe)

    def environment(self):
        return {**os.environ, "PYTHONPATH": str(HERE.parent), "PYTHONDONTWRITEBYTECODE": "1",
                "HOME": str(self.home)}

    def complaint(self):
        """What is wrong with it, if anything: it may neither end nor give up."""
        if self.process.poll() is not None:
            return f"ended with {self.process.returncode}: {self.log.read_text()[-2000:]}"
        return "gave up" if self.recording.dead else self.stuck

    def stop(self):
        if self.process is not None:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            self.process.wait()
            shutil.rmtree(self.home, ignore_errors=True)


class Npm(Client):
    def version(self):
        package = self.name.partition(":")[0]
        text = (PACKAGES / "node_modules" / package / "package.json").read_text()
        return json.loads(text)["version"]

    def command(self, url):
        return [find_tool("node"), "--no-warnings", str(PACKAGES / "npm_client.mjs"), self.name,
                url]


class Curl(Client):
    def version(self):
        return first_number(find_tool("curl"), "--version")

    def command(self, url):
        return ["/usr/bin/python3", str(HERE / "curl_loop.py"), url]


class ByHand(Client):
    def version(self):
        return first_number("/usr/bin/python3", "--version")

    def command(self, url):
        return ["/usr/bin/python3", str(HERE / "by_hand.py"), url]


class Browser(Client):
    def __init__(self, name, pages):
        super().__init__(name)
        self.pages = pages

    def take_output(self, pipe):
        """What it writes itself is of no interest, but must not fill the pipe."""
        def run():
            with pipe:
                while pipe.read(65536):
                    pass

        threading.Thread(target=run, daemon=True).start()


class Chromium(Browser):
    def version(self):
        return first_number(find_tool("chromium"), "--version")

    def command(self, url):
        return [find_tool("chromium"), *CHROMIUM_OPTIONS, f"--user-data-dir={self.home}/profile",
                self.pages.url(self.name, url, self.recording)]


class Firefox(Browser):
    def version(self):
        return first_number(find_tool("firefox-esr"), "--version")

    def command(self, url):
        profile = self.home / "profile"
        profile.mkdir()
        (profile / "user.js").write_text("".join(
            f"user_pref({json.dumps(name)}, {json.dumps(value)});\n"
            for name, value in FIREFOX_PREFERENCES.items()))
        return [find_tool("firefox-esr"), "--headless", "--no-remote", "--profile", str(profile),
                self.pages.url(self.name, url, self.recording)]


def make_clients(names, pages):
    """New ones, not started, in this order."""
    makers = {"chromium": lambda: Chromium("chromium", pages),
              "firefox": lambda: Firefox("firefox", pages),
              "curl": lambda: Curl("curl"),
              "python": lambda: ByHand("python"),
              **{name: lambda name=name: Npm(name) for name in (*NPM, OWN_ID)}}
    unknown = [name for name in names if name not in makers]
    if unknown:
        raise SystemExit(f"no client is called {unknown[0]}; there are {', '.join(makers)}")
    return [makers[name]() for name in names]


ALL = ("chromium", "firefox", "curl", *NPM, "python")
