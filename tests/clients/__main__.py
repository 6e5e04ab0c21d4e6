"""python3 -m clients - see __init__.py; `make check-clients` calls it.

CLIENTS, CLIENT_FRONTS, CLIENT_FAULTS and CLIENT_EVENTS choose; CLIENT_SEED gives the same
events and the same plan of cuts again.
"""

import os
import sys
import time

from . import burst, clients, manners, proof, report


def chosen(variable, all_of_them):
    return tuple(os.environ.get(variable, "").split()) or all_of_them


def main():
    names = chosen("CLIENTS", clients.ALL)
    fronts = chosen("CLIENT_FRONTS", burst.FRONTS)
    faults = chosen("CLIENT_FAULTS", burst.FAULTS)
    events = int(os.environ.get("CLIENT_EVENTS") or 10_000)
    seed = int(os.environ.get("CLIENT_SEED") or time.time())
    print(f"CLIENT_SEED={seed}", flush=True)
    clients.install_packages()
    good = proof.run(seed)
    print(flush=True)
    good = report.manners(manners.Manners(names).run()) and good
    print(flush=True)
    results = []
    for front in fronts:
        run = burst.Burst(front, names, events, faults, seed)
        results += [(front, *result) for result in run.run()]
    good = report.bursts(results) and good
    print("all is as promised" if good else "something is not as promised: see above")
    return 0 if good else 1


sys.exit(main())
