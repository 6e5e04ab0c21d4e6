"""`make bench` itself: what it says of a target, what it does when something cannot be measured,
and one of its rows, measured shortly. The figures are not looked at: they are not tests."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import types
from pathlib import Path

import pytest
from bench import (figures, ground, knobs, machine, memory, paper, rounds, rows_load, scale,
                   table)
from bench import __main__ as bench_main
from bench.programs import NotMeasured, end
from bench.row import Row
from bench.rows import ROWS
from bench.servers import World
from harness.tools import REPOSITORY, find_gateway
from harness.waiting import scaled, wait_until


def run_bench(tmp_path, rows, binary=None, **env):
    """One run in a process of its own; it and what it wrote."""
    done = subprocess.run(
        [sys.executable, "-B", "-m", "bench", "--result", str(tmp_path / "bench.json")],
        cwd=REPOSITORY / "tests", capture_output=True, text=True, timeout=scaled(240),
        env={**os.environ, "PGSSE_BINARY": str(binary or find_gateway()), "BENCH_ROWS": rows,
             "BENCH_ROUNDS": "1", "BENCH_SECONDS": "1", **env})
    return done, json.loads((tmp_path / "bench.json").read_text())


def test_the_ratio_is_the_median_of_the_ratios_of_the_rounds():
    check = figures.compare("cpu", [1.0, 9.0, 4.0], [1.0, 3.0, 2.0], "µs", "bare", 2.0)
    assert (check.value, check.other, check.ratio) == (4.0, 2.0, 2.0)
    assert check.verdict == "met"


def test_a_peer_with_fewer_rounds_is_compared_within_its_own():
    check = figures.compare("cpu", [2.0, 8.0, 8.0], [4.0], "µs", "Nchan", 0.4)
    assert check.ratio == 0.5
    assert check.verdict == "missed"


def test_a_quantile_of_all_rounds_is_that_of_their_events_together():
    found = rounds.Rounds()
    found.results = {"gateway": [{"each": [3.0] * 60}, {"each": [3.0] * 58 + [4.0, 9.0]}],
                     "bare": [{"each": [2.0] * 120}]}
    check = found.pool("complete", lambda result: result["each"], 0.99, "ms", "bare", 1.2)
    assert (check.value, check.other, check.ratio, check.rounds) == (4.0, 2.0, 2.0, 1)
    assert figures.quantile([5.0, 1.0], 0.5) == 1.0


def test_nobody_always_comes_first():
    orders = [rounds.in_turn(("bare", "gateway", "nchan"), number) for number in range(4)]
    assert [order[0] for order in orders] == ["bare", "gateway", "nchan", "bare"]
    assert all(sorted(order) == ["bare", "gateway", "nchan"] for order in orders)


def test_a_line_says_of_how_many_rounds_it_is():
    check = figures.compare("cpu", [2.0, 8.0, 8.0], [4.0], "µs", "Nchan")
    assert check.rounds == 1
    assert table.line(check, "cpu").split()[-1] == "1"
    assert figures.middle("cpu", [2.0, 8.0, 9.0], "µs").rounds == 3


def test_a_figure_may_have_to_be_large():
    assert figures.limit("rate", 9.1, "", 9.0, ">=").verdict == "met"
    assert figures.limit("rate", 8.9, "", 9.0, ">=").verdict == "missed"
    assert figures.limit("rate", 8.9, "").verdict == ""


def test_the_bare_server_says_whether_the_machine_is_too_slow():
    def either(gateway, bare):
        """(deliveries, latency) of each: the verdicts of both, and of the ratio."""
        asked = [(figures.limit("deliveries", rate, "", 9.0, ">="),
                  figures.limit("p99", late, "ms", 15.0)) for rate, late in (gateway, bare)]
        relative = figures.compare("deliveries", [gateway[0]], [bare[0]], "", "bare", 0.9, ">=")
        return [check.verdict for check in (*rows_load.either(asked[0], relative, asked[1]), relative)]

    assert either((10.0, 11.0), (10.0, 8.0)) == ["met", "met", ""]
    assert either((10.0, 150.0), (10.0, 8.0)) == ["met", "missed", ""]
    assert either((10.0, 150.0), (10.0, 440.0)) == ["", "", "met"]
    assert either((5.0, 150.0), (6.0, 440.0)) == ["", "", "missed"]
    assert either((10.0, 11.0), (10.0, 440.0)) == ["met", "met", ""]


def test_what_was_acknowledged_while_it_warmed_up_has_to_be_there_too():
    class Database:
        def value(self, _):
            return 250

    assert scale.stored(Database(), {"answers_in_all": 100}, {"answers_in_all": 150}) == 250
    with pytest.raises(NotMeasured, match="300 POSTs acknowledged, 250 events stored"):
        scale.stored(Database(), {"answers": 200, "answers_in_all": 300})


def test_what_was_not_measured_never_counts_as_met():
    check = figures.Check("cpu", value=0.0, ratio=0.0, target=1.0, missing="no nginx")
    assert check.verdict == "not measured"
    assert "not measured: no nginx" in table.line(check, check.what)
    assert figures.compare("cpu", [], [1.0], "µs", "bare", 1.0).verdict == "not measured"


def test_every_line_of_the_table_fits():
    checks = [figures.compare("as long a name as there is of anything", [123456.7], [0.0123], "µs",
                              "bare MHD", 1.08),
              figures.Check("x", against="Node.js", missing="y" * 300)]
    row = {"name": "x", "title": "A row", "how": "z " * 200, "lines": checks, "missing": "w " * 99,
           "raw": None}
    lines = [line for line in table.rows_text([row])]
    lines += [row.title for row in ROWS.values()]
    assert max(map(len, lines)) <= table.WIDTH


def test_the_example_is_computed_from_the_rows_and_from_nothing_else():
    rows = [
        {"name": "channels", "raw": {"results": {"gateway": [{"cpu_usec_per_delivery": 5.0}]}}},
        {"name": "memory", "raw": {"gateway": {"pss_bytes_per_subscriber": 3000}}},
        {"name": "listeners", "raw": {
            1: [{"postgres_usec": 300, "feed_usec": 0}],
            4: [{"postgres_usec": 600, "feed_usec": 50}]}},
        {"name": "storm", "raw": {"storm": {"caught_up_seconds": 1.9}}},
    ]
    text = "\n".join(paper.text(rows))
    assert "150 MB" in text        # 50 000 of 3000 bytes
    assert "2.5 %" in text         # 5 000 messages a second of 5 µs
    assert "2.20  (listeners)" in text  # 1 000 events of 300 µs, and 19 times 100 µs
    for row in rows:
        assert "not computed" in "\n".join(paper.text([one for one in rows if one is not row]))


def test_a_row_without_its_program_is_not_measured_and_the_status_says_so(tmp_path):
    alone = tmp_path / "pg-sse-gateway"
    shutil.copy(find_gateway(), alone)
    done, result = run_bench(tmp_path, "ring-latency", alone)
    assert done.returncode == 1, done.stderr
    assert "there is no build/bench/ring" in done.stdout
    assert {line["verdict"] for line in result["rows"][0]["lines"]} == {"not measured"}


def test_a_complaint_of_what_is_ended_is_no_reason_to_go_on(monkeypatch):
    def complain(_):
        bench_main.ended_by.append(signal.SIGTERM)
        raise AssertionError("the gateway ended with status -2")

    monkeypatch.setattr(bench_main, "ended_by", [])
    with pytest.raises(SystemExit) as end_of_it:
        bench_main.measure(None, Row("x", "X", "", complain))
    assert end_of_it.value.code == 128 + signal.SIGTERM


def folders_of(directory):
    """What stands there, and the processes that work in it."""
    cwd = [path for path in Path("/proc").glob("[0-9]*/cwd") if os.path.exists(path.parent)]
    return [*directory.iterdir(),
            *(path for path in cwd if str(directory) in readlink(path))]


def readlink(path):
    try:
        return os.readlink(path)
    except OSError:
        return ""


@pytest.mark.parametrize("number, whole_group", [
    (signal.SIGINT, True), (signal.SIGTERM, False), (signal.SIGHUP, False)])
def test_who_is_interrupted_amid_a_row_leaves_nothing(number, whole_group):
    home = Path(tempfile.mkdtemp(prefix="pgsse-i-"))
    home.chmod(0o755)
    try:
        with subprocess.Popen(
                [sys.executable, "-B", "-m", "bench", "--result", str(home / "bench.json")],
                cwd=REPOSITORY / "tests", text=True, stderr=subprocess.PIPE, start_new_session=True,
                env={**os.environ, "PGSSE_BINARY": str(find_gateway()), "BENCH_ROWS": "posts",
                     "TMPDIR": str(home), "PGSSE_TEST_DATA": str(home)}) as bench:
            # In the moment of the fork, in which Python would lose what a signal's handler raises.
            wait_until(lambda: any(home.glob("pgsse-bench-*/gateway*/log")), "a gateway is started",
                       interval=0.001)
            (os.killpg if whole_group else os.kill)(bench.pid, number)
            _, said = bench.communicate(timeout=scaled(60))
        assert bench.returncode == 128 + number
        assert "Traceback" not in said and said.endswith(f"ended by {number.name}\n")
        # A backend that PostgreSQL has just told to end may outlive it by a moment.
        wait_until(lambda: not folders_of(home), "nothing is left", timeout=10)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def test_a_row_is_measured_and_written_down(tmp_path):
    done, result = run_bench(tmp_path, "publisher")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == (tmp_path / "bench.txt").read_text()
    line, = result["rows"][0]["lines"]
    assert line["verdict"] in ("met", "missed")
    assert line["value"] == result["rows"][0]["raw"]["events_per_second"] > 0


def test_who_takes_turns_has_as_many_as_the_others():
    loads = {name: rounds.Load(20, 50, server="bare") for name in ("one", "two", "three")}
    with World() as world:
        found = rounds.visit(world, loads, 0.5)
    assert [found[name]["events"] for name in loads] == [50, 50, 50]


def own_network():
    return os.readlink("/proc/thread-self/ns/net")


def can_steer():
    return subprocess.run(["unshare", "--net", "--mount", "sh", "-c", machine.STEER,
                           machine.cpu_mask([0])], capture_output=True, check=False).returncode == 0


def test_packets_are_steered_in_a_network_of_its_own_and_nowhere_else():
    home, cores = own_network(), sorted(os.sched_getaffinity(0))
    try:
        with machine.steered_network():
            assert own_network() != home
            masks = subprocess.run(
                ["unshare", "--mount", "sh", "-c",
                 "mount -t sysfs none /sys && cat /sys/class/net/*/queues/rx-*/rps_cpus"],
                check=True, capture_output=True, text=True).stdout
            assert int(masks.replace(",", ""), 16) == sum(1 << core for core in cores[1:])
    except NotMeasured:
        assert len(cores) == 1 or not can_steer()
    assert own_network() == home


def test_a_mask_of_cores_is_what_the_kernel_reads():
    assert machine.cpu_mask([1]) == "00000002"
    assert machine.cpu_mask([0, 31, 32, 64]) == "00000001,00000001,80000001"


def test_what_found_no_room_in_a_backlog_is_counted_over_all_cores(monkeypatch):
    lines = ("00000001 00000002 0 0 0 0 0 0 0 0000000a 0 0 0\n"
             "00000001 00000010 0 0 0 0 0 0 0 00000001 0 0 1\n")
    monkeypatch.setattr(Path, "read_text", lambda _: lines)
    assert machine.backlogs() == (18, 11)


@pytest.mark.parametrize("name, lines", [("crowd", 3), ("shards", 3), ("steered", 5)])
def test_rows_that_are_only_measured_where_they_are_named(name, lines):
    with World() as world:
        bench = types.SimpleNamespace(world=world, rounds=1, seconds=0.2)
        try:
            found, raw = ROWS[name].measure(bench, subscribers=20)
        except NotMeasured:
            assert len(os.sched_getaffinity(0)) == 1 or (name == "steered" and not can_steer())
            return
    assert len(found) >= lines and raw
    assert not [line for line in found if line.missing and line.against != "Nchan"]


def test_each_shard_has_a_core_of_its_own():
    cores = sorted(os.sched_getaffinity(0))
    with World() as world, world.start("gateway", settings={"server.shards": "2"}) as server:
        machine.spread(server.gateway.pid, "shard/")
        found = [os.sched_getaffinity(int(task.name))
                 for name in ("shard/0", "shard/1")
                 for task in Path(f"/proc/{server.gateway.pid}/task").iterdir()
                 if (task / "comm").read_text().strip() == name]
    assert found == [{cores[0]}, {cores[1 % len(cores)]}]


def test_what_has_to_be_asked_for_is_not_measured_without(monkeypatch):
    monkeypatch.delenv("BENCH_ROWS", raising=False)
    assert "all-1000" in [row.name for row in bench_main.chosen()]
    assert not [row.name for row in bench_main.chosen() if row.only_named]
    monkeypatch.setenv("BENCH_ROWS", "steered,all-1000")
    assert [row.name for row in bench_main.chosen()] == ["steered", "all-1000"]


def test_the_gateways_memory_is_told_without_a_peer(monkeypatch):
    class Without:
        @contextlib.contextmanager
        def start(self, name):
            if name == "nchan":
                raise NotMeasured("no nginx")
            yield types.SimpleNamespace(pids=[1], port=1)

    monkeypatch.setattr(memory, "measure", lambda *_: {"pss_bytes_per_subscriber": 3300.0})
    lines, raw = ROWS["memory"].measure(types.SimpleNamespace(world=Without()))
    assert [line.verdict for line in lines] == ["met", "not measured"]
    assert raw == {"gateway": {"pss_bytes_per_subscriber": 3300.0}}


def test_a_server_whose_port_somebody_else_has_is_not_measured(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as door, World() as world:
        monkeypatch.setattr(machine, "free_port", lambda: door.getsockname()[1])
        with pytest.raises(NotMeasured, match="Address already in use"):
            world.start("bare")


def is_alive(pid):
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_what_outlives_the_program_that_started_it_is_ended_with_it():
    process = subprocess.Popen(["sh", "-c", "sleep 1000 & echo $!; wait"], stdout=subprocess.PIPE,
                               start_new_session=True)
    child = int(process.stdout.readline())
    process.kill()
    process.wait()
    assert is_alive(child)
    end(process)
    wait_until(lambda: not is_alive(child), "the child is gone")


COMING_AND_GOING = """
import threading, time
while time.process_time() < 0.5:
    pass
print(flush=True)
while True:
    threads = [threading.Thread(target=time.sleep, args=(0.0005,)) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
"""


def test_a_thread_that_ends_meanwhile_hides_none_of_the_others():
    with subprocess.Popen([sys.executable, "-c", COMING_AND_GOING],
                          stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        seconds = [machine.cpu_seconds(process.pid) for _ in range(500)]
        process.kill()
    assert min(seconds) >= 0.5
    assert machine.cpu_seconds(process.pid) == 0


def test_a_table_without_postgresql_is_printed_all_the_same(monkeypatch):
    monkeypatch.setattr(machine, "find_postgres_tool", lambda name: pytest.fail("missing"))
    assert machine.versions(None)["PostgreSQL"] == "not there"


@pytest.mark.parametrize("name, value, said", [
    ("BENCH_ROWS", "nonsense", "no row is called nonsense"),
    *((name, value, f"{name} is {value!r}") for name, value in (
        ("BENCH_ROUNDS", "0"), ("BENCH_ROUNDS", "-1"), ("BENCH_ROUNDS", "three"),
        ("BENCH_ROUNDS", "1.5"), ("BENCH_ROUNDS", "100"), ("BENCH_SECONDS", "0"),
        ("BENCH_SECONDS", "-2"), ("BENCH_SECONDS", "nan"), ("BENCH_SECONDS", "inf"),
        ("BENCH_SECONDS", "2s"), ("BENCH_CHURN_SECONDS", "0"), ("BENCH_CHURN_SECONDS", "1h"),
        ("BENCH_WAL", "old"))),
])
def test_what_cannot_be_measured_is_refused_in_one_line(name, value, said):
    done = subprocess.run([sys.executable, "-B", "-m", "bench"], cwd=REPOSITORY / "tests",
                          capture_output=True, text=True, timeout=60,
                          env={**os.environ, "BENCH_ROWS": "list", name: value})
    assert done.returncode != 0
    assert done.stderr.startswith(said) and done.stderr.count("\n") == 1


@pytest.mark.parametrize("wal", ["used", "new"])
def test_wal_goes_into_segments_that_were_used_before(wal, monkeypatch):
    monkeypatch.setattr(knobs, "WAL", wal)
    cluster = ground.start_cluster()
    try:
        before = wal_segments(cluster)
        cluster.admin("SELECT pg_logical_emit_message(false, 'test', repeat('x', 1000000))"
                      " FROM generate_series(1, 40)")
        assert (wal_segments(cluster) == before) is (wal == "used")
    finally:
        cluster.remove()


def wal_segments(cluster):
    """By their inodes: one that is used again has another name."""
    return {path.stat().st_ino for path in (cluster.data / "pg_wal").glob("0*")}
