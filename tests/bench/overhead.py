"""What share of the CPU time of a delivered message is for metrics, heartbeats and limits?

    cd tests && python3 -B -m bench.overhead

Too little to be seen by switching them off: a machine's times differ more from one run to
the next. So each is made visible in its own way, on build/bench/ring:

  heartbeats, deadlines   heartbeats are made 100 times as frequent; a hundredth of what
                          that adds to a message's CPU time is what they cost
  metrics                 callgrind counts the instructions that a message needs for them; as
                          much of the time in user space is theirs
  limits                  are looked at when somebody connects or asks; a message meets none

Both take the usual 15 s between heartbeats. The plain comparison, heartbeats as usual and
none, is measured too: "paired_share", whose sign is not to be relied on.
"""

import json
import sys
from statistics import median

from . import instructions, machine
from .programs import run, say
from .servers import World

SUBSCRIBERS = 1000
RATE = 20
OFTEN = 100
OFF = {"stream.heartbeat": "1h", "stream.idle_close": "1d"}
# A message comes every 50 ms: no heartbeat is sent into a silence, but the deadline is kept.
SETTINGS = {"usual": {}, "off": OFF, "often": {"stream.heartbeat": f"{15_000 // OFTEN}ms"}}


def deliver(world, settings, seconds):
    """CPU microseconds a message, and how much of the process's time was in user space."""
    with world.start("ring", settings=settings) as server:
        found = run("load", *server.load_arguments(), "--subscribers", SUBSCRIBERS,
                    "--rate", RATE, "--seconds", seconds, timeout=seconds + 60)
        user, kernel = machine.user_and_kernel(server.pids[0])
    return found["cpu_usec_per_delivery"], user / max(user + kernel, 1)


def measure(rounds=3, seconds=2):
    usec = {name: [] for name in SETTINGS}
    in_user_space = []
    with World() as world:
        for number in range(rounds):
            for name in sorted(SETTINGS, reverse=number % 2 == 1):
                each, share = deliver(world, SETTINGS[name], seconds)
                usec[name].append(each)
                in_user_space.append(share)
            say(f"overhead: round {number + 1} of {rounds}: {usec['usual'][-1]:.2f} usec a message")
    counted = instructions.measure_one_channel()
    counting = counted["kept_per_message"] / counted["per_message"] * median(in_user_space)
    heartbeats = median((often - off) / off / OFTEN
                        for often, off in zip(usec["often"], usec["off"]))
    paired = median(usual / off - 1 for usual, off in zip(usec["usual"], usec["off"]))
    return {"share": round(counting + max(heartbeats, 0), 5),
            "metrics_share": round(counting, 5),
            "heartbeats_share": round(heartbeats, 5),
            "paired_share": round(paired, 4),
            "user_space_share": round(median(in_user_space), 4),
            "cpu_usec_per_delivery": usec}


if __name__ == "__main__":
    json.dump(measure(), sys.stdout, indent=4)
    print()
