"""A queue whose workers speak HTTP: pictures are uploaded, eight workers at two gateways convert
them, half of them in Python and half in shell with curl, as the README has it. Workers are
killed at random, one gateway is killed and one is ended. Each job is done, and none is
acknowledged twice."""

import json
import random
import re
import sys
from collections import Counter
from pathlib import Path

from harness.people import Program
from harness.tools import REPOSITORY
from harness.waiting import wait_until

HERE = Path(__file__).parent
SHELL_WORKER = (HERE / "shell_worker.sh").read_text()

JOBS = 400
WORKERS = 8
KILLS = 30

# What a worker has said of an acknowledgement: http_worker.py by itself, curl by its .curlrc.
ACK = re.compile(r"([0-9]+|gone) http://.*/events/([0-9]+)\.[0-9]+\.[0-9a-z]{12}/(ack|nack)"
                 r"\?group=workers")


def test_the_shell_worker_is_the_one_of_the_readme():
    blocks = re.findall(r"^```sh\n(.*?)^```", (REPOSITORY / "README.md").read_text(), re.M | re.S)
    assert [block for block in blocks if "convert_picture" in block] == [SHELL_WORKER]


class Uploads:
    """The application: publishes a job for each picture, and again at another gateway when it
    was not told that it is there."""

    def __init__(self, gateways):
        self.gateways = gateways

    def __call__(self, number):
        data = json.dumps({"picture": f"cat-{number}.png"})
        answers = (self._post(gateway, number, data) for gateway in 10 * self.gateways)
        assert next(filter(None, answers))

    @staticmethod
    def _post(gateway, number, data):
        if gateway.stopped:
            return False
        answer = gateway.post(data, channel="jobs",
                              headers=[("Idempotency-Key", f"cat-{number}")])
        return answer.status in (200, 201)


class Workers:
    """Eight programs; who is killed, or ends because its gateway said goodbye, is replaced, as
    systemd would do it."""

    def __init__(self, directory, gateways):
        self.directory = directory
        self.gateways = gateways
        self.all = []
        self.killed = 0
        (directory / "failed").mkdir()
        (directory / ".curlrc").write_text(r'write-out = "%{http_code} %{url_effective}\n"')
        self.posts = [self.start(("python", "shell")[number % 2], number // 2)
                      for number in range(WORKERS)]

    def start(self, kind, number):
        """One in Python begins at some gateway, and finds the others. One in shell stays where it
        is, with a lease of 30 s, for which all would wait if that gateway is killed: it is not at
        the first."""
        there = self.gateways if kind == "python" else self.gateways[1:]
        urls = [gateway.url for gateway in there if not gateway.stopped]
        urls = urls[number % len(urls):] + urls[:number % len(urls)]
        if kind == "python":
            command = [sys.executable, HERE / "http_worker.py", *urls]
        else:
            command = ["sh", "-c", SHELL_WORKER.replace("http://127.0.0.1:8080", urls[0])]
        program = Program(command, self.directory / f"{kind}{len(self.all)}", {
            "PATH": f"{HERE}:/usr/bin:/bin", "CURL_HOME": str(self.directory),
            "FAILED": str(self.directory / "failed")})
        self.all.append(program)
        return kind, program

    def kill_one(self, chance):
        post = chance.randrange(WORKERS)
        kind, program = self.posts[post]
        program.kill()
        self.killed += 1
        self.posts[post] = self.start(kind, chance.randrange(WORKERS))

    def replace_ended(self):
        for post, (kind, program) in enumerate(self.posts):
            if not program.running():
                program.kill()
                self.posts[post] = self.start(kind, post)

    def said(self):
        return [line for program in self.all for line in program.lines()]

    def stop(self):
        for _, program in self.posts:
            program.kill()


def count_done(pg):
    return pg.value("SELECT count(*) FROM gateway.deliveries d JOIN gateway.groups g"
                    " ON g.id = d.group_id WHERE g.name = 'workers' AND acked_at IS NOT NULL")


def test_each_job_is_done_whoever_is_killed(pg, directory, gateway_factory):
    gateways = [gateway_factory(pg), gateway_factory(pg)]
    pg.execute("SELECT gateway.claim('jobs', 'workers', max_attempts => 1000)")
    chance = random.Random(5)
    upload = Uploads(gateways)
    workers = Workers(directory, gateways)
    try:
        for number in range(JOBS):
            done = count_done(pg)
            upload(number)
            if number % (JOBS // KILLS) == 0:
                wait_until(lambda: count_done(pg) > done, "somebody works")
                workers.replace_ended()
                workers.kill_one(chance)
            if number == JOBS // 3:
                gateways.append(gateway_factory(pg))
                gateways[0].kill()
            if number == 2 * JOBS // 3:
                gateways.append(gateway_factory(pg))
                gateways[1].stop()
        wait_until(lambda: workers.replace_ended() or count_done(pg) == JOBS,
                   "all jobs are done", timeout=60)
    finally:
        workers.stop()

    said = workers.said()
    done = {line for line in said if line.startswith("done ")}
    acks = [found.groups() for found in map(ACK.fullmatch, said) if found]
    answers = Counter(f"{what} {status}" for status, _, what in acks)
    acknowledged = Counter(job for status, job, what in acks if (what, status) == ("ack", "204"))
    print(f"{JOBS} jobs; {len(workers.all)} workers of which {workers.killed} were killed; a job"
          f" was begun {sum(line.startswith('begun ') for line in said)} times;"
          f" answers: {dict(answers)}")
    assert done == {f'done {json.dumps({"picture": f"cat-{n}.png"})}' for n in range(JOBS)}, \
        "each job is done"
    assert max(acknowledged.values()) == 1, "and none is acknowledged twice"
    assert len(acknowledged) >= JOBS - workers.killed - WORKERS, "but by a worker that was told so"
    for kind in ("python", "shell"):
        assert any("done " in program.log.read_text() for program in workers.all
                   if program.log.name.startswith(kind)), f"workers in {kind} did some"
