"""Everything around a stage's work: reads parameters and inputs, skips finished work, commits, informs the next step.

A stage program ends with `stage.main(NAME, PARAMETERS, work, __doc__)`, with `work(p, run)`. Exit codes: process.py.
"""

import hashlib
import json
import logging
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from self_reward import disk
from self_reward.errors import UserError
from self_reward.files import remove_unreserved
from self_reward.models.model import Job
from self_reward.parameters.sources import parse
from self_reward.parameters.stages import Common, S
from self_reward.repository import artifacts
from self_reward.run import finished, manifest, shards
from self_reward.run.checkout import base_id, disks, open_data_repo
from self_reward.run.context import Run
from self_reward.run.process import guard
from self_reward.run.progress import Progress
from self_reward.run.workdir import folder_of, only_worker, remove_abandoned
from self_reward.store import commits_after, is_remote
from self_reward.store.errors import Conflict
from self_reward.types import Json

log = logging.getLogger("self_reward")

Work = Callable[[S, Run], None]
StopRule = Callable[[S, Json, Json], str | None]
Join = Callable[[S, Run, list[list[Any]]], None]


def main(
    name: str,
    parameters: type[S],
    work: Work[S],
    doc: str | None,
    *,
    stop_rule: StopRule[S] | None = None,
    join: Join[S] | None = None,
) -> NoReturn:
    """Run the stage `name` and exit.

    `work(p, run)` writes the outputs. `stop_rule(p, counts, details)` returns why no later step should run, or None; it
    is called for a skipped stage too, so that a changed bound takes effect without new work. `join(p, run, parts)`, of
    a stage whose work can be divided, writes the outputs from the rows of all its shards.
    """

    def run() -> None:
        p = parse(parameters, doc or name)
        with disk.explained(*disks(p)):
            _run(name, p, work, stop_rule, join)

    sys.exit(guard(run, name))


def _run(name: str, p: S, work: Work[S], stop_rule: StopRule[S] | None, join: Join[S] | None) -> None:
    started = time.monotonic()
    finish(p, "", "", "")  # also shows now, and not after hours, whether these files can be written
    shard, merge = _shard(p)
    store = open_data_repo(p)
    snapshot = store.resolve(p.revision)
    for note in snapshot.notes:
        log.info("%s", note)
    inputs = artifacts.inputs(name, p, snapshot.files, snapshot.contents)
    part = "{}/{}".format(*shard) if shard else None
    label = f"M{p.iteration} {name}" + (f" {part}" if part else "")
    if inputs.nothing_to_do:
        finish(p, snapshot.commit, snapshot.commit, "")
        print(f"{label}  nothing to do ({inputs.nothing_to_do})  (commit {snapshot.commit})")
        return
    base = base_id(p, inputs, snapshot)
    key = manifest.key_of(name, p, inputs, base, snapshot)
    path = f"M{p.iteration}/{name}.manifest.json"
    folder = folder_of(p, key if shard is None else "{}-{}-of-{}".format(key, *shard))

    # 1. the result exists already
    if result := finished.find(store, snapshot, key, path, pinned=bool(p.revision), force=p.force):
        commit, record = result
        if commit is None and shard:
            commit = snapshot.commit
        elif commit is None:
            finished.refuse_moved_branch(p, snapshot)
            commit = finished.commit_again(store, snapshot, key, path, inputs, folder)
        if merge:
            shards.remove(store, key)
        stopped = "" if shard else _stop_reason(stop_rule, p, record["counts"], record["details"])
        made = next((c.id for c in snapshot.log if c.key == key), commit)
        _skip(p, label, folder, commit, made if commit == snapshot.commit else commit, stopped)
        return

    # 2. where the result will be committed: each shard has a separate branch
    finished.refuse_users_files(inputs, snapshot)
    own_key, target, head = key, store, snapshot.head
    if shard is None:
        finished.refuse_moved_branch(p, snapshot)
    else:
        own_key, target, head = manifest.hash_of([key, shard]), store.on(shards.branch(key, *shard)), snapshot.commit
        if target.branch in store.branches(shards.folder(key)):
            existing = target.resolve()
            head = existing.head
            own = existing.log[0].key == own_key
            if not p.force and own and finished.manifest_with(existing, key, path, part):
                _skip(p, label, folder, head, head, "")
                return

    # 3. the work itself, and its one commit
    remove_abandoned(folder)
    with only_worker(folder):
        shutil.rmtree(folder / "outputs", ignore_errors=True)
        (folder / "partial").mkdir(parents=True, exist_ok=True)
        progress = Progress()
        job = Job(folder / "partial", _seed_of(p, name), progress, shard or (0, 1))
        run = Run(store, snapshot, inputs, base, folder, progress, job=job)
        log.info("started at commit %s, key %s", snapshot.commit, key[:12])
        with run.named_as_in_repository():
            if merge and join:
                parts, records = shards.pull(run, name, p, key)
                run.details["sampler"] = ", ".join(sorted({of_shard["details"]["sampler"] for of_shard in records}))
                run.details["shards"] = [
                    {field: of_shard[field] for field in ("read_at", "seconds")} for of_shard in records
                ]
                join(p, run, parts)
            else:
                work(p, run)
        stopped = "" if shard else _stop_reason(stop_rule, p, run.counts, run.details)
        files = {path: folder / "outputs" / path for path in inputs.outputs.values()}
        if missing := [path for path, local in files.items() if not local.exists()]:
            raise RuntimeError(f"{name} ended without writing {', '.join(missing)}")
        seconds = round(time.monotonic() - started, 2)
        record = manifest.record(name, p, key, snapshot, run, stopped=stopped, seconds=seconds)
        if shard:
            record["shard"] = part
            store.make_branch(target.branch, snapshot.commit)
        files[path] = folder / "outputs" / path
        files[path].parent.mkdir(parents=True, exist_ok=True)
        files[path].write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        message = f"{label}: {in_words(run.counts) or 'done'}"
        try:
            commit = target.push(files, key=own_key, message=message, expected_head=head, progress=progress)
        except Conflict:
            newer = commits_after(target.resolve(head))
            if not newer or newer[-1].key != own_key:
                raise
            commit = newer[-1].id  # another process with equal parameters was faster
            log.info("another process has committed this very result: %s", commit)
        if merge:
            shards.remove(store, key)
        finish(p, commit, commit, stopped)
        shutil.rmtree(folder, ignore_errors=True)
    counts = " ".join(f"{name}={value}" for name, value in run.counts.items())
    print(f"{label}  {time.monotonic() - started:.1f} s  {counts}  commit {commit}")


def _shard(p: Common) -> tuple[tuple[int, int] | None, bool]:
    """(the part i of n that this process does, None: all of the work; whether it joins the parts)."""
    shard, merge = getattr(p, "shard", None), getattr(p, "merge", False)
    if merge and shard:
        raise UserError(f"--shard {shard} is for one part of the work; --merge takes --shards, the number of parts")
    if (merge or shard) and not is_remote(p.data_repo):
        raise UserError(
            f"shards need a data repository on a server, which takes commits of several processes; {p.data_repo} "
            "is a folder. Give an address (oxen://HOST/NAMESPACE/NAME), or leave --shard and --merge out"
        )
    if shard is None:
        return None, merge
    number, count = map(int, shard.split("/"))
    return (number, count), merge


def _skip(p: Common, label: str, folder: Path, commit: str, made: str, stopped: str) -> None:
    """Report an existing result: the next stage reads `commit`; `made` is the commit that made the result."""
    remove_unreserved(folder)  # left by a process that was killed after its commit
    log.info("done already: %s", made)
    finish(p, commit, made, stopped)
    print(f"{label}  skipped  (commit {made})")


def _seed_of(p: Common, name: str) -> int:
    digest = hashlib.sha256(f"{p.seed} {name} {p.iteration}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1  # 31 bits, as every engine takes


def _stop_reason(stop_rule: StopRule[S] | None, p: S, counts: Json, details: Json) -> str:
    reason = (stop_rule(p, counts, details) if stop_rule else None) or ""
    if reason:
        log.warning("stop: %s", reason)
    return reason


def in_words(counts: Json) -> str:
    """A stage's first counts, as in its commit message."""
    return ", ".join(f"{value} {name.replace('_', ' ')}" for name, value in list(counts.items())[:3])


def finish(p: Common, commit: str, made: str, stopped: str) -> None:
    """Tell the next step which commit it reads, which commit made the result, and why no later step should run (or
    '')."""
    for file, content in ((p.stop_file, stopped), (p.result_file, made), (p.commit_file, commit)):
        if file:
            Path(file).parent.mkdir(parents=True, exist_ok=True)
            Path(file).write_text(content, encoding="utf-8")
