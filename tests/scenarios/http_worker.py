"""A worker by HTTP, with nothing but Python: what `shell_worker.sh` is in shell.

    http_worker.py URL...

Takes jobs from one of the gateways, from the next one when that is gone, and has
`convert_picture` do each. Says a line for each acknowledgement, the status that was answered
and the URL, and does nothing about it. Runs until it is killed.
"""

import subprocess
import sys

from http_listener import act, everything

QUERY = "channel=jobs&group=workers&lease=2s&max=4&max_attempts=1000"


def main(*urls):
    for url, id, _, data in everything(QUERY, urls):
        done = subprocess.run(["convert_picture", data]).returncode == 0
        what = "ack" if done else "nack"
        print(act(url, id, what, "workers"), f"{url}/events/{id}/{what}?group=workers", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
