"""The merge of flags, parameter file and SELF_REWARD_PARAMETERS on anything that may stand in them."""

import os
import tempfile
from pathlib import Path

from harness import invariants, run

from self_reward.parameters.flat import flat
from self_reward.parameters.stages import STAGES as KINDS
from self_reward.parameters.stages import Plan

STAGES = list(KINDS)
NAMES = list(flat(Plan))
VALUES = [
    "0", "1", "2", "-1", "5", "1e-5", "0.5", "1e400", "-0", "NaN", ".inf", ".nan", "inf", "true", "false", "yes",
    "no", "on", "~", "null", '""', "''", '"x"', "x", "010", "0x10", "0o7", "1_000", "12:30", "2020-01-02",
    "2020-13-45", "99999999999999999999999", '["a", "b"]', "[1, 2]", "[", "]", "{", "}", '{"a": 1}', "[[[[[[[[",
    "&a [*a]", "*a", "&a [x, x]", "[*a, *a, *a, *a]", "!!bool x", "!!int x", "!!float x", "!!timestamp x",
    "!!binary x", "!!python/object:os.system", "!!set {a, b}", "? [a, b]", "<<: *a", "lora", "full", "auto", "M0/sft",
    "a..b", "(", "a{99999999999}", "((((", "|", ">", "%", "@", "\t", "\x00", "\x85", "\ufeff", "é", "\u2028",
]  # fmt: skip
SHAPES = [
    ": ", "\n", "\n  ", "  - ", ", ", "{", "}", "[", "]", '"', '{"name": "', '", "value": "', '"}', '"name"',
    '"value"', "--", "=", " ", "#",
]  # fmt: skip
PIECES = NAMES + VALUES + SHAPES
path = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None), "p.yaml")


def check(data: bytes) -> None:
    """The first byte says the stage, the second which sources there are, the rest what stands in them."""
    if len(data) < 4:
        return
    stage, kind, body = STAGES[data[0] % len(STAGES)], data[1] % 8, data[2:]
    words = "".join(PIECES[byte % len(PIECES)] for byte in body)
    pairs = [(NAMES[body[i] % len(NAMES)], VALUES[body[i + 1] % len(VALUES)]) for i in range(0, len(body) - 1, 2)][:20]
    raw = body.decode("utf-8", "replace")
    argv: list[str] = []
    environment = ""
    content = None
    if kind in (0, 4):
        content = "".join(f"{name}: {value}\n" for name, value in pairs).encode()
    if kind == 1:
        content = words.encode()
    if kind == 2:
        content = body
    if kind in (3, 4):
        argv = [word for name, value in pairs for word in (f"--{name}", value)]
    if kind == 5:
        quoted = ", ".join(f'{{"name": "{name}", "value": {value}}}' for name, value in pairs)
        environment = f"[{quoted}]"
    if kind == 6:
        environment, argv = words, [os.fsdecode(body)]
    if kind == 7:
        environment, argv = raw, [f"--{word}" for word in raw.split()]
    argv = [word for word in argv if not word.startswith(("-h", "--help", "--parameter_file"))]
    invariants.parameter_sources(stage, argv, environment, path if content is not None else None, content or b"")


def seeds() -> list[bytes]:
    found = [b"\0\2judge_votes: 3\nseed: 1\n", b"\0\2prompt_keywords: [a, b]\n"]
    for stage in range(len(STAGES)):
        found += [
            bytes([stage, kind, 8 * stage + kind, 5 * kind, 4 * stage, 3 * stage + 24 * kind]) for kind in range(8)
        ]
    for value in range(len(VALUES)):  # every value for every name once, ten names a file
        for first in range(0, len(NAMES), 10):
            names = range(first, min(first + 10, len(NAMES)))
            found.append(bytes([0, 4 * (value % 2)]) + b"".join(bytes([name, value]) for name in names))
    return found


run(check, seeds())
