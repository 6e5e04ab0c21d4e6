"""One fault in its world, from begin to end."""

import json
import multiprocessing
import random
import sys
import time
import traceback

import psycopg

from harness.tools import die_with_parent
from harness.waiting import scaled, wait_until

from . import jobs, namespace, publishers, subscribers, verdict, workers, writers
from .board import MOST_GROUPS, MOST_HANDS, MOST_PROBES, Board
from .injections import FAULTS
from .ledger import COMMITTED, Pen
from .naive_groups import GROUP_MISTAKES
from .traffic import ALL_CHANNELS, BEGIN, END, JOBS_CHANNEL, PROBE, PROBE_CHANNEL
from .world import World

HTTP_HANDS = 4
SQL_KINDS = ("short", "savepoints", "copy", "long", "long", "relaxed", "prepared")
RECOVERY_SECONDS = 15
JOBS_SECONDS = 60  # behind a burst stand tens of thousands of jobs, and each is acknowledged


class Plan:
    """How large a run is."""

    def __init__(self, events, seed, away=60.0, ring=None, sabotage=None, brisk=False,
                 pristine=None):
        self.events = events
        self.seed = seed
        self.away = away            # seconds for which PostgreSQL is gone in postgres-away
        self.ring = ring            # [ring] bytes of all gateways, if not the usual
        self.sabotage = sabotage    # of the naive gateway; None: the real one
        self.brisk = brisk          # the short form: half the turns, and half the peace
        self.pristine = pristine    # a folder as initdb makes it, to be copied
        self.burst_rows = max(500, min(100_000, events * 6 // 10))


def _in_child(pipe, work, arguments):
    die_with_parent()()
    try:
        pipe.send((work(*arguments), None))
    except BaseException:  # noqa: B036 - told to the parent
        pipe.send((None, traceback.format_exc()))


class Helper:
    """Work in a process of its own, and what it hands in."""

    def __init__(self, work, *arguments):
        context = multiprocessing.get_context("fork")
        self._pipe, theirs = context.Pipe(duplex=False)
        self._process = context.Process(target=_in_child, args=(theirs, work, arguments),
                                        daemon=True)
        self._process.start()
        theirs.close()

    def result(self, seconds):
        if not self._pipe.poll(scaled(seconds)):
            self._process.kill()
            raise TimeoutError("a process of publishers or subscribers does not end")
        value, trouble = self._pipe.recv()
        self._process.join()
        if trouble:
            raise RuntimeError(trouble)
        return value

    def end(self):
        if self._process.is_alive():
            self._process.kill()
        self._process.join()


class Run:
    def __init__(self, fault, plan):
        self.fault = fault
        self.plan = plan
        self.world = World(fault, plan)
        self.turns = min(fault.turns, max(2, fault.turns // 2)) if plan.brisk else fault.turns
        self.board = Board(2)
        self.probes = 0
        self.entries = []
        self.world.board = self.board
        self.world.pen = Pen("main", self.entries)
        self.world.hand = MOST_HANDS - 1
        self.verdict = verdict.Verdict(fault.exact)
        self.helpers = []
        self.begin_time = time.monotonic()

    def tell(self, text):
        seconds = time.monotonic() - self.begin_time
        print(f"  {self.fault.name}: {seconds:5.1f} s, {self.board.events()} events,"
              f" {self.board.resumes.value} resumes: {text}", file=sys.stderr, flush=True)

    # -- from begin to end --------------------------------------------------------------

    def go(self):
        try:
            self.world.build()
            self._bring_in_the_workers()
            self._bring_in_the_crowd()
            self._begin_publishing()
            for turn in range(self.turns):
                self._take_turn(turn)
            self._reach_the_goal()
            self._end_publishing()
            deliveries = self._end_working()
            seen = self._end_subscribing()
            self._judge(seen, deliveries)
        finally:
            for helper in self.helpers:
                helper.end()
            self.world.remove()
        return self._report(seen)

    def _help(self, work, *arguments):
        helper = Helper(work, *arguments)
        self.helpers.append(helper)
        return helper

    def _bring_in_the_workers(self):
        """But where the mistake that is to be found has nothing to do with them."""
        self.workers = None
        if self.plan.sabotage in (None, "", *GROUP_MISTAKES):
            self.workers = self._help(workers.work, self.world.addresses, self.board,
                                      f"{self.plan.seed}-{self.fault.name}")

    def _bring_in_the_crowd(self):
        world = self.world
        keys = world.sabotage is None and publishers.knows_keys(world.addresses[0])
        if not keys and world.sabotage is None:
            world.note("no idempotency keys: a POST without an answer stays unknown")
        self.keys = keys
        habits = subscribers.usual_crowd(2, restless=6 if self.plan.brisk else 12)
        self.habits = habits
        crowd = subscribers.Crowd(habits, world.addresses, self.board,
                                  random.Random(f"{self.plan.seed} crowd"))
        self.crowd = self._help(crowd.run)
        early = subscribers.early_count(habits)
        wait_until(lambda: self.board.connected.value >= early, "all are subscribed", 30)
        self._mark(BEGIN)
        wait_until(lambda: self.board.begun.value >= early, "all have seen the begin", 30)

    def _begin_publishing(self):
        expected = self.fault.seconds * self.turns / self.fault.turns
        expected = max(2.0, expected / (2 if self.plan.brisk else 1))
        rate = self.plan.events / expected
        seed = f"{self.plan.seed}-{self.fault.name}"
        http = list(range(HTTP_HANDS))
        sql = dict(enumerate(SQL_KINDS, HTTP_HANDS))
        dsn_now = multiprocessing.get_context("fork").Array("c", 400)
        dsn_now.value = self.world.servers.dsn().encode()
        self.dsn_now = dsn_now
        self.publishers = [
            self._help(publishers.publish, http, rate * 0.5, self.world.addresses, self.board,
                       self.keys, seed),
            self._help(writers.write, sql, rate * 0.5, lambda: dsn_now.value.decode(),
                       self.board, seed)]

    def _take_turn(self, turn):
        self.world.sleep(self.fault.pause / (2 if self.plan.brisk else 1))
        injected = self.fault.inject(self.world, turn)
        self.tell(f"turn {turn + 1} of {self.turns}")
        self.world.sleep(next(injected))
        next(injected, None)
        self.dsn_now.value = self.world.servers.dsn().encode()
        self._measure_recovery()

    def _measure_recovery(self):
        """From the moment the database answers until an event that is committed then has
        come out of each gateway, and has been acknowledged in each group."""
        answered = self.world.wait_database()
        number = self._probe()
        self._measure_until("recovered", "an event comes out of each gateway", answered,
                            self.board.probes, number * 2, 2, RECOVERY_SECONDS)
        if self.workers is not None:
            self._measure_until("taken_over", "an event is acknowledged in each group", answered,
                                self.board.jobs_done, number * MOST_GROUPS, MOST_GROUPS,
                                JOBS_SECONDS)

    def _measure_until(self, name, what, since, moments, first, count, patience):
        """Until there is each of these moments."""
        def reached():
            self.world.look_after()
            return all(moments[first:first + count])

        try:
            wait_until(reached, what, patience, interval=0.005)
        except TimeoutError as error:
            self.world.problems.append(str(error))
            return
        self.world.measure(name, max(0.0, max(moments[first:first + count]) - since))

    def _probe(self):
        self.probes += 1
        assert self.probes < MOST_PROBES
        for _ in range(50):
            try:
                with self.world.connect() as connection, connection.transaction():
                    for channel in (PROBE_CHANNEL, JOBS_CHANNEL):
                        connection.execute(writers.INSERT, (channel, PROBE,
                                                            f'{{"probe":{self.probes}}}'))
                break
            except psycopg.Error:
                time.sleep(0.05)
        return self.probes

    def _reach_the_goal(self):
        end = time.monotonic() + scaled(90)
        told = time.monotonic()
        while self.board.events() < self.plan.events and time.monotonic() < end:
            self.world.sleep(0.1)
            if time.monotonic() - told > 5:
                told = time.monotonic()
                self.tell(f"of {self.plan.events}")
        if self.board.events() < self.plan.events:
            self.world.note(f"only {self.board.events()} events in the time there was")

    def _end_publishing(self):
        self.board.publishing.value = 0
        for helper in self.publishers:
            entries, problems = helper.result(90)
            self.entries += entries
            self.world.problems += problems

    def _end_working(self):
        """Everything is to be acknowledged or dead; then the workers go."""
        if self.workers is None:
            return []
        self._number_all()

        def all_settled():
            self.world.look_after()
            try:
                with self.world.connect() as connection:
                    return not jobs.unsettled(connection)
            except psycopg.Error:
                return False

        try:
            wait_until(all_settled, "every job is acknowledged or dead", 60, interval=0.1)
        except TimeoutError as error:
            self.world.problems.append(str(error))
        self.board.working.value = 0
        deliveries, problems = self.workers.result(60)
        self.world.problems += problems
        return deliveries

    def _end_subscribing(self):
        """Everybody stays where he is, until he has seen the last event of his channels."""
        self.board.phase.value = subscribers.CALM
        self._number_all()
        count = len(self.habits)
        wait_until(lambda: self.board.open.value >= count, "every stream is open", 30)
        self._mark(END)

        def all_have_ended():
            self.world.look_after()
            return self.board.finished.value >= count

        try:
            wait_until(all_have_ended, "all have seen the end", 60, interval=0.05)
        except TimeoutError as error:
            self.world.problems.append(str(error))
        self.board.phase.value = subscribers.STOP
        return self.crowd.result(60)

    def _number_all(self):
        """Waits until each row has its number; prepared transactions that a fault has left
        behind are rolled back before."""
        def all_numbered():
            self.world.look_after()
            try:
                with self.world.connect() as connection:
                    for (name,) in connection.execute(
                            "SELECT gid FROM pg_prepared_xacts").fetchall():
                        connection.execute("ROLLBACK PREPARED '" + name.replace("'", "''") + "'")
                    return not connection.execute(
                        "SELECT 1 FROM gateway.events WHERE seq IS NULL LIMIT 1").fetchall()
            except psycopg.Error:
                return False

        try:
            wait_until(all_numbered, "every row is numbered", 60, interval=0.1)
        except TimeoutError as error:
            self.world.problems.append(str(error))

    def _mark(self, type):
        entry = self.world.pen.entry(0)
        with self.world.connect() as connection, connection.transaction():
            for channel in ALL_CHANNELS:
                connection.execute(writers.INSERT,
                                   (channel, type, f'{{"channel":"{channel}"}}'))
        entry.outcome = COMMITTED

    # -- judgement ----------------------------------------------------------------------

    def _judge(self, seen, deliveries):
        world = self.world
        self.tell("comparing")
        dsn = world.servers.dsn()
        world.close()
        rows = verdict.Rows.read(dsn)
        former = []
        if not self.fault.exact:
            for server in world.servers.former:
                server.start()
                former.append(verdict.Rows.read(server.dsn("faults")))
        begin_id = next(rows.ids[index] for index, kind in enumerate(rows.kinds)
                        if kind[1] == BEGIN)
        verdict.judge_table(self.verdict, rows, begin_id, self.entries, former)
        for each in seen:
            verdict.judge_subscriber(self.verdict, rows, begin_id, each, former)
            world.problems += each.problems
        worked = jobs.Jobs.read(dsn, END)  # of no group, if there were no workers
        jobs.judge(self.verdict, worked, deliveries, world.servers.primary.crashed,
                   self.fault.steady)
        self.events, self.jobs = len(rows.ids), len(worked.states)
        self.handed_out = len(deliveries)
        if not self.fault.exact and not self.verdict.lost_by_postgres:
            world.problems.append("PostgreSQL lost nothing: the fault was none")

    def _report(self, seen):
        result = {"fault": self.fault.name, "about": self.fault.about, "events": self.events,
                  "subscribers": len(seen), "resumes": self.board.resumes.value,
                  "frames": self.board.frames.value, "jobs": self.jobs,
                  "handed_out": self.handed_out, **self.verdict.counts,
                  "lost_by_postgres": self.verdict.lost_by_postgres,
                  "silences": self.board.silences.value,
                  "refusals": self.board.refusals(), "keys": self.keys,
                  "turns": self.turns, "measured": self.world.measured,
                  "examples": self.verdict.examples, "notes": self.world.notes,
                  "problems": self.world.problems,
                  "seconds": round(time.monotonic() - self.begin_time, 1)}
        result["passed"] = (self.verdict.clean() and not self.world.problems)
        return result


def run_fault(name, plan):
    """In this process, which moves into a namespace of its own if the fault needs it."""
    fault = FAULTS[name]
    if fault.own_namespace:
        namespace.leave()
    return Run(fault, plan).go()


def write_result(result, path):
    with open(path, "w", encoding="utf-8") as file:
        json.dump(result, file, indent=1, ensure_ascii=False)
