"""The readers of rows on any bytes."""

import tempfile
from pathlib import Path

from harness import invariants, run

PIECES = [
    b'{"prompt": "a", "score": 1}', b'{"prompt": "a", "score": 4.5}', b'{"prompt": "a", "score": null}', b"\n",
    b"\r\n", b'{"prompt": "a", "score": ', b'{"prompt": "', b'", "score": 1}\n', b'{"score": 1}',
    b'{"prompt": 1, "score": 1}', b'{"prompt": "a", "score": true}', b'{"prompt": "a"}', b"[1]", b"null", b"{", b"}",
    b"[", b"]", b'"', b":", b",", b" ", b"\t", b"\r", b"\x0b", b"\x0c", b"\x00", b"\xef\xbb\xbf", b"\xff",
    b"\xc3\xa9", b"\xed\xa0\x80", b"\xf0\x9f\x98\x80", b"\xf4\x90\x80\x80", b"\xc0\x80", b"\\", b"\\u", b"\\ud83d",
    b"\\ude00", b"\\uDBFF", b"\\n", b"\\\\", b'\\"', b"\\x", b"\\u00e9", b"prompt", b"score", b'"prompt"', b'"score"',
    b'"prompt":"', b'"score":', b"1", b"-", b"0", b".5", b"1.", b"1e5", b"1E-5", b"1e400", b"-0", b"01",
    b"123456789012345678901", b"NaN", b"Infinity", b"-Infinity", b"true", b"false", b"nul", b"/", b"//", b"\x1f",
    b"\x7f", b"\xe2\x80\xa8", b"\xc2\x85", b"'", b"a",
]  # fmt: skip
SEEDS = [
    b'{"prompt": "a", "score": 1}\n{"prompt": "b", "score": null}\n', b'{"prompt": "\\ud83d\\ude00", "score": 1.5}',
    b"\xef\xbb\xbf" + b'{"prompt": "\xc3\xa9", "score": 1}\r\n\r\n', b'{"prompt": "\\ud800", "score": 1}',
    b"not json\n[1]\n",
]  # fmt: skip
path = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None), "f.jsonl")


def check(data: bytes) -> None:
    if data[:1] and data[0] % 2:
        data = b"!" + b"".join(PIECES[byte % len(PIECES)] for byte in data[1:])
    invariants.jsonl_bytes(path, data[1:])


run(check, [b"\0" + seed for seed in SEEDS] + [bytes([1, i, 3, 0, 3, (7 * i) % 256]) for i in range(len(PIECES))])
