"""The user's side of a local repository: committing what the user changed, and never overwriting it."""

import os
import shlex
from collections.abc import Iterable
from pathlib import Path

from self_reward import disk
from self_reward.errors import UserError
from self_reward.store import few
from self_reward.store.content import hash_file
from self_reward.store.errors import Conflict, Corrupt, NoChanges, NotFound
from self_reward.store.local import index, journal, staging
from self_reward.store.local.index import Tree
from self_reward.store.local.oxen import Repo
from self_reward.store.local.trees import recorded_outputs, tree_of
from self_reward.store.manifests import is_manifest


def commit_user_files(repo: Repo, head: str | None) -> str:
    """Commit what the user added, changed or removed; restore generated files that are missing. Returns the head.

    Raises UserError for generated files that were changed: a stage's result must be what its manifest says.
    """
    root = repo.root
    tree = tree_of(repo, head) if head else {}
    _refuse_unfit(repo, tree)
    stats = index.read_stats(root)
    before = dict(stats)
    changed, missing = index.compare(root, tree, stats)
    if stats != before:
        index.write_stats(root, stats)
    if not changed and not missing:
        if head is None:
            raise NotFound(f"{root} holds no files; put the training data into {root}/M0/train/ (see the README)")
        return head
    generated = recorded_outputs(root, tree)
    _refuse_changed_results(repo, [path for path in changed if path in generated and path in tree], tree, changed)
    if lost := [path for path in missing if path in generated]:
        journal.write(repo, head, "", tree, lost)  # a kill while one is copied leaves a part of it
        for path in lost:
            if index.copy_blob(root, tree[path], root / path) != tree[path]:
                journal.remove(root)
                raise Corrupt(f"{path} is missing and the data repository's own copy of it is damaged")
            repo.notes.append(f"{path} was missing and was restored from commit {head}")
        journal.remove(root)
    removed = [path for path in missing if path not in generated]
    if removed or changed:
        message = f"user data: {few([*changed, *(path + ' (removed)' for path in removed)])}"
        journal.write(repo, head, message, {**{p: e for p, e in tree.items() if p not in removed}, **changed}, [])
        try:
            with disk.explained(root, needed=sum(entry.size for entry in changed.values())):
                head = staging.commit(repo, tree, changed, removed, message, ignored_allowed=True)
            repo.notes.append(f"{message}: committed as {head}")
        except NoChanges:
            pass
        finally:
            journal.remove(root)
    return head or ""


def _refuse_changed_results(repo: Repo, paths: list[str], tree: Tree, changed: Tree) -> None:
    where = f"--data_repo {shlex.quote(str(repo.root))}"
    branch = repo.oxen.current_branch()
    if paths and branch and branch.name != "main":
        where += f" --branch {branch.name}"
    problems = [
        f"{path} was changed after the stage that wrote it: SHA-256 recorded {tree[path].sha256}, found "
        f"{changed[path].sha256}. To get the recorded file back, move yours away and run again"
        + ("" if is_manifest(path) else f"; to keep yours: self-reward accept {shlex.quote(path)} {where}")
        for path in paths
    ]
    if problems:
        raise UserError(problems)


def _refuse_unfit(repo: Repo, tree: Tree) -> None:
    """Refuse what cannot be committed and would silently be left out, or taken for removed."""
    problems = []
    for where, folders, names in os.walk(repo.root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in [name for name in [*folders, *names] if not name.startswith(".")]:
            path = Path(where, name)
            shown = path.relative_to(repo.root).as_posix()
            if not _is_utf8(name):
                problems.append(f"{shown!r}: the name is not UTF-8, which Oxen cannot keep; rename it")
                continue
            if not path.is_symlink() or path.is_file():
                continue
            if not path.exists():
                problems.append(
                    f"{shown} is a link to {os.readlink(path)}, which does not exist; bring that back, or remove the "
                    "link"
                )
                continue
            link = f"{shown} is a link to the folder {os.readlink(path)}, which Oxen does not follow"
            if any(file.startswith(shown + "/") for file in tree):
                problems.append(
                    f"{link}, and its files were committed before; put the folder itself there (or a bind mount), or "
                    "remove the link"
                )
            else:
                repo.notes.append(
                    f"{link}: its files are not part of the data; copy or bind mount the folder if they should be"
                )
    if problems:
        raise UserError(problems)


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def refuse_place(root: Path, tree: Tree, paths: Iterable[str]) -> None:
    """Raise UserError for paths that a stage writes, or where a file cannot be."""
    generated = recorded_outputs(root, tree)
    problems = []
    for path in paths:
        above = [folder.as_posix() for folder in Path(path).parents]
        if path in generated or is_manifest(path):
            problems.append(f"{path} is written by a stage; give the file another name")
        elif (root / path).is_dir() or any(name.startswith(path + "/") for name in tree):
            problems.append(f"{path} is a folder in the data repository; give the name of a file")
        elif in_the_way := [folder for folder in above if folder in tree or (root / folder).is_file()]:
            problems.append(f"{path}: {in_the_way[0]} is a file in the data repository, so nothing can be below it")
    if problems:
        raise UserError(problems)


def refuse_changed(root: Path, tree: Tree, paths: list[str]) -> None:
    """Raise Conflict for working files that are not as the head has them: nothing of the user's is overwritten."""
    problems = [
        f"{path} was written or changed by another program while this stage ran; move it away and run again"
        for path in paths
        if (root / path).is_file() and (path not in tree or hash_file(root / path) != tree[path])
    ]
    if problems:
        raise Conflict(problems)
