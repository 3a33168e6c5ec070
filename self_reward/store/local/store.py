"""The data repository in a folder of this machine: an Oxen repository without a server.

Each operation runs in a child process (child.py says why) under a lock that dies with its holders. Reading files needs
neither: contents in Oxen's version store never change, so `pull` copies them from there and checks them on the way.
"""

import contextlib
import copy
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from self_reward import disk, files
from self_reward.errors import TryAgain, UserError
from self_reward.store import WITH_CONTENTS, Progress, Snapshot, files_at, recorded_sha256, refuse_names
from self_reward.store.content import Entry, hash_file
from self_reward.store.errors import TYPES, Corrupt, NotFound, from_oxen
from self_reward.store.local import index
from self_reward.store.protocol import parse_commit
from self_reward.types import Json


class LocalStore:
    """Store in the folder `path`, which need not exist; `lock_timeout`: seconds to wait for another process that holds
    it; `store_timeout`: seconds for one Oxen operation."""

    def __init__(self, path: str, *, branch: str, lock_timeout: float, store_timeout: float):
        self.root, self._given = Path(path).expanduser().resolve(), path
        self.branch, self.lock_timeout, self.store_timeout = branch, lock_timeout, store_timeout

    def exists(self) -> bool:
        return self.root.exists() and not (self.root.is_dir() and not any(self.root.iterdir()))

    def create(self) -> None:
        """Make the folder, and M0 in it, where it is missing or empty."""
        if not self.exists():
            (self.root / "M0").mkdir(parents=True)

    def branches(self, prefix: str = "") -> dict[str, str]:
        return {}

    def on(self, branch: str) -> "LocalStore":
        other = copy.copy(self)
        other.branch = branch
        return other

    def make_branch(self, name: str, commit: str) -> None:
        raise UserError(f"{self._given} is a folder, where only one branch can be written to; use a server's address")

    def remove_branch(self, name: str) -> None:
        raise UserError(f"{self._given} is a folder, whose branches are left alone; use a server's address")

    def check_writable(self) -> None:
        _check_folder(self.root, self._given)

    def resolve(self, revision: str | None = None) -> Snapshot:
        """As Store says. Makes a plain folder a repository, and commits what the user changed when asked for the newest
        commit."""
        answer = self._child("resolve", branch=self.branch, revision=revision)
        tree = index.read_tree(self.root, answer["commit"])
        assert tree is not None
        return Snapshot(
            commit=answer["commit"],
            head=answer["head"],
            files={path: entry.size for path, entry in tree.items()},
            blobs={path: entry.blob for path, entry in tree.items()},
            sha256={path: entry.sha256 for path, entry in tree.items()},
            log=[parse_commit(*commit) for commit in answer["log"]],
            contents={path: self._read(path, entry) for path, entry in tree.items() if path.endswith(WITH_CONTENTS)},
            notes=answer["notes"],
        )

    def pull(self, snapshot: Snapshot, paths: list[str], to: Path, progress: Progress | None = None) -> dict[str, str]:
        """As Store says. `progress` is not used: a copy on one machine takes seconds."""
        tree = index.read_tree(self.root, snapshot.commit)
        assert tree is not None
        wanted = files_at(paths, snapshot, self.root)
        needed = sum(snapshot.files[path] for path in wanted)
        recorded = recorded_sha256(snapshot.contents)
        problems, pulled = [], {}
        for path in wanted:
            target, expected = to / path, recorded.get(path, tree[path].sha256)
            pulled[path] = expected
            if expected == tree[path].sha256 and target.is_file() and hash_file(target) == tree[path]:
                continue
            try:
                with disk.explained(to, needed=needed):
                    actual = index.copy_blob(self.root, tree[path], target).sha256
            except FileNotFoundError:
                actual = "nothing"
            if actual != expected:
                problems.append(
                    f"{path} of commit {snapshot.commit} is damaged: SHA-256 recorded {expected}, found {actual}"
                )
        if problems:
            raise Corrupt(problems)
        return pulled

    def push(
        self,
        files: dict[str, Path],
        *,
        key: str,
        message: str,
        expected_head: str,
        progress: Progress | None = None,
    ) -> str:
        """As Store says. The working tree shows the commit afterwards. The local files may be hard-linked: do not
        change them later."""
        for path in files:
            if path.startswith(("/", ".oxen/")) or ".." in path.split("/") or not path:
                raise ValueError(f"not a path in a data repository: {path!r}")
        answer = self._child(
            "push",
            branch=self.branch,
            files=_absolute(files),
            key=key,
            message=message,
            expected_head=expected_head,
        )
        return answer["commit"]

    def put(self, files: dict[str, Path], *, message: str) -> str | None:
        """As Store says. The files are copied, and a kill leaves all of them or none. Raises UserError where no file
        can be, Conflict where the working tree has another uncommitted file in the place."""
        refuse_names(files)
        return self._child("put", branch=self.branch, files=_absolute(files), message=message)["commit"]

    def accept(self, paths: list[str]) -> tuple[str, list[str]]:
        _check_folder(self.root, self._given)
        if not (self.root / ".oxen").exists():
            raise NotFound(f"{self.root} holds nothing that a stage wrote; no stage has run there yet")
        answer = self._child("accept", branch=self.branch, paths=paths)
        return answer["commit"], answer["notes"]

    def _read(self, path: str, entry: Entry) -> bytes:
        try:
            return index.blob_path(self.root, entry.blob).read_bytes()
        except FileNotFoundError:
            raise Corrupt(f"{path}: its content {entry.sha256} is missing from {self.root}/.oxen/versions") from None

    def _child(self, operation: str, **request: object) -> Any:
        """Run one operation of child.py in a repository, which a plain folder becomes first."""
        _check_folder(self.root, self._given)
        if not (self.root / ".oxen").exists():
            self._run("init", {}, [])
        with self._lock() as lock:
            return self._run(operation, request, [lock.fileno()])

    def _lock(self) -> BinaryIO:
        """Hold the repository. The lock is on an open file that the child process inherits: it ends with the last of
        them, however they end."""
        try:
            file = files.lock(index.folder(self.root) / "lock", seconds=self.lock_timeout)
        except files.Locked as error:
            raise TryAgain(self._held(error.holder)) from None
        holder = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "command": shlex.join(sys.argv),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        with contextlib.suppress(OSError):  # a full disk; the lock itself needs no space
            os.pwrite(file.fileno(), json.dumps(holder).ljust(2000).encode(), 0)
        return file

    def _run(self, operation: str, request: Mapping[str, object], inherited: list[int]) -> Any:
        """Run one operation of child.py. Request and result go through pipes: a full disk must not stop the answer."""
        request = {**request, "operation": operation, "repo": str(self.root), "timeout": self.store_timeout}
        package = str(Path(__file__).resolve().parents[3])
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")])),
        }
        child = subprocess.Popen(
            [sys.executable, "-m", "self_reward.store.local.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            pass_fds=inherited,
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

    def _held(self, by: str) -> str:
        who = "another process"
        with contextlib.suppress(ValueError, KeyError, TypeError):
            holder = json.loads(by)
            who = f"process {holder['pid']} on {holder['host']} ({holder['command']}) since {holder['since']}"
            if holder["host"] == socket.gethostname() and not Path(f"/proc/{holder['pid']}").exists():
                who = f"an Oxen operation, not ended yet, of {who}, which has ended"
        return f"data repository {self.root} is held by {who}; waited lock_timeout = {self.lock_timeout:g} s"


def _absolute(files: Mapping[str, Path]) -> dict[str, str]:
    return {path: str(Path(local).resolve()) for path, local in files.items()}


def _check_folder(root: Path, given: str) -> None:
    if not root.exists():
        raise NotFound(
            f"data repository {given} does not exist. Make one: mkdir -p {given}/M0/train, and put ift.jsonl and "
            "ift+eft.jsonl there, one JSON object per line with prompt and response"
        )
    if not root.is_dir():
        raise UserError(f"data repository {given} is a file; expected a folder")
    if not os.access(root, os.R_OK | os.W_OK | os.X_OK):
        raise UserError(f"data repository {given} is not writable by this user")
    if not (root / ".oxen").exists() and not any(re.fullmatch(r"M\d+", p.name) for p in root.iterdir() if p.is_dir()):
        raise UserError(
            f"{given} is not a data repository: it is not an Oxen repository and has no folder M0. Put the training "
            f"data into {given}/M0/train/, or give another --data_repo"
        )
    oxen = root / ".oxen"
    # HEAD and history come with the first commit, before which a process may have been killed
    expected = ["config.toml", *(["HEAD", "history"] if any(oxen.glob("self_reward/trees/*.json")) else [])]
    if oxen.exists() and (missing := [name for name in expected if not (oxen / name).exists()]):
        raise Corrupt(
            f"data repository {given}: {oxen} is not an Oxen repository, it lacks {', '.join(missing)}. Bring it back "
            "from a copy; or move it away, and the folder's files become a new repository without the old history"
        )


def _raise(error: Json) -> None:
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
