"""The data repository on an Oxen server.

A push is one workspace (the server's name for uncommitted changes) and one commit of it. Three things make sure that
nothing is committed twice and that two runs do not mix:
- every commit also replaces FENCE, with content of its own. The server refuses a commit when a path in it was changed
  on the branch since the workspace was made, so of two writers that started from one commit exactly one lands;
- after any unclear answer to a commit the branch's log is read before anything else is done;
- the new commit's parent must be the commit that the stage started from. A program that does not know FENCE can still
  commit in the moment between our last look and our commit; then that is said, and nothing is lost of either.
Contents are sent under their hash: what the server has is not sent again, and it checks the hash of what it gets.
"""

import contextlib
import copy
import functools
import hashlib
import json
import os
import re
import socket
import tempfile
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import urllib3
import xxhash

from self_reward import disk
from self_reward.errors import TryAgain, UserError
from self_reward.store import (
    SMALL,
    Commit,
    Snapshot,
    commit,
    find_revision,
    first_line,
    is_manifest,
    outputs,
    recorded_sha256,
    refuse_names,
)
from self_reward.store.errors import Auth, Conflict, Corrupt, NotFound, ServerError
from self_reward.store.local import index
from self_reward.store.remote import address
from self_reward.store.remote.server import COMMIT_SECONDS, Server

FENCE = ".self_reward/commit.json"
WORKSPACE = "self-reward-"
ABANDONED_DAYS = 14  # after which a workspace of ours that was never committed is removed
THREADS = 4
PAGE = 1000
PIECE = 8 << 20  # bytes that are asked for at once; several at a time are three times as fast as one stream

T = TypeVar("T")
Progress = Callable[[int, int, str], None]
Listing = dict[str, tuple[int, str]]
"""path -> size in bytes and Oxen's name for the content"""


class RemoteStore:
    """`url`: oxen://HOST/NAMESPACE/NAME; `store_timeout`: seconds that one resolve, pull or push may take, tries that
    failed included; `cache_dir`: small contents are kept in its folder oxen, by their hash; `token`: the environment
    variable that holds the token."""

    def __init__(self, url: str, *, branch: str, store_timeout: float, cache_dir: Path, token: str = "OXEN_TOKEN"):
        self.address = address.parse(url)
        self.branch, self.store_timeout = branch, store_timeout
        self._token = address.token(self.address, token)
        self._cache = Path(cache_dir).expanduser() / "oxen"

    def on(self, branch: str) -> "RemoteStore":
        """The same repository, another branch."""
        other = copy.copy(self)
        other.branch = branch
        return other

    def exists(self) -> bool:
        """Whether the server has this repository."""
        with self._server() as server:
            return _exists(server)

    def create(self) -> None:
        """Make the repository, private; one that is there already stays as it is."""
        new = {"namespace": self.address.namespace, "name": self.address.name, "is_public": False}
        with self._server() as server, contextlib.suppress(Conflict):
            server.again(lambda: server.once("POST", "", new, url=f"{self.address.server}/api/repos"))

    def branches(self, prefix: str = "") -> dict[str, str]:
        """The branches whose names begin with `prefix`, and their newest commits."""
        with self._server() as server:
            found = server.ask("GET", "/branches")["branches"]
        return {branch["name"]: branch["commit_id"] for branch in found if branch["name"].startswith(prefix)}

    def make_branch(self, name: str, commit: str) -> None:
        """Make a branch that begins at `commit`. One of this name that is there already stays as it is."""
        with self._server() as server:
            _make_branch(server, name, commit)

    def remove_branch(self, name: str) -> None:
        """Remove a branch, where it is there."""
        with self._server() as server, contextlib.suppress(NotFound):
            server.ask("DELETE", f"/branches/{name}")

    def check_writable(self) -> None:
        """Raise Auth where the token may only read. Makes an empty workspace and removes it, so the repository must
        have a commit; one that a kill leaves is removed by a later push, as others are."""
        with self._server() as server:
            try:
                workspace, _ = self._workspace(server, f"{self._workspaces}check-{uuid.uuid4().hex[:8]}")
            except UserError as error:
                raise Auth(f"{self.address} can be read, but not written: {error}") from None
            self._remove(server, workspace)

    def resolve(self, revision: str | None = None) -> Snapshot:
        """The commit that `revision` means (None: the branch's newest). Makes the branch at main's newest commit where
        it is not there. Raises NotFound for a repository without data and for a revision that is not on the branch,
        Corrupt for files that were changed behind their stage's manifest."""
        with self._server() as server:
            notes: list[str] = []
            head = self._head(server, notes)
            log = _log(server, head)
            found = head if revision in (None, self.branch) else find_revision(str(revision), self.branch, log)
            listing = _listing(server, found)
            small = self._small(server, found, listing)
        _check_manifests(small, listing, found)
        listing.pop(FENCE, None)  # no data
        return self._snapshot(found, head, log, listing, small, notes)

    def pull(self, snapshot: Snapshot, paths: list[str], to: Path, progress: Progress | None = None) -> dict[str, str]:
        """Copy files or whole folders of the snapshot's commit to `to`/<path>; returns their SHA-256 by path.

        Each file is checked against its hash in the commit and in its stage's manifest; Corrupt names the files that
        differ. A file that is there already with the right content is kept, one that was begun is gone on with.
        """
        wanted = {p: [f for f in snapshot.files if f == p or f.startswith(p.rstrip("/") + "/")] for p in paths}
        if missing := [path for path, files in wanted.items() if not files]:
            raise NotFound([f"{path} is not in commit {snapshot.commit} of {self.address}" for path in missing])
        files = list(dict.fromkeys(path for files in wanted.values() for path in files))
        needed = sum(snapshot.files[path] for path in files)
        report = _counted(progress, "MB pulled", needed)
        recorded, compared = recorded_sha256(snapshot.small), _recorded(snapshot.small, "xxh3")
        hashes: dict[str, str] = {}
        problems: list[str] = []

        def one(path: str) -> None:
            size, blob, target = snapshot.files[path], snapshot.blobs[path], to / path
            if target.is_file() and target.stat().st_size == size and index.blob_of(target) == blob:
                report(size)
            elif found := _download(server, snapshot.commit, path, size, blob, target, report):
                problems.append(
                    f"{path} of commit {snapshot.commit} is damaged: XXH3-128 recorded {blob}, found {found}"
                )
                return
            # the listing's hash was compared with the manifest's at resolve; a manifest may lack it
            sha256 = recorded.get(path)
            if sha256 is None or path not in compared:
                found = index.hash_file(target).sha256
                if sha256 not in (None, found):
                    problems.append(
                        f"{path} of commit {snapshot.commit} is damaged: SHA-256 recorded {sha256}, found {found}"
                    )
                    target.unlink()
                    return
                sha256 = found
                self._keep(f"sha256-{blob}", found.encode())
            hashes[path] = sha256

        with self._server() as server, disk.explained(to, needed=needed):
            _each(server, one, [path for path in files if snapshot.files[path] <= PIECE])
            for path in files:
                if snapshot.files[path] > PIECE:  # several threads fetch each
                    one(path)
        if problems:
            raise Corrupt(sorted(problems))
        return {path: hashes[path] for path in files}

    def push(
        self,
        files: dict[str, Path],
        *,
        key: str,
        message: str,
        expected_head: str,
        progress: Progress | None = None,
    ) -> str:
        """Make one commit of `files` (repository path -> local file or folder) and return its id.

        A folder replaces the old folder: files of it that are gone are removed. When the branch's head has this key
        already, that commit is returned and none is made. Raises Conflict when the head is not `expected_head`.
        """
        with self._server() as server:
            return self._push(server, files, f"{message}\n\nkey: {key}", expected_head, progress, key=key)

    def put(self, files: dict[str, Path], *, message: str) -> str | None:
        """Commit files of the user's (repository path -> local file or folder) and return the commit, or None where
        they are there already. Raises UserError for a path that a stage wrote."""
        with self._server() as server:
            try:
                head = self._head(server, [])
            except NotFound:
                if not _exists(server):
                    raise
                if server.ask("GET", "/branches")["branches"]:  # another process made the first one just now, perhaps
                    head = self._head(server, [])
                else:  # makes the branch, with a commit of nothing
                    workspace, head = self._workspace(server, f"{WORKSPACE}first-{uuid.uuid4().hex[:8]}")
                    self._remove(server, workspace)
            listing = _listing(server, head)
            written = recorded_sha256(self._small(server, head, listing))
            sources = index.expand(files)
            refuse_names(sources)
            problems = [
                f"{path} was written by a stage, and is not the user's to replace; see `self-reward accept`"
                for path in sources
                if path in written or is_manifest(path)
            ]
            folders = {str(folder) for path in (*listing, *sources) for folder in PurePosixPath(path).parents}
            problems += [
                f"{path} is a folder of the data repository, or of what is put, and cannot be a file"
                for path in sorted(folders & {*sources})
            ]
            problems += [
                f"{folder} is a file of the data repository; {path} cannot be put below it"
                for path in sources
                for folder in map(str, PurePosixPath(path).parents)
                if folder in listing
            ]
            if problems:
                raise UserError(problems)
            if all(listing.get(path) == (src.stat().st_size, index.blob_of(src)) for path, src in sources.items()):
                return None
            return self._push(server, {**sources}, message, head, None)

    def accept(self, paths: list[str]) -> tuple[str, list[str]]:
        """Take generated files that were changed on the server on purpose for what their stages wrote; the newest
        commit and notes. Raises UserError for a path that no stage wrote."""
        notes: list[str] = []
        with self._server() as server, tempfile.TemporaryDirectory() as folder:
            head = self._head(server, notes)
            for path in paths:
                listing = _listing(server, head)
                small = self._small(server, head, listing)
                owner = next((name for name in small if is_manifest(name) and path in outputs(name, small[name])), None)
                if owner is None or path not in listing:
                    written = sorted(recorded_sha256(small))
                    raise UserError(f"{path} is no file that a stage wrote; those are {', '.join(written) or 'none'}")
                size, blob = listing[path]
                sha256 = self._sha256(server, head, path, blob)
                if outputs(owner, small[owner])[path]["sha256"] == sha256:
                    notes.append(f"{path} is as its stage wrote it; there is nothing to accept")
                    continue
                manifest = json.loads(small[owner])
                manifest["outputs"][path] = {"sha256": sha256, "size": size, "xxh3": blob, "changed_by_hand": True}
                new = Path(folder, "manifest.json")
                new.write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
                text = f"{path}: changed by hand and accepted\n\nkey: {manifest['key']}"
                head = self._push(server, {owner: new}, text, head, None)
        return head, notes

    @contextlib.contextmanager
    def _server(self) -> Iterator[Server]:
        server = Server(self.address, self._token, seconds=self.store_timeout)
        try:
            yield server
        finally:
            server.close()

    def _head(self, server: Server, notes: list[str] | None = None) -> str:
        """The branch's newest commit. With `notes` a branch that is not there is made from main, and that noted."""
        try:
            return server.ask("GET", f"/branches/{self.branch}")["branch"]["commit_id"]
        except NotFound:
            if not _exists(server):
                raise NotFound(
                    f"data repository {self.address} does not exist on its server (or this token may not see it). "
                    "Check the name, or --create_repo (self-reward.sh, self-reward data put) makes it, private"
                ) from None
        there = {branch["name"]: branch["commit_id"] for branch in server.ask("GET", "/branches")["branches"]}
        if not there:
            raise NotFound(
                f"data repository {self.address} is empty. Put training data there: self-reward data put ift.jsonl "
                f"ift+eft.jsonl --to M0/train --data_repo {self.address}, or copy another repository's: --seed_data"
            )
        if notes is None:
            raise NotFound(f"branch {self.branch} of {self.address} was removed meanwhile; it is not made again")
        if "main" not in there:
            raise NotFound(
                f"data repository {self.address} has no branch {self.branch}, and no main from which to make it; it "
                f"has {', '.join(sorted(there))}"
            )
        _make_branch(server, self.branch, there["main"])
        notes.append(f"branch {self.branch} was made at commit {there['main']}")
        return there["main"]

    def _snapshot(
        self,
        found: str,
        head: str,
        log: list[Commit],
        listing: Listing,
        small: dict[str, bytes],
        notes: list[str],
    ) -> Snapshot:
        def find(path: str) -> str:
            with self._server() as server:
                return self._sha256(server, found, path, listing[path][1])

        return Snapshot(
            commit=found,
            head=head,
            files={path: size for path, (size, _) in listing.items()},
            blobs={path: blob for path, (_, blob) in listing.items()},
            sha256=Hashes(listing, _known_inputs(small, listing) | recorded_sha256(small), find),
            log=log,
            small=small,
            notes=notes,
        )

    def _small(self, server: Server, found: str, listing: Listing) -> dict[str, bytes]:
        """Contents of the small files, from the cache where it has them."""
        contents: dict[str, bytes] = {}

        def one(path: str) -> None:
            blob = listing[path][1]
            content = self._kept(blob)
            if content is None or _blob(content) != blob:
                content = server.again(lambda: b"".join(server.blocks(f"/file/{found}/{path}")))
                if _blob(content) != blob:
                    raise Corrupt(
                        f"{path} of commit {found} is damaged: XXH3-128 recorded {blob}, found {_blob(content)}"
                    )
                self._keep(blob, content)
            contents[path] = content

        paths = [path for path in listing if path.endswith(SMALL)]
        _each(server, one, paths)
        return {path: contents[path] for path in paths}

    def _sha256(self, server: Server, found: str, path: str, blob: str) -> str:
        """SHA-256 of a file that no manifest lists; read over the network once, then known by its content's name."""
        kept = self._kept(f"sha256-{blob}") or b""
        if re.fullmatch(rb"[0-9a-f]{64}", kept):  # else a machine that lost its power has written half of it
            return kept.decode()

        def attempt() -> str:
            sha256, xxh3 = hashlib.sha256(), xxhash.xxh3_128()
            for block in server.blocks(f"/file/{found}/{path}"):
                sha256.update(block)
                xxh3.update(block)
            if format(xxh3.intdigest(), "x") != blob:
                raise Corrupt(f"{path} of commit {found} is damaged: XXH3-128 recorded {blob}, found another")
            return sha256.hexdigest()

        sha256 = server.again(attempt)
        self._keep(f"sha256-{blob}", sha256.encode())
        return sha256

    def _kept(self, name: str) -> bytes | None:
        try:
            return (self._cache / name[-2:] / name).read_bytes()
        except OSError:
            return None

    def _keep(self, name: str, content: bytes) -> None:
        with contextlib.suppress(OSError):  # a full disk: it is a cache
            path = self._cache / name[-2:] / name
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f"{name}.{uuid.uuid4().hex}")
            try:
                temporary.write_bytes(content)
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)

    def _push(
        self,
        server: Server,
        files: Mapping[str, Path],
        text: str,
        expected_head: str,
        progress: Progress | None,
        key: str | None = None,
    ) -> str:
        head = self._head(server)
        newest = _told(server.ask("GET", f"/commits/{head}")["commit"])
        if head != expected_head and not (key and newest.key == key):
            raise self._moved(expected_head, newest)
        if head != expected_head and self._is_whole(server, head, key):  # an earlier try landed, or another process's
            return head
        expected_head = head
        listing = _listing(server, head)
        sources = index.expand(files)
        with ThreadPoolExecutor() as threads:  # hashing releases the GIL
            blobs = threads.map(index.blob_of, sources.values())
            adds = {path: (src.stat().st_size, blob) for (path, src), blob in zip(sources.items(), blobs, strict=True)}
        removes = [p for p in listing if p not in adds and any(p == name or p.startswith(name + "/") for name in files)]
        new = {path: sources[path] for path, entry in adds.items() if listing.get(path) != entry}
        if key and newest.key == key and not new and not removes:
            return head
        attempt, end = uuid.uuid4().hex, server.deadline
        workspace, base = self._workspace(server, f"{self._workspaces}{(key or 'user')[:16]}-{attempt[:8]}")
        if base != expected_head:  # the branch moved just now, by an earlier try of ours perhaps: look again
            self._remove(server, workspace)
            return self._push(server, files, text, expected_head, progress, key)
        try:
            self._stage(server, workspace, new, adds, progress)
            if removes:
                server.ask("DELETE", f"/workspaces/{workspace}/files", removes)
            self._refuse_unseen(server, workspace, [p for p in new if p in listing and listing[p][0] == adds[p][0]])
            with tempfile.TemporaryDirectory() as folder:
                fence = Path(folder, "commit.json")
                about = {"commit": text, "on": expected_head, "attempt": attempt, "host": socket.gethostname()}
                content = json.dumps(about, indent=1, ensure_ascii=False) + "\n"
                # Never of the old one's size: a server that takes the times of its disk for coarse leaves a file of
                # the same size out when it comes within two seconds, and says nothing.
                content += "\n" * (len(content.encode()) == listing.get(FENCE, (0, ""))[0])
                fence.write_text(content, encoding="utf-8")
                adds[FENCE] = (fence.stat().st_size, index.blob_of(fence))
                self._stage(server, workspace, {FENCE: fence}, adds, None)
        except BaseException as error:
            last = Server(self.address, self._token, seconds=min(5.0, end - time.monotonic()))
            with contextlib.closing(last), contextlib.suppress(Exception):  # the next push does it otherwise
                last.once("DELETE", f"/workspaces/{workspace}")
            if not isinstance(error, UserError) or isinstance(error, Auth):
                raise
            # refused, perhaps since a commit has overtaken this push and its writer removed the workspace
            with contextlib.closing(Server(self.address, self._token, seconds=end - time.monotonic())) as again:
                if self._head(again) != expected_head:
                    return self._push(again, files, text, expected_head, progress, key)
            if isinstance(error, NotFound):
                raise TryAgain(f"{error}: the uncommitted changes of this push are gone from the server") from error
            raise
        made, is_ours = self._commit(server, workspace, text, expected_head, fence=adds[FENCE][1], key=key)
        if is_ours:
            self._verify(server, made["id"], made["parent_ids"], adds, removes, expected_head)
        elif not self._is_whole(server, made["id"], key):
            return self._push(server, files, text, expected_head, progress, key)
        self._remove_leftovers(made["id"])
        return made["id"]

    def _is_whole(self, server: Server, found: str, key: str | None) -> bool:
        """Whether a commit that another process made holds all that its manifest with this key lists: a server that
        lost its power, or a workspace removed while it was filled, can leave a part."""
        listing = _listing(server, found)
        for path, content in self._small(server, found, listing).items():
            if is_manifest(path) and (listed := outputs(path, content)) and json.loads(content).get("key") == key:
                return all(
                    listing.get(name) == (output["size"], output.get("xxh3", listing.get(name, (0, ""))[1]))
                    for name, output in listed.items()
                )
        return True

    @property
    def _workspaces(self) -> str:
        """What the names of workspaces for this branch begin with."""
        return f"{WORKSPACE}{_blob(self.branch.encode())[:8]}-"

    def _workspace(self, server: Server, name: str) -> tuple[str, str]:
        """A new workspace, whose name begins with `name`, and the commit that it starts from. On a repository without a
        commit the branch is made."""
        tried: list[str] = []

        def attempt() -> dict[str, Any]:
            # never the name of a try that failed: of one that a killed server had half made it says for ever that it
            # exists, and neither gives nor removes it
            tried.append(f"{name}-{len(tried)}")
            wanted = {"workspace_id": tried[-1], "branch_name": self.branch}
            return server.once("PUT", "/workspaces", wanted)["workspace"]

        found = server.again(attempt)
        for other in tried[:-1]:
            with contextlib.suppress(Exception):  # the next push does it otherwise
                server.once("DELETE", f"/workspaces/{other}", stall=5)
        return found["id"], found["commit"]["id"]

    def _remove_leftovers(self, head: str) -> None:
        """Remove workspaces that killed pushes left: those for this branch that `head`, a commit of ours, has
        overtaken, and what nobody came back for.

        Never another one: oxen-server 0.65.1 can lose staged files, and still commit the others, where a workspace is
        removed while something is staged in it. What `head` has overtaken is no longer committed: FENCE differs.
        """
        server = Server(self.address, self._token, seconds=20)
        with contextlib.closing(server), contextlib.suppress(UserError, TryAgain):  # the next push does it otherwise
            older: set[str] = set()
            for workspace in server.ask("GET", "/workspaces")["workspaces"]:
                name, base, made = workspace["id"], workspace["commit"]["id"], workspace.get("created_at")
                if not name.startswith(WORKSPACE):
                    continue
                if name.startswith(self._workspaces) and base != head and not older:
                    older = {one["id"] for one in _history(server, head)} - {head}
                is_late = name.startswith(self._workspaces) and base in older
                age = datetime.now(UTC) - datetime.fromisoformat(made[:19] + "+00:00") if made else None
                if is_late or (age and age.days >= ABANDONED_DAYS):
                    self._remove(server, name)

    def _remove(self, server: Server, workspace: str) -> None:
        with contextlib.suppress(NotFound):
            server.ask("DELETE", f"/workspaces/{workspace}")

    def _stage(
        self, server: Server, workspace: str, files: Mapping[str, Path], adds: Listing, progress: Progress | None
    ) -> None:
        """Bring the contents of `files` to the server and into the workspace."""
        report = _counted(progress, "MB pushed", sum(adds[path][0] for path in files))
        with ThreadPoolExecutor(THREADS) as threads, _stopping(server):
            for path, source in files.items():
                size, blob = adds[path]
                if size == 0:  # the upload by hash takes none
                    server.ask("POST", f"/workspaces/{workspace}/files/", _multipart(path))
                else:
                    self._upload(server, threads, workspace, path, source, size, blob, report)

    def _refuse_unseen(self, server: Server, workspace: str, paths: list[str]) -> None:
        """Raise ServerError where the server has left out one of `paths`, new contents of the old contents' size.

        oxen-server 0.65.1 does so within two seconds of the old one when it takes the times of its disk for coarse; its
        look at them can fail where its first writers after a start come at once, and is not repeated.
        """
        staged: set[str] = set()
        page, pages = 1, 1 if paths else 0
        while page <= pages:
            found = server.ask("GET", f"/workspaces/{workspace}/changes", page=page, page_size=PAGE)["staged"]
            lists = (found["added_files"], found["modified_files"])
            staged |= {entry["filename"] for one in lists for entry in one["entries"]}
            page, pages = page + 1, max(one["total_pages"] for one in lists)
        if unseen := [path for path in paths if path not in staged]:
            raise ServerError(
                f"{self.address}: the server takes new content of {', '.join(unseen[:5])} for unchanged, since it has "
                "the old size and came soon after it. Nothing was committed. Restart the server, then run again",
                passes=False,
            )

    def _upload(
        self,
        server: Server,
        threads: ThreadPoolExecutor,
        workspace: str,
        path: str,
        source: Path,
        size: int,
        blob: str,
        report: Callable[[int], None],
    ) -> None:
        """Send one file in parts, each again where its connection breaks. A server that was restarted has forgotten
        the parts it had: then the file is begun again."""
        wanted = {"hash": blob.zfill(32), "size": size, "destination": {"workspace_id": workspace, "path": path}}
        sent = 0

        def part(upload: dict[str, Any], number: int) -> bool:
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
            try:
                numbers = range(1, upload["num_parts"] + 1)
                if any(_results(threads, functools.partial(part, upload), numbers)):
                    return
            except NotFound:
                pass
            raise ServerError(f"{self.address}: the upload of {path} was not completed; it is begun again")

        lock = threading.Lock()
        server.again(attempt)

    def _commit(
        self, server: Server, workspace: str, text: str, expected_head: str, *, fence: str, key: str | None
    ) -> tuple[dict[str, Any], bool]:
        """Commit the workspace. However the request ends, the commit is made at most once. Returns it, and whether it
        is ours: another process that ran this very stage may have been faster."""
        body = {"message": text, "author": "self-reward", "email": f"self-reward@{socket.gethostname()}"}

        def attempt() -> tuple[dict[str, Any], bool]:
            try:
                where = f"/workspaces/{workspace}/merge/{self.branch}"
                return server.once("POST", where, body, stall=COMMIT_SECONDS)["commit"], True
            except (UserError, TryAgain) as error:
                try:
                    since = self._since(server, expected_head)
                except NotFound:  # the branch is gone, and no push on it will remove this workspace
                    self._remove(server, workspace)
                    raise
                for one in since:
                    is_ours = one["message"] == text and _fence(server, one) == fence
                    if is_ours or (key is not None and _told(one).key == key):
                        with contextlib.suppress(Exception):  # the next push on this branch does it otherwise
                            server.once("DELETE", f"/workspaces/{workspace}", stall=5)
                        return one, is_ours  # it landed, though its answer did not say so
                if isinstance(error, Conflict):
                    self._remove(server, workspace)
                # whatever it says: the one that was faster may be removing this workspace at this moment
                if since and isinstance(error, UserError):
                    raise self._moved(expected_head, _told(since[0])) from None
                if isinstance(error, NotFound):
                    raise TryAgain(
                        f"{error}: the uncommitted changes of this push are gone from the server. Does another process "
                        "push the same result?"
                    ) from error
                raise

        return server.again(attempt)

    def _since(self, server: Server, expected_head: str) -> list[dict[str, Any]]:
        """The branch's commits that are newer than `expected_head`, newest first."""
        newer = []
        for one in _history(server, self._head(server)):
            if one["id"] == expected_head:
                break
            newer.append(one)
        return newer

    def _verify(
        self, server: Server, made: str, parents: list[str], adds: Listing, removes: list[str], expected_head: str
    ) -> None:
        """That the server holds what was sent, and that nobody else's commit lies beneath it."""
        listing = _listing(server, made)
        problems = [
            f"{path} of the new commit {made}: expected {size} bytes with XXH3-128 {blob}, the server has "
            + ("{} bytes with {}".format(*listing[path]) if path in listing else "no such file")
            for path, (size, blob) in adds.items()
            if listing.get(path) != (size, blob)
        ]
        problems += [f"{path} is still in the new commit {made}" for path in removes if path in listing]
        if problems:
            raise Corrupt(problems)
        if parents != [expected_head]:
            others = [_named(_told(one)) for one in self._since(server, expected_head) if one["id"] != made]
            raise Conflict(
                f"another program committed to branch {self.branch} of {self.address} while this stage did: "
                f"{', '.join(others) or parents}. This stage's result is whole, in commit {made} on top of that. Look "
                "at the other commit, then run again: finished stages are skipped"
            )

    def _moved(self, expected: str, newest: Commit) -> Conflict:
        return Conflict(
            f"branch {self.branch} of {self.address} moved while this stage ran: expected commit {expected}, found "
            f"{_named(newest)}. Two runs on one branch do not mix: run the stage again from the new head, or give each "
            "run its own --branch"
        )


class Hashes(Mapping[str, str]):
    """SHA-256 by path: as manifests record it, else found out by `find` when it is asked for."""

    def __init__(self, listing: Listing, recorded: dict[str, str], find: Callable[[str], str]):
        self._listing, self._known, self._find = listing, dict(recorded), find

    def __getitem__(self, path: str) -> str:
        if path not in self._listing:
            raise KeyError(path)
        if path not in self._known:
            self._known[path] = self._find(path)
        return self._known[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self._listing)

    def __len__(self) -> int:
        return len(self._listing)


def _exists(server: Server) -> bool:
    try:
        server.ask("GET", "")
    except NotFound:
        return False
    return True


def _make_branch(server: Server, name: str, start: str) -> None:
    def attempt() -> None:
        with contextlib.suppress(NotFound):
            server.once("GET", f"/branches/{name}")
            return
        server.once("POST", "/branches", {"new_name": name, "commit_id": start})

    server.again(attempt)


def _history(server: Server, head: str) -> Iterator[dict[str, Any]]:
    """The commits from `head` back, newest first."""
    page, pages = 1, 1
    while page <= pages:
        found = server.ask("GET", f"/commits/history/{head}", page=page, page_size=PAGE)
        yield from found["commits"]
        page, pages = page + 1, found["total_pages"]


def _log(server: Server, head: str) -> list[Commit]:
    return [_told(one) for one in _history(server, head)]


def _fence(server: Server, found: dict[str, Any]) -> str:
    """Oxen's name of FENCE in a commit, '' where it has none."""
    with contextlib.suppress(NotFound):
        return _blob(server.again(lambda: b"".join(server.blocks(f"/file/{found['id']}/{FENCE}"))))
    return ""


def _told(found: dict[str, Any]) -> Commit:
    return commit(found["id"], found["message"], f"{found['author']} <{found['email']}>", found["timestamp"])


def _named(one: Commit) -> str:
    return f"{one.id} ({first_line(one.message)!r} by {one.author} at {one.time[:19]})"


def _listing(server: Server, found: str) -> Listing:
    """All files of a commit."""
    files: Listing = {}
    page, pages = 1, 1
    while page <= pages:
        try:
            answer = server.ask("GET", f"/dir/{found}/", depth=-1, page=page, page_size=PAGE)
        except NotFound:  # what a server says of a commit without files, too
            server.ask("GET", f"/commits/{found}")
            return {}
        _collect(server, found, "", answer["entries"], files)
        page, pages = page + 1, answer["total_pages"]
    return files


def _collect(server: Server, found: str, folder: str, entries: list[dict[str, Any]], files: Listing) -> None:
    for entry in entries:
        if "/" in entry["filename"] or entry["filename"] in ("", ".", ".."):  # would be written elsewhere
            raise Corrupt(f"{server.address}: commit {found} lists {entry['filename']!r} in {folder or '/'}, no name")
        path = folder + entry["filename"]
        if not entry["is_dir"]:
            files[path] = (entry["size"], entry["hash"].lstrip("0") or "0")
        elif (children := entry.get("children")) is not None or entry["size"] == 0:
            _collect(server, found, path + "/", children or [], files)
        else:
            raise UserError(
                f"{server.address}: the server lists no files below {path}; oxen-server 0.65 or newer is needed"
            )


def _check_manifests(small: dict[str, bytes], listing: Listing, found: str) -> None:
    """Raise Corrupt for files that are not what their stage's manifest says, as far as the listing shows it."""
    recorded = _recorded(small, "xxh3")
    problems = [
        f"{path} of commit {found} was changed after the stage that wrote it: XXH3-128 recorded {blob}, found "
        f"{listing[path][1]}. Commit the recorded file again; or, to go on with this one: self-reward accept {path}"
        for path, blob in recorded.items()
        if path in listing and listing[path][1] != blob
    ]
    if problems:
        raise Corrupt(problems)


def _recorded(small: dict[str, bytes], name: str) -> dict[str, str]:
    """What manifests record as `name` of the files that stages wrote, by path, where they do."""
    return {
        path: output[name]
        for manifest, content in small.items()
        if is_manifest(manifest)
        for path, output in outputs(manifest, content).items()
        if name in output
    }


def _known_inputs(small: dict[str, bytes], listing: Listing) -> dict[str, str]:
    """SHA-256 of files that stages have read, by path, where the content is still the one that they read."""
    known = {}
    for manifest in (json.loads(content) for name, content in small.items() if is_manifest(name)):
        for files in manifest.get("inputs", {}).values():
            for path, sha256 in files.items():
                if path in listing and listing[path][1] == manifest.get("inputs_xxh3", {}).get(path):
                    known[path] = sha256
    return known


def _blob(content: bytes) -> str:
    return format(xxhash.xxh3_128_intdigest(content), "x")


def _multipart(path: str) -> tuple[bytes, str]:
    """An empty file as a form's only field."""
    return urllib3.encode_multipart_formdata([("file[]", (path, b"", "application/octet-stream"))])


def _download(
    server: Server, found: str, path: str, size: int, blob: str, target: Path, report: Callable[[int], None]
) -> str | None:
    """Write a file to `target`, going on with what an interrupted try left beside it. Returns None, or the hash that
    was found instead of `blob`; then nothing is at `target`."""
    if target.is_dir():
        raise UserError(f"{target} is a folder; {path} would be written there. Move it away")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(
            f"{error.filename} cannot be made, a file is in the way; {path} would be written there"
        ) from None
    part = target.with_name(f"{index.TEMPORARY}{_blob(target.name.encode())}-{blob}")
    digest = ""
    for is_last in (False, True):
        begun = part.stat().st_size if part.exists() and not is_last else 0
        with open(part, "r+b" if 0 < begun <= size else "w+b") as file:
            xxh3 = xxhash.xxh3_128()
            while block := file.read(1 << 20):
                xxh3.update(block)
            begun = file.tell()
            report(begun if not is_last else 0)

            def attempt(file: Any = file, xxh3: Any = xxh3) -> None:
                while (have := file.tell()) < size:
                    for block in _from(server, found, path, have, size):
                        file.write(block)
                        xxh3.update(block)
                        report(len(block))
                    if file.tell() == have:
                        raise ServerError(f"{server.address}: the server sent nothing of {path} from byte {have} on")

            server.again(attempt)
            digest = format(xxh3.intdigest(), "x")
        if digest == blob:
            os.chmod(part, 0o644)
            os.replace(part, target)
            return None
        part.unlink()
    return digest


def _from(server: Server, found: str, path: str, start: int, size: int) -> Iterator[bytes]:
    """The bytes from `start` on."""
    if start == 0 and size <= PIECE:
        yield from server.blocks(f"/file/{found}/{path}")
        return

    def piece(at: int) -> bytes:
        wanted = min(PIECE, size - at)
        content = b"".join(server.blocks(f"/chunk/{found}/{path}", chunk_start=at, chunk_size=wanted))
        if len(content) != wanted:
            raise ServerError(f"{server.address}: of {path} the server sent {len(content)} bytes for {wanted}")
        return content

    with ThreadPoolExecutor(THREADS) as threads, _stopping(server):
        ahead: deque[Future[bytes]] = deque()  # few, so that no more than they are in memory
        for at in range(start, size, PIECE):
            ahead.append(threads.submit(server.again, functools.partial(piece, at)))
            if len(ahead) > THREADS:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _each(server: Server, work: Callable[[str], None], paths: list[str]) -> None:
    """Call `work` with every path, THREADS at a time; the first error ends it."""
    with ThreadPoolExecutor(THREADS) as threads, _stopping(server):
        _results(threads, work, paths)


def _results(threads: ThreadPoolExecutor, work: Callable[[Any], T], items: Iterable[Any]) -> list[T]:
    """What `work` returns for each item. The first error, of whichever item, is raised at once, and none is begun after
    it."""
    futures = [threads.submit(work, item) for item in items]
    try:
        for future in as_completed(futures):
            future.result()
    finally:
        for future in futures:
            future.cancel()
    return [future.result() for future in futures]


@contextlib.contextmanager
def _stopping(server: Server) -> Iterator[None]:
    """After an error, Ctrl-C included, other threads must not try until the operation's time is over."""
    try:
        yield
    except BaseException:
        server.stop()
        raise


def _counted(progress: Progress | None, what: str, total: int) -> Callable[[int], None]:
    """A function that adds bytes, from any thread, and shows them."""
    if progress is None or total < 100 << 20:  # what takes a second needs no bar
        return lambda count: None
    lock = threading.Lock()
    done, shown = 0, time.monotonic()

    def add(count: int) -> None:
        nonlocal done, shown
        with lock:
            done += count
            if time.monotonic() - shown > 0.5 or done >= total:
                shown = time.monotonic()
                progress(min(done, total) // 1_000_000, total // 1_000_000, what)

    return add
