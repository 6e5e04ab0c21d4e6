"""sizes.py FILE... - no function over 70 lines, no file over 700.

A function counts from the line of its name to its closing brace (universal-ctags says where
they are). Tests may have longer files, but not longer functions.
"""

import subprocess
import sys
from pathlib import Path

FUNCTION_LINES = 70
FILE_LINES = 700


def functions(paths):
    listed = subprocess.run(
        ["ctags", "-x", "--languages=C", "--langmap=C:.c.h", "--kinds-C=f",
         "--_xformat=%{name}\t%{line}\t%{end}\t%{input}", *paths],
        check=True, capture_output=True, text=True).stdout
    for line in listed.splitlines():
        name, begin, end, path = line.split("\t")
        yield name, int(begin), int(end), path


paths = sys.argv[1:]
found = [f"{path}:{begin}: {name}() has {end - begin + 1} lines; {FUNCTION_LINES} are the limit"
         for name, begin, end, path in functions(paths) if end - begin >= FUNCTION_LINES]
for path in filter(lambda each: each.startswith("gateway/"), paths):
    lines = len(Path(path).read_text(encoding="utf-8").splitlines())
    if lines > FILE_LINES:
        found.append(f"{path}: {lines} lines; {FILE_LINES} are the limit")
print("\n".join(found))
sys.exit(1 if found else 0)
