"""A network and mounts of one's own: nothing outside is touched, and nothing is left behind.

A fault that needs them runs in a process that has left the common ones behind, with a
loopback that nobody else sees. What that process starts lives there as well.
"""

import ctypes
import os
import shutil
import subprocess

_CLONE_NEWNS = 0x00020000
_CLONE_NEWNET = 0x40000000
_MS_REC_PRIVATE = 0x4000 | 0x40000

_libc = ctypes.CDLL(None, use_errno=True)


def leave():
    """This process moves into a network and mounts of its own. Needs root."""
    if _libc.unshare(_CLONE_NEWNET | _CLONE_NEWNS):
        error = ctypes.get_errno()
        raise OSError(error, f"no namespaces of our own: {os.strerror(error)}")
    # What is mounted from here on is seen by nobody else.
    _libc.mount(b"none", b"/", None, _MS_REC_PRIVATE, None)
    _run("ip", "link", "set", "lo", "up")


def _run(*command, check=True):
    tool = shutil.which(command[0], path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if tool is None:
        raise RuntimeError(f"{command[0]} is missing: make check-faults installs it")
    done = subprocess.run([tool, *command[1:]], capture_output=True, text=True, timeout=20)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
    return done.stdout


def packets(ports, what, sides=("dport", "sport")):
    """With every packet to and from these TCP ports: `what`, until restore()."""
    _run("nft", "add", "table", "inet", "faults")
    _run("nft", "add chain inet faults in { type filter hook input priority 0; }")
    for port in ports:
        for side in sides:
            _run("nft", f"add rule inet faults in tcp {side} {port} {what}")


def drop(ports):
    packets(ports, "drop")


def lose(ports, percent):
    packets(ports, f"numgen random mod 100 < {percent} drop")


def refuse(ports):
    """Who sends to these ports is told that there is no such connection. A reset is let
    through: it would not be answered, only swallowed, and the other side left waiting."""
    packets(ports, "tcp flags & rst == 0x0 reject with tcp reset", sides=("dport",))


def restore():
    _run("nft", "delete", "table", "inet", "faults", check=False)


def cut(ports):
    """Every established connection to these ports ends as if by a reset."""
    for port in ports:
        for side in ("dport", "sport"):
            _run("ss", "-t", "-K", side, "=", str(port))
