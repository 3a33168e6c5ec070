"""All of a change to a local repository or nothing, whenever the process that makes it is killed.

Before the working tree is touched, `journal.json` says what will be. The next operation undoes it or, where the commit
was made, completes it.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from self_reward import disk, files
from self_reward.store.local import index
from self_reward.store.local.index import Tree
from self_reward.store.local.oxen import Repo
from self_reward.store.local.trees import tree_of


@contextlib.contextmanager
def all_or_nothing(
    repo: Repo, head: str | None, message: str, after: Tree, touched: list[str], needed: int
) -> Iterator[None]:
    """Undo what the block did to the working tree where it fails. `after`, `touched`: as for `write`; `needed`: bytes
    of disk, for the error."""
    write(repo, head, message, after, touched)
    try:
        with disk.explained(repo.root, needed=needed):
            yield
    except BaseException:
        with contextlib.suppress(Exception):  # the journal stays, and the next operation does it
            recover(repo)
        raise


def write(repo: Repo, head: str | None, message: str, after: Tree, touched: list[str]) -> None:
    """Say what will be: `after`, the files of the commit to come on top of `head`, those `touched` in the working tree,
    and the contents that are `new` in the version store, which are removed from there if the commit is not made."""
    blobs = {after[path].blob for path in touched if path in after}
    journal = {
        "before": head,
        "message": message,
        "tree": after,
        "touched": touched,
        "new": sorted(blob for blob in blobs if not index.blob_path(repo.root, blob).exists()),
        "heads": _heads(repo),
    }
    index.write_json(_path(repo.root), journal)


def remove(root: Path) -> None:
    _path(root).unlink(missing_ok=True)


def recover(repo: Repo) -> None:
    """Complete or undo what an interrupted process had begun."""
    root = repo.root
    journal = index.read_json(_path(root))
    if journal is None:
        return
    for leftover in (root / ".oxen" / "versions" / "files").glob("*/*/data.oxentmp.*"):
        leftover.unlink(missing_ok=True)
    newest = repo.oxen.log()[0] if repo.oxen.list_branches() else None
    parents: list[str | None] = list(newest.parent_ids) if newest else []
    is_child = journal["before"] in (parents or [None])
    if newest and is_child and journal["touched"] and newest.message == journal["message"]:
        index.write_tree(root, newest.id, index.as_tree(journal["tree"]))
        remove(root)
        repo.notes.append(f"commit {newest.id} of an interrupted process was completed")
        return
    if journal.get("heads") == _heads(repo):  # else somebody may have committed by hand what the process left
        for blob in journal["new"]:
            index.remove_blob(root, blob)
    _roll_back(root, newest.id if newest else None, tree_of(repo, newest.id) if newest else {})
    repo.notes.append("what an interrupted process had not committed was undone")


def _roll_back(root: Path, head: str | None, tree: Tree) -> None:
    """Give the files that the journal names the content again that they have in `tree`, the head's."""
    journal = index.read_json(_path(root))
    ours = [index.as_tree(journal["tree"]), tree]
    if journal["before"] not in (None, head):
        ours.append(index.read_tree(root, journal["before"]) or {})
    for path in journal["touched"]:
        files.partial(root / path).unlink(missing_ok=True)
    for folder in {(root / path).parent for path in journal["touched"]}:
        for leftover in folder.glob(index.TEMPORARY + "*"):
            leftover.unlink(missing_ok=True)
    index.restore_files(root, journal["touched"], tree, ours)
    remove(root)


def _heads(repo: Repo) -> dict[str, str]:
    return {branch.name: branch.commit_id for branch in repo.oxen.list_branches()}


def _path(root: Path) -> Path:
    return index.folder(root) / "journal.json"
