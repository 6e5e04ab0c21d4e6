"""migrations.py - the files of migrations/ are numbered without holes, each has its way
back, and the newest is the one that migrate.h says the program was written for."""

import re
import sys
from pathlib import Path

NAME = re.compile(r"([0-9]{4})_([a-z0-9_]+)\.(up|down)\.sql$")

found = []
steps = {}
for path in sorted(Path("migrations").iterdir()):
    match = NAME.match(path.name)
    if not match:
        found.append(f"{path}: is not called NNNN_name.up.sql or NNNN_name.down.sql")
        continue
    steps.setdefault(int(match[1]), {}).setdefault(match[3], []).append(match[2])

for number, step in sorted(steps.items()):
    names = step.get("up", []) + step.get("down", [])
    if len(step.get("up", [])) != 1 or len(step.get("down", [])) != 1 or len(set(names)) != 1:
        found.append(f"migrations/{number:04}: needs one .up.sql and one .down.sql of one name")
if list(sorted(steps)) != list(range(1, len(steps) + 1)):
    found.append(f"migrations: the numbers are {sorted(steps)}, not 1 to {len(steps)}")

header = Path("gateway/migrate.h").read_text(encoding="utf-8")
version = re.search(r"#define MIGRATE_SCHEMA_VERSION (\d+)", header)
if not version or int(version[1]) != max(steps, default=0):
    found.append(f"gateway/migrate.h: MIGRATE_SCHEMA_VERSION is {version and version[1]},"
                 f" the newest migration {max(steps, default=0)}")
print("\n".join(found))
sys.exit(1 if found else 0)
