"""The data repository in a folder of this machine: an Oxen repository without a server.

Each operation runs in a child process (child.py says why) under a lock that dies with its holders. Reading files needs
neither: contents in Oxen's version store never change, so `pull` copies them from there and checks them on the way.
"""

import contextlib
import fcntl
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from self_reward import disk
from self_reward.errors import TryAgain, UserError
from self_reward.store import SMALL, Snapshot, commit, recorded_sha256, refuse_names
from self_reward.store.errors import TYPES, Corrupt, NotFound, from_oxen
from self_reward.store.local import index


class LocalStore:
    """`path`: the repository's folder; `lock_timeout`: seconds to wait for another process that holds it;
    `store_timeout`: seconds for one Oxen operation."""

    def __init__(self, path: str, *, branch: str, lock_timeout: float, store_timeout: float):
        self.root = Path(path).expanduser().resolve()
        self.branch, self.lock_timeout, self.store_timeout = branch, lock_timeout, store_timeout
        _check_folder(self.root, path)

    def resolve(self, revision: str | None = None) -> Snapshot:
        """The commit that `revision` means (None: the branch's newest, after committing what the user changed).

        Makes a plain folder a repository. Raises UserError for changed generated files, NotFound for a revision that
        is not on the branch, TryAgain while another process holds the repository.
        """
        if not (self.root / ".oxen").exists():
            self._child("init", lock=False)
        found = self._child("resolve", branch=self.branch, revision=revision)
        tree = index.read_tree(self.root, found["commit"])
        assert tree is not None
        return Snapshot(
            commit=found["commit"],
            head=found["head"],
            files={path: entry.size for path, entry in tree.items()},
            blobs={path: entry.blob for path, entry in tree.items()},
            sha256={path: entry.sha256 for path, entry in tree.items()},
            log=[commit(*one) for one in found["log"]],
            small={path: self._read(path, entry) for path, entry in tree.items() if path.endswith(SMALL)},
            notes=found["notes"],
        )

    def pull(self, snapshot: Snapshot, paths: list[str], to: Path, progress: Any = None) -> dict[str, str]:
        """Copy files or whole folders of the snapshot's commit to `to`/<path>; returns their SHA-256 by path.

        Each file is checked against what was recorded at its commit and in its stage's manifest; Corrupt names the
        files that differ. A file that is there already with the right content is kept. `progress` is not used: a
        copy on one machine takes seconds.
        """
        tree = index.read_tree(self.root, snapshot.commit)
        assert tree is not None
        wanted = {p: [f for f in snapshot.files if f == p or f.startswith(p.rstrip("/") + "/")] for p in paths}
        if missing := [path for path, files in wanted.items() if not files]:
            raise NotFound([f"{path} is not in commit {snapshot.commit} of {self.root}" for path in missing])
        recorded = recorded_sha256(snapshot.small)
        problems, pulled = [], {}
        files = list(dict.fromkeys(path for files in wanted.values() for path in files))
        for path in files:
            target, expected = to / path, recorded.get(path, tree[path].sha256)
            pulled[path] = expected
            if expected == tree[path].sha256 and target.is_file() and index.hash_file(target) == tree[path]:
                continue
            try:
                with disk.explained(to, needed=sum(snapshot.files[file] for file in files)):
                    found = index.copy_blob(self.root, tree[path], target).sha256
            except FileNotFoundError:
                found = "nothing"
            if found != expected:
                problems.append(_damaged(path, snapshot.commit, expected, found))
        if problems:
            raise Corrupt(problems)
        return pulled

    def push(self, files: dict[str, Path], *, key: str, message: str, expected_head: str, progress: Any = None) -> str:
        """Make one commit of `files` (repository path -> local file or folder) and return its id.

        A folder replaces the old folder: files of it that are gone are removed. The working tree shows the commit
        afterwards. When the branch's head has this key already, that commit is returned and none is made. Raises
        Conflict when the head is not `expected_head`. The local files may be hard-linked: do not change them later.
        """
        for path in files:
            if path.startswith(("/", ".oxen/")) or ".." in path.split("/") or not path:
                raise ValueError(f"not a path in a data repository: {path!r}")
        sources = {path: str(Path(local).resolve()) for path, local in files.items()}
        result = self._child(
            "push", branch=self.branch, files=sources, key=key, message=message, expected_head=expected_head
        )
        return result["commit"]

    def put(self, files: dict[str, Path], *, message: str) -> str | None:
        """Commit the user's own `files` (repository path -> local file or folder); the commit's id, or None when the
        head has them all already.

        The files are copied, and a kill leaves all of them or none. Raises UserError for a path that a stage writes or
        where no file can be, Conflict where the working tree has another uncommitted file in the place.
        """
        refuse_names(files)
        if not (self.root / ".oxen").exists():
            self._child("init", lock=False)
        sources = {path: str(Path(local).resolve()) for path, local in files.items()}
        return self._child("put", branch=self.branch, files=sources, message=message)["commit"]

    def accept(self, paths: list[str]) -> tuple[str, list[str]]:
        """Commit generated files that the user changed on purpose as what their stages wrote; the newest commit and
        notes. Raises UserError for a path that no stage wrote."""
        if not (self.root / ".oxen").exists():
            raise NotFound(f"{self.root} holds nothing that a stage wrote; no stage has run there yet")
        result = self._child("accept", branch=self.branch, paths=paths)
        return result["commit"], result["notes"]

    def _read(self, path: str, entry: index.Entry) -> bytes:
        try:
            return index.blob_path(self.root, entry.blob).read_bytes()
        except FileNotFoundError:
            raise Corrupt(f"{path}: its content {entry.sha256} is missing from {self.root}/.oxen/versions") from None

    def _child(self, operation: str, lock: bool = True, **request: Any) -> Any:
        """Run one operation of child.py. Request and result go through pipes: a full disk must not stop the answer."""
        request |= {"operation": operation, "repo": str(self.root), "timeout": self.store_timeout}
        package = str(Path(__file__).resolve().parents[3])
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")])),
        }
        with self._lock() if lock else contextlib.nullcontext(None) as descriptor:
            child = subprocess.Popen(
                [sys.executable, "-m", "self_reward.store.local.child"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment,
                pass_fds=[] if descriptor is None else [descriptor],
            )
            try:
                answer, log = child.communicate(json.dumps(request).encode(), timeout=self.store_timeout)
            except subprocess.TimeoutExpired:
                raise TryAgain(
                    f"the Oxen operation {operation} on {self.root} was ended after store_timeout = "
                    f"{self.store_timeout:g} s; run again, with a larger store_timeout if the disk is slow"
                ) from None
            finally:
                if child.poll() is None:
                    child.kill()
                    child.wait()
        if child.returncode or not answer:  # one that was killed may have written a part of its answer
            _raise_for_no_answer(operation, self.root, child.returncode, log.decode(errors="replace"))
        result = json.loads(answer)
        if "error" in result:
            _raise(result["error"])
        return result["value"]

    @contextlib.contextmanager
    def _lock(self) -> Iterator[int]:
        """Hold the repository. The lock is on an open file that the child inherits: it ends with the last of them,
        however they end."""
        path = index.folder(self.root) / "lock"
        path.parent.mkdir(exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            deadline = time.monotonic() + self.lock_timeout
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        raise TryAgain(self._held(path)) from None
                    time.sleep(0.05)
            holder = {
                "pid": os.getpid(),
                "host": socket.gethostname(),
                "command": shlex.join(sys.argv),
                "since": time.strftime("%Y-%m-%d %H:%M:%S"),
            }
            with contextlib.suppress(OSError):  # a full disk; the lock itself needs no space
                os.pwrite(descriptor, json.dumps(holder).ljust(2000).encode(), 0)
            yield descriptor
        finally:
            os.close(descriptor)

    def _held(self, path: Path) -> str:
        holder = index.read_json(path)
        who = "another process"
        if holder:
            who = f"process {holder['pid']} on {holder['host']} ({holder['command']}) since {holder['since']}"
            if holder["host"] == socket.gethostname() and not Path(f"/proc/{holder['pid']}").exists():
                who = f"an Oxen operation, not ended yet, of {who}, which has ended"
        return f"data repository {self.root} is held by {who}; waited lock_timeout = {self.lock_timeout:g} s"


def make_folder(path: str) -> None:
    """Make the folder of a new local data repository, and M0 in it, where `path` is missing or empty."""
    root = Path(path).expanduser()
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        (root / "M0").mkdir(parents=True)


def _damaged(path: str, commit: str, expected: str, found: str) -> str:
    return f"{path} of commit {commit} is damaged: SHA-256 recorded {expected}, found {found}"


def _check_folder(root: Path, given: str) -> None:
    if not root.exists():
        raise NotFound(
            f"data repository {given} does not exist. Make one: mkdir -p {given}/M0/train, and put ift.jsonl and "
            "ift+eft.jsonl there, one JSON object a line with prompt and response"
        )
    if not root.is_dir():
        raise UserError(f"data repository {given} is a file; expected a folder")
    if not os.access(root, os.R_OK | os.W_OK | os.X_OK):
        raise UserError(f"data repository {given} is not writable by this user")
    if not (root / ".oxen").exists() and not any(re.fullmatch(r"M\d+", p.name) for p in root.iterdir() if p.is_dir()):
        raise UserError(
            f"{given} is no data repository: it is no Oxen repository and has no folder M0. Put the training data "
            f"into {given}/M0/train/, or give another --data_repo"
        )
    oxen = root / ".oxen"
    # HEAD and history come with the first commit, before which a process may have been killed
    expected = ["config.toml", *(["HEAD", "history"] if any(oxen.glob("self_reward/trees/*.json")) else [])]
    if oxen.exists() and (missing := [name for name in expected if not (oxen / name).exists()]):
        raise Corrupt(
            f"data repository {given}: {oxen} is no Oxen repository, it lacks {', '.join(missing)}. Bring it back "
            "from a copy; or move it away, and the folder's files become a new repository without the old history"
        )


def _raise(error: dict[str, Any]) -> None:
    kind, problems = error["type"], error["problems"]
    if kind in TYPES:
        raise TYPES[kind](problems if issubclass(TYPES[kind], UserError) else "\n".join(problems))
    if error.get("errno"):
        raise OSError(error["errno"], "\n".join(problems))
    raise RuntimeError(f"Oxen operation failed:\n{problems[0]}")


def _raise_for_no_answer(operation: str, root: Path, returncode: int, log: str) -> None:
    if returncode in (-signal.SIGKILL, -signal.SIGTERM):
        raise TryAgain(f"the Oxen operation {operation} was killed (out of memory?); run again")
    if returncode == -signal.SIGALRM:
        raise TryAgain(f"the Oxen operation {operation} took longer than store_timeout and was ended; run again")
    if returncode == -signal.SIGBUS or disk.nearly_full(root):  # how a write into a mapped file says it
        raise TryAgain(disk.in_words(root))
    raise from_oxen(log) or RuntimeError(f"the Oxen operation {operation} ended with {returncode}:\n{log[-3000:]}")
