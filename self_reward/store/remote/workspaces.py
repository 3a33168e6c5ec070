"""Workspaces, the server's name for uncommitted changes: made, filled, removed.

Contents are sent under their hash: what the server already has is not sent again, and it checks the hash of what it
gets.
"""

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import urllib3

from self_reward.errors import TryAgain, UserError
from self_reward.store import Progress, few
from self_reward.store.content import blob_of_bytes
from self_reward.store.errors import NotFound, ServerError
from self_reward.store.remote.parallel import counter, results, threads_of
from self_reward.store.remote.reading import PAGE, Listing, Session, history
from self_reward.store.remote.server import COMMIT_SECONDS, Server
from self_reward.types import Json

WORKSPACE = "self-reward-"
ABANDONED_DAYS = 14  # after which a workspace of ours that was never committed is removed
LEFTOVERS_SECONDS = 20


def prefix(branch: str) -> str:
    """What the names of workspaces for `branch` begin with."""
    return f"{WORKSPACE}{blob_of_bytes(branch.encode())[:8]}-"


def new(session: Session, name: str) -> tuple[str, str]:
    """A new workspace, whose name begins with `name`, and the commit that it starts from. On a repository without a
    commit the branch is made."""
    tried: list[str] = []

    def attempt() -> Json:
        # Never the name of a try that failed: a server that was killed while it made a workspace reports for ever that
        # it exists, and neither returns nor removes it.
        tried.append(f"{name}-{len(tried)}")
        wanted = {"workspace_id": tried[-1], "branch_name": session.branch}
        return session.server.once("PUT", "/workspaces", wanted)["workspace"]

    workspace = session.server.again(attempt)
    for other in tried[:-1]:
        with contextlib.suppress(Exception):  # the next push does it otherwise
            session.server.once("DELETE", f"/workspaces/{other}", stall=5)
    return workspace["id"], workspace["commit"]["id"]


def remove(server: Server, workspace: str) -> None:
    with contextlib.suppress(NotFound):
        server.ask("DELETE", f"/workspaces/{workspace}")


def remove_leftovers(session: Session, head: str) -> None:
    """Remove workspaces that killed pushes left: those for this branch that `head`, a commit of ours, has overtaken,
    and old ones.

    Never another one: oxen-server 0.65.1 can lose staged files, and still commit the others, where a workspace is
    removed while something is staged in it. What `head` has overtaken can no longer be committed: the fence differs.
    """
    server = session.server.another(LEFTOVERS_SECONDS)
    ours = prefix(session.branch)
    with contextlib.closing(server), contextlib.suppress(UserError, TryAgain):  # the next push does it otherwise
        older: set[str] = set()
        for workspace in server.ask("GET", "/workspaces")["workspaces"]:
            name, base, created = workspace["id"], workspace["commit"]["id"], workspace.get("created_at")
            if not name.startswith(WORKSPACE):
                continue
            if name.startswith(ours) and base != head and not older:
                older = {commit["id"] for commit in history(server, head)} - {head}
            is_late = name.startswith(ours) and base in older
            age = datetime.now(UTC) - datetime.fromisoformat(created[:19] + "+00:00") if created else None
            if is_late or (age and age.days >= ABANDONED_DAYS):
                remove(server, name)


def stage(
    server: Server, workspace: str, sources: Mapping[str, Path], adds: Listing, progress: Progress | None
) -> None:
    """Bring the contents of `sources` to the server and into the workspace."""
    report = counter(progress, "MB pushed", sum(adds[path][0] for path in sources))
    with threads_of(server) as threads:
        for path, source in sources.items():
            size, blob = adds[path]
            if size == 0:  # the upload by hash accepts no empty file
                server.ask("POST", f"/workspaces/{workspace}/files/", _empty_file(path))
            else:
                wanted = {
                    "hash": blob.zfill(32),
                    "size": size,
                    "destination": {"workspace_id": workspace, "path": path},
                }
                _upload(server, threads, wanted, source, report)


def _empty_file(path: str) -> tuple[bytes, str]:
    """An empty file as a form's only field."""
    return urllib3.encode_multipart_formdata([("file[]", (path, b"", "application/octet-stream"))])


def _upload(
    server: Server, threads: ThreadPoolExecutor, wanted: Json, source: Path, report: Callable[[int], None]
) -> None:
    """Send one file in parts, each again where its connection breaks. A server that was restarted has forgotten the
    parts it had: then the file is sent from its beginning."""
    size, sent = wanted["size"], 0
    lock = threading.Lock()

    def part(upload: Json, number: int) -> bool:
        """Whether this was the last one missing. Raises NotFound where the upload is gone, or complete."""
        start = (number - 1) * upload["part_size"]
        with open(source, "rb") as file:
            content = os.pread(file.fileno(), upload["part_size"], start)
        where = f"/versions/uploads/{upload['upload_id']}/parts/{number}"
        answer = server.again(lambda: server.once("PUT", where, content, stall=COMMIT_SECONDS))
        nonlocal sent
        with lock:
            report(min(len(content), size - sent))
            sent += min(len(content), size - sent)
        return answer["completed"]

    def attempt() -> None:
        upload = server.once("POST", "/versions/uploads", wanted)
        if upload["file"] == "already_stored":
            report(size - sent)
            return
        with contextlib.suppress(NotFound):
            if any(results(threads, functools.partial(part, upload), range(1, upload["num_parts"] + 1))):
                return
        path = wanted["destination"]["path"]
        raise ServerError(f"{server.address}: the upload of {path} was not completed; it is started again")

    server.again(attempt)


def refuse_unseen(server: Server, workspace: str, paths: list[str]) -> None:
    """Raise ServerError where the server has left out one of `paths`, new contents of the old contents' size.

    oxen-server 0.65.1 does so within two seconds of the old one when it believes that its disk has coarse timestamps;
    its test of the disk can fail where its first writers after a start come at once, and is not repeated.
    """
    staged: set[str] = set()
    page, pages = 1, 1 if paths else 0
    while page <= pages:
        answer = server.ask("GET", f"/workspaces/{workspace}/changes", page=page, page_size=PAGE)["staged"]
        lists = (answer["added_files"], answer["modified_files"])
        staged |= {entry["filename"] for files in lists for entry in files["entries"]}
        page, pages = page + 1, max(files["total_pages"] for files in lists)
    if unseen := [path for path in paths if path not in staged]:
        raise ServerError(
            f"{server.address}: the server takes new content of {few(unseen)} for unchanged, since it has the old size "
            "and came soon after it. Nothing was committed. Restart the server, then run again",
            passes=False,
        )
