"""Files of a commit, brought to this machine: in pieces, resumed after a break or a kill, and checked."""

import functools
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import BinaryIO

import xxhash

from self_reward import disk
from self_reward.errors import UserError
from self_reward.store import Progress, Snapshot, files_at, recorded_sha256
from self_reward.store.content import blob_of, blob_of_bytes, hash_file
from self_reward.store.errors import Corrupt, ServerError
from self_reward.store.manifests import recorded
from self_reward.store.remote.parallel import THREADS, counter, each, threads_of
from self_reward.store.remote.reading import Session, keep_sha256
from self_reward.store.remote.server import Server

PIECE = 8 << 20  # bytes that are asked for at once; several at a time are three times as fast as one stream
BEGUN = ".self_reward-tmp-"  # begins the name of a file whose download is not finished; the content's hash ends it


def pull(session: Session, snapshot: Snapshot, paths: list[str], to: Path, progress: Progress | None) -> dict[str, str]:
    """As Store.pull; a download that was begun is resumed."""
    files = files_at(paths, snapshot, session.server.address)
    needed = sum(snapshot.files[path] for path in files)
    report = counter(progress, "MB pulled", needed)
    sha256_recorded, compared = recorded_sha256(snapshot.contents), recorded(snapshot.contents, "xxh3")
    hashes: dict[str, str] = {}
    problems: list[str] = []

    def fetch(path: str) -> None:
        size, blob, target = snapshot.files[path], snapshot.blobs[path], to / path
        if target.is_file() and target.stat().st_size == size and blob_of(target) == blob:
            report(size)
        elif wrong := _download(session.server, snapshot.commit, path, size, blob, target, report):
            problems.append(f"{path} of commit {snapshot.commit} is damaged: XXH3-128 recorded {blob}, found {wrong}")
            return
        # the listing's hash was compared with the manifest's at resolve; a manifest may lack it
        sha256 = sha256_recorded.get(path)
        if sha256 is None or path not in compared:
            actual = hash_file(target).sha256
            if sha256 not in (None, actual):
                problems.append(
                    f"{path} of commit {snapshot.commit} is damaged: SHA-256 recorded {sha256}, found {actual}"
                )
                target.unlink()
                return
            sha256 = actual
            keep_sha256(session.cache, blob, sha256)
        hashes[path] = sha256

    with disk.explained(to, needed=needed):
        each(session.server, fetch, [path for path in files if snapshot.files[path] <= PIECE])
        for path in files:
            if snapshot.files[path] > PIECE:  # several threads fetch each
                fetch(path)
    if problems:
        raise Corrupt(sorted(problems))
    return {path: hashes[path] for path in files}


def _download(
    server: Server, commit: str, path: str, size: int, blob: str, target: Path, report: Callable[[int], None]
) -> str | None:
    """Write a file to `target`, resuming what an interrupted try left beside it. Returns None, or the hash that was
    found instead of `blob`; then nothing is at `target`."""
    if target.is_dir():
        raise UserError(f"{target} is a folder; {path} would be written there. Move it away")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(
            f"{error.filename} cannot be made, a file is in the way; {path} would be written there"
        ) from None
    part = target.with_name(f"{BEGUN}{blob_of_bytes(target.name.encode())}-{blob}")
    digest = ""
    for is_last in (False, True):
        begun = part.stat().st_size if part.exists() and not is_last else 0
        with open(part, "r+b" if 0 < begun <= size else "w+b") as file:
            xxh3 = xxhash.xxh3_128()
            while block := file.read(1 << 20):
                xxh3.update(block)
            report(file.tell() if not is_last else 0)
            server.again(functools.partial(_fetch, server, commit, path, size, file, xxh3, report))
            digest = format(xxh3.intdigest(), "x")
        if digest == blob:
            os.chmod(part, 0o644)
            os.replace(part, target)
            return None
        part.unlink()
    return digest


def _fetch(
    server: Server,
    commit: str,
    path: str,
    size: int,
    file: BinaryIO,
    xxh3: "xxhash.xxh3_128",
    report: Callable[[int], None],
) -> None:
    """Write what is missing at the end of `file`."""
    while (have := file.tell()) < size:
        for block in _from(server, commit, path, have, size):
            file.write(block)
            xxh3.update(block)
            report(len(block))
        if file.tell() == have:
            raise ServerError(f"{server.address}: the server sent nothing of {path} from byte {have} on")


def _from(server: Server, commit: str, path: str, start: int, size: int) -> Iterator[bytes]:
    """The bytes from `start` on."""
    if start == 0 and size <= PIECE:
        yield from server.blocks(f"/file/{commit}/{path}")
        return

    def piece(at: int) -> bytes:
        wanted = min(PIECE, size - at)
        content = b"".join(server.blocks(f"/chunk/{commit}/{path}", chunk_start=at, chunk_size=wanted))
        if len(content) != wanted:
            raise ServerError(f"{server.address}: of {path} the server sent {len(content)} bytes for {wanted}")
        return content

    with threads_of(server) as threads:
        ahead: deque[Future[bytes]] = deque()  # few, so that no more than they are in memory
        for at in range(start, size, PIECE):
            ahead.append(threads.submit(server.again, functools.partial(piece, at)))
            if len(ahead) > THREADS:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
