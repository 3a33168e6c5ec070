"""What the harnesses share: run atheris on one check, from seeds made by code."""

import hashlib
import sys
import warnings
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import atheris

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
warnings.simplefilter("ignore")
with atheris.instrument_imports(include=["self_reward"]):
    from tests.support import invariants


def run(check: Callable[[bytes], None], seeds: Iterable[bytes]) -> None:
    """Fuzz `check` until -max_total_time: the corpus lies in .fuzz/<name>, what made `check` raise, or took more than
    five seconds, beside it. Arguments are libFuzzer's; a file named instead is run once."""
    name = Path(sys.argv[0]).stem
    corpus = ROOT / ".fuzz" / name
    corpus.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        (corpus / hashlib.sha1(seed).hexdigest()).write_bytes(seed)
    arguments = ["-timeout=20", "-report_slow_units=5", "-max_len=256", "-len_control=0", "-print_final_stats=1"]
    arguments.append(f"-artifact_prefix={corpus.parent}/{name}-")
    given = sys.argv[1:]
    if not any(not word.startswith("-") for word in given):
        given.append(str(corpus))
    atheris.Setup([sys.argv[0], *arguments, *given], check)
    atheris.Fuzz()


def text_of(data: bytes, pieces: list[str]) -> str:
    """Text from the fuzzer's bytes: UTF-8 as it is, or (first byte odd) one of `pieces` a byte, so that a flipped byte
    is another word rather than another letter."""
    if data[:1] and data[0] % 2:
        return "".join(pieces[byte % len(pieces)] for byte in data[1:])
    return data[1:].decode("utf-8", "replace")


def stretch(function: Callable[[str], object], text: str, data: bytes) -> None:
    """One input in 32 is made long, a part of it over and over: a shape that is worse than linear shows then."""
    if zlib.crc32(data) % 32 == 0 and len(text) > 1:
        start = zlib.crc32(data[1:]) % len(text)
        stop = start + 1 + len(data) % 4
        invariants.assert_linear(function, text[:start], text[start:stop], text[stop:], size=20_000)


def bytes_of(text: str) -> bytes:
    """The seed that `text_of` turns into `text`."""
    return b"\0" + text.encode()
