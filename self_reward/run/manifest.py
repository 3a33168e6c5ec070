"""Keys and manifests: how a stage recognises its finished work, and the record of how it was made.

A key is a hash of the stage, its input files, the base model, and the parameters that affect its output. It is in the
manifest `M{k}/<stage>.manifest.json` and in the commit message, so a stage that is run again finds its commit.
"""

import contextlib
import hashlib
import json
import os
import platform
from typing import TYPE_CHECKING

import self_reward
from self_reward.parameters.flat import key_parameters
from self_reward.parameters.stages import Common
from self_reward.repository import artifacts
from self_reward.store import Snapshot
from self_reward.store.content import hash_file, walk
from self_reward.types import Json

if TYPE_CHECKING:
    from self_reward.run.context import Run

VERSION = 1  # part of every key; raise it when a stage writes other content for the same inputs and parameters
PACKAGES = ("torch", "transformers", "trl", "peft", "vllm", "oxenai")


def key_of(name: str, p: Common, inputs: artifacts.Inputs, base_id: str | None, snapshot: Snapshot) -> str:
    """The key of the stage `name`, in hexadecimal digits."""
    return hash_of(
        {
            "stage": name,
            "version": VERSION,
            "iteration": p.iteration,
            "inputs": {role: files_of(path, snapshot) for role, path in inputs.paths.items()},
            "outputs": inputs.outputs,
            "parameters": key_parameters(p),
            "seed": p.seed,
            "base_model": base_id if inputs.needs_base else None,
        }
    )


def hash_of(value: object) -> str:
    """SHA-256 of a value as JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def files_of(path: str, snapshot: Snapshot) -> dict[str, str]:
    """SHA-256 of the file `path`, or of all files of the folder `path`. A remote user file may be fetched for it."""
    return {name: snapshot.sha256[name] for name in names_of(path, snapshot)}


def names_of(path: str, snapshot: Snapshot) -> list[str]:
    """The file `path`, or all files of the folder `path`."""
    return [name for name in snapshot.files if name == path or name.startswith(path + "/")]


def record(name: str, p: Common, key: str, snapshot: Snapshot, run: "Run", *, stopped: str, seconds: float) -> Json:
    """The manifest of a finished stage with outputs in the run's folder."""
    import importlib.metadata

    outputs = {}
    for path in run.inputs.outputs.values():
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
        "inputs": {role: files_of(path, snapshot) for role, path in run.inputs.paths.items()},
        "inputs_xxh3": {n: snapshot.blobs[n] for path in run.inputs.paths.values() for n in names_of(path, snapshot)},
        "base_model": run.base_id,
        "parameters": key_parameters(p),
        "seed": p.seed,
        "versions": versions,
        "outputs": outputs,
        "counts": run.counts,
        "details": run.details,
        "stop": stopped,
        "seconds": seconds,
    }
