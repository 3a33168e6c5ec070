"""One commit of local files, however the requests for it end.

A push is one workspace and one commit of it. Three things make sure that nothing is committed twice and that two runs
do not mix:
- every commit also replaces FENCE, with different content each time. The server refuses a commit when a path in it was
  changed on the branch since the workspace was made, so of two writers that started from one commit exactly one lands;
- after any unclear answer to a commit the branch's log is read before anything else is done;
- the new commit's parent must be the commit that the stage started from. A program that does not know FENCE can still
  commit in the moment between our last look and our commit; that is then reported, and nothing of either is lost.
"""

import contextlib
import dataclasses
import json
import socket
import tempfile
import time
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from self_reward.errors import TryAgain, UserError
from self_reward.store import Commit, Progress
from self_reward.store.content import blob_of, blob_of_bytes, expand_folders
from self_reward.store.errors import Auth, Conflict, Corrupt, NotFound
from self_reward.store.manifests import is_manifest, outputs
from self_reward.store.remote import reading, workspaces
from self_reward.store.remote.reading import Listing, Session
from self_reward.store.remote.server import COMMIT_SECONDS
from self_reward.types import Json

FENCE = ".self_reward/commit.json"


@dataclasses.dataclass(frozen=True)
class Change:
    """What is to be committed: `files` (repository path -> local file or folder) on top of the commit `base`. `key`:
    the last line of `message`, where it is a stage's."""

    files: Mapping[str, Path]
    message: str
    base: str
    key: str | None = None
    progress: Progress | None = None


def push(session: Session, change: Change) -> str:
    """Make one commit of `change` and return its id."""
    server = session.server
    head = reading.head(session)
    newest = reading.as_commit(server.ask("GET", f"/commits/{head}")["commit"])
    is_again = change.key is not None and newest.key == change.key
    if head != change.base:
        if not is_again:
            raise _moved(session, change.base, newest)
        if _is_whole(session, head, change.key):  # an earlier try landed, or another process's
            return head
        change = dataclasses.replace(change, base=head)
    listing = reading.list_files(server, head)
    sources = expand_folders(change.files)
    with ThreadPoolExecutor() as threads:  # hashing releases the GIL
        blobs = threads.map(blob_of, sources.values())
        adds = {path: (src.stat().st_size, blob) for (path, src), blob in zip(sources.items(), blobs, strict=True)}
    removes = [
        path
        for path in listing
        if path not in adds and any(path == name or path.startswith(name + "/") for name in change.files)
    ]
    new = {path: sources[path] for path, entry in adds.items() if listing.get(path) != entry}
    if is_again and not new and not removes:
        return head
    attempt, end = uuid.uuid4().hex, server.deadline
    name = f"{workspaces.prefix(session.branch)}{(change.key or 'user')[:16]}-{attempt[:8]}"
    workspace, base = workspaces.new(session, name)
    if base != head:  # the branch moved just now, by an earlier try of ours perhaps: look again
        workspaces.remove(server, workspace)
        return push(session, change)
    try:
        workspaces.stage(server, workspace, new, adds, change.progress)
        if removes:
            server.ask("DELETE", f"/workspaces/{workspace}/files", removes)
        workspaces.refuse_unseen(server, workspace, [p for p in new if p in listing and listing[p][0] == adds[p][0]])
        adds[FENCE] = _stage_fence(session, workspace, change, attempt, listing)
    except BaseException as error:
        last = server.another(min(5.0, end - time.monotonic()))
        with contextlib.closing(last), contextlib.suppress(Exception):  # the next push does it otherwise
            last.once("DELETE", f"/workspaces/{workspace}")
        if not isinstance(error, UserError) or isinstance(error, Auth):
            raise
        # refused, perhaps since a commit has overtaken this push and its writer removed the workspace
        with contextlib.closing(server.another(end - time.monotonic())) as again:
            session = dataclasses.replace(session, server=again)
            if reading.head(session) != head:
                return push(session, change)
        if isinstance(error, NotFound):
            raise TryAgain(f"{error}: the uncommitted changes of this push are gone from the server") from error
        raise
    made, is_ours = _commit(session, workspace, change, adds[FENCE][1])
    if is_ours:
        _verify(session, made, adds, removes, head)
    elif not _is_whole(session, made["id"], change.key):
        return push(session, change)
    workspaces.remove_leftovers(session, made["id"])
    return made["id"]


def _stage_fence(session: Session, workspace: str, change: Change, attempt: str, listing: Listing) -> tuple[int, str]:
    """Stage FENCE; returns its entry in a listing."""
    about = {"commit": change.message, "on": change.base, "attempt": attempt, "host": socket.gethostname()}
    content = json.dumps(about, indent=1, ensure_ascii=False) + "\n"
    # Never of the old one's size: a server that believes that its disk has coarse timestamps silently leaves out a file
    # of the same size that comes within two seconds.
    content += "\n" * (len(content.encode()) == listing.get(FENCE, (0, ""))[0])
    entry = (len(content.encode()), blob_of_bytes(content.encode()))
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder, "commit.json")
        local.write_text(content, encoding="utf-8")
        workspaces.stage(session.server, workspace, {FENCE: local}, {FENCE: entry}, None)
    return entry


def _is_whole(session: Session, commit: str, key: str | None) -> bool:
    """Whether a commit that another process made holds all that its manifest with this key lists: a server that lost
    its power, or a workspace removed while it was filled, can leave a part."""
    listing = reading.list_files(session.server, commit)
    for path, content in reading.read_contents(session, commit, listing).items():
        if is_manifest(path) and (listed := outputs(path, content)) and json.loads(content).get("key") == key:
            return all(
                listing.get(name) == (output["size"], output.get("xxh3", listing.get(name, (0, ""))[1]))
                for name, output in listed.items()
            )
    return True


def _commit(session: Session, workspace: str, change: Change, fence: str) -> tuple[Json, bool]:
    """Commit the workspace. However the request ends, the commit is made at most once. Returns it, and whether it is
    ours: another process that ran this very stage may have been faster. `fence`: Oxen's name for our FENCE."""
    server = session.server
    body = {"message": change.message, "author": "self-reward", "email": f"self-reward@{socket.gethostname()}"}

    def attempt() -> tuple[Json, bool]:
        try:
            where = f"/workspaces/{workspace}/merge/{session.branch}"
            return server.once("POST", where, body, stall=COMMIT_SECONDS)["commit"], True
        except (UserError, TryAgain) as error:
            try:
                since = _since(session, change.base)
            except NotFound:  # the branch is gone, and no push on it will remove this workspace
                workspaces.remove(server, workspace)
                raise
            for commit in since:
                is_ours = commit["message"] == change.message and _fence_of(session, commit["id"]) == fence
                if is_ours or (change.key is not None and reading.as_commit(commit).key == change.key):
                    with contextlib.suppress(Exception):  # the next push on this branch does it otherwise
                        server.once("DELETE", f"/workspaces/{workspace}", stall=5)
                    return commit, is_ours  # it landed, though its answer did not say so
            if isinstance(error, Conflict):
                workspaces.remove(server, workspace)
            # whatever the error: the process that was faster may be removing this workspace at this moment
            if since and isinstance(error, UserError):
                raise _moved(session, change.base, reading.as_commit(since[0])) from None
            if isinstance(error, NotFound):
                raise TryAgain(
                    f"{error}: the uncommitted changes of this push are gone from the server. Does another process "
                    "push the same result?"
                ) from error
            raise

    return server.again(attempt)


def _fence_of(session: Session, commit: str) -> str:
    """Oxen's name for FENCE in a commit, '' where it has none."""
    with contextlib.suppress(NotFound):
        return blob_of_bytes(reading.read_file(session.server, commit, FENCE))
    return ""


def _since(session: Session, base: str) -> list[Json]:
    """The branch's commits that are newer than `base`, newest first."""
    newer = []
    for commit in reading.history(session.server, reading.head(session)):
        if commit["id"] == base:
            break
        newer.append(commit)
    return newer


def _verify(session: Session, made: Json, adds: Listing, removes: list[str], base: str) -> None:
    """Check that the server holds what was sent, and that nobody else's commit lies beneath it."""
    commit, parents = made["id"], made["parent_ids"]
    listing = reading.list_files(session.server, commit)
    problems = [
        f"{path} of the new commit {commit}: expected {size} bytes with XXH3-128 {blob}, the server has "
        + ("{} bytes with {}".format(*listing[path]) if path in listing else "no such file")
        for path, (size, blob) in adds.items()
        if listing.get(path) != (size, blob)
    ]
    problems += [f"{path} is still in the new commit {commit}" for path in removes if path in listing]
    if problems:
        raise Corrupt(problems)
    if parents != [base]:
        others = [reading.named(reading.as_commit(one)) for one in _since(session, base) if one["id"] != commit]
        raise Conflict(
            f"another program committed to branch {session.branch} of {session.server.address} while this stage did: "
            f"{', '.join(others) or parents}. This stage's result is whole, in commit {commit} on top of that. Look "
            "at the other commit, then run again: finished stages are skipped"
        )


def _moved(session: Session, expected: str, newest: Commit) -> Conflict:
    return Conflict(
        f"branch {session.branch} of {session.server.address} moved while this stage ran: expected commit {expected}, "
        f"found {reading.named(newest)}. Two runs on one branch do not mix: run the stage again from the new head, or "
        "give each run its own --branch"
    )
