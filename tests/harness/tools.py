"""The programs of the machine that tests need. A missing one fails the test with its name:
nothing is skipped."""

import ctypes
import os
import shutil
import signal
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

PACKAGE_OF = {
    "promtool": "prometheus",
    "systemd-analyze": "systemd",
    "systemd-socket-activate": "systemd",
}


def find_tool(name):
    path = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if path is None:
        pytest.fail(f"{name} is missing: install the package {PACKAGE_OF.get(name, name)}")
    return path


def find_postgres_tool(name):
    """One of PostgreSQL's own programs; Debian keeps most of them out of PATH."""
    places = [os.environ.get("PGSSE_TEST_PG_BINDIR", "")]
    newest_first = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True,
                          key=lambda place: float(place.parent.name))
    places += [str(place) for place in newest_first]
    for place in filter(None, places):
        if os.access(os.path.join(place, name), os.X_OK):
            return os.path.join(place, name)
    path = shutil.which(name)
    if path is None:
        pytest.fail(f"{name} is missing: install the package postgresql")
    return path


def gateway_path():
    return Path(os.environ.get("PGSSE_BINARY", REPOSITORY / "build" / "pg-sse-gateway"))


def find_gateway():
    """The program under test: PGSSE_BINARY, or what `make` built."""
    path = gateway_path()
    if not os.access(path, os.X_OK):
        pytest.fail(f"{path} is missing: run make, or set PGSSE_BINARY")
    return path.resolve()


_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1


def die_with_parent(how=signal.SIGKILL):
    """For Popen's preexec_fn: the child gets the signal when the test process is gone, so
    that a killed test run leaves nothing behind."""

    def in_child():
        _libc.prctl(_PR_SET_PDEATHSIG, int(how))

    return in_child
