"""The reader of partial results on any bytes, and on a real file cut anywhere with rubbish after it."""

import tempfile
from pathlib import Path

from harness import invariants, run

from self_reward.method.asking import Sample

ROWS = [(3, [Sample("a\n", [1, 2], "stop"), Sample("", [], "length")]), (0, [Sample("é\u2028", [7], "stop")] * 2)]
PIECES = [
    invariants.HEADER, b'{"index": 3, "samples": [["a", [1, 2], "stop"]]}\n', b'{"index": 0, "samples": []}\n', b"\n",
    b"{", b"}", b'{"index": ', b', "samples": [', b"]}\n", b"[[[[[[[[[[[[[[[[", b"[", b"]", b'"', b",", b":",
    b'"index"', b'"samples"', b'"index": ', b'"samples": [', b"0", b"1", b"-1", b"1.5", b"true", b"null", b"\x00",
    b"\x00\x00\x00\n", b"\xff", b'["a", [1], "stop"]', b'"abc"', b'{"a": 1}', b"[[[[", b" ", b"\r\n", b"\xef\xbb\xbf",
    b"NaN", b"1e400",
]  # fmt: skip
path = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None), "samples.jsonl")


def check(data: bytes) -> None:
    kind, rest = data[0] if data else 0, data[1:]
    if kind % 4 == 0:
        invariants.partial_bytes(path, rest)
    elif kind % 4 == 1:
        invariants.partial_bytes(path, b"".join(PIECES[byte % len(PIECES)] for byte in rest))
    elif kind % 4 == 2:
        invariants.partial_bytes(path, invariants.HEADER + b"".join(PIECES[byte % len(PIECES)] for byte in rest))
    else:  # garbage that is not a row: no line of it is JSON, nor completes a row with other samples
        invariants.partial_file(path, ROWS, kind, rest.translate(bytes.maketrans(b"{[]", b"\0\0\0")))


run(check, [bytes([i % 4, i, 1, 2]) for i in range(len(PIECES))] + [bytes([3 + 4 * i, 0, 0, 10]) for i in range(60)])
