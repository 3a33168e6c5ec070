"""The data repository behind one interface, `Store`. Which backend answers depends on the address.

`resolve` names a commit and lists its files, `pull` copies files of a commit out of the repository, `push` makes one
commit. Nothing else of Oxen is visible to a stage.
"""

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from self_reward.errors import UserError
from self_reward.store.errors import NotFound
from self_reward.store.manifests import is_manifest, recorded_sha256
from self_reward.store.protocol import Commit, Progress, Snapshot, Store

__all__ = ["Commit", "Progress", "Snapshot", "Store", "is_manifest", "recorded_sha256"]

WITH_CONTENTS = (".manifest.json", "final_checkpoint/self_reward.json", "final_checkpoint/adapter_config.json")
"""How the names of the files end whose contents a Snapshot has."""


def commits_after(snapshot: Snapshot) -> list[Commit]:
    """The branch's commits after the snapshot's, newest first."""
    return list(itertools.takewhile(lambda commit: commit.id != snapshot.commit, snapshot.log))


def is_remote(data_repo: str) -> bool:
    """Whether `data_repo` is the address of a repository on a server; else it is a folder of this machine."""
    return "://" in data_repo


def open_store(
    data_repo: str,
    *,
    branch: str,
    lock_timeout: float,
    store_timeout: float,
    cache_dir: str | Path = "~/.cache/self-reward",
    token: str = "OXEN_TOKEN",
) -> Store:
    """The store at `data_repo`, a folder or a server's address, which need not exist yet.

    `lock_timeout`: seconds to wait for another process that holds a folder; `store_timeout`: seconds for one operation;
    `cache_dir`: where contents from a server are kept by their hash; `token`: the environment variable with the token
    for the server.
    """
    if is_remote(data_repo):
        from self_reward.store.remote.store import RemoteStore

        return RemoteStore(
            data_repo, branch=branch, store_timeout=store_timeout, cache_dir=Path(cache_dir), token=token
        )
    from self_reward.store.local.store import LocalStore

    return LocalStore(data_repo, branch=branch, lock_timeout=lock_timeout, store_timeout=store_timeout)


def refuse_names(paths: Iterable[str]) -> None:
    """Raise UserError for paths under which no data can be put: a server would keep some under another name."""
    problems = [
        f"{path!r} is not a path for data: it must be relative, no part of it empty or beginning with a dot, without "
        'backslash, " and control characters'
        for path in paths
        if any(part[:1] in ("", ".") for part in path.split("/")) or re.search(r'[\\"]', path) or not path.isprintable()
    ]
    if problems:
        raise UserError(problems)


def files_at(paths: Iterable[str], snapshot: Snapshot, where: object) -> list[str]:
    """The files of `snapshot` that are at or below one of `paths`. Raises NotFound for paths at which there is nothing;
    `where` names the repository."""
    files = {path: [f for f in snapshot.files if f == path or f.startswith(path.rstrip("/") + "/")] for path in paths}
    if missing := [path for path in files if not files[path]]:
        raise NotFound([f"{path} is not in commit {snapshot.commit} of {where}" for path in missing])
    return list(dict.fromkeys(file for below in files.values() for file in below))


def find_revision(revision: str, branch: str, messages: Mapping[str, str]) -> str:
    """The id of the one commit that `revision` means: its id, or the first six digits of it or more. `messages`:
    commit id -> message, newest first."""
    matches = [revision] if revision in messages else []
    if not matches and len(revision) >= 6:
        matches = [id for id in messages if id.startswith(revision)]
    if len(matches) == 1:
        return matches[0]
    newest = ", ".join(f"{id[:12]} ({first_line(message)})" for id, message in list(messages.items())[:5])
    problem = "means several commits" if matches else "is not a commit"
    raise NotFound(f"revision {revision} {problem} of branch {branch}; its newest are {newest}")


def first_line(message: str) -> str:
    """A commit's message in one line."""
    return (message.strip().splitlines() or [""])[0]


def few(names: Sequence[str]) -> str:
    """The first of many names, for a message."""
    names = [name if name.isprintable() else repr(name) for name in names]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
