"""A queue whose workers speak HTTP: pictures are uploaded, eight workers at two gateways convert
them, half of them in Python and half in shell with curl, as the README has it. Workers are
killed at random, and a gateway. Each job is done, and none is acknowledged twice."""

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
ACK = re.compile(r"([0-9]+|gone) http://.*/events/([0-9]+)\.[0-9]+\.[0-9a-z]{12}/(ack|nack)\?group=workers")


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
    """Eight programs; who is killed, or has ended because its gateway is gone, is replaced, as
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
        """A worker in shell stays with its gateway, one in Python begins there."""
        urls = [gateway.url for gateway in self.gateways if not gateway.stopped]
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
    workers = Workers(directory, gateways[1:])
    workers.gateways = gateways
    try:
        for number in range(JOBS):
            upload(number)
            if number % (JOBS // KILLS) == 0:
                done = count_done(pg)
                wait_until(lambda: count_done(pg) > done, "somebody works")
                workers.replace_ended()
                workers.kill_one(chance)
            if number == JOBS // 2:
                gateways[0].kill()
                gateways.append(gateway_factory(pg))
        wait_until(lambda: workers.replace_ended() or count_done(pg) == JOBS,
                   "all jobs are done", timeout=60)
    finally:
        workers.stop()

    said = workers.said()
    begun = Counter(line for line in said if line.startswith("begun "))
    acks = [found.groups() for found in map(ACK.fullmatch, said) if found]
    answers = Counter((what, status) for status, _, what in acks)
    kinds = Counter(program.log.name.rstrip("0123456789") for program in workers.all
                    if "begun" in program.log.read_text())
    print(f"{JOBS} jobs; workers that did some: {dict(kinds)}, of them and others {workers.killed}"
          f" killed; {sum(begun.values())} times a job was begun; answers: {dict(answers)}")
    wanted = {f'begun {json.dumps({"picture": f"cat-{n}.png"})}' for n in range(JOBS)}
    assert set(begun) == wanted, "each job is done"
    done = Counter(job for status, job, what in acks if (what, status) == ("ack", "204"))
    assert max(done.values()) == 1, "and none acknowledged twice"
    assert len(done) >= JOBS - workers.killed - WORKERS, "but by a worker that was told so"
