"""A stage's inputs at one commit, copied out of the data repository and checked at their first use."""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from self_reward import texts
from self_reward.errors import UserError
from self_reward.parameters.stages import Common, ModelStage, Repository
from self_reward.repository import artifacts
from self_reward.run.manifest import files_of, hash_of
from self_reward.run.progress import Progress
from self_reward.store import Snapshot, Store, is_remote, open_store


@dataclass(eq=False)
class Checkout:
    """`inputs`: what artifacts.py says is read; `base_id`: the resolved base model, or None; `folder`: for copies."""

    store: Store
    snapshot: Snapshot
    inputs: artifacts.Inputs
    base_id: str | None
    folder: Path
    progress: Progress = field(default_factory=Progress)
    _pulled: set[str] = field(default_factory=set, init=False)

    def has(self, name: str) -> bool:
        """Whether the data repository has the optional input `name`."""
        return name in self.inputs.paths

    def input(self, name: str) -> Path:
        """The local copy of the file or folder `name`."""
        path = self.inputs.paths[name]
        if name not in self._pulled:
            self.store.pull(self.snapshot, [path], self.folder / "inputs", progress=self.progress)
            self._pulled.add(name)
        return self.folder / "inputs" / path

    def optional(self, name: str) -> Path | None:
        """The same, or None if the data repository does not have it."""
        return self.input(name) if self.has(name) else None

    def text(self, name: str, value: str, check: Callable[[str], object] | None = None) -> str:
        """The text that parameter `name` names: a file of the data repository, else a built-in one (`auto` stays
        `auto`). `check` raises UserError for a text that cannot be used."""
        try:
            if self.has(name):
                content = self.input(name).read_text(encoding="utf-8")
            else:
                content = value if value == "auto" else texts.builtin(name, value)
        except UnicodeDecodeError as error:
            raise UserError(f"{name} {value}: not UTF-8 at byte {error.start}; save the file as UTF-8") from None
        try:
            if check:
                check(content)
        except UserError as error:
            raise UserError([f"{name} {value}: {problem}" for problem in error.problems]) from None
        return content

    @contextlib.contextmanager
    def named_as_in_repository(self) -> Iterator[None]:
        """Problems raised inside name a file by its path in the data repository, not by that of our copy."""
        try:
            yield
        except UserError as error:
            raise UserError([problem.replace(f"{self.folder}/inputs/", "") for problem in error.problems]) from error


def open_data_repo(p: Repository, token: str = "OXEN_TOKEN") -> Store:
    """The store that `data_repo` and `branch` name; `token`: the environment variable with a server's token."""
    return open_store(
        p.data_repo,
        branch=p.branch,
        lock_timeout=p.lock_timeout,
        store_timeout=p.store_timeout,
        cache_dir=p.cache,
        token=token,
    )


def disks(p: Repository) -> list[Path]:
    """The folders whose disk may be full."""
    folders = [p.work_dir or p.cache_dir, p.cache_dir, os.environ.get("TMPDIR", "/tmp")]
    if not is_remote(p.data_repo):
        folders.insert(0, p.data_repo)
    return [Path(folder).expanduser().resolve() for folder in folders]


def base_id(p: Common, inputs: artifacts.Inputs, snapshot: Snapshot) -> str | None:
    """The exact base model. A checkpoint's record overrides what its hub name means today."""
    recorded = inputs.recorded_base
    if not inputs.needs_base or not isinstance(p, ModelStage) or p.base_model is None:
        return recorded
    if recorded and recorded.rpartition("@")[0] == p.base_model:
        return recorded
    from self_reward.models import base_model

    resolved = base_model.resolve(
        p.base_model,
        trust_remote_code=p.loading.trust_remote_code,
        read_repository=lambda path: hash_of(files_of(path.strip("/"), snapshot)),
        cache_dir=p.cache,
    ).id
    if recorded and resolved != recorded:
        raise UserError(
            f"base_model {p.base_model} is {resolved}, but the checkpoints of iteration {p.iteration} are based on "
            f"{recorded}; give that model, or another branch or data repository for a run from another base model"
        )
    return resolved
