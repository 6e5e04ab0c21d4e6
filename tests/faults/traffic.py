"""What is published: channels, types, and data that tell who wrote them.

Each event's data says which writer wrote it (w), in which transaction or request of that
writer (t), as which one (i) of how many (n). So a loss, a double, a phantom, a torn request
and a wrong order can all be told from the data alone.
"""

import re

CHANNELS = ("orders.new", "orders.paid", "orders.gone", "users.1", "users.2", "news", "logs",
            "jobs", "quiet")
# How often each is written to: most have much, one has next to nothing.
WEIGHTS = (20, 15, 10, 15, 15, 10, 15, 4, 0.05)
# What the workers of groups work off, and where it ends if nobody can.
JOBS_CHANNEL = "jobs"
DEAD_CHANNEL = f"{JOBS_CHANNEL}.dead"
# Into these goes what is written at once in large numbers.
BUSY_CHANNELS = CHANNELS[:CHANNELS.index(JOBS_CHANNEL)]
TYPES = ("message", "created", "changed")

# Of the checker itself: the first and the last event of each channel, and those by which
# the recovery is timed. Every subscriber asks for these types, whatever else it asks for.
BEGIN, END, PROBE = "begin", "end", "probe"
PROBE_CHANNEL = "probe"
ALL_CHANNELS = (*CHANNELS, PROBE_CHANNEL)

TOKEN = re.compile(rb'\{"w":"([^"]+)","t":(\d+),"i":(\d+),"n":(\d+)')

_TEXT = "the quick brown fox jumps over the lazy dog; žluťoučký kůň úpěl ďábelské ódy. "


def event_data(writer, tx, index, count, random):
    """JSON text; now and then over several lines, as people write it."""
    size = random.choice((0, 20, 60, 120, 400)) if random.random() < 0.995 else 6000
    pad = (_TEXT * (size // len(_TEXT) + 1))[:size]
    text = f'{{"w":"{writer}","t":{tx},"i":{index},"n":{count},"pad":"{pad}"}}'
    return text.replace(',"pad"', ',\n  "pad"') if random.random() < 0.05 else text


def pick_channel(random):
    return random.choices(CHANNELS, WEIGHTS)[0]


def matches(pattern, channel):
    """As the gateway reads `channel=`: a trailing * is a prefix."""
    return channel.startswith(pattern[:-1]) if pattern.endswith("*") else channel == pattern
