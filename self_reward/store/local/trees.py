"""The files of a local repository's commits, and what the manifests among them record."""

import os
import shutil
import time
from pathlib import Path

from self_reward.store.content import hash_file, walk
from self_reward.store.errors import Corrupt
from self_reward.store.local import index
from self_reward.store.local.index import Tree
from self_reward.store.local.oxen import Repo, open_oxen
from self_reward.store.manifests import is_manifest

TRIES = 5


def tree_of(repo: Repo, commit: str) -> Tree:
    """The files of a commit. Those of a commit that another program made are found by restoring it in a scratch copy of
    the repository's metadata, which shares the version store."""
    tree = index.read_tree(repo.root, commit)
    if tree is not None:
        return tree
    scratch = index.folder(repo.root) / "scratch"
    for left in reversed(range(TRIES)):
        try:
            _restore_in_copy(repo.root, scratch, commit)
            break
        except Exception:  # the database that this process has open compacts its files, also while they are copied
            shutil.rmtree(scratch, ignore_errors=True)
            if not left:
                raise
            time.sleep(0.3)
    tree = {path: hash_file(scratch / path) for path in walk(scratch, skip_hidden=False) if path[:6] != ".oxen/"}
    shutil.rmtree(scratch)
    _check_manifests(repo.root, tree)
    index.write_tree(repo.root, commit, tree)
    return tree


def _restore_in_copy(root: Path, scratch: Path, commit: str) -> None:
    skipped = {"versions", "staged", "self_reward"}
    shutil.copytree(
        root / ".oxen",
        scratch / ".oxen",
        ignore=lambda where, names: skipped.intersection(names) if Path(where) == root / ".oxen" else set(),
    )
    os.symlink(root / ".oxen" / "versions", scratch / ".oxen" / "versions")
    open_oxen(scratch).restore(str(scratch), False, commit)


def _check_manifests(root: Path, tree: Tree) -> None:
    problems = [
        f"{path} in the data repository differs from what its stage recorded: SHA-256 {tree[path].sha256}, "
        f"recorded {sha256}; commit the recorded file again"
        for path, sha256 in recorded_outputs(root, tree).items()
        if path in tree and sha256 and tree[path].sha256 != sha256
    ]
    if problems:
        raise Corrupt(problems)


def recorded_outputs(root: Path, tree: Tree) -> dict[str, str]:
    """Files that stages wrote, with the SHA-256 that their manifests record; '' for a manifest itself."""
    recorded: dict[str, str] = {}
    for path, entry in tree.items():
        if is_manifest(path):
            recorded[path] = ""
            manifest = index.read_json(index.blob_path(root, entry.blob)) or {}
            recorded |= {name: output["sha256"] for name, output in manifest.get("outputs", {}).items()}
    return recorded
