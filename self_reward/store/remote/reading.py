"""What a branch and its commits hold: log, files, and the contents of small files."""

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import xxhash

from self_reward.errors import UserError
from self_reward.store import WITH_CONTENTS, Commit, first_line
from self_reward.store.content import blob_of_bytes
from self_reward.store.errors import Corrupt, NotFound
from self_reward.store.manifests import is_manifest, recorded
from self_reward.store.protocol import parse_commit
from self_reward.store.remote.cache import Cache
from self_reward.store.remote.parallel import each
from self_reward.store.remote.server import Server
from self_reward.types import Json

PAGE = 1000

Listing = dict[str, tuple[int, str]]
"""path -> size in bytes and Oxen's name for the content"""


@dataclass(frozen=True)
class Session:
    """One operation on a branch."""

    server: Server
    branch: str
    cache: Cache


# ---- branches and their logs


def exists(server: Server) -> bool:
    """Whether the server has this repository."""
    try:
        server.ask("GET", "")
    except NotFound:
        return False
    return True


def branches(server: Server) -> dict[str, str]:
    """Branch -> its newest commit."""
    return {branch["name"]: branch["commit_id"] for branch in server.ask("GET", "/branches")["branches"]}


def make_branch(server: Server, name: str, start: str) -> None:
    """Make a branch that begins at the commit `start`; one that exists stays as it is."""

    def attempt() -> None:
        with contextlib.suppress(NotFound):
            server.once("GET", f"/branches/{name}")
            return
        server.once("POST", "/branches", {"new_name": name, "commit_id": start})

    server.again(attempt)


def head(session: Session, notes: list[str] | None = None) -> str:
    """The branch's newest commit. With `notes` a missing branch is made from main, and that noted."""
    server, branch = session.server, session.branch
    try:
        return server.ask("GET", f"/branches/{branch}")["branch"]["commit_id"]
    except NotFound:
        if not exists(server):
            raise NotFound(
                f"data repository {server.address} does not exist on its server (or this token may not see it). "
                "Check the name, or --create_repo (self-reward.sh, self-reward data put) makes it, private"
            ) from None
    existing = branches(server)
    if not existing:
        raise NotFound(
            f"data repository {server.address} is empty. Put training data there: self-reward data put ift.jsonl "
            f"ift+eft.jsonl --to M0/train --data_repo {server.address}, or copy another repository's: --seed_data"
        )
    if notes is None:
        raise NotFound(f"branch {branch} of {server.address} was removed meanwhile; it is not made again")
    if "main" not in existing:
        raise NotFound(
            f"data repository {server.address} has no branch {branch}, and no main from which to make it; it has "
            f"{', '.join(sorted(existing))}"
        )
    make_branch(server, branch, existing["main"])
    notes.append(f"branch {branch} was made at commit {existing['main']}")
    return existing["main"]


def history(server: Server, commit: str) -> Iterator[Json]:
    """The commits from `commit` back, newest first, as the server reports them."""
    page, pages = 1, 1
    while page <= pages:
        answer = server.ask("GET", f"/commits/history/{commit}", page=page, page_size=PAGE)
        yield from answer["commits"]
        page, pages = page + 1, answer["total_pages"]


def as_commit(reported: Json) -> Commit:
    author = f"{reported['author']} <{reported['email']}>"
    return parse_commit(reported["id"], reported["message"], author, reported["timestamp"])


def named(commit: Commit) -> str:
    """A commit in a message."""
    return f"{commit.id} ({first_line(commit.message)!r} by {commit.author} at {commit.time[:19]})"


# ---- the files of a commit


def list_files(server: Server, commit: str) -> Listing:
    """All files of a commit."""
    files: Listing = {}
    page, pages = 1, 1
    while page <= pages:
        try:
            answer = server.ask("GET", f"/dir/{commit}/", depth=-1, page=page, page_size=PAGE)
        except NotFound:  # what a server also answers for a commit without files
            server.ask("GET", f"/commits/{commit}")
            return {}
        _collect(server, commit, "", answer["entries"], files)
        page, pages = page + 1, answer["total_pages"]
    return files


def _collect(server: Server, commit: str, folder: str, entries: list[Json], files: Listing) -> None:
    for entry in entries:
        if "/" in entry["filename"] or entry["filename"] in ("", ".", ".."):  # would be written elsewhere
            raise Corrupt(
                f"{server.address}: commit {commit} lists {entry['filename']!r} in {folder or '/'}, which is not a name"
            )
        path = folder + entry["filename"]
        if not entry["is_dir"]:
            files[path] = (entry["size"], entry["hash"].lstrip("0") or "0")
        elif (children := entry.get("children")) is not None or entry["size"] == 0:
            _collect(server, commit, path + "/", children or [], files)
        else:
            raise UserError(
                f"{server.address}: the server lists no files below {path}; oxen-server 0.65 or newer is needed"
            )


def read_contents(session: Session, commit: str, listing: Listing) -> dict[str, bytes]:
    """The contents that a Snapshot has, from the cache where it has them."""
    contents: dict[str, bytes] = {}

    def read(path: str) -> None:
        blob = listing[path][1]
        content = session.cache.get(blob)
        if content is None or blob_of_bytes(content) != blob:
            content = read_file(session.server, commit, path)
            if (actual := blob_of_bytes(content)) != blob:
                raise Corrupt(f"{path} of commit {commit} is damaged: XXH3-128 recorded {blob}, found {actual}")
            session.cache.keep(blob, content)
        contents[path] = content

    paths = [path for path in listing if path.endswith(WITH_CONTENTS)]
    each(session.server, read, paths)
    return {path: contents[path] for path in paths}


def read_file(server: Server, commit: str, path: str) -> bytes:
    """The content of a small file, not checked."""
    return server.again(lambda: b"".join(server.blocks(f"/file/{commit}/{path}")))


def sha256_of(session: Session, commit: str, path: str, blob: str) -> str:
    """SHA-256 of a file that no manifest lists; read over the network once, then known by its content's name."""
    kept = session.cache.get(f"sha256-{blob}") or b""
    if re.fullmatch(rb"[0-9a-f]{64}", kept):
        return kept.decode()

    def attempt() -> str:
        sha256, xxh3 = hashlib.sha256(), xxhash.xxh3_128()
        for block in session.server.blocks(f"/file/{commit}/{path}"):
            sha256.update(block)
            xxh3.update(block)
        if format(xxh3.intdigest(), "x") != blob:
            raise Corrupt(f"{path} of commit {commit} is damaged: XXH3-128 recorded {blob}, found another")
        return sha256.hexdigest()

    sha256 = session.server.again(attempt)
    keep_sha256(session.cache, blob, sha256)
    return sha256


def keep_sha256(cache: Cache, blob: str, sha256: str) -> None:
    cache.keep(f"sha256-{blob}", sha256.encode())


class Hashes(Mapping[str, str]):
    """SHA-256 by path: as `known`, else found out by `find` when it is asked for."""

    def __init__(self, listing: Listing, known: dict[str, str], find: Callable[[str], str]):
        self._listing, self._known, self._find = listing, dict(known), find

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


# ---- what manifests say about them


def check_manifests(contents: dict[str, bytes], listing: Listing, commit: str) -> None:
    """Raise Corrupt for files that are not what their stage's manifest says, as far as the listing shows it."""
    problems = [
        f"{path} of commit {commit} was changed after the stage that wrote it: XXH3-128 recorded {blob}, found "
        f"{listing[path][1]}. Commit the recorded file again; or, to keep this one: self-reward accept {path}"
        for path, blob in recorded(contents, "xxh3").items()
        if path in listing and listing[path][1] != blob
    ]
    if problems:
        raise Corrupt(problems)


def known_inputs(contents: dict[str, bytes], listing: Listing) -> dict[str, str]:
    """SHA-256 of files that stages have read, by path, where the content is still the one that they read."""
    known = {}
    for manifest in (json.loads(content) for name, content in contents.items() if is_manifest(name)):
        for files in manifest.get("inputs", {}).values():
            for path, sha256 in files.items():
                if path in listing and listing[path][1] == manifest.get("inputs_xxh3", {}).get(path):
                    known[path] = sha256
    return known
