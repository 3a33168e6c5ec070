"""Differences between two commits of a data repository, or between two iterations of a run, as lines of text.

Only what is needed is copied out of the repository; files of rows are read row by row, with 16 bytes of hashes per row.
"""

import json
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import xxhash

from self_reward.cli.data import below, folded
from self_reward.cli.text import aligned, human, when
from self_reward.repository import artifacts
from self_reward.repository.jsonl import LONGEST_ROW
from self_reward.store import Commit, Snapshot, first_line, is_manifest
from self_reward.store.errors import NotFound
from self_reward.types import Json

SMALL_JSON = 1 << 20  # bytes; larger ones are compared by size alone
MOST_KEYS = 40
NOT_SHOWN = ("key", "read_at", "inputs", "outputs")  # of a manifest: hashes, which differ whenever anything does
LONGEST_VALUE = 60  # characters


class _Id(msgspec.Struct):
    response_id: str | int | None = None
    prompt_id: str | int | None = None


# ---- two commits


def commits(store: Any, old: Snapshot, new: Snapshot, path: str, scratch: Path) -> list[str]:
    """Files below `path` that `new` added (+), removed (-) or changed (~), with sizes; the number of changed rows, the
    keys of changed JSON. Raises NotFound if neither commit has anything at `path`."""
    before, after = _below(old, path), _below(new, path)
    if path and not before and not after:
        below(new, path)
    units = folded({*before, *after}, path)
    lines = [f"from {_named(old)}", f"to   {_named(new)}"]
    groups: dict[str, list[str]] = {}
    for name in sorted({*before, *after}):
        if old.blobs.get(name) != new.blobs.get(name):
            groups.setdefault(units[name], []).append(name)
    if not groups:
        return [*lines, f"nothing differs{f' below {path}' if path else ''}"]
    looked_at = [names[0] for unit, names in groups.items() if unit == names[0] and _is_shown(unit, old, new)]
    if looked_at:
        store.pull(old, looked_at, scratch / "old")
        store.pull(new, looked_at, scratch / "new")
    for unit, names in groups.items():
        old_size, new_size = (human(sum(sizes.get(n, 0) for n in names)) for sizes in (before, after))
        sign, sizes = "~", f"{old_size} -> {new_size}"
        if not before.keys() & names:
            sign, sizes = "+", new_size
        elif not after.keys() & names:
            sign, sizes = "-", old_size
        number = f", {len(names)} files" if unit != names[0] else ""
        line = f"{sign} {unit}  {sizes}{number}"
        if unit not in looked_at:
            lines.append(line)
        elif unit.endswith(".jsonl"):
            lines.append(f"{line}; rows: {rows_changed(scratch / 'old' / unit, scratch / 'new' / unit)}")
        else:
            lines.append(line)
            lines += [f"    {change}" for change in _json_changes(scratch / "old" / unit, scratch / "new" / unit, unit)]
    return lines


def _named(snapshot: Snapshot) -> str:
    commit: Commit | None = next((commit for commit in snapshot.log if commit.id == snapshot.commit), None)
    return snapshot.commit[:12] + (f"  {when(commit)}  {first_line(commit.message)}" if commit else "")


def _below(snapshot: Snapshot, path: str) -> dict[str, int]:
    try:
        return below(snapshot, path)
    except NotFound:
        return {}


def _is_shown(name: str, old: Snapshot, new: Snapshot) -> bool:
    """Whether the contents of a changed file are compared."""
    if name not in old.files or name not in new.files:
        return False
    small = max(old.files[name], new.files[name]) <= SMALL_JSON
    return name.endswith(".jsonl") or (name.endswith(".json") and small)


# ---- rows


def rows_changed(old: Path, new: Path) -> str:
    """How the rows of two files differ: by response_id or prompt_id if it is unique in each file, else by the whole
    line."""
    before, after = _by_id(old), _by_id(new)
    if before is not None and after is not None:
        changed = sum(before[row] != after[row] for row in before.keys() & after.keys())
        counts = (len(after.keys() - before.keys()), len(before.keys() - after.keys()), changed)
        total = (len(before), len(after))
    else:
        lines = Counter(map(_hash, _lines(old))), Counter(map(_hash, _lines(new)))
        counts = ((lines[1] - lines[0]).total(), (lines[0] - lines[1]).total(), 0)
        total = (lines[0].total(), lines[1].total())
    words = [f"{count} {what}" for count, what in zip(counts, ("added", "removed", "changed"), strict=True) if count]
    return f"{total[0]} -> {total[1]}, {', '.join(words) or 'in another order or form'}"


def _by_id(path: Path) -> dict[int, int] | None:
    """Hash of the id -> hash of the row; None if a row has no id, or two rows share one."""
    decode = msgspec.json.Decoder(_Id).decode
    rows: dict[int, int] = {}
    for line in _lines(path):
        try:
            row = decode(line)
        except (ValueError, RecursionError):
            return None
        name = row.response_id if row.response_id is not None else row.prompt_id
        hashed = xxhash.xxh3_64_intdigest(str(name).encode())
        if name is None or hashed in rows:
            return None
        rows[hashed] = _hash(line)
    return rows


def _lines(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        for line in iter(partial(file.readline, LONGEST_ROW), b""):
            if line.strip():
                yield line


def _hash(line: bytes) -> int:
    return xxhash.xxh3_64_intdigest(line.rstrip(b"\r\n"))


# ---- JSON


def _json_changes(old: Path, new: Path, name: str) -> list[str]:
    before, after = (_leaves(json.loads(path.read_bytes())) for path in (old, new))
    left_out = NOT_SHOWN if is_manifest(name) else ()
    keys = [
        key
        for key in dict.fromkeys([*before, *after])
        if _differs(before, after, key) and key.split(".")[0] not in left_out
    ]
    lines = [f"{key}: {_value(before, key)} -> {_value(after, key)}" for key in keys[:MOST_KEYS]]
    return lines + ([f"and {len(keys) - MOST_KEYS} more keys"] if len(keys) > MOST_KEYS else [])


def _leaves(value: Any, name: str = "") -> Json:
    """Every value that is not an object, by its keys joined by dots."""
    if not isinstance(value, dict):
        return {name: value}
    leaves: Json = {}
    for key, inner in value.items():
        leaves |= _leaves(inner, f"{name}.{key}" if name else str(key))
    return leaves


def _differs(before: Json, after: Json, key: str) -> bool:
    """Whether a key differs; a missing key differs from null."""
    return (key in before, before.get(key)) != (key in after, after.get(key))


def _value(leaves: Json, key: str) -> str:
    if key not in leaves:
        return "-"
    value = leaves[key]
    text = f"{value:.4g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST_VALUE else text[:LONGEST_VALUE] + " ..."


# ---- two iterations


def iterations(store: Any, snapshot: Snapshot, old: str, new: str, path: str, scratch: Path) -> list[str]:
    """Two iterations (M0, M1) of one commit side by side: each stage's counts and seconds, parameters that differ,
    measurements, the number of shared prompts, and files that only one of them has. `path`: only what is below it in
    both, such as eval. Raises NotFound for an iteration without files."""
    pair = (old, new)
    for iteration in pair:
        below(snapshot, iteration)
    names = {
        iteration: [name.removeprefix(f"{iteration}/") for name in _below(snapshot, f"{iteration}/{path}".rstrip("/"))]
        for iteration in pair
    }
    if not names[old] and not names[new]:
        below(snapshot, f"{new}/{path}")
    rows: list[tuple[str, str, str]] = [("", old, new)]
    shared = sorted({*names[old], *names[new]})
    for name in shared:
        if is_manifest(f"{new}/{name}"):
            manifests = [_leaves(json.loads(snapshot.contents.get(f"{iteration}/{name}", b"{}"))) for iteration in pair]
            alike = [
                {key.replace(f"{iteration}/", ""): value for key, value in leaves.items()}  # counts.reward_M0/dpo
                for iteration, leaves in zip(pair, manifests, strict=True)
            ]
            rows += [(name.removesuffix(".manifest.json"), "", ""), *_stage_rows(*alike)]
    both = [name for name in shared if name in names[old] and name in names[new]]
    measured = [name for name in both if name.startswith("eval/") and name.endswith(".json")]
    prompts = artifacts.PROMPTS.removeprefix("M{k}/")
    wanted = [*measured, *[name for name in both if name == prompts]]
    if wanted:
        store.pull(snapshot, [f"{iteration}/{name}" for iteration in pair for name in wanted], scratch)
    for name in measured:
        before, after = (_leaves(json.loads((scratch / iteration / name).read_bytes())) for iteration in pair)
        rows += [(name, "", "")] + [
            (f"  {key}", _value(before, key), _value(after, key))
            for key in dict.fromkeys([*before, *after])
            if any(isinstance(leaves.get(key), int | float) for leaves in (before, after)) and not key.endswith(".n")
        ]
    lines = aligned(rows) if len(rows) > 1 else []
    if prompts in wanted:
        texts = [_prompts(scratch / iteration / prompts) for iteration in pair]
        lines.append(f"prompts in both: {len(texts[0] & texts[1])} of {len(texts[0])} and {len(texts[1])}")
    for iteration, other in ((old, new), (new, old)):
        if only := sorted(set(names[iteration]) - set(names[other])):
            units = dict.fromkeys(folded(only)[name] for name in only)
            lines.append(f"only in {iteration}: {', '.join(list(units)[:12])}{' ...' if len(units) > 12 else ''}")
    return lines or [
        f"{old} and {new} have the same files{f' below {path}' if path else ''}; commits can be compared too"
    ]


def _stage_rows(before: Json, after: Json) -> list[tuple[str, str, str]]:
    """A stage's counts and seconds; if both iterations have it, also what else differs, such as parameters."""
    left_out = (*NOT_SHOWN, "stage", "iteration", "details") if before and after else (*before, *after)
    rows = []
    for key in dict.fromkeys([*before, *after]):
        group = key.split(".")[0]
        differs = _differs(before, after, key) and not {group, key} & {*left_out, "parameters.iteration"}
        if group in ("counts", "seconds") or differs:
            rows.append((f"  {key.removeprefix('counts.')}", _value(before, key), _value(after, key)))
    return rows


def _prompts(path: Path) -> set[int]:
    """Hashes of the prompts of a file of rows."""
    hashes = set()
    for line in _lines(path):
        try:
            hashes.add(xxhash.xxh3_64_intdigest(str(msgspec.json.decode(line)["prompt"]).encode()))
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    return hashes
