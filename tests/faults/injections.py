"""The faults, by name. Each is a generator: what stands before its `yield` is the begin, the
value it yields is how long the world goes on like that, and what follows is the end. It is
run `turns` times in a run, while everybody publishes and subscribes.
"""

import mmap
import os
import resource
import struct
import tempfile
from pathlib import Path

from harness.tools import gateway_path
from harness.waiting import SLOWNESS

from . import namespace, writers
from .traffic import BUSY_CHANNELS
from .world import Server, SmallServer, TcpServer

FAULTS = {}

# What an established gateway has open already goes on; nothing can be opened anew.
NO_DESCRIPTORS = 8


class Fault:
    """A fault's name and what its world must be like."""

    def __init__(self, inject, about, turns=3, pause=2.0, weight=1.0, server=Server, places=1,
                 root=False, own_namespace=False, exact=True, furnish=None, extra_seconds=0,
                 steady=True):
        self.inject = inject
        self.name = inject.__name__.replace("_", "-")
        self.about = about
        self.turns = turns
        self.pause = pause      # seconds of peace before each turn
        self.weight = weight    # of all events, how large a share
        self.server = server    # what kind of PostgreSQL
        self.places = places    # hosts in the gateways' connection string
        self.root = root or own_namespace
        self.own_namespace = own_namespace
        self.exact = exact      # nothing may be lost, and so nobody may be told `gap`
        self.steady = steady    # no lease ends before its time, or after it
        self.furnish = furnish or (lambda world: None)
        self.preloads = furnish is not None  # a library that sanitizers do not bear
        self.seconds = turns * pause + extra_seconds  # about how long all turns take

    def why_not(self):
        """Why it cannot be run here; None if it can."""
        if self.root and os.geteuid() != 0:
            return "it needs root"
        if self.preloads and SLOWNESS > 1:
            return "what it preloads and sanitizers do not go together"
        return None


def fault(about, **options):
    def register(inject):
        made = Fault(inject, about, **options)
        FAULTS[made.name] = made
        return inject

    return register


@fault("no fault at all", turns=4, extra_seconds=4)
def none(world, turn):
    yield 1.0


# -- gateways -----------------------------------------------------------------------------


@fault("kill -9 of a gateway, sometimes of all, and a start", turns=5, extra_seconds=5)
def gateway_killed(world, turn):
    victims = world.gateways if turn % 3 == 2 else [world.gateways[turn % 2]]
    for victim in victims:
        victim.kill()
    yield world.random.uniform(0.1, 1.0)
    for victim in victims:
        victim.start()


@fault("SIGTERM to a gateway, and a start", turns=4, extra_seconds=8)
def gateway_ended(world, turn):
    victim = world.gateways[turn % 2]
    victim.stop()
    yield world.random.uniform(0.1, 0.5)
    victim.start()


@fault("a burst of rows in one transaction, and kill -9 of a gateway that numbers them",
       turns=3, weight=4, extra_seconds=8)
def gateway_killed_in_a_burst(world, turn):
    entry = world.pen.entry(world.plan.burst_rows)
    writers.burst(world.servers.dsn(), entry, BUSY_CHANNELS)
    world.board.written[world.hand] += entry.count
    world.sleep(world.random.uniform(0.02, 0.7))
    victim = world.gateways[turn % 2]
    victim.kill()
    yield 0.3
    victim.start()


@fault("no descriptor is left to a gateway, whose connections to PostgreSQL are ended",
       turns=2, extra_seconds=8)
def descriptors_used_up(world, turn):
    limits = {}
    for gateway in world.gateways:
        limits[gateway] = resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE,
                         (NO_DESCRIPTORS, limits[gateway][1]))
    end_backends(world)
    yield 3.0
    for gateway, limit in limits.items():
        resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE, limit)


class FailingMemory:
    """The file that failing_memory.c looks at."""

    def __init__(self, path):
        path.write_bytes(bytes(8))
        with open(path, "r+b") as file:
            self._map = mmap.mmap(file.fileno(), 8)

    def fail_every(self, count):
        """From now on every count-th allocation of a gateway fails; none if it is 0. How many
        have failed so far."""
        self._map[:4] = struct.pack("=I", count)
        return struct.unpack("=I", self._map[4:])[0]


def furnish_memory(world):
    """Every gateway that is started from here on can run out of memory."""
    library = gateway_path().resolve().parent / "faults" / "failing_memory.so"
    if not library.exists():
        raise RuntimeError(f"{library} is missing: make check-faults builds it")
    path = world.directory / "failing-memory"
    world.memory = FailingMemory(path)
    os.environ.update({"LD_PRELOAD": str(library), "FAILING_MEMORY": str(path)})


@fault("memory runs out in the gateways: every n-th allocation fails", turns=4,
       furnish=furnish_memory, extra_seconds=8)
def memory_used_up(world, turn):
    before = world.memory.fail_every((1000, 100, 20, 3)[turn % 4])
    yield 2.0
    world.expect(world.memory.fail_every(0) > before, "no allocation has failed")


def furnish_clock(world):
    """Everything that is started from here on takes its time of day from a file."""
    libraries = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    if not libraries:
        raise RuntimeError("libfaketime is missing: install the package libfaketime")
    folder = Path(tempfile.mkdtemp(prefix="pgsse-clock-", dir=world.directory.parent))
    folder.chmod(0o755)  # PostgreSQL, which is not root, looks there too
    world.folders.append(folder)
    world.clock_file = folder / "offset"
    world.clock_file.write_text("+0\n")
    world.clock_file.chmod(0o644)
    os.environ.update({"LD_PRELOAD": str(libraries[0]), "FAKETIME_NO_CACHE": "1",
                       "FAKETIME_TIMESTAMP_FILE": str(world.clock_file),
                       "DONT_FAKE_MONOTONIC": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1"})


# Leases go by the clock of the database: what was handed out before it is set back comes when
# it has gone on as far, and so each jump is followed by one to where no other leads.
@fault("the clock jumps, for the gateways and PostgreSQL", turns=5, furnish=furnish_clock,
       steady=False, extra_seconds=5)
def clock_jumps(world, turn):
    world.clock_file.write_text(("+40d", "-40d", "+0", "-3600", "+20")[turn % 5] + "\n")
    yield 1.0
    world.clock_file.write_text("+41d\n")


# -- PostgreSQL ---------------------------------------------------------------------------


@fault("kill -9 of PostgreSQL, and a start", extra_seconds=6)
def postgres_killed(world, turn):
    world.servers.primary.kill()
    yield world.random.uniform(0.1, 1.5)
    world.servers.primary.start()


@fault("fast restart of PostgreSQL", extra_seconds=5)
def postgres_restarted(world, turn):
    world.servers.primary.stop()
    yield world.random.uniform(0.0, 1.0)
    world.servers.primary.start()


@fault("immediate restart of PostgreSQL", extra_seconds=6)
def postgres_crashed(world, turn):
    world.servers.primary.crash()
    yield world.random.uniform(0.0, 1.0)
    world.servers.primary.start()


@fault("SIGSTOP of PostgreSQL", turns=3, extra_seconds=18)
def postgres_frozen(world, turn):
    world.servers.primary.freeze()
    if turn == 0:
        world.time_until_noticed()
        yield 0.5
    else:
        yield world.random.uniform(1, 4)
    world.servers.primary.thaw()


def end_backends(world):
    world.servers.primary.admin(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE application_name LIKE 'pg-sse-gateway%%' OR application_name = 'naive'")


@fault("pg_terminate_backend of all the gateways' connections", turns=12, pause=1.0,
       extra_seconds=6)
def backends_ended(world, turn):
    end_backends(world)
    yield 0.2
    end_backends(world)


@fault("PostgreSQL gone for long (FAULT_AWAY seconds) under load", turns=1, weight=0.5,
       extra_seconds=4)
def postgres_away(world, turn):
    world.servers.primary.stop()
    world.time_until_noticed()
    yield world.plan.away
    world.servers.primary.start()


@fault("disk full; then a larger one", turns=2, server=SmallServer, own_namespace=True,
       extra_seconds=10)
def disk_full(world, turn):
    server, refusals = world.servers.primary, world.board.refusals()
    ballast = server.home / f"ballast{turn}"
    with open(ballast, "wb") as file:
        for _ in range(200):
            if (free := server.free_bytes()) > 0:
                try:
                    os.posix_fallocate(file.fileno(), file.seek(0, 2), free)
                except OSError:
                    pass
            world.sleep(0.05)
            if world.board.refusals() > refusals + 3:
                break
    world.expect(world.board.refusals() > refusals, "no POST was answered 503")
    yield 1.0
    server.enlarge(64)
    server.revive()


# -- promotions ---------------------------------------------------------------------------


@fault("promotion of a synchronous standby, two or more hosts in the connection string",
       turns=2, places=4, extra_seconds=14)
def synchronous_standby_promoted(world, turn):
    world.servers.add_standby(synchronous=True)
    world.sleep(2)
    world.servers.primary.kill()
    yield 0.2
    world.servers.fail_over()


@fault("promotion of an asynchronous standby that is behind", turns=2, places=4, exact=False,
       extra_seconds=16)
def asynchronous_standby_promoted(world, turn):
    servers = world.servers
    servers.add_standby(synchronous=False)
    world.sleep(2)
    servers.standby.admin("ALTER SYSTEM SET primary_conninfo = ''")
    servers.standby.admin("SELECT pg_reload_conf()")
    # Whatever is delivered from here on will be lost.
    world.sleep(1.5)
    servers.primary.kill()
    yield 0.2
    servers.fail_over()


# -- network ------------------------------------------------------------------------------

POSTGRES_PORT = 5432


def gateway_ports(world):
    return [port for _, port in world.addresses]


@fault("every connection cut (ss -K), of PostgreSQL and of clients", turns=8, pause=1.5,
       server=TcpServer, own_namespace=True, extra_seconds=4)
def connections_cut(world, turn):
    namespace.cut([POSTGRES_PORT] if turn % 2 else gateway_ports(world))
    yield 0.3
    namespace.cut([POSTGRES_PORT, *gateway_ports(world)])


@fault("packets to PostgreSQL, then to the gateways, vanish (nft drop)", turns=2,
       server=TcpServer, own_namespace=True, extra_seconds=20)
def packets_dropped(world, turn):
    if turn % 2 == 0:
        namespace.drop([POSTGRES_PORT])
        world.time_until_noticed()
        yield 1.0
    else:
        namespace.drop(gateway_ports(world))
        yield 3.0
    namespace.restore()


@fault("30 of 100 packets vanish, everywhere (nft)", turns=2, server=TcpServer,
       own_namespace=True, extra_seconds=14)
def packets_lost(world, turn):
    namespace.lose([POSTGRES_PORT, *gateway_ports(world)], 30)
    yield 5.0
    namespace.restore()


@fault("every packet is answered with a reset (nft reject), everywhere", turns=4,
       server=TcpServer, own_namespace=True, extra_seconds=6)
def connections_reset(world, turn):
    namespace.refuse([POSTGRES_PORT, *gateway_ports(world)] if turn % 2 else [POSTGRES_PORT])
    yield 1.5
    namespace.restore()
