"""documents.py PROGRAM - what is written about the program agrees with the program.

gateway.ini lists every setting that check-config knows, with its default; --help, the man
page and README.md name every command; README.md and `make help` name the same targets; every
local link of README.md leads somewhere.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

COMMANDS = ("serve", "migrate", "check-config", "healthcheck")

# Their defaults are folders that depend on where the program stands.
WITHOUT_DEFAULT = {"http.static_dir", "database.migrations_dir", "database.listen_dsn"}

SECTION = re.compile(r"^\s*\[(\w+)\]")
SETTING = re.compile(r"^\s*[#;]?\s?([a-z][a-z_]*)\s*=\s*(.*?)\s*(?:\s;.*)?$")


def settings(text):
    """{"section.key": value}; a setting that is commented out counts too."""
    section, found = None, {}
    for line in text.splitlines():
        if match := SECTION.match(line):
            section = match[1]
        elif section and (match := SETTING.match(line)):
            found.setdefault(f"{section}.{match[1]}", match[2])
    return found


def run(program, *arguments):
    env = {name: value for name, value in os.environ.items()
           if not name.startswith(("PGSSE_", "PG", "DATABASE_URL"))}
    return subprocess.run([program, *arguments], env=env, capture_output=True, text=True)


def check_settings(program):
    written = settings(Path("gateway.ini").read_text(encoding="utf-8"))
    done = run(program, "--config", "/dev/null", "check-config")
    if done.returncode:
        yield f"check-config of an empty file failed: {done.stderr}"
        return
    known = settings(done.stdout)
    for name in sorted(known.keys() - written.keys()):
        yield f"gateway.ini: lacks {name}"
    for name in sorted(written.keys() - known.keys()):
        yield f"gateway.ini: has {name}, which check-config does not print"
    for name in sorted((known.keys() & written.keys()) - WITHOUT_DEFAULT):
        if known[name].replace(" ", "") != written[name].replace(" ", ""):
            yield f"gateway.ini: {name} = {written[name]}, but the default is {known[name]}"
    done = run(program, "--config", "gateway.ini", "check-config")
    if done.returncode:
        yield f"gateway.ini does not run as it is: {done.stderr}"


def check_commands(program):
    places = {"--help": run(program, "--help").stdout,
              "gateway/man/pg-sse-gateway.8":
                  Path("gateway/man/pg-sse-gateway.8").read_text().replace("\\-", "-"),
              "README.md": Path("README.md").read_text(encoding="utf-8")}
    for place, text in places.items():
        for command in COMMANDS:
            if not re.search(rf"(?<![\w-]){command}(?![\w-])", text):
                yield f"{place}: does not mention {command}"


def check_version(program):
    version = re.search(r"^VERSION := (\S+)", Path("Makefile").read_text(), re.M)[1]
    if version not in run(program, "--version").stdout:
        yield f"--version does not say {version}"
    if f"pg\\-sse\\-gateway {version}" not in Path("gateway/man/pg-sse-gateway.8").read_text():
        yield f"gateway/man/pg-sse-gateway.8: its head does not say {version}"


def check_readme():
    text = Path("README.md").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):.*## ", Path("Makefile").read_text(), re.M))
    for target in sorted(set(re.findall(r"`make ([a-z-]+)", text)) - targets):
        yield f"README.md: make {target} is no target"
    for target in sorted(targets - set(re.findall(r"make ([a-z-]+)", text)) - {"all"}):
        yield f"README.md: does not mention make {target}"
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if "://" not in link and not Path(link).exists():
            yield f"README.md: the link to {link} leads nowhere"


def main(program):
    missing = [f"{name} is missing" for name in (program, "README.md", "gateway.ini")
               if not os.path.exists(name)]
    if missing:
        return missing
    return [*check_settings(program), *check_commands(program), *check_version(program),
            *check_readme()]


found = main(sys.argv[1])
print("\n".join(found))
sys.exit(1 if found else 0)
