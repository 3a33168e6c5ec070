"""A stage's work in n parts: where each part is kept, what belongs together, and one list of rows of all.

Each part, a shard, is a commit on a branch of its own, `shards/<key>/<i>-of-<n>` with the first 16 digits of the
stage's key, so that only parts of one and the same work are found together. A row of a shard also holds its POSITION:
the number of the input's row that it was made from.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from self_reward.errors import UserError

PREFIX = "shards/"
POSITION = "position"
SHOWN = 10  # problems of one kind that are named

Row = dict[str, Any]


def folder(key: str) -> str:
    """What the names of the branches of all shards of the stage with `key` begin with."""
    return f"{PREFIX}{key[:16]}/"


def branch(key: str, number: int, count: int) -> str:
    """The branch of shard `number` (from 0) of `count`."""
    return f"{folder(key)}{number}-of-{count}"


def pull(
    store: Any,
    key: str,
    count: int,
    *,
    stage: str,
    iteration: int,
    path: str,
    parameters: Mapping[str, Any],
    to: Path,
    progress: Any = None,
) -> tuple[list[Path], list[dict[str, Any]]]:
    """The file `path` of each of the `count` shards, copied to a folder in `to` and verified, and their manifests.

    `store` is a remote one; `parameters` are those that are part of `key`. Raises UserError that names every shard that
    is missing, and every one that does not belong to the others.
    """
    branches, at = store.branches(PREFIX), store.address
    expected = [branch(key, number, count) for number in range(count)]
    manifest_path = f"M{iteration}/{stage}.manifest.json"

    def manifest_of(name: str) -> tuple[Any, dict[str, Any]]:
        snapshot = store.on(name).resolve()
        found = json.loads(snapshot.contents.get(manifest_path, b"{}"))
        return snapshot, found if "shard" in found else {}  # else the run's own, from before the shard

    problems, missing = [], []
    for name in sorted(set(branches) - set(expected)):
        if name.startswith(folder(key)):
            problems.append(
                f"foreign shard {name}: of the same work, but not one of the {count} from 0-of-{count} to "
                f"{count - 1}-of-{count}; merge with the --shards that it was made with, or remove that branch "
                f'(curl -X DELETE -H "Authorization: Bearer $OXEN_TOKEN" '
                f"{at.server}/api/repos/{at.namespace}/{at.name}/branches/{name})"
            )
    found = {}
    for number, name in enumerate(expected):
        snapshot, manifest = manifest_of(name) if name in branches else (None, {})
        if not manifest:
            missing.append(number)
        elif (manifest["key"], manifest["shard"]) != (key, f"{number}/{count}"):
            problems.append(
                f"foreign shard in branch {name}: expected shard {number}/{count} with key {key}, found "
                f"{manifest['shard']} with key {manifest['key']}; remove that branch and run the shard again"
            )
        else:
            found[number] = snapshot, manifest
    for name in sorted(branches):
        match = re.fullmatch(rf"{PREFIX}\w+/(\d+)-of-{count}", name)
        if match and int(match[1]) in missing and not name.startswith(folder(key)):
            _, manifest = manifest_of(name)
            if manifest:
                problems.append(
                    f"foreign shard {manifest['shard']} in branch {name}: made with other parameters or inputs "
                    f"({_differences(manifest, parameters)}); run it again with the flags of this merge, or give this "
                    "merge the flags of that shard"
                )
    if missing:
        which = "all of them" if len(missing) == count else ", ".join(f"{number}/{count}" for number in missing)
        problems.append(
            f"missing shards of M{iteration} {stage}: {which}. Run python stages/{stage}.py --shard "
            f"{missing[0]}/{count}"
            + (f" (to {missing[-1]}/{count}, each in a process of its own)" if len(missing) > 1 else "")
            + " with the other flags of this merge, then merge again"
        )
    if problems:
        raise UserError(problems)
    files = []
    for number, (snapshot, _) in sorted(found.items()):
        store.on(expected[number]).pull(snapshot, [path], to / str(number), progress=progress)
        files.append(to / str(number) / path)
    return files, [found[number][1] for number in range(count)]


def _differences(manifest: dict[str, Any], parameters: Mapping[str, Any]) -> str:
    theirs = manifest["parameters"]
    found = [
        f"{name} is {theirs.get(name)!r} there, {parameters.get(name)!r} here"
        for name in sorted({*theirs, *parameters})
        if theirs.get(name) != parameters.get(name)
    ]
    return "; ".join(found) or "the parameters are equal: its input files or base model are others"


def join(parts: Sequence[Sequence[Row]], prompt_ids: Sequence[str], rows_each: int) -> list[Row]:
    """The rows of all shards in the order of the input, whose row k has the prompt `prompt_ids[k]`, without POSITION.

    Raises UserError that names what is missing (an input row must have `rows_each` rows), what is there twice, and what
    is not of this input, by shard and prompt_id.
    """
    at: list[list[Row]] = [[] for _ in prompt_ids]
    owners: list[list[int]] = [[] for _ in prompt_ids]
    foreign, double, missing = [], [], []
    for number, rows in enumerate(parts):
        shard = f"{number}/{len(parts)}"
        for row in rows:
            position = row.get(POSITION)
            if not isinstance(position, int) or not 0 <= position < len(prompt_ids):
                foreign.append(
                    f"shard {shard} has prompt {row.get('prompt_id')} at {position}, where the input has none"
                )
            elif row.get("prompt_id") != prompt_ids[position]:
                foreign.append(
                    f"shard {shard} has prompt {row.get('prompt_id')} at {position}, where the input has "
                    f"{prompt_ids[position]}"
                )
            else:
                at[position].append({name: value for name, value in row.items() if name != POSITION})
                owners[position].append(number)
    for position, (rows, numbers) in enumerate(zip(at, owners, strict=True)):
        prompt = f"prompt {prompt_ids[position]} (row {position + 1} of the input)"
        if len(rows) > rows_each:
            where = " and ".join(f"{number}/{len(parts)}" for number in dict.fromkeys(numbers))
            double.append(f"{prompt} is there twice: {len(rows)} rows in shard {where}, expected {rows_each}")
        elif len(rows) < rows_each and numbers:
            missing.append(f"{prompt} has {len(rows)} of {rows_each} rows in shard {numbers[0]}/{len(parts)}")
        elif len(rows) < rows_each:
            missing.append(f"{prompt} is in no shard")
    problems = []
    for kind in (foreign, double, missing):
        problems += kind[:SHOWN]
        if len(kind) > SHOWN:
            problems.append(f"... and {len(kind) - SHOWN} more like this")
    if problems:
        raise UserError([*problems, "remove the branches of these shards, run them again, and merge again"])
    return [row for rows in at for row in rows]


def remove(store: Any, key: str) -> None:
    """Remove the branches of all shards of the stage with `key`."""
    for name in store.branches(folder(key)):
        store.remove_branch(name)


def response_counts(rows: Sequence[Row]) -> dict[str, int]:
    """What 02_gen_responses counts in the rows that it writes."""
    return {
        "responses": len(rows),
        "truncated": sum(row["finish_reason"] == "length" for row in rows),
        "tokens": sum(row["tokens"] for row in rows),
    }


def score_counts(rows: Sequence[Row]) -> dict[str, int]:
    """What 03_gen_scores counts in the rows that it writes."""
    votes = [vote for row in rows for vote in row["votes"]]
    return {
        "responses": len(rows),
        "votes": len(votes),
        "unreadable_votes": votes.count(None),
        "unscored_responses": sum(row["score"] is None for row in rows),
    }


def unreadable_samples(rows: Sequence[Row]) -> list[str]:
    """The first three judgements of which no score could be read."""
    pairs = [pair for row in rows for pair in zip(row["votes"], row["reasoning"], strict=True)]
    return list(dict.fromkeys(text for vote, text in pairs if vote is None))[:3]
