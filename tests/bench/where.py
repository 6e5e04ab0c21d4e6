"""Where does the time go? perf on servers under the load of a row.

    cd tests && python3 -B -m bench.where LOAD [server]...

    LOAD      posts        256 clients, one event each
              all          1 000 subscribers, all get each of 50 events/s
              all-10000    10 000 subscribers, 5 events/s
              sustained    1 000 subscribers, 10 000 events/s in bursts of 100
              one-of-n     1 000 channels of one subscriber, 250 events/s
              storm        10 000 come back at once, beside 1 000 who are live; takes a minute
    server    gateway, bare, nchan, node, ring; bare_mhd for posts; gateway and bare unless given;
              the storm comes to the gateway only

Needs perf (linux-perf) and the right to look into the kernel. Samples are taken by the clock, so
it works in a virtual machine, too. A stack that stands in a system call counts for that, apart
from the two things that a send on the loopback does for its receiver: his half of TCP, and
waking him. What is left is user space, by library and by function.
"""

import argparse
import collections
import re
import subprocess
import tempfile
from pathlib import Path

from harness.tools import find_tool

from . import machine
from .programs import Program
from .rounds import Load
from .rows_alone import RETURNING, STORM, STORM_SETTINGS
from .servers import SERVERS, BareMhd, World

SECONDS = 4
STORM_SECONDS = 1  # what is left of it then is not much
FREQUENCY = 1999
SHOWN = 0.01      # of a server's time, at the least

LOADS = {
    "all": Load(1000, 50),
    "all-10000": Load(10000, 5),
    "sustained": Load(1000, 10000, burst=100, more=("--count",)),
    "one-of-n": Load(1000, 250, channels=1000),
}

SYSTEM_CALL = re.compile(r"_*(?:(?:x64_|arm64_)?sys_|do_(?=(?:read|write)v$))(\w+)$")
FRAME = re.compile(r"^\s+[0-9a-f]+ (.+?) \(([^()]*)\)$")


def what(frames):
    """(library or kernel, the place in it) of one stack, innermost frame first."""
    symbols = [symbol for symbol, _ in frames]
    call = next((found[1] for symbol in symbols if (found := SYSTEM_CALL.match(symbol))), None)
    if call is None:
        symbol, library = frames[0]
        if library == "[kernel.kallsyms]":
            return "kernel", ("into and out of system calls" if "do_syscall_64" in symbols
                              else "interrupts and faults")
        return Path(library).name, symbol
    if any("try_to_wake_up" in symbol for symbol in symbols):
        return "kernel", f"{call}: wakes the receiver"
    if "net_rx_action" in symbols:
        return "kernel", f"{call}: the receiver's half of TCP"
    return "kernel", call


def read_samples(text):
    """How many samples there are of each place."""
    places = collections.Counter()
    frames = []
    for line in [*text.splitlines(), ""]:
        frame = FRAME.match(line)
        if frame:
            frames.append((frame[1].partition("+")[0], frame[2]))
        elif not line.strip() and frames:
            places[what(frames)] += 1
            frames = []
    return places


def record(pids, directory, seconds, begun=lambda: None):
    """What the processes do from begun() on, which is called when it is looked at."""
    data = Path(directory) / "perf.data"
    perf = find_tool("perf")
    command = [perf, "record", "-q", "-e", "cpu-clock", "-F", str(FREQUENCY), "-g", "-o", data, "-p",
               ",".join(map(str, pids)), "--", "sh", "-c", f"echo; exec sleep {seconds}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as looking:
        looking.stdout.readline()
        begun()
    if looking.returncode:
        raise subprocess.CalledProcessError(looking.returncode, command)
    done = subprocess.run([perf, "script", "-i", data, "-F", "comm,ip,sym,dso"], check=True,
                          capture_output=True, text=True, timeout=120)
    return read_samples(done.stdout)


def start(world, name):
    return BareMhd(world) if name == "bare_mhd" else world.start(name)


def command(server, load):
    """What loads it for a little longer than is looked at."""
    if load == "posts":
        return ["post", "--port", server.port, "--connections", 256, "--warmup", 1, "--seconds",
                SECONDS + 2, "--path", "/events", *sum((["--pid", pid] for pid in server.pids), [])]
    return ["load", *server.load_arguments(), *LOADS[load].arguments(SECONDS + 3)]


def look(world, name, load):
    """(samples of each place, what the load found)"""
    with start(world, name) as server, tempfile.TemporaryDirectory() as directory, \
            Program(*command(server, load), *(["--hold"] if load in LOADS else ())) as loading:
        if load in LOADS:
            loading.await_word("ready", 60)
            loading.go()
        try:
            loading.process.wait(1.5)  # to warm up
            raise loading.complain("the load ended early")
        except subprocess.TimeoutExpired:
            pass
        places = record(server.pids, directory, SECONDS)
        return places, loading.result(60)


def look_at_storm(world):
    """The same of the gateway, from the moment in which they come."""
    with world.start("gateway", settings=STORM_SETTINGS) as server, \
            tempfile.TemporaryDirectory() as directory, \
            Program("load", *server.load_arguments(), *STORM, "--hold") as loading:
        loading.await_word("ready", 60)
        loading.go()
        loading.await_word("ready", 120)
        places = record(server.pids, directory, STORM_SECONDS, loading.go)
        return places, loading.result(60)


def each_usec(places, found):
    """CPU microseconds of one delivery, of one answer, or of one who has come back."""
    if "storm" in found:
        return sum(places.values()) / FREQUENCY / RETURNING * 1e6
    return found.get("cpu_usec_per_delivery", found.get("server_cpu_usec_per_answer"))


def show(name, places, found):
    whole, usec = sum(places.values()), each_usec(places, found)
    parts = collections.Counter()
    print(f"{name}: {usec:.2f} µs of CPU time each; {whole} samples")
    for (part, place), count in places.most_common():
        parts[part] += count
        if count / whole >= SHOWN:
            print(f"  {count / whole:6.1%} {count / whole * usec:8.3f} µs  {part}: {place}")
    print("  in all: " + ", ".join(f"{part} {count / whole:.1%} ({count / whole * usec:.3f} µs)"
                                   for part, count in parts.most_common()
                                   if count / whole >= SHOWN), flush=True)


def main():
    parser = argparse.ArgumentParser(prog="python3 -m bench.where", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("load", choices=["posts", "storm", *LOADS])
    parser.add_argument("servers", nargs="*", metavar="server",
                        choices=[*SERVERS, "bare_mhd", []])
    options = parser.parse_args()
    default = {"posts": ("gateway", "bare_mhd"), "storm": ("gateway",)}.get(
        options.load, ("gateway", "bare"))
    if options.load == "storm" and options.servers not in ([], ["gateway"]):
        parser.error("the storm comes to the gateway only")
    machine.raise_file_limit()
    with World() as world:
        for name in options.servers or default:
            show(name, *(look_at_storm(world) if options.load == "storm" else
                         look(world, name, options.load)))


if __name__ == "__main__":
    main()
