"""rooms.py MODULE... - the house's order (the Makefile's MODULES, bottom floor first).

A room includes only rooms before it and its own header; every file of gateway/ is a room;
each outside party is let in by the rooms named here and no others.
"""

import re
import sys
from pathlib import Path

# Who may speak to whom. A header of a library that is not here may be included by nobody.
LIBRARIES = {
    "libpq-fe.h": {"dsn", "database", "migrate", "listener", "batch", "publisher", "replay"},
    "microhttpd.h": {"connection", "stream", "daemons", "exchange", "http", "page"},
    "systemd/": {"service"},
    "jansson.h": {"cloudevents", "problem", "request", "slowest"},
    "ini.h": {"inifile"},
}

# What is not a library of ours to let in: the language and the system.
SYSTEM = re.compile(r"(sys|net|netinet|arpa|linux)/|[a-z0-9_]+\.h$")

INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')


def includes(path):
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        found = INCLUDE.match(line)
        if found:
            yield number, found[1] == '"', found[2]


def allowed_rooms(header):
    for prefix, rooms in LIBRARIES.items():
        if header == prefix or (prefix.endswith("/") and header.startswith(prefix)):
            return rooms
    return None


def check_file(path, order):
    own = order.get(path.stem)
    if own is None:
        yield f"{path}: is in no line of the Makefile's MODULES"
        return
    for number, quoted, header in includes(path):
        where = f"{path}:{number}"
        if quoted:
            room = header.removesuffix(".h")
            if room not in order:
                yield f"{where}: {header} is no room of this house"
            elif order[room] > own:
                yield f"{where}: {path.stem} includes {header}, a later room"
            continue
        rooms = allowed_rooms(header)
        if rooms is not None and path.stem not in rooms:
            yield f"{where}: {header} may be included by {', '.join(sorted(rooms))} only"
        elif rooms is None and not SYSTEM.match(header):
            yield f"{where}: {header} belongs to a library that nobody lets in"


def main(modules):
    order = {room: place for place, room in enumerate(modules)}
    complaints = [f"Makefile: {room} is listed, but gateway/{room}.c and .h are not there"
                  for room in modules
                  if not any(Path(f"gateway/{room}{end}").exists() for end in (".c", ".h"))]
    for path in sorted(Path("gateway").glob("*.[ch]")):
        complaints += check_file(path, order)
    print("\n".join(complaints))
    return 1 if complaints else 0


sys.exit(main(sys.argv[1:]))
