"""What every stage does around its own work: parameters, inputs, skip-if-done, one commit, exit codes.

A stage program is `sys.exit(stage.main(NAME, work, __doc__))` with `work(parameters, run)`. Its result is recognised by
a key: a hash of the stage, its input files, the base model, and the parameters that affect its output. The key stands
in the manifest `M{k}/<stage>.manifest.json` and in the commit message, so a stage that is run again finds its commit
and loads nothing.

Exit codes: 0 done, also when a stop rule fired; 2 the user must change something; 75 try again later; 1 a bug (with
traceback); 143 ended by SIGTERM, 130 by Ctrl-C, with what is on disk kept. The last error also goes to the file
$TERMINATION_LOG. No torch here.
"""

import contextlib
import errno
import fcntl
import hashlib
import itertools
import json
import logging
import os
import platform
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import self_reward
from self_reward import disk
from self_reward import parameters as parameter_module
from self_reward.errors import TryAgain, UserError
from self_reward.repository import artifacts
from self_reward.run import shards
from self_reward.store import Commit, Snapshot, is_remote, open_store, recorded_sha256
from self_reward.store.content import hash_file, walk
from self_reward.store.errors import Conflict

VERSION = 1  # part of every key; raise it when a stage writes other content for the same inputs and parameters
PACKAGES = ("torch", "transformers", "trl", "peft", "vllm", "oxenai")
PROGRESS_SECONDS = 10.0
ABANDONED_DAYS = 14  # after which partial results that nobody went on from are removed
PROBLEM = "error: "  # begins each problem of a UserError
MESSAGE = 4000  # bytes of an error in $TERMINATION_LOG; Kubernetes reads 4096
MUCH = 1 << 30  # bytes of other partial results that are worth a line
NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)

log = logging.getLogger("self_reward")

StopRule = Callable[[Any, dict[str, Any], dict[str, Any]], str | None]


class Run:
    """What `work` is given beside the parameters.

    `inputs`: what artifacts.py says the stage reads and writes; `base_id`: the base model as resolved, or None;
    `seed`: the parameter `seed` made different for each stage and iteration, so that no two sample with the same random
    numbers; `partial`: a folder that survives a kill, for results from which the next try goes on; `counts`: numbers
    for the summary, the commit message and the manifest; `details`: anything else for the manifest; `key`: the stage's;
    `shard`: (i, n) where this process does part i of n of the work, else (0, 1).
    """

    def __init__(
        self,
        stage: str,
        inputs: artifacts.Inputs,
        base_id: str | None,
        store: Any,
        snapshot: Snapshot,
        folder: Path,
        seed: int = 0,
        key: str = "",
        shard: tuple[int, int] = (0, 1),
    ):
        self.stage, self.inputs, self.base_id = stage, inputs, base_id
        self.seed, self.key, self.shard = seed, key, shard
        self.partial = folder / "partial"
        self.counts: dict[str, Any] = {}
        self.details: dict[str, Any] = {}
        self.log = log
        self.store, self.folder, self._snapshot = store, folder, snapshot
        self._pulled: set[str] = set()
        self._progress = Progress()

    def has(self, name: str) -> bool:
        """Whether the data repository has the optional input `name`."""
        return name in self.inputs.paths

    def input(self, name: str) -> Path:
        """The file or folder of the input `name`, copied out of the data repository and checked at its first use."""
        path = self.inputs.paths[name]
        if name not in self._pulled:
            self.store.pull(self._snapshot, [path], self.folder / "inputs", progress=self.progress)
            self._pulled.add(name)
        return self.folder / "inputs" / path

    def output(self, name: str) -> Path:
        """Where to write the output `name`."""
        path = self.folder / "outputs" / self.inputs.outputs[name]
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def progress(self, done: int, total: int, what: str = "") -> None:
        """Show that `done` of `total` units `what` are finished."""
        self._progress(done, total, what)


class Progress:
    """A bar on a terminal, else a line every ten seconds at most; `N/M` in $ARGO_PROGRESS_FILE where it is set."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._begun = (0.0, 0, 0)  # when the present piece of work was first heard of; done then, and in all
        self._last = 0
        self._shown = 0.0

    def __call__(self, done: int, total: int, what: str) -> None:
        if total != self._begun[2] or done < self._last:
            self._begin(done, total)
        self._last = done
        if sys.stderr.isatty():
            self._draw(done, total, what)
            if done < total and time.monotonic() - self._shown < 1:
                return
        elif time.monotonic() - self._shown < PROGRESS_SECONDS and not (done == total and self._shown):
            return
        else:
            log.info("%s%d/%d%s", f"{what} " if what else "", done, total, self._left(done, total))
        self._shown = time.monotonic()
        if file := os.environ.get("ARGO_PROGRESS_FILE"):
            with contextlib.suppress(OSError):  # a full disk; no reason to end a stage
                Path(file).write_text(f"{done}/{total}")

    def _begin(self, done: int, total: int) -> None:
        self._begun = (time.monotonic(), done, total)
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _draw(self, done: int, total: int, what: str) -> None:
        from tqdm import tqdm

        if self._bar is None:
            self._bar = tqdm(total=total, file=sys.stderr, initial=done)
        self._bar.set_description(what, refresh=False)
        self._bar.update(done - self._bar.n)
        if done >= total:
            self._bar.close()

    def _left(self, done: int, total: int) -> str:
        begun, first, _ = self._begun
        if done <= first or done >= total:
            return ""
        seconds = (time.monotonic() - begun) * (total - done) / (done - first)
        return f", about {seconds:.0f} s left"


def main(
    name: str,
    work: Callable[[Any, Run], None],
    doc: str | None,
    stop_rule: StopRule | None = None,
    merge: bool = False,
) -> int:
    """Run the stage `name`; returns its exit code.

    `stop_rule(parameters, counts, details)` says why no later step should run, or None. It is asked also when the
    stage is skipped, so that a changed bound holds without the work being done again. `merge`: `work` joins what shards
    of the stage have done, whose branches are removed after the commit.
    """
    return guard(lambda: _run(name, work, doc or name, stop_rule, merge), name)


def guard(function: Callable[[], None], name: str = "plan") -> int:
    """Call `function` and turn how it ends into an exit code, with its errors in words on standard error."""
    _log_to_stderr(name)
    _end_on_sigterm()
    try:
        function()
        _flush(sys.stdout)
    except UserError as error:
        return _failed(2, "\n".join(f"{PROBLEM}{problem}" for problem in error.problems))
    except TryAgain as error:
        return _failed(75, f"try again: {error}")
    except KeyboardInterrupt:
        return _failed(130, "interrupted")
    except Exception as error:
        if isinstance(error, OSError) and error.errno in NOT_ALLOWED:
            return _failed(2, f"error: {error}")
        if disk.is_full(error):
            return _failed(75, f"try again: {disk.in_words(Path.cwd())} ({error})")
        if reason := _may_pass(error):
            return _failed(75, f"try again: {reason}: {error}")
        return _failed(1, f"a bug in self_reward {self_reward.__version__}:\n{traceback.format_exc()}")
    return 0


def _run(name: str, work: Callable[[Any, Run], None], doc: str, stop_rule: StopRule | None, merge: bool) -> None:
    p = parameter_module.parse(name, doc)
    with disk.explained(*disks(p)):
        _run_with(p, name, work, stop_rule, merge)


def disks(p: Any) -> list[Path]:
    """The folders that may be full when a disk is."""
    folders = [p.work_dir or p.cache_dir, p.cache_dir, os.environ.get("TMPDIR", "/tmp")]
    if not is_remote(p.data_repo):
        folders.insert(0, p.data_repo)
    return [Path(folder).expanduser().resolve() for folder in folders]


def open_data_repo(p: Any) -> Any:
    """The store that `data_repo` and `branch` name."""
    return open_store(
        p.data_repo,
        branch=p.branch,
        lock_timeout=p.lock_timeout,
        store_timeout=p.store_timeout,
        cache_dir=Path(p.cache_dir).expanduser(),
    )


def _work_dir(p: Any) -> Path:
    """Where uncommitted work lies."""
    work_dir = Path(p.work_dir or f"{p.cache_dir}/work").expanduser().resolve()
    if not is_remote(p.data_repo) and work_dir.is_relative_to(Path(p.data_repo).expanduser().resolve()):
        raise UserError(f"work_dir {work_dir} is inside the data repository {p.data_repo}; choose a folder outside it")
    return work_dir


def _run_with(
    p: Any, name: str, work: Callable[[Any, Run], None], stop_rule: StopRule | None, merge: bool = False
) -> None:
    started = time.monotonic()
    finish(p, "", "", "")  # also shows now, and not after hours, whether these files can be written
    shard = _shard(p, merge)
    store, work_dir = open_data_repo(p), _work_dir(p)
    snapshot = store.resolve(p.revision)
    for note in snapshot.notes:
        log.info("%s", note)
    inputs = artifacts.inputs(name, p, snapshot.files, snapshot.contents)
    label = f"M{p.iteration} {name}" + (f" {p.shard}" if shard else "")
    if inputs.nothing_to_do:
        finish(p, snapshot.commit, snapshot.commit, "")
        print(f"{label}  nothing to do ({inputs.nothing_to_do})  (commit {snapshot.commit})")
        return
    base = base_id(p, inputs, snapshot)
    key = _key(name, p, inputs, base, snapshot)
    manifest_path = f"M{p.iteration}/{name}.manifest.json"

    folder = _own_folder(work_dir, p, key if shard is None else "{}-{}-of-{}".format(key, *shard))
    if found := _done(store, snapshot, key, manifest_path, bool(p.revision), p.force):
        commit, manifest = found
        if commit is None and shard:
            commit = snapshot.commit
        elif commit is None:
            _refuse_moved_branch(p, snapshot)
            commit = _commit_again(store, snapshot, key, manifest_path, inputs, folder)
        if merge:
            shards.remove(store, key)
        stopped = "" if shard else _stop_reason(stop_rule, p, manifest["counts"], manifest["details"])
        made = next((c.id for c in snapshot.log if c.key == key), commit)
        _skip(p, label, folder, commit, made if commit == snapshot.commit else commit, stopped)
        return

    _refuse_users_files(inputs, snapshot)
    own_key, target, head = key, store, snapshot.head
    if shard is None:
        _refuse_moved_branch(p, snapshot)
    else:
        own_key, target, head = _hash_of([key, shard]), store.on(shards.branch(key, *shard)), snapshot.commit
        if target.branch in store.branches(shards.folder(key)):
            there = target.resolve()
            head = there.head
            if not p.force and there.log[0].key == own_key and _manifest_with(there, key, manifest_path, p.shard):
                _skip(p, label, folder, head, head, "")
                return
    _remove_abandoned(folder)
    with _only_worker(folder):
        shutil.rmtree(folder / "outputs", ignore_errors=True)
        (folder / "partial").mkdir(parents=True, exist_ok=True)
        seed = _own_seed(p, name)
        run = Run(name, inputs, base, store, snapshot, folder, seed=seed, key=key, shard=shard or (0, 1))
        log.info("started at commit %s, key %s", snapshot.commit, key[:12])
        try:
            work(p, run)
        except UserError as error:  # the user knows a file by its place in the data repository, not by our copy's
            raise UserError([problem.replace(f"{folder}/inputs/", "") for problem in error.problems]) from error
        stopped = "" if shard else _stop_reason(stop_rule, p, run.counts, run.details)
        outputs = {path: folder / "outputs" / path for path in inputs.outputs.values()}
        if missing := [path for path, local in outputs.items() if not local.exists()]:
            raise RuntimeError(f"{name} ended without writing {', '.join(missing)}")
        seconds = round(time.monotonic() - started, 2)
        manifest = _manifest(name, p, key, snapshot, inputs, run, stopped, seconds)
        if shard:
            manifest["shard"] = p.shard
        (folder / "outputs" / manifest_path).parent.mkdir(parents=True, exist_ok=True)
        (folder / "outputs" / manifest_path).write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
        if shard:
            store.make_branch(target.branch, snapshot.commit)
        try:
            commit = target.push(
                {**outputs, manifest_path: folder / "outputs" / manifest_path},
                key=own_key,
                message=f"{label}: {_in_words(run.counts)}",
                expected_head=head,
                progress=run.progress,
            )
        except Conflict:
            newer = _newer(target.resolve(head))
            if not newer or newer[-1].key != own_key:
                raise
            commit = newer[-1].id  # another process with equal parameters was faster
            log.info("another process has committed this very result: %s", commit)
        if merge:
            shards.remove(store, key)
        finish(p, commit, commit, stopped)
        shutil.rmtree(folder, ignore_errors=True)
    counts = " ".join(f"{name}={value}" for name, value in run.counts.items())
    print(f"{label}  {time.monotonic() - started:.1f} s  {counts}  commit {commit}")


def _shard(p: Any, merge: bool) -> tuple[int, int] | None:
    """The part of the work that is asked for, as (i, n); None: all of it."""
    shard = getattr(p, "shard", None)
    if merge and shard:
        raise UserError(f"--shard {shard} is for the stage; merge takes --shards, the number of shards in all")
    if (merge or shard) and not is_remote(p.data_repo):
        raise UserError(
            f"shards need a data repository on a server, which takes commits of several processes; {p.data_repo} "
            "is a folder. Give an address (oxen://HOST/NAMESPACE/NAME), or leave --shard out"
        )
    return tuple(map(int, shard.split("/"))) if shard else None  # type: ignore[return-value]


def _skip(p: Any, label: str, folder: Path, commit: str, made: str, stopped: str) -> None:
    """The result is there: `commit` is to be read by the next stage, `made` is the one that brought the result."""
    _remove_unlocked(folder)  # what a process left that was killed after its commit
    log.info("done already: %s", made)
    finish(p, commit, made, stopped)
    print(f"{label}  skipped  (commit {made})")


def base_id(p: Any, inputs: artifacts.Inputs, snapshot: Snapshot) -> str | None:
    """The exact base model. A checkpoint's record wins over what its hub name means today."""
    recorded = inputs.recorded_base
    given = getattr(p, "base_model", None)
    if not inputs.needs_base or given is None:
        return recorded
    if recorded and recorded.rpartition("@")[0] == given:
        return recorded
    from self_reward.models import base_model

    resolved = base_model.resolve(
        given,
        trust_remote_code=p.trust_remote_code,
        read_repository=lambda path: _hash_of(_files_of(path.strip("/"), snapshot)),
        cache_dir=Path(p.cache_dir).expanduser(),
    ).id
    if recorded and resolved != recorded:
        raise UserError(
            f"base_model {given} is {resolved}, but the checkpoints of iteration {p.iteration} stand on {recorded}; "
            "give that model, or another branch or data repository for a run from another base model"
        )
    return resolved


def _refuse_moved_branch(p: Any, snapshot: Snapshot) -> None:
    """Two runs on one branch do not mix: raises Conflict where the branch has commits after the snapshot's."""
    if newer := _newer(snapshot):
        named = [
            f"{c.id} by {c.author or 'nobody'} at {c.time[:19]}: {c.message.splitlines()[0]!r}" for c in newer[::-1]
        ]
        more = f" ({len(named) - 3} more)" if len(named) > 3 else ""
        raise Conflict(
            f"branch {p.branch} has moved on: this stage starts from commit {snapshot.commit}, after which another run "
            f"or person committed {'; '.join(named[:3])}{more}. To go on from the newest commit run again (without "
            "--revision; finished stages are skipped), once the other run is over; or give each run a --branch of its "
            "own"
        )


def _newer(snapshot: Snapshot) -> list[Commit]:
    """The branch's commits after the snapshot's, newest first."""
    return list(itertools.takewhile(lambda commit: commit.id != snapshot.commit, snapshot.log))


def _own_folder(work_dir: Path, p: Any, key: str) -> Path:
    """Where this stage keeps what is not committed yet: two repositories with equal data must not share it."""
    name = p.data_repo.rstrip("/") if is_remote(p.data_repo) else Path(p.data_repo).expanduser().resolve()
    repository = hashlib.sha256(f"{name} {p.branch}".encode()).hexdigest()
    return work_dir / repository[:16] / key


@contextlib.contextmanager
def scratch_folder(p: Any, name: str) -> Iterator[Path]:
    """A folder for the program `name`, empty and removed afterwards. What it leaves when it is killed, the next one
    removes. Raises TryAgain while another process has it."""
    folder = _own_folder(_work_dir(p), p, name)
    with _only_worker(folder):
        shutil.rmtree(folder, ignore_errors=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _own_seed(p: Any, name: str) -> int:
    digest = hashlib.sha256(f"{p.seed} {name} {p.iteration}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1  # 31 bits, as every engine takes


def _stop_reason(stop_rule: StopRule | None, p: Any, counts: dict[str, Any], details: dict[str, Any]) -> str:
    reason = (stop_rule(p, counts, details) if stop_rule else None) or ""
    if reason:
        log.warning("stop: %s", reason)
    return reason


def _files_of(path: str, snapshot: Snapshot) -> dict[str, str]:
    """SHA-256 of the file `path`, or of all files of the folder `path`. A remote user file may be fetched for it."""
    return {name: snapshot.sha256[name] for name in _names_of(path, snapshot)}


def _names_of(path: str, snapshot: Snapshot) -> list[str]:
    return [name for name in snapshot.files if name == path or name.startswith(path + "/")]


def _hash_of(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _key(name: str, p: Any, inputs: artifacts.Inputs, base_id: str | None, snapshot: Snapshot) -> str:
    return _hash_of(
        {
            "stage": name,
            "version": VERSION,
            "iteration": p.iteration,
            "inputs": {role: _files_of(path, snapshot) for role, path in inputs.paths.items()},
            "outputs": inputs.outputs,
            "parameters": parameter_module.key_parameters(p),
            "seed": p.seed,
            "base_model": base_id if inputs.needs_base else None,
        }
    )


def _done(
    store: Any, snapshot: Snapshot, key: str, manifest_path: str, pinned: bool, force: bool = False
) -> tuple[str | None, dict[str, Any]] | None:
    """Where the result with this key is: (commit, its manifest), or None. The commit is None when only an older commit
    has it. With a pinned `--revision` the commit is that one, or the one after it where this very step made that, so
    that the next step can be pinned to it in turn. With `force` only the latter counts: a try of this step that was
    lost after its commit."""
    newer = _newer(snapshot)
    if force and not newer:
        return None
    if not force and (manifest := _manifest_with(snapshot, key, manifest_path)):
        own = next((c.id for c in snapshot.log if c.key == key), snapshot.commit)
        return (snapshot.commit if pinned else own), manifest
    if newer and newer[-1].key != key:
        return None  # the commit after a pinned one is not an earlier try of this very step
    for commit in newer[-1:] or snapshot.log:
        if commit.key == key:
            if manifest := _manifest_with(store.resolve(commit.id), key, manifest_path):
                return (commit.id if newer else None), manifest
            return None
    return None


def _manifest_with(snapshot: Snapshot, key: str, manifest_path: str, shard: str | None = None) -> dict[str, Any] | None:
    manifest = json.loads(snapshot.contents.get(manifest_path, b"{}"))
    if (manifest.get("key"), manifest.get("shard")) != (key, shard):
        return None
    there = all(snapshot.sha256.get(path) == output["sha256"] for path, output in manifest["outputs"].items())
    return manifest if there else None


def _commit_again(
    store: Any, snapshot: Snapshot, key: str, manifest_path: str, inputs: artifacts.Inputs, folder: Path
) -> str:
    """Bring the result that an older commit has to the head again."""
    older = next(c for c in snapshot.log if c.key == key)
    old = store.resolve(older.id)
    with _only_worker(folder):
        paths = [*inputs.outputs.values(), manifest_path]
        store.pull(old, paths, folder / "again")
        commit = store.push(
            {path: folder / "again" / path for path in paths},
            key=key,
            message=f"{older.message} (again, from commit {older.id})",
            expected_head=snapshot.head,
        )
        shutil.rmtree(folder, ignore_errors=True)
    return commit


def _refuse_users_files(inputs: artifacts.Inputs, snapshot: Snapshot) -> None:
    """Nothing of the user's is overwritten: what no manifest lists is the user's."""
    written = recorded_sha256(snapshot.contents)
    problems = [
        f"{name} is there and was not written by a stage (no manifest lists it); move it out of the data repository, "
        "or use another one"
        for path in inputs.outputs.values()
        for name in _names_of(path, snapshot)
        if name not in written
    ]
    if problems:
        raise UserError(problems)


def _manifest(
    name: str,
    p: Any,
    key: str,
    snapshot: Snapshot,
    inputs: artifacts.Inputs,
    run: Run,
    stopped: str,
    seconds: float,
) -> dict[str, Any]:
    import importlib.metadata

    outputs = {}
    for path in inputs.outputs.values():
        local = run.folder / "outputs" / path
        files = [f"{path}/{rest}" for rest in walk(local, skip_hidden=False)] if local.is_dir() else [path]
        for file in files:
            entry = hash_file(run.folder / "outputs" / file)
            outputs[file] = {"sha256": entry.sha256, "xxh3": entry.blob, "size": entry.size}
    versions = {"python": platform.python_version(), "self_reward": self_reward.__version__}
    if revision := os.environ.get("SELF_REWARD_REVISION"):  # of the image
        versions["revision"] = revision
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "stage": name,
        "iteration": p.iteration,
        "key": key,
        "read_at": snapshot.commit,
        "inputs": {role: _files_of(path, snapshot) for role, path in inputs.paths.items()},
        "inputs_xxh3": {
            name: snapshot.blobs[name] for path in inputs.paths.values() for name in _names_of(path, snapshot)
        },
        "base_model": run.base_id,
        "parameters": parameter_module.key_parameters(p),
        "seed": p.seed,
        "versions": versions,
        "outputs": outputs,
        "counts": run.counts,
        "details": run.details,
        "stop": stopped,
        "seconds": seconds,
    }


def _in_words(counts: dict[str, Any]) -> str:
    return ", ".join(f"{value} {name.replace('_', ' ')}" for name, value in list(counts.items())[:3]) or "done"


def finish(p: Any, commit: str, made: str, stopped: str) -> None:
    """Tell the next step: the commit that it reads, the one that brought the result, why no later step should run, or
    ''."""
    _write_small(p.stop_file, stopped)
    _write_small(p.result_file, made)
    _write_small(p.commit_file, commit)


def _write_small(file: str | None, content: str) -> None:
    if file:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_text(content, encoding="utf-8")


@contextlib.contextmanager
def _only_worker(folder: Path) -> Iterator[None]:
    """Two processes must not write the same partial results; the lock ends with its process."""
    lock = folder.with_name(folder.name + ".lock")
    with contextlib.ExitStack() as stack:
        while True:
            lock.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # its last holder removed lock or folder just now: once more
                file = stack.enter_context(open(lock, "a+"))
                _lock_or_say_who(file, lock)
                if os.fstat(file.fileno()).st_ino == lock.stat().st_ino:
                    break
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # other stages' partial results may be there
                lock.parent.rmdir()


def _remove_unlocked(folder: Path) -> bool:
    """Remove a folder of uncommitted work and its lock, unless a living process works there."""
    if not folder.exists() and not folder.with_name(folder.name + ".lock").exists():
        return False
    try:
        with _only_worker(folder):
            shutil.rmtree(folder, ignore_errors=True)
    except TryAgain:
        return False
    return True


def _remove_abandoned(own: Path) -> None:
    """Remove the folders beside `own`, of runs of the same data repository and branch that were given up for one with
    other parameters, when nobody has touched them for ABANDONED_DAYS. Says so when much of them is left."""
    left = 0
    for folder in sorted({entry.with_suffix("") for entry in own.parent.glob("*")} - {own}):
        states = _states(folder)
        touched = [state.st_mtime for state in states]
        with contextlib.suppress(FileNotFoundError):  # all there is of a process that begins; we must not be in its way
            touched.append(folder.with_name(folder.name + ".lock").stat().st_mtime)
        days = (time.time() - max(touched, default=0)) / 86400
        if days < ABANDONED_DAYS:
            left += sum(state.st_blocks * 512 for state in states)
        elif _remove_unlocked(folder) and states:
            log.info("removed %s: uncommitted work that nobody touched for %d days", folder, days)
    if left > MUCH:
        log.info(
            "uncommitted work of other runs takes %.1f GB in %s; remove what is not wanted", left / 1e9, own.parent
        )


def _states(folder: Path) -> list[os.stat_result]:
    """What is known of `folder` and all in it, less what the process that works there removes meanwhile."""
    states = []
    for where, _, names in os.walk(folder):
        for path in [where, *(os.path.join(where, name) for name in names)]:
            with contextlib.suppress(FileNotFoundError):
                states.append(os.lstat(path))
    return states


def _lock_or_say_who(file: IO[str], lock: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        raise TryAgain(f"process {file.read().strip()} is running this very stage ({lock})") from None


def _log_to_stderr(name: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(f"%(asctime)s {name} %(message)s", "%H:%M:%S"))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    log.setLevel(logging.INFO)
    logging.raiseExceptions = False  # a line that a full disk does not take is lost, and no traceback is shown for it


def _failed(code: int, text: str) -> int:
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr)
        _flush(sys.stderr)
    if file := os.environ.get("TERMINATION_LOG"):
        with contextlib.suppress(OSError):
            Path(file).write_text(_shortened(text), encoding="utf-8")
    return code


def _shortened(text: str) -> str:
    """What of an error's text Kubernetes shows: of a list of problems the first, else the end."""
    if len(text.encode()) <= MESSAGE:
        return text
    if not text.startswith(PROBLEM):
        return text.encode()[-MESSAGE:].decode(errors="ignore")
    problems = text.removeprefix(PROBLEM).split(f"\n{PROBLEM}")
    for count in range(len(problems) - 1, 0, -1):
        said = f"{PROBLEM}" + f"\n{PROBLEM}".join(problems[:count])
        said += f"\nand {len(problems) - count} more; the log has all"
        if len(said.encode()) <= MESSAGE:
            return said
    return text.encode()[:MESSAGE].decode(errors="ignore")


def _flush(stream: IO[str]) -> None:
    """Flush; where that fails, drop what is left, so that Python does not fail again at its end (exit code 120)."""
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        stream.flush()
        raise


def _may_pass(error: BaseException) -> str:
    """Why the same command may succeed later, or ''. Types are told by name: torch must not be imported for this."""
    text = str(error)
    if type(error).__name__ == "OutOfMemoryError" or "CUDA out of memory" in text:
        return "the GPU's memory is too small for this batch, or used by another process"
    if isinstance(error, MemoryError):
        return "out of memory"
    if isinstance(error, BrokenPipeError):
        return "what reads this program's output, or a process that it talked to, has ended"
    return ""


def _end_on_sigterm() -> None:
    """Exit 143 on SIGTERM at once, even while the main thread is in a long call of a C library: a thread waits for the
    byte that the signal's C handler writes."""
    if threading.current_thread() is not threading.main_thread():
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, lambda number, frame: _end())

    def watch() -> None:
        while byte := os.read(reader, 1):
            if byte[0] == signal.SIGTERM:
                _end()

    threading.Thread(target=watch, daemon=True, name="sigterm").start()


def _end() -> None:
    for pid in _descendants(os.getpid()):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)  # Oxen and engine processes; what they leave is repaired at the next start
    with contextlib.suppress(BaseException):
        _failed(143, "ended by SIGTERM; run again to go on from what is on disk")
        sys.stdout.flush()
    os._exit(143)


def _descendants(pid: int) -> list[int]:
    found = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, file.read_text().split()):
                found += [child, *_descendants(child)]
    return found
