"""A data repository of its own on a server, for one test: written as a user, a stage and another program write it."""

import json
from pathlib import Path

from self_reward.store import open_store
from self_reward.store.content import hash_file
from tests.support.running import Running, address
from tests.support.talk import Talk

SEEDS = "M0/train/ift.jsonl"
PROMPTS = "M0/generated/prompts.jsonl"
MANIFEST = "M0/01_gen_prompts.manifest.json"


class Place:
    """A repository of its own on a server."""

    def __init__(self, server: Running, name: str, folder: Path):
        self.server, self.name, self.folder = server, name, folder
        self.fake = server.fake
        self.address = address(server.url, name)
        self.talk = Talk(server.url, name, server.token)

    def store(self, branch="main", timeout=30.0, cache="cache"):
        return open_store(
            self.address, branch=branch, lock_timeout=1, store_timeout=timeout, cache_dir=self.folder / cache
        )

    def put(self, **files: str) -> str:
        """Commit a user's files, given by repository path; the default is a line of seeds."""
        made = {}
        for path, content in (files or {SEEDS: '{"prompt": "a", "response": "b"}\n'}).items():
            made[path] = self.folder / "user" / path
            made[path].parent.mkdir(parents=True, exist_ok=True)
            made[path].write_text(content)
        return self.store().put(made, message="user data")

    def push(self, files, key="ab12", expected=None, store=None, xxh3=True, message="M0 test") -> str:
        """Push `files` (repository path -> content) as a stage does, with a manifest that lists them."""
        out = self.folder / f"out-{key}"
        outputs = {}
        for path, content in files.items():
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            (out / path).write_bytes(content)
            entry = hash_file(out / path)
            outputs[path] = {"sha256": entry.sha256, "size": entry.size} | ({"xxh3": entry.blob} if xxh3 else {})
        (out / MANIFEST).parent.mkdir(parents=True, exist_ok=True)
        (out / MANIFEST).write_text(json.dumps({"key": key, "outputs": outputs}))
        store = store or self.store()
        return store.push(
            {path: out / path for path in [*files, MANIFEST]},
            key=key,
            message=message,
            expected_head=expected or store.resolve().commit,
        )

    def pull(self, paths, to="in", store=None, snapshot=None) -> Path:
        store = store or self.store()
        store.pull(snapshot or store.resolve(), paths, self.folder / to)
        return self.folder / to

    def workspaces(self):
        return self.talk.ask("GET", "/workspaces")["workspaces"]

    def log(self, branch="main"):
        return self.talk.ask("GET", f"/commits/history/{branch}")["commits"]
