"""words.py FILE... - calls and ways of writing that this house does without."""

import re
import sys
from pathlib import Path

BANNED = {
    "strcpy": "memcpy with a known length, or buf_add_text",
    "strcat": "buf_add_text",
    "strncpy": "memcpy with a known length",
    "strncat": "buf_add",
    "sprintf": "snprintf or buf_add_format",
    "vsprintf": "vsnprintf or buf_add_format",
    "gets": "fgets",
    "atoi": "strtol, and look at what it says",
    "atol": "strtol, and look at what it says",
    "atoll": "strtoll, and look at what it says",
    "atof": "strtod, and look at what it says",
    "strtok": "strcspn or strchr; it keeps hidden state",
    "system": "nothing: this program starts no other",
    "popen": "nothing: this program starts no other",
    "alloca": "a fixed array or malloc",
    "usleep": "a condition to wait for",
    "rand": "getrandom or clock_jitter",
    "atomic_thread_fence": "an order at the atomic itself; race detectors cannot follow fences",
}

# A test may start a program or sleep; the gateway may not.
GATEWAY_ONLY = {"system", "popen", "usleep", "strncpy", "strncat", "rand"}

CALL = re.compile(r"(?<![\w.>])(" + "|".join(BANNED) + r")\s*\(")
LITERAL = re.compile(r'"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'|/\*.*?\*/|//[^\n]*', re.S)
ATOMIC = re.compile(r"\batomic_(load|store|exchange|fetch_(?:add|sub|or|xor|and)"
                    r"|compare_exchange_(?:weak|strong))\s*\(")


def blank(match):
    """A literal or comment as so many blanks: lines and columns stay."""
    return re.sub(r"[^\n]", " ", match[0])


def complaints(path):
    text = path.read_text(encoding="utf-8")
    for match in re.finditer(LITERAL, text):
        if match[0].startswith("//"):
            line = text.count("\n", 0, match.start()) + 1
            yield f"{path}:{line}: comments are written /* like this */"
    code = LITERAL.sub(blank, text)
    for number, line in enumerate(code.splitlines(), 1):
        for match in CALL.finditer(line):
            if match[1] in GATEWAY_ONLY and path.parts[0] != "gateway":
                continue
            yield f"{path}:{number}: {match[1]}() is banned; use {BANNED[match[1]]}"
        for match in ATOMIC.finditer(line):
            yield f"{path}:{number}: spell the order out: atomic_{match[1]}_explicit()"
    for number, line in enumerate(text.splitlines(), 1):
        if "\t" in line or line != line.rstrip():
            yield f"{path}:{number}: a tab, or blanks at the end of the line"


found = [each for name in sys.argv[1:] for each in complaints(Path(name))]
print("\n".join(found))
sys.exit(1 if found else 0)
