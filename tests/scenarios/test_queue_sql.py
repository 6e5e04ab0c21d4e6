"""A queue whose workers speak SQL alone: an application inserts jobs, eight workers claim them,
and are killed at random. Each job is done, and none is acknowledged twice."""

import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

from harness.tools import die_with_parent
from harness.waiting import wait_until

JOBS = 1500
WORKERS = 8
KILLS = 40


class Workers:
    """Eight processes, each with a log of its own; who is killed is replaced."""

    def __init__(self, pg, directory):
        self.pg = pg
        self.directory = directory
        self.processes = []
        self.started = 0
        for _ in range(WORKERS):
            self.start()

    def start(self):
        self.started += 1
        log = self.directory / f"worker{self.started}"
        self.processes.append(subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("sql_worker.py")), self.pg.dsn, str(log)],
            preexec_fn=die_with_parent()))

    def kill_one(self, chance):
        victim = self.processes.pop(chance.randrange(len(self.processes)))
        assert victim.poll() is None, "a worker has ended by itself"
        victim.kill()
        victim.wait()
        self.start()

    def begun(self):
        """(job, id of the delivery) of all that was begun."""
        return [tuple(line.split()) for number in range(1, self.started + 1)
                if (log := self.directory / f"worker{number}").exists()
                for line in log.read_text().splitlines()]

    def stop(self):
        for process in self.processes:
            process.kill()
            process.wait()


def count_done(pg):
    return pg.value("SELECT count(*) FROM done")


def test_each_job_is_done_whichever_worker_is_killed(pg, directory, gateway_factory):
    gateways = [gateway_factory(pg), gateway_factory(pg)]
    pg.execute("CREATE TABLE done (job integer, id text)")
    pg.execute("SELECT gateway.claim('jobs', 'workers', start => 'earliest')")
    chance = random.Random(5)
    workers = Workers(pg, directory)
    try:
        for number in range(JOBS):
            done = count_done(pg)
            pg.publish("jobs", str(number), "job")
            if number % (JOBS // KILLS) == 0:
                wait_until(lambda: count_done(pg) > done, "somebody works")
                workers.kill_one(chance)
            if number == JOBS // 2:
                gateways[0].kill()
        wait_until(lambda: count_done(pg) == JOBS, "all jobs are done", timeout=60)
    finally:
        workers.stop()

    begun = workers.begun()
    print(f"{JOBS} jobs, {workers.started} workers of which {workers.started - WORKERS} were"
          f" killed, {len(begun)} deliveries begun, {count_done(pg)} jobs done")
    assert pg.value("SELECT count(DISTINCT job) FROM done") == JOBS, "each job is done"
    assert count_done(pg) == JOBS, "and once"
    assert max(Counter(id for _, id in begun).values()) == 1, "no delivery was in two hands"
    assert {id for id, in pg.execute("SELECT id FROM done")} <= {id for _, id in begun}
    assert pg.execute("SELECT lag, in_flight, due, dead, lost FROM gateway.group_list") \
        == [(0, 0, 0, 0, 0)]
    assert pg.value("SELECT count(*) FROM gateway.deliveries WHERE acked_at IS NOT NULL"
                    " AND result::text = '\"done\"'") == JOBS
