"""One Oxen operation in one process: request on fd 0, answer on fd 1, both JSON.

Run     python -m self_reward.store.local.child

Why a process of its own: Oxen holds a database lock until the process that opened a repository exits, holds the GIL
for the whole of a call (no signal handler runs), prints to fd 1 past sys.stdout, and raises panics that are no
Exception. The parent (local.py) holds the repository's lock and hands its file descriptor down, so the lock lives as
long as either of them.

A kill at any moment is survived: before the working tree is touched, `journal.json` says what will be; the next
operation rolls it back or, where the commit had landed, completes it. What a killed operation had staged is thrown
away and staged anew, since Oxen commits a staged entry even when the kill left its content unwritten.
"""

import contextlib
import errno
import functools
import glob
import importlib.util
import json
import math
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from self_reward import disk
from self_reward.errors import TryAgain, UserError
from self_reward.store import find_revision, is_manifest
from self_reward.store.errors import Conflict, Corrupt, NoChanges, NotFound, from_oxen
from self_reward.store.local import index
from self_reward.store.local.index import Entry, Tree


def native() -> Any:
    """The native half of oxenai. `import oxen` would cost 0.7 s for polars and requests, this costs 0.05 s."""
    spec = importlib.util.find_spec("oxen")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("the package oxenai is not installed: pip install oxenai==0.65.1")
    library = next(Path(spec.submodule_search_locations[0]).glob("oxen_py*.so"))
    extension = importlib.util.spec_from_file_location("oxen_py", library)
    assert extension and extension.loader
    module = importlib.util.module_from_spec(extension)
    extension.loader.exec_module(module)
    return module


def open_repo(repo: Path) -> Any:
    module = native()
    config = os.environ.setdefault("OXEN_CONFIG_DIR", str(index.folder(repo) / "config"))
    user = Path(config) / "user_config.toml"
    if not user.exists():
        user.parent.mkdir(parents=True, exist_ok=True)
        module.user.config_user("self-reward", "self-reward@localhost", str(user))
    return module.PyRepo(str(repo))


def init(repo: str) -> None:
    """Make a plain folder a repository; done beside and renamed, so that it is one wholly or not at all."""
    root = Path(repo)
    beside = root / f".oxen-new-{os.getpid()}"
    beside.mkdir()
    os.environ.setdefault("OXEN_CONFIG_DIR", str(beside / "config"))
    try:
        open_repo(beside).init()
        (beside / ".oxen" / "self_reward").mkdir()
        if not (root / ".oxen").exists():
            os.rename(beside / ".oxen", root / ".oxen")
    except BaseException:  # Oxen's own errors too: who was faster removes what others have begun
        if not (root / ".oxen" / "self_reward").exists():
            raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def resolve(repo: str, branch: str, revision: str | None) -> dict[str, Any]:
    """Bring the branch up to date with the user's files and name the commit that `revision` means (None: newest)."""
    root, notes = Path(repo), list[str]()
    oxen, head = _begin(root, branch, notes)
    log = oxen.log()
    if revision in (None, branch):
        new_head = _commit_user_files(root, oxen, head, notes)
        if new_head != head:
            head, log = new_head, oxen.log()
        commit = head
    elif revision == head:
        commit = head  # pinned: what the user has changed since is not read, so it is not committed either
    else:
        commit = find_revision(revision, branch, log)
        _tree(root, oxen, commit)
    return {
        "commit": commit,
        "head": head,
        "log": [[c.id, c.message, c.author, _iso(str(c.timestamp))] for c in log],
        "notes": notes,
    }


def _iso(time: str) -> str:
    """ISO 8601 of Oxen's `2026-11-24 1:43:16.919 +00:00:00`."""
    date, clock = time.split()[:2]
    return f"{date}T{clock.zfill(len(clock) + (clock[1] == ':'))[:8]}Z"


def push(repo: str, branch: str, files: dict[str, str], key: str, message: str, expected_head: str) -> dict[str, Any]:
    """One commit on top of `expected_head` that replaces the files and folders `files` (repository path -> source)."""
    root, notes = Path(repo), list[str]()
    oxen, head = _begin(root, branch, notes)
    tree = _tree(root, oxen, head)
    newest = oxen.log()[0]
    same_key = newest.message.rstrip().endswith(f"key: {key}")
    if head != expected_head and same_key:  # an earlier try landed
        return {"commit": head, "notes": notes}
    if head != expected_head:
        raise Conflict(
            f"branch {branch} moved while this stage ran: expected commit {expected_head}, found {head} "
            f"({newest.message.splitlines()[0]!r} by {newest.author} at {_iso(str(newest.timestamp))}). Two runs on "
            "one branch do not mix: run the stage again from the new head, or give each run its own --branch"
        )
    sources = index.expand({name: Path(source) for name, source in files.items()})
    with ThreadPoolExecutor() as threads:  # hashing releases the GIL
        adds = dict(zip(sources, threads.map(index.hash_file, sources.values()), strict=True))
    removes = [
        path for path in tree if path not in adds and any(path == name or path.startswith(name + "/") for name in files)
    ]
    if same_key and not removes and all(tree.get(path) == entry for path, entry in adds.items()):
        return {"commit": head, "notes": notes}
    _refuse_changed(root, tree, [*adds, *removes])
    commit = _place_and_commit(root, oxen, head, tree, adds, sources, removes, f"{message}\n\nkey: {key}", notes)
    return {"commit": commit, "notes": notes}


def put(repo: str, branch: str, files: dict[str, str], message: str) -> dict[str, Any]:
    """One commit of the user's own `files` (repository path -> source); None where the head has them all already."""
    root, notes = Path(repo), list[str]()
    oxen, head = _begin(root, branch, notes, empty_allowed=True)
    tree = _tree(root, oxen, head) if head else {}
    sources = index.expand({name: Path(source) for name, source in files.items()})
    _refuse_place(root, tree, sources)
    adds = {path: index.hash_file(source) for path, source in sources.items()}
    problems = [
        f"{path} in {root} was changed and is in no commit yet; it would be lost. Move it away, or run a stage or "
        "self-reward data ls once to commit it"
        for path, entry in adds.items()
        if (root / path).is_file() and index.hash_file(root / path) not in (tree.get(path), entry)
    ]
    if problems:
        raise Conflict(problems)
    if all(tree.get(path) == entry for path, entry in adds.items()):
        return {"commit": None, "notes": notes}
    commit = _place_and_commit(root, oxen, head or None, tree, adds, sources, [], message, notes, link=False)
    if not head and branch != "main":  # the first commit makes main, whatever the branch
        _switch(root, oxen, oxen.current_branch(), branch, notes)
    return {"commit": commit, "notes": notes}


def _refuse_place(root: Path, tree: Tree, paths: Iterable[str]) -> None:
    """Raise UserError for paths that are a stage's to write, or where a file cannot be."""
    generated = _recorded_outputs(root, tree)
    problems = []
    for path in paths:
        below = path + "/"
        above = [folder.as_posix() for folder in Path(path).parents]
        if path in generated or is_manifest(path):
            problems.append(f"{path} is written by a stage; give the file another name")
        elif (root / path).is_dir() or any(name.startswith(below) for name in tree):
            problems.append(f"{path} is a folder in the data repository; give the name of a file")
        elif found := [folder for folder in above if folder in tree or (root / folder).is_file()]:
            problems.append(f"{path}: {found[0]} is a file in the data repository, so nothing can be below it")
    if problems:
        raise UserError(problems)


def _place_and_commit(
    root: Path,
    oxen: Any,
    head: str | None,
    tree: Tree,
    adds: Tree,
    sources: dict[str, Path],
    removes: list[str],
    text: str,
    notes: list[str],
    link: bool = True,
) -> str:
    """Bring `adds` into the working tree and commit them, under the journal: after a kill all is there, or nothing."""
    touched = [path for path, entry in adds.items() if tree.get(path) != entry] + removes
    after = {**{p: e for p, e in tree.items() if p not in removes}, **adds}
    _write_journal(root, head, text, after, touched, oxen)
    try:
        with disk.explained(root, needed=sum(adds[path].size for path in touched if path in adds)):
            for path in removes:
                index.remove_file(root, path)
            for path, source in sources.items():
                if tree.get(path) != adds[path]:
                    index.place(source, root / path, link=link)
            return _commit(root, oxen, tree, {p: adds[p] for p in touched if p in adds}, removes, text)
    except BaseException:
        with contextlib.suppress(Exception):  # the journal stays, and the next operation does it
            _recover(root, oxen, notes)
        raise


def _begin(root: Path, branch: str, notes: list[str], empty_allowed: bool = False) -> tuple[Any, str]:
    """Open the repository, undo or finish what a killed process left, and stand on `branch`; also returns its head
    ("" of a repository without a file, where `empty_allowed`)."""
    shutil.rmtree(root / ".oxen" / "staged", ignore_errors=True)
    shutil.rmtree(index.folder(root) / "scratch", ignore_errors=True)
    for leftover in root.glob(".oxen-new-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    oxen = open_repo(root)
    _recover(root, oxen, notes)
    current = oxen.current_branch()
    if current is None and not oxen.list_branches():  # no commit yet
        if empty_allowed and not any(index.walk(root)):
            return oxen, ""
        _commit_user_files(root, oxen, None, notes)
        current = oxen.current_branch()
    if current is None or current.name != branch:
        _switch(root, oxen, current, branch, notes)
    return oxen, oxen.current_branch().commit_id


def _recover(root: Path, oxen: Any, notes: list[str]) -> None:
    journal = index.read_json(index.folder(root) / "journal.json")
    if journal is None:
        return
    for leftover in (root / ".oxen" / "versions" / "files").glob("*/*/data.oxentmp.*"):
        leftover.unlink(missing_ok=True)
    newest = oxen.log()[0] if oxen.list_branches() else None
    if (
        newest
        and journal["touched"]
        and journal["before"] in (newest.parent_ids or [None])
        and newest.message == journal["message"]
    ):
        tree = {path: Entry(*entry) for path, entry in journal["tree"].items()}
        index.write_tree(root, newest.id, tree)
        _remove_journal(root)
        notes.append(f"commit {newest.id} of an interrupted process was completed")
    else:
        if journal.get("heads") == _heads(oxen):  # else somebody may have committed by hand what is there
            for blob in journal["new"]:
                index.remove_blob(root, blob)
        _roll_back(root, newest.id if newest else None, _tree(root, oxen, newest.id) if newest else {})
        notes.append("what an interrupted process had not committed was undone")


def _write_journal(
    root: Path, before: str | None, message: str, tree: Tree, touched: list[str], oxen: Any = None
) -> None:
    """What will be: the files of the commit to come, and those `touched` in the working tree. With `oxen` also the
    contents that are `new` in the version store, to be removed from there when it comes to nothing."""
    blobs = {tree[path].blob for path in touched if path in tree} if oxen else set()
    journal = {
        "before": before,
        "message": message,
        "tree": tree,
        "touched": touched,
        "new": sorted(blob for blob in blobs if not index.blob_path(root, blob).exists()),
        "heads": _heads(oxen) if oxen else {},
    }
    index.write_json(index.folder(root) / "journal.json", journal)


def _heads(oxen: Any) -> dict[str, str]:
    return {branch.name: branch.commit_id for branch in oxen.list_branches()}


def _remove_journal(root: Path) -> None:
    (index.folder(root) / "journal.json").unlink(missing_ok=True)


def _roll_back(root: Path, head: str | None, tree: Tree) -> None:
    """Give the files that the journal names the content they have in `tree`, the head's, again."""
    journal = index.read_json(index.folder(root) / "journal.json")
    if journal is None:
        return
    ours = [{path: Entry(*entry) for path, entry in journal["tree"].items()}, tree]
    if journal["before"] not in (None, head):
        ours.append(index.read_tree(root, journal["before"]) or {})
    for where in {(root / path).parent for path in journal["touched"]}:
        for leftover in where.glob(index.TEMPORARY + "*"):
            leftover.unlink(missing_ok=True)
    index.lay(root, journal["touched"], tree, ours)
    _remove_journal(root)


def _switch(root: Path, oxen: Any, current: Any, branch: str, notes: list[str]) -> None:
    """Show `branch` in the working tree; made from main (or from what is there) when it does not exist."""
    shown = current.name if current else "no branch"
    log = oxen.log()
    if not log:
        raise Corrupt(f"{root}/.oxen/HEAD names {shown}, which has no commit; write the name of a branch there (main)")
    before = log[0].id
    tree = _tree(root, oxen, before)
    exists = oxen.branch_exists(branch)
    onto = branch if exists else "main"
    if (not current or current.name != onto) and oxen.branch_exists(onto):
        stats = index.read_stats(root)
        changed, missing = index.compare(root, tree, stats)
        index.write_stats(root, stats)
        if changed or missing:
            raise UserError(
                f"the data repository shows branch {shown} with changes that are in no commit: "
                f"{_some([*changed, *missing])}. Run once with --branch {shown} to commit them, or undo them, "
                f"before using --branch {branch}"
            )
        target = next(b.commit_id for b in oxen.list_branches() if b.name == onto)
        to = _tree(root, oxen, target)
        touched = sorted(path for path in {*tree, *to} if tree.get(path) != to.get(path))
        _write_journal(root, before, "", to, touched)
        oxen.checkout(onto, False)
        for path in touched:
            if path in to:
                os.chmod(root / path, 0o644)
        _remove_journal(root)
        notes.append(f"the working tree went from branch {shown} to {onto}")
    if not exists:
        oxen.checkout(branch, True)
        notes.append(f"branch {branch} was made at commit {oxen.current_branch().commit_id}")


def _tree(root: Path, oxen: Any, commit: str) -> Tree:
    """The files of a commit; of one that another program made they are found out by restoring it in a scratch copy of
    the repository's metadata that shares the version store."""
    tree = index.read_tree(root, commit)
    if tree is not None:
        return tree
    scratch = index.folder(root) / "scratch"
    for last in (False, False, False, False, True):
        try:
            _restore_in_copy(root, scratch, commit)
            break
        except Exception:  # the database that this process has open compacts its files, also while they are copied
            shutil.rmtree(scratch, ignore_errors=True)
            if last:
                raise
            time.sleep(0.3)
    tree = {
        path: index.hash_file(scratch / path) for path in index.walk(scratch, skip_hidden=False) if path[:6] != ".oxen/"
    }
    shutil.rmtree(scratch)
    _check_manifests(root, tree)
    index.write_tree(root, commit, tree)
    return tree


def _restore_in_copy(root: Path, scratch: Path, commit: str) -> None:
    skipped = {"versions", "staged", "self_reward"}
    shutil.copytree(
        root / ".oxen",
        scratch / ".oxen",
        ignore=lambda where, names: skipped.intersection(names) if Path(where) == root / ".oxen" else set(),
    )
    os.symlink(root / ".oxen" / "versions", scratch / ".oxen" / "versions")
    open_repo(scratch).restore(str(scratch), False, commit)


def _check_manifests(root: Path, tree: Tree) -> None:
    problems = [
        f"{path} in the data repository differs from what its stage recorded: SHA-256 {tree[path].sha256}, "
        f"recorded {sha256}; commit the recorded file again"
        for path, sha256 in _recorded_outputs(root, tree).items()
        if path in tree and sha256 and tree[path].sha256 != sha256
    ]
    if problems:
        raise Corrupt(problems)


def _recorded_outputs(root: Path, tree: Tree) -> dict[str, str]:
    """Files that stages wrote, with the SHA-256 their manifests record; a manifest itself comes without one."""
    found: dict[str, str] = {}
    for path, entry in tree.items():
        if is_manifest(path):
            found[path] = ""
            manifest = index.read_json(index.blob_path(root, entry.blob)) or {}
            found |= {name: output["sha256"] for name, output in manifest.get("outputs", {}).items()}
    return found


def _commit_user_files(root: Path, oxen: Any, head: str | None, notes: list[str]) -> str:
    """Commit what the user added, changed or removed; give back generated files that are missing. Returns the head.

    Raises UserError for generated files that were changed: a stage's result must be what its manifest says.
    """
    tree = _tree(root, oxen, head) if head else {}
    _refuse_unfit(root, tree, notes)
    stats = index.read_stats(root)
    before = dict(stats)
    changed, missing = index.compare(root, tree, stats)
    if stats != before:
        index.write_stats(root, stats)
    if not changed and not missing:
        if head is None:
            raise NotFound(f"{root} holds no files; put the training data into {root}/M0/train/ (see the README)")
        return head
    generated = _recorded_outputs(root, tree)
    where = f"--data_repo {shlex.quote(str(root))}"
    if head and (branch := oxen.current_branch().name) != "main":
        where += f" --branch {branch}"
    problems = [
        f"{path} was changed after the stage that wrote it: SHA-256 recorded {tree[path].sha256}, found "
        f"{entry.sha256}. To get the recorded file back, move yours away and run again"
        + ("" if is_manifest(path) else f"; to go on with yours: self-reward accept {shlex.quote(path)} {where}")
        for path, entry in changed.items()
        if path in generated and path in tree
    ]
    if problems:
        raise UserError(problems)
    if lost := [path for path in missing if path in generated]:
        _write_journal(root, head, "", tree, lost)  # a kill while one is copied leaves a part of it
        for path in lost:
            if index.copy_blob(root, tree[path], root / path) != tree[path]:
                _remove_journal(root)
                raise Corrupt(f"{path} is missing and the data repository's own copy of it is damaged")
            notes.append(f"{path} was missing and was restored from commit {head}")
        _remove_journal(root)
    removed = [path for path in missing if path not in generated]
    if removed or changed:
        message = f"user data: {_some([*changed, *(path + ' (removed)' for path in removed)])}"
        _write_journal(root, head, message, {**{p: e for p, e in tree.items() if p not in removed}, **changed}, [])
        try:
            with disk.explained(root, needed=sum(entry.size for entry in changed.values())):
                head = _commit(root, oxen, tree, changed, removed, message, ignored_allowed=True)
            notes.append(f"{message}: committed as {head}")
        except NoChanges:
            pass
        finally:
            _remove_journal(root)
    return head or ""


def _refuse_unfit(root: Path, tree: Tree, notes: list[str]) -> None:
    """Refuse what cannot be committed and would be left out, or taken for removed, without a word."""
    problems = []
    for where, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in [name for name in [*folders, *names] if not name.startswith(".")]:
            path = Path(where, name)
            shown = path.relative_to(root).as_posix()
            if not _is_utf8(name):
                problems.append(f"{shown!r}: the name is not UTF-8, which Oxen cannot keep; rename it")
                continue
            if not path.is_symlink() or path.is_file():
                continue
            if not path.exists():
                problems.append(
                    f"{shown} is a link to {os.readlink(path)}, which is not there; bring that back, or remove the link"
                )
                continue
            link = f"{shown} is a link to the folder {os.readlink(path)}, which Oxen does not follow"
            if any(file.startswith(shown + "/") for file in tree):
                problems.append(
                    f"{link}, and its files were committed before; put the folder itself there (or a bind mount), or "
                    "remove the link"
                )
            else:
                notes.append(
                    f"{link}: its files are no part of the data; copy or bind mount the folder if they should be"
                )
    if problems:
        raise UserError(problems)


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def accept(repo: str, branch: str, paths: list[str]) -> dict[str, Any]:
    """Commit generated files that the user has changed on purpose, with their new hashes in the stages' manifests.

    The stage counts as done with the new content (the commit carries its key), what reads it runs again.
    """
    root, notes = Path(repo), list[str]()
    oxen, head = _begin(root, branch, notes)
    for path in paths:
        tree = _tree(root, oxen, head)
        owners = [
            (name, manifest)
            for name, entry in tree.items()
            if is_manifest(name)
            and path in (manifest := index.read_json(index.blob_path(root, entry.blob)) or {}).get("outputs", {})
        ]
        if not owners or path not in tree or not (root / path).is_file():
            written = sorted(name for name in _recorded_outputs(root, tree) if not is_manifest(name))
            raise UserError(f"{path} is no file that a stage wrote; those are {_some(written) or 'none'}")
        name, manifest = owners[0]
        entry = index.hash_file(root / path)
        if entry == tree[path]:
            notes.append(f"{path} is as its stage wrote it; there is nothing to accept")
            continue
        _refuse_changed(root, tree, [name])
        manifest["outputs"][path] = {"sha256": entry.sha256, "size": entry.size, "changed_by_hand": True}
        text = f"{path}: changed by hand and accepted\n\nkey: {manifest['key']}"
        content = (json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode()
        new = index.folder(root) / "manifest.new"
        new.write_bytes(content)
        adds = {path: entry, name: index.hash_file(new)}
        _write_journal(root, head, text, {**tree, **adds}, [name])
        try:
            with disk.explained(root, needed=entry.size):
                os.replace(new, root / name)
                head = _commit(root, oxen, tree, adds, [], text)
        except BaseException:
            with contextlib.suppress(Exception):
                _recover(root, oxen, notes)
            raise
    return {"commit": head, "notes": notes}


def _commit(
    root: Path, oxen: Any, tree: Tree, adds: Tree, removes: list[str], message: str, ignored_allowed: bool = False
) -> str:
    """Stage, check what is staged and that its content is stored, commit, remember. Files are in the working tree.

    `ignored_allowed`: files that .oxenignore keeps out of the commit are no error.
    """
    for path in _together(root, adds, removes):
        oxen.add(glob.escape(str(root / path)))
    for path in removes:
        oxen.rm(glob.escape(str(root / path)), False, False, True)
    expected = {path for path, entry in adds.items() if path not in tree or tree[path].blob != entry.blob}
    staged_adds, staged_removes = _staged(oxen)
    if unseen := [path for path in expected - staged_adds if path in tree]:
        for path in unseen:  # Oxen takes a file of the same size and time for unchanged
            os.utime(root / path)
            oxen.add(glob.escape(str(root / path)))
        staged_adds, staged_removes = _staged(oxen)
    if staged_adds - expected or (expected - staged_adds and not ignored_allowed) or staged_removes != set(removes):
        raise TryAgain(
            "Oxen staged other files than were given to it: "
            f"{_some(sorted((staged_adds ^ expected) | (staged_removes ^ set(removes))))}; "
            "were they changed meanwhile, or named in .oxenignore?"
        )
    for path in staged_adds:
        if not _is_stored(root, adds[path]):
            # of a folder's files Oxen leaves out without a word what it could not store: alone it says why
            oxen.add(glob.escape(str(root / path)))
        if not _is_stored(root, adds[path]):
            if index.hash_file(root / path) == adds[path]:
                raise OSError(errno.ENOSPC, f"Oxen did not store {path} whole")
            raise TryAgain(f"{path} was changed while it was being committed; run again")
    if not staged_adds and not staged_removes:
        raise NoChanges("there is nothing to commit")
    commit = oxen.commit(message).id
    new_tree = {**{p: e for p, e in tree.items() if p not in removes}, **{p: adds[p] for p in staged_adds}}
    index.write_tree(root, commit, new_tree)
    _remove_journal(root)
    stats = {path: seen for path, seen in index.read_stats(root).items() if path in new_tree}
    for path in staged_adds:
        index.remember(root, path, adds[path], stats)
    index.write_stats(root, stats)
    return commit


def _is_stored(root: Path, entry: Entry) -> bool:
    stored = index.blob_path(root, entry.blob)
    return stored.exists() and index.blob_of(stored) == entry.blob


def _together(root: Path, adds: Tree, removes: list[str]) -> list[str]:
    """What to call Oxen's add with: a folder of which every file is new or changed is added at once, in parallel."""
    # once for each folder, and not for each of its files
    is_all = functools.cache(lambda folder: _is_all_of(root, folder, adds, removes))
    found: list[str] = []
    for path in sorted(adds):
        if found and path.startswith(found[-1] + "/"):
            continue
        found.append(next(filter(is_all, _above(path)), path))
    return found


def _above(path: str) -> list[str]:
    """The folders above `path`, the highest first, without the repository's own."""
    return [folder.as_posix() for folder in reversed(Path(path).parents) if folder.name]


def _is_all_of(root: Path, folder: str, adds: Tree, removes: list[str]) -> bool:
    if any(path.startswith(folder + "/") for path in removes):
        return False
    return all(f"{folder}/{rest}" in adds for rest in index.walk(root / folder, skip_hidden=False))


def _staged(oxen: Any) -> tuple[set[str], set[str]]:
    """Paths that are staged as new or changed, and as removed."""
    status = oxen.status()
    adds = {Path(path).as_posix() for path in [*status.added_files(), *status.modified_files()]}
    return adds, {Path(path).as_posix() for path in status.removed_files()}


def _refuse_changed(root: Path, tree: Tree, paths: list[str]) -> None:
    """Nothing of the user's is overwritten: working files in the way must be as the head has them."""
    problems = [
        f"{path} was written or changed by another program while this stage ran; move it away and run again"
        for path in paths
        if (root / path).is_file() and (path not in tree or index.hash_file(root / path) != tree[path])
    ]
    if problems:
        raise Conflict(problems)


def _some(names: list[str]) -> str:
    names = [name if name.isprintable() else repr(name) for name in names]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _error(error: BaseException, root: Path) -> dict[str, Any]:
    """What the parent raises again."""
    if isinstance(error, PermissionError):
        error = UserError(f"{error.filename or root}: {error.strerror}")
    if not isinstance(error, (UserError, TryAgain, OSError)):
        error = from_oxen(str(error)) or error
        if not isinstance(error, (UserError, TryAgain)) and disk.nearly_full(root):
            # LMDB says "Input/output error" when it could write a part only
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            error = TryAgain(f"{disk.in_words(root)} (Oxen: {first})")
    if isinstance(error, (UserError, TryAgain)):
        problems = error.problems if isinstance(error, UserError) else [str(error)]
        return {"type": type(error).__name__, "problems": problems}
    import traceback

    return {
        "type": type(error).__name__,
        "problems": ["".join(traceback.format_exception(error))],
        "errno": getattr(error, "errno", None),
    }


OPERATIONS: dict[str, Callable[..., Any]] = {
    "init": init,
    "resolve": resolve,
    "push": push,
    "put": put,
    "accept": accept,
}


def main() -> None:
    answer = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Oxen prints there
    request = json.load(sys.stdin)
    root = Path(request["repo"])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.alarm(math.ceil(request.pop("timeout")) + 5)  # ends this process even inside Oxen, and without a parent
    try:
        with disk.explained(root):
            result = {"value": OPERATIONS[request.pop("operation")](**request)}
    except BaseException as error:  # Oxen's panics are no Exception
        result = {"error": _error(error, root)}
    with open(answer, "w", encoding="utf-8") as file:
        json.dump(result, file)


if __name__ == "__main__":
    main()
    os._exit(0)  # not through Oxen's destructors
