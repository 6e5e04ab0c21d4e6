"""What it all runs on, for the heading of the table; who used how much CPU time; and which cores are
whose."""

import ctypes
import itertools
import os
import platform
import re
import resource
import socket
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from harness.tools import find_postgres_tool

from .programs import NotMeasured

TICK = os.sysconf("SC_CLK_TCK")


def raise_file_limit():
    """Subscribers are descriptors: as many as may be had, for all that is started from here."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as door:
        return door.getsockname()[1]


LISTENS = "0A"  # in /proc/net/tcp


def is_listening(pid, port):
    """On this port, and the process itself: whoever has the port in its place does not count."""
    with open("/proc/net/tcp", encoding="ascii") as sockets:
        next(sockets)
        # First those that listen; of the others there may be a hundred thousand.
        listening = itertools.takewhile(lambda fields: fields[3] == LISTENS, map(str.split, sockets))
        doors = {f"socket:[{fields[9]}]" for fields in listening
                 if int(fields[1].rpartition(":")[2], 16) == port}
    with suppress(OSError):  # it ends meanwhile
        return any(os.readlink(file) in doors for file in Path(f"/proc/{pid}/fd").iterdir())
    return False


# -- CPU time ---------------------------------------------------------------------------


def thread_seconds(pid):
    """{threads' name: their CPU seconds since they began}; of those that are there."""
    found = {}
    with suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(FileNotFoundError, ProcessLookupError):
                name = (task / "comm").read_text().strip()
                nanoseconds = int((task / "schedstat").read_text().split()[0])
                found[name] = found.get(name, 0) + nanoseconds / 1e9
    return found


def cpu_seconds(pid):
    """Of all threads of a process; 0 for one that is gone."""
    return sum(thread_seconds(pid).values())


def user_and_kernel(pid):
    """Ticks in user space and in the kernel."""
    return tuple(map(int, _stat(pid)[11:13]))


def _stat(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def children(pid):
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and int(_stat(entry.name)[1]) == pid:
                found.append(int(entry.name))
        except OSError:
            pass
    return found


class PostgresMeter:
    """CPU time of a PostgreSQL server from one moment to another, by what its processes do.
    Those that ended meanwhile are known to their parent, in ticks only."""

    def __init__(self, cluster):
        self.postmaster = cluster.process.pid
        self.before = self._read()
        self.ended_before = self._ended()

    def _read(self):
        return {pid: cpu_seconds(pid) for pid in [self.postmaster, *children(self.postmaster)]}

    def _ended(self):
        return sum(map(int, _stat(self.postmaster)[13:15])) / TICK

    def seconds(self):
        now = self._read()
        grown = sum(value - self.before.get(pid, 0) for pid, value in now.items())
        ended = self._ended() - self.ended_before
        gone = sum(value for pid, value in self.before.items() if pid not in now)
        return grown + max(0.0, ended - gone)


# -- versions ---------------------------------------------------------------------------


def said(*command):
    """What a program says on either channel; nothing if it is not there."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except OSError:
        return ""
    return done.stdout + done.stderr


def first_number(text):
    found = re.search(r"[0-9]+(\.[0-9]+)+", text)
    return found[0] if found else "not there"


def cpu_model():
    found = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    return found[1] if found else platform.machine()


def distribution():
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()


def describe():
    return {"cpu": cpu_model(), "cores": os.cpu_count(), "kernel": platform.release(),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "system": distribution()}


def postgres_version():
    try:
        return first_number(said(find_postgres_tool("postgres"), "--version"))
    except pytest.fail.Exception:
        return first_number("")


def versions(node_pg):
    """Of what is measured and of what it is built from."""
    nchan = said("dpkg-query", "-W", "-f", "${Version}", "libnginx-mod-nchan")
    found = {
        "gcc": first_number(said("gcc", "-dumpfullversion")),
        "libmicrohttpd": first_number(said("pkg-config", "--modversion", "libmicrohttpd")),
        "PostgreSQL": postgres_version(),
        "nginx": first_number(said("/usr/sbin/nginx", "-v")),
        "Nchan": first_number(nchan),
        "Node.js": first_number(said("node", "--version")),
    }
    return {**found, "pg of Node.js": node_pg} if node_pg else found


# -- cores ------------------------------------------------------------------------------


def set_cores(pid, cores):
    """All threads of a process, but those that end meanwhile."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(ProcessLookupError):
            os.sched_setaffinity(int(task.name), cores)


@contextmanager
def cores_apart(pids):
    """The processes on the first core, and whatever this process starts meanwhile on the others. On a
    machine with one core nothing is done."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) == 1:
        yield
        return
    for pid in pids:
        set_cores(pid, cores[:1])
    set_cores("self", cores[1:])
    try:
        yield
    finally:
        set_cores("self", cores)


def spread(pid, prefix):
    """Each thread whose name begins so gets a core of its own, as far as there are any; the first
    thread the first core."""
    cores = sorted(os.sched_getaffinity(0))
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # it ends meanwhile
            found.append(((task / "comm").read_text(), int(task.name)))
    found = sorted((name, thread) for name, thread in found if name.startswith(prefix))
    for number, (_, thread) in enumerate(found):
        os.sched_setaffinity(thread, [cores[number % len(cores)]])


def backlogs():
    """Packets that found no room in a core's backlog, and interrupts that woke a core to look into its
    own; of all programs, since the machine began."""
    cores = [line.split() for line in Path("/proc/net/softnet_stat").read_text().splitlines()]
    return tuple(sum(int(fields[column], 16) for fields in cores) for column in (1, 9))


# unshare(2), setns(2)
CLONE_NEWNET = 0x40000000

# /sys shows the network of whoever mounted it.
STEER = """mount -t sysfs none /sys && ip link set lo up && for queue in /sys/class/net/lo/queues/rx-*
do echo "$0" > "$queue/rps_cpus" || exit; done"""


def cpu_mask(cores):
    """As the kernel reads it: the highest 32 cores first."""
    mask = sum(1 << core for core in cores)
    words = [mask >> low & 0xffffffff for low in range(0, max(cores) + 1, 32)]
    return ",".join(f"{word:08x}" for word in reversed(words))


@contextmanager
def steered_network():
    """A network of its own for whatever this process starts meanwhile, with nothing but a loopback.
    There the receiver's half of TCP is done by all cores but the first (receive packet steering), and
    not by the one that sends. Needs root, and a second core."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) == 1:
        raise NotMeasured("the machine has one core")
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/thread-self/ns/net", "rb") as home:
        if libc.unshare(CLONE_NEWNET) != 0:
            raise NotMeasured(f"a network of its own: {os.strerror(ctypes.get_errno())}")
        try:
            done = subprocess.run(["unshare", "--mount", "sh", "-c", STEER, cpu_mask(cores[1:])],
                                  capture_output=True, text=True, timeout=30)
            if done.returncode:
                raise NotMeasured(f"packets are not steered: {done.stderr.strip()}")
            yield
        finally:
            if libc.setns(home.fileno(), CLONE_NEWNET) != 0:  # nothing that follows would be right
                sys.exit(f"no way back into the network: {os.strerror(ctypes.get_errno())}")
