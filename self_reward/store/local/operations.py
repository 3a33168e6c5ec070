"""The operations on a local repository. Each returns what goes to the parent process as JSON."""

import hashlib
import json
import os
import shutil
from pathlib import Path

from self_reward.errors import UserError
from self_reward.files import write_whole
from self_reward.store import few, find_revision
from self_reward.store.content import Entry, blob_of_bytes, expand_folders, hash_file, walk
from self_reward.store.errors import Conflict, Corrupt
from self_reward.store.local import index, journal, staging, working_tree
from self_reward.store.local.index import Tree
from self_reward.store.local.oxen import OxenBranch, Repo, open_oxen
from self_reward.store.local.trees import recorded_outputs, tree_of
from self_reward.store.manifests import is_manifest
from self_reward.types import Json


def init(repo: str) -> None:
    """Make a plain folder a repository; done beside and renamed, so that it becomes one whole or not at all."""
    root = Path(repo)
    beside = root / f".oxen-new-{os.getpid()}"
    beside.mkdir()
    os.environ.setdefault("OXEN_CONFIG_DIR", str(beside / "config"))
    try:
        open_oxen(beside).init()
        (beside / ".oxen" / "self_reward").mkdir()
        if not (root / ".oxen").exists():
            os.rename(beside / ".oxen", root / ".oxen")
    except BaseException:  # Oxen's own errors too: another process that was faster removes what others have begun
        if not (root / ".oxen" / "self_reward").exists():
            raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def resolve(repo: str, branch: str, revision: str | None) -> Json:
    """Bring the branch up to date with the user's files and name the commit that `revision` means (None: newest)."""
    opened, head = _begin(Path(repo), branch)
    log = opened.oxen.log()
    if revision in (None, branch):
        new_head = working_tree.commit_user_files(opened, head)
        if new_head != head:
            head, log = new_head, opened.oxen.log()
        commit = head
    elif revision == head:
        commit = head  # pinned: what the user has changed since is not read, so it is not committed either
    else:
        commit = find_revision(str(revision), branch, {one.id: one.message for one in log})
        tree_of(opened, commit)
    return {
        "commit": commit,
        "head": head,
        "log": [[one.id, one.message, one.author, _iso(one.timestamp)] for one in log],
        "notes": opened.notes,
    }


def _iso(time: object) -> str:
    """ISO 8601 of Oxen's `2026-11-24 1:43:16.919 +00:00:00`."""
    date, clock = str(time).split()[:2]
    return f"{date}T{clock.zfill(len(clock) + (clock[1] == ':'))[:8]}Z"


def push(repo: str, branch: str, files: dict[str, str], key: str, message: str, expected_head: str) -> Json:
    """One commit on top of `expected_head` that replaces the files and folders `files` (repository path -> source)."""
    from concurrent.futures import ThreadPoolExecutor

    opened, head = _begin(Path(repo), branch)
    tree = tree_of(opened, head)
    newest = opened.oxen.log()[0]
    same_key = newest.message.rstrip().endswith(f"key: {key}")
    if head != expected_head and same_key:  # an earlier try landed
        return {"commit": head}
    if head != expected_head:
        raise Conflict(
            f"branch {branch} moved while this stage ran: expected commit {expected_head}, found {head} "
            f"({newest.message.splitlines()[0]!r} by {newest.author} at {_iso(newest.timestamp)}). Two runs on "
            "one branch do not mix: run the stage again from the new head, or give each run its own --branch"
        )
    sources = expand_folders({name: Path(source) for name, source in files.items()})
    with ThreadPoolExecutor() as threads:  # hashing releases the GIL
        adds = dict(zip(sources, threads.map(hash_file, sources.values()), strict=True))
    removes = [
        path for path in tree if path not in adds and any(path == name or path.startswith(name + "/") for name in files)
    ]
    if same_key and not removes and all(tree.get(path) == entry for path, entry in adds.items()):
        return {"commit": head}
    working_tree.refuse_changed(opened.root, tree, [*adds, *removes])
    return {"commit": _replace(opened, head, tree, sources, adds, removes, f"{message}\n\nkey: {key}")}


def put(repo: str, branch: str, files: dict[str, str], message: str) -> Json:
    """One commit of the user's own `files` (repository path -> source); None where the head has them all already."""
    opened, head = _begin(Path(repo), branch, empty_allowed=True)
    root = opened.root
    tree = tree_of(opened, head) if head else {}
    sources = expand_folders({name: Path(source) for name, source in files.items()})
    working_tree.refuse_place(root, tree, sources)
    adds = {path: hash_file(source) for path, source in sources.items()}
    problems = [
        f"{path} in {root} was changed and is not committed yet; it would be lost. Move it away, or run a stage or "
        "self-reward data ls once to commit it"
        for path, entry in adds.items()
        if (root / path).is_file() and hash_file(root / path) not in (tree.get(path), entry)
    ]
    if problems:
        raise Conflict(problems)
    if all(tree.get(path) == entry for path, entry in adds.items()):
        return {"commit": None}
    commit = _replace(opened, head or None, tree, sources, adds, [], message, link=False)
    if not head and branch != "main":  # the first commit makes main, whatever the branch
        _switch(opened, opened.oxen.current_branch(), branch)
    return {"commit": commit}


def accept(repo: str, branch: str, paths: list[str]) -> Json:
    """Commit generated files that the user has changed on purpose, with their new hashes in the stages' manifests.

    The stage counts as done with the new content (the commit carries its key); what reads it runs again.
    """
    opened, head = _begin(Path(repo), branch)
    root = opened.root
    for path in paths:
        tree = tree_of(opened, head)
        owners = [
            (name, manifest)
            for name, entry in tree.items()
            if is_manifest(name)
            and path in (manifest := index.read_json(index.blob_path(root, entry.blob)) or {}).get("outputs", {})
        ]
        if not owners or path not in tree or not (root / path).is_file():
            written = sorted(name for name in recorded_outputs(root, tree) if not is_manifest(name))
            raise UserError(f"{path} was not written by a stage; files that were: {few(written) or 'none'}")
        name, manifest = owners[0]
        entry = hash_file(root / path)
        if entry == tree[path]:
            opened.notes.append(f"{path} is as its stage wrote it; there is nothing to accept")
            continue
        working_tree.refuse_changed(root, tree, [name])
        manifest["outputs"][path] = {"sha256": entry.sha256, "size": entry.size, "changed_by_hand": True}
        text = f"{path}: changed by hand and accepted\n\nkey: {manifest['key']}"
        content = (json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode()
        new = Entry(len(content), hashlib.sha256(content).hexdigest(), blob_of_bytes(content))
        adds = {path: entry, name: new}
        with journal.all_or_nothing(opened, head, text, {**tree, **adds}, [name], needed=entry.size):
            write_whole(root / name, content, durable=False)
            head = staging.commit(opened, tree, adds, [], text)
    return {"commit": head, "notes": opened.notes}


def _replace(
    repo: Repo,
    head: str | None,
    tree: Tree,
    sources: dict[str, Path],
    adds: Tree,
    removes: list[str],
    text: str,
    link: bool = True,
) -> str:
    """Bring `adds`, whose content `sources` have, into the working tree, remove `removes`, and commit that."""
    new = {path: entry for path, entry in adds.items() if tree.get(path) != entry}
    after = {**{p: e for p, e in tree.items() if p not in removes}, **adds}
    needed = sum(entry.size for entry in new.values())
    with journal.all_or_nothing(repo, head, text, after, [*new, *removes], needed):
        for path in removes:
            index.remove_file(repo.root, path)
        for path in new:
            index.link_or_copy(sources[path], repo.root / path, link=link)
        return staging.commit(repo, tree, new, removes, text)


def _begin(root: Path, branch: str, empty_allowed: bool = False) -> tuple[Repo, str]:
    """Open the repository, undo or finish what a killed process left, and show `branch`; also returns its head ("" for
    a repository without files, where `empty_allowed`)."""
    shutil.rmtree(root / ".oxen" / "staged", ignore_errors=True)
    shutil.rmtree(index.folder(root) / "scratch", ignore_errors=True)
    for leftover in root.glob(".oxen-new-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    for leftover in (*index.folder(root).glob("*.part"), *index.folder(root).glob("trees/*.part")):
        leftover.unlink(missing_ok=True)
    repo = Repo(root, open_oxen(root))
    journal.recover(repo)
    current = repo.oxen.current_branch()
    if current is None and not repo.oxen.list_branches():  # no commit yet
        if empty_allowed and not any(walk(root)):
            return repo, ""
        working_tree.commit_user_files(repo, None)
        current = repo.oxen.current_branch()
    if current is None or current.name != branch:
        _switch(repo, current, branch)
        current = repo.oxen.current_branch()
    assert current is not None
    return repo, current.commit_id


def _switch(repo: Repo, current: OxenBranch | None, branch: str) -> None:
    """Show `branch` in the working tree; made from main (or from what is shown) when it does not exist."""
    root, oxen = repo.root, repo.oxen
    shown = current.name if current else "no branch"
    log = oxen.log()
    if not log:
        raise Corrupt(f"{root}/.oxen/HEAD names {shown}, which has no commit; write the name of a branch there (main)")
    before = log[0].id
    tree = tree_of(repo, before)
    exists = oxen.branch_exists(branch)
    onto = branch if exists else "main"
    if (not current or current.name != onto) and oxen.branch_exists(onto):
        stats = index.read_stats(root)
        changed, missing = index.compare(root, tree, stats)
        index.write_stats(root, stats)
        if changed or missing:
            raise UserError(
                f"the data repository shows branch {shown} with changes that are not committed: "
                f"{few([*changed, *missing])}. Run once with --branch {shown} to commit them, or undo them, "
                f"before using --branch {branch}"
            )
        target = next(one.commit_id for one in oxen.list_branches() if one.name == onto)
        to = tree_of(repo, target)
        touched = sorted(path for path in {*tree, *to} if tree.get(path) != to.get(path))
        journal.write(repo, before, "", to, touched)
        oxen.checkout(onto, False)
        for path in touched:
            if path in to:
                os.chmod(root / path, 0o644)
        journal.remove(root)
        repo.notes.append(f"the working tree went from branch {shown} to {onto}")
    if not exists:
        oxen.checkout(branch, True)
        made = oxen.current_branch()
        repo.notes.append(f"branch {branch} was made at commit {made.commit_id if made else before}")
