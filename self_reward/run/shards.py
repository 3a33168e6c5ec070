"""A stage's work in n parts: where each part is kept, which parts belong together, and how their rows are joined.

Each part, a shard, is a commit on a separate branch, `shards/<key>/<i>-of-<n>` with the first 16 digits of the stage's
key, so that only parts of the same work are joined. A row of a shard also holds its position: the number of the input
row that it was made from.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from self_reward.errors import UserError
from self_reward.parameters.flat import key_parameters
from self_reward.parameters.stages import Common
from self_reward.repository import artifacts
from self_reward.rows import Response, Score
from self_reward.run.context import Run
from self_reward.store import Snapshot, Store
from self_reward.types import Json

PREFIX = "shards/"
SHOWN = 10  # problems of one kind that are named

A = TypeVar("A", Response, Score)


def folder(key: str) -> str:
    """The start of the names of all branches with shards of the stage with `key`."""
    return f"{PREFIX}{key[:16]}/"


def branch(key: str, number: int, count: int) -> str:
    """The branch of shard `number` (from 0) of `count`."""
    return f"{folder(key)}{number}-of-{count}"


def pull(run: Run, stage: str, p: Common, key: str) -> tuple[list[list[Any]], list[Json]]:
    """The rows of each of the `shards` parts of the stage with `key`, verified, and the parts' manifests. Raises
    UserError that names every shard that is missing or does not belong to the others."""
    from self_reward.repository import jsonl
    from self_reward.store.remote.address import parse as parse_address

    store, count = run.store, getattr(p, "shards", 1)
    expected = [branch(key, number, count) for number in range(count)]
    branches = store.branches(PREFIX)
    manifest_path = f"M{p.iteration}/{stage}.manifest.json"

    def resolve(name: str) -> tuple[Snapshot, Json]:
        snapshot = store.on(name).resolve()
        manifest = json.loads(snapshot.contents.get(manifest_path, b"{}"))
        return snapshot, manifest if "shard" in manifest else {}  # else the run's own, from before the shard

    problems = []
    for name in sorted(set(branches) - set(expected)):
        if name.startswith(folder(key)):
            at = parse_address(p.data_repo)
            problems.append(
                f"foreign shard {name}: of the same work, but not one of the {count} from 0-of-{count} to "
                f"{count - 1}-of-{count}; merge with the --shards that it was made with, or remove that branch "
                f'(curl -X DELETE -H "Authorization: Bearer $OXEN_TOKEN" '
                f"{at.server}/api/repos/{at.namespace}/{at.name}/branches/{name})"
            )
    parts, missing = {}, []
    for number, name in enumerate(expected):
        snapshot, manifest = resolve(name) if name in branches else (None, {})
        if snapshot is None or not manifest:
            missing.append(number)
        elif (manifest["key"], manifest["shard"]) != (key, f"{number}/{count}"):
            problems.append(
                f"foreign shard in branch {name}: expected shard {number}/{count} with key {key}, found "
                f"{manifest['shard']} with key {manifest['key']}; remove that branch and run the shard again"
            )
        else:
            parts[number] = snapshot, manifest
    for name in sorted(branches):
        match = re.fullmatch(rf"{PREFIX}\w+/(\d+)-of-{count}", name)
        if match and int(match[1]) in missing and not name.startswith(folder(key)):
            _, manifest = resolve(name)
            if manifest:
                problems.append(
                    f"foreign shard {manifest['shard']} in branch {name}: made with different parameters or inputs "
                    f"({_differences(manifest, key_parameters(p))}); run it again with the flags of this merge, or "
                    "give this merge the flags of that shard"
                )
    if missing:
        which = "all of them" if len(missing) == count else ", ".join(f"{number}/{count}" for number in missing)
        problems.append(
            f"missing shards of M{p.iteration} {stage}: {which}. Run python stages/{stage}.py --shard "
            f"{missing[0]}/{count}"
            + (f" (to {missing[-1]}/{count}, each in a separate process)" if len(missing) > 1 else "")
            + " with the other flags of this merge, then merge again"
        )
    if problems:
        raise UserError(problems)
    ((output, path),) = run.inputs.outputs.items()
    kind = artifacts.ARTIFACTS[output].rows
    assert kind, "only stages that write rows have shards"
    rows = []
    for number, (snapshot, _) in sorted(parts.items()):
        to = run.folder / "shards" / str(number)
        store.on(expected[number]).pull(snapshot, [path], to, progress=run.progress)
        rows.append(list(jsonl.read(to / path, kind)))
    return rows, [manifest for _, (_, manifest) in sorted(parts.items())]


def _differences(manifest: Json, parameters: Mapping[str, object]) -> str:
    theirs = manifest["parameters"]
    differences = [
        f"{name} is {theirs.get(name)!r} there, {parameters.get(name)!r} here"
        for name in sorted({*theirs, *parameters})
        if theirs.get(name) != parameters.get(name)
    ]
    return "; ".join(differences) or "the parameters are equal: its input files or base model differ"


def join(parts: Sequence[Sequence[A]], prompt_ids: Sequence[str], rows_each: int) -> list[A]:
    """The rows of all shards in the order of the input, whose row k has the prompt `prompt_ids[k]`; their position is
    removed. Raises UserError that names rows that are missing (an input row must have `rows_each`), duplicate, or not
    made from this input, by shard and prompt_id."""
    at: list[list[A]] = [[] for _ in prompt_ids]
    owners: list[list[int]] = [[] for _ in prompt_ids]
    foreign, double, missing = [], [], []
    for number, rows in enumerate(parts):
        for row in rows:
            position = row.position
            expected = None
            if position is not None and 0 <= position < len(prompt_ids):
                expected = prompt_ids[position]
            if position is None or row.prompt_id != expected:
                place = f"shard {number}/{len(parts)} has prompt {row.prompt_id} at {position}"
                foreign.append(f"{place}, where the input has {expected or 'none'}")
            else:
                row.position = None
                at[position].append(row)
                owners[position].append(number)
    for position, (rows, numbers) in enumerate(zip(at, owners, strict=True)):
        prompt = f"prompt {prompt_ids[position]} (row {position + 1} of the input)"
        if len(rows) > rows_each:
            where = " and ".join(f"{number}/{len(parts)}" for number in dict.fromkeys(numbers))
            double.append(f"{prompt} occurs twice: {len(rows)} rows in shard {where}, expected {rows_each}")
        elif len(rows) < rows_each and numbers:
            missing.append(f"{prompt} has {len(rows)} of {rows_each} rows in shard {numbers[0]}/{len(parts)}")
        elif len(rows) < rows_each:
            missing.append(f"{prompt} is in no shard")
    problems: list[str] = []
    for kind in (foreign, double, missing):
        problems += kind[:SHOWN]
        if len(kind) > SHOWN:
            problems.append(f"... and {len(kind) - SHOWN} more like this")
    if problems:
        raise UserError([*problems, "remove the branches of these shards, run them again, and merge again"])
    return [row for rows in at for row in rows]


def remove(store: Store, key: str) -> None:
    """Remove the branches of all shards of the stage with `key`."""
    for name in store.branches(folder(key)):
        store.remove_branch(name)
