"""Finding a stage's finished result on its branch, and bringing an older one back."""

import json
import shutil
from pathlib import Path

from self_reward.errors import UserError
from self_reward.parameters.stages import Common
from self_reward.repository import artifacts
from self_reward.run.manifest import names_of
from self_reward.run.workdir import only_worker
from self_reward.store import Snapshot, Store, commits_after, first_line, recorded_sha256
from self_reward.store.errors import Conflict
from self_reward.types import Json


def find(
    store: Store, snapshot: Snapshot, key: str, manifest_path: str, *, pinned: bool, force: bool
) -> tuple[str | None, Json] | None:
    """The result with this key: (commit, its manifest), or None. The commit is None if only an older commit has it.
    With a pinned `--revision` it is that commit, or the next one if this very step made that, so that the next step can
    be pinned to it in turn. With `force` only the latter counts: a try of this step that was lost after its commit."""
    newer = commits_after(snapshot)
    if force and not newer:
        return None
    if not force and (manifest := manifest_with(snapshot, key, manifest_path)):
        own = next((c.id for c in snapshot.log if c.key == key), snapshot.commit)
        return (snapshot.commit if pinned else own), manifest
    # the commit after a pinned one counts only if it is an earlier try of this very step
    commit = next((commit for commit in newer[-1:] or snapshot.log if commit.key == key), None)
    manifest = manifest_with(store.resolve(commit.id), key, manifest_path) if commit else None
    return (commit.id if commit and newer else None, manifest) if manifest else None


def manifest_with(snapshot: Snapshot, key: str, manifest_path: str, shard: str | None = None) -> Json | None:
    """The manifest, if it has this key and shard and the commit has all outputs that it lists."""
    manifest = json.loads(snapshot.contents.get(manifest_path, b"{}"))
    if (manifest.get("key"), manifest.get("shard")) != (key, shard):
        return None
    complete = all(snapshot.sha256.get(path) == output["sha256"] for path, output in manifest["outputs"].items())
    return manifest if complete else None


def commit_again(
    store: Store, snapshot: Snapshot, key: str, manifest_path: str, inputs: artifacts.Inputs, folder: Path
) -> str:
    """Commit the result of an older commit again, so that the head has it."""
    older = next(c for c in snapshot.log if c.key == key)
    with only_worker(folder):
        paths = [*inputs.outputs.values(), manifest_path]
        store.pull(store.resolve(older.id), paths, folder / "again")
        commit: str = store.push(
            {path: folder / "again" / path for path in paths},
            key=key,
            message=f"{older.message} (again, from commit {older.id})",
            expected_head=snapshot.head,
        )
        shutil.rmtree(folder, ignore_errors=True)
    return commit


def refuse_moved_branch(p: Common, snapshot: Snapshot) -> None:
    """Raise Conflict if the branch has commits after the snapshot's: two runs on one branch must not mix."""
    if newer := commits_after(snapshot):
        last = [f"{c.id} by {c.author or 'nobody'} at {c.time[:19]}: {first_line(c.message)!r}" for c in newer[:-4:-1]]
        more = f" ({len(newer) - 3} more)" if len(newer) > 3 else ""
        raise Conflict(
            f"branch {p.branch} has moved on: this stage starts from commit {snapshot.commit}, after which another run "
            f"or person committed {'; '.join(last)}{more}. To continue from the newest commit run again (without "
            "--revision; finished stages are skipped) once the other run is over; or give each run a separate --branch"
        )


def refuse_users_files(inputs: artifacts.Inputs, snapshot: Snapshot) -> None:
    """Raise UserError if the stage would overwrite a file that no manifest lists: it is the user's."""
    written = recorded_sha256(snapshot.contents)
    names = [name for path in inputs.outputs.values() for name in names_of(path, snapshot) if name not in written]
    if names:
        why = "exists and was not written by a stage (no manifest lists it); move it out of the data repository, or use"
        raise UserError([f"{name} {why} another one" for name in names])
