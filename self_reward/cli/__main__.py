"""self-reward: what people do with a run beside running it.

self-reward export M1/dpo --to DIR --data_repo DIR [--base_model MODEL]   a servable folder of any checkpoint
self-reward accept PATH [PATH ...] --data_repo DIR    go on with generated files that you changed on purpose
self-reward data ls|get|log|diff|put ... --data_repo DIR    look at a data repository, fetch from it, bring data to it
"""

import argparse
import itertools
import os
import re
import sys
from pathlib import Path

from self_reward import disk, parameters
from self_reward.cli import compare, data
from self_reward.errors import UserError
from self_reward.repository import artifacts
from self_reward.run import stage
from self_reward.store import Snapshot, Store
from self_reward.store.errors import NotFound

DATA = """self-reward data: look at a data repository, a folder or on a server, without the Oxen CLI.

self-reward data ls [PATH] [--all]     what is there: size, which stage wrote it and when, its counts
self-reward data get PATH [--to FILE|DIR|-]    a file or folder of any commit, checked; - is standard output
self-reward data log [-n 20]           commits, newest first
self-reward data diff A B [PATH]       what differs between two commits, or two iterations (M0 M1)
self-reward data put LOCAL [LOCAL ...] --to PATH    commit your own files, such as training data

All take --data_repo DIR|ADDRESS, --branch and --revision COMMIT (the first digits of its id do), and the other ways to
give parameters: --parameter_file FILE and SELF_REWARD_PARAMETERS. --help after a command says more.
"""
DATA_FLAGS = ("data_repo", "branch", "revision", "parameter_file", "cache_dir", "lock_timeout", "store_timeout")


def main() -> int:
    """Entry point of the `self-reward` command."""
    return stage.guard(lambda: _main(sys.argv[1:]), "self-reward")


def _main(words: list[str]) -> None:
    if not words or words[0] in ("-h", "--help"):
        print(__doc__)
        return
    if words[0] == "accept":
        return accept(words[1:])
    if words[0] == "data":
        return look(words[1:])
    if words[0] != "export":
        raise UserError(f"unknown command {words[0]!r}; expected: export, accept, data")
    if len(words) == 1 or words[1] in ("-h", "--help"):
        parameters.parse("07_export", __doc__ or "", ["--help"])
    name, rest = words[1], words[2:]
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--to")
    known, flags = parser.parse_known_args(rest)
    if not known.to:
        raise UserError("export needs --to DIR, a folder that is new or empty")
    export(name, Path(known.to), parameters.parse("07_export", __doc__ or "", flags))


def accept(words: list[str]) -> None:
    """Commit the changed generated files that `words` begin with, as if their stages had written them."""
    paths = list(itertools.takewhile(lambda word: not word.startswith("-"), words))
    p = parameters.parse("07_export", __doc__ or "", words[len(paths) :])
    if not paths:
        raise UserError("accept needs the path of a generated file, as in the data repository")
    store = stage.open_data_repo(p)
    with disk.explained(*stage.disks(p)):
        commit, notes = store.accept(paths)
    for note in notes:
        print(note)
    print(f"{', '.join(paths)}: as accepted in {p.data_repo}, commit {commit}")


def look(words: list[str]) -> None:
    """Look at a data repository, fetch from it, or bring data to it."""
    if not words or words[0] in ("-h", "--help"):
        print(DATA)
        return
    name = words[0]
    if name not in ("ls", "get", "log", "diff", "put"):
        raise UserError(f"unknown command data {name!r}; expected: ls, get, log, diff, put")
    given = _data_parser(name).parse_intermixed_args(words[1:])
    flags = [word for flag in DATA_FLAGS if (value := getattr(given, flag)) for word in (f"--{flag}", value)]
    p = parameters.parse("07_export", DATA, flags)
    try:
        with disk.explained(*stage.disks(p)):
            for line in _data(name, given, p):
                print(data.plain(line))
        sys.stdout.flush()
    except BrokenPipeError:  # its reader has seen enough, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _data_parser(name: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"self-reward data {name}", allow_abbrev=False)
    for flag in DATA_FLAGS:
        parser.add_argument(f"--{flag}", metavar="TEXT", help="as every stage takes it (docs/parameters.md)")
    if name == "ls":
        parser.add_argument("path", nargs="?", default="", help="folder or file; default: everything")
        parser.add_argument("--all", action="store_true", help="every file, also those of models and manifests")
    elif name == "get":
        parser.add_argument("path", help="file or folder, as data ls shows it")
        parser.add_argument("--to", default=".", help="a new name, or a folder to put it into; -: standard output")
    elif name == "log":
        parser.add_argument("-n", type=int, default=20, metavar="N", help="commits at most (default: 20)")
    elif name == "diff":
        parser.add_argument(
            "old", help="commit (six digits of its id or more), iteration such as M0; on a server also branch"
        )
        parser.add_argument("new", help="another one of the same kind")
        parser.add_argument("path", nargs="?", default="", help="only what is below it; of iterations e.g. eval")
    else:
        parser.add_argument("local", nargs="+", help="files, and folders whose contents are meant")
        parser.add_argument("--to", required=True, help="folder in the data repository; for one file also its name")
        parser.add_argument("--message", default="", help="what the commit says")
        parser.add_argument(
            "--create_repo", action="store_true", help="make the repository where it is missing, private"
        )
    return parser


def _data(name: str, given: argparse.Namespace, p: parameters.Export) -> list[str]:
    """Do it; the lines to print."""
    if name == "put":
        return _put(given, p)
    store = stage.open_data_repo(p)
    if name == "diff":
        return _diff(given, p, store)
    if name == "log" and given.n < 1:
        raise UserError(f"-n {given.n}: expected how many commits to show, 1 or more")
    snapshot = _resolved(p, store, p.revision)
    if name == "ls":
        return data.ls(snapshot, given.path, every=given.all)
    if name == "log":
        return data.history(snapshot.log, given.n)
    return data.get(store, snapshot, given.path, given.to, stage.Progress())


def _diff(given: argparse.Namespace, p: parameters.Export, store: Store) -> list[str]:
    iterations = [bool(re.fullmatch(r"M\d+", revision)) for revision in (given.old, given.new)]
    if iterations[0] != iterations[1]:
        raise UserError(f"{given.old} and {given.new}: expected two commits, or two iterations such as M0 M1")
    with stage.scratch_folder(p, f"data-{os.getpid()}") as scratch:
        if iterations[0]:
            snapshot = _resolved(p, store, p.revision)
            return compare.iterations(store, snapshot, given.old, given.new, given.path, scratch)
        branches = store.branches()
        old, new = (
            store.on(word).resolve() if word in branches else _resolved(p, store, word)
            for word in (given.old, given.new)
        )
        return compare.commits(store, old, new, given.path, scratch)


def _put(given: argparse.Namespace, p: parameters.Export) -> list[str]:
    created = []
    if p.revision:
        raise UserError("--revision is for looking; put makes a new commit at the end of the branch")
    store = stage.open_data_repo(p)
    if given.create_repo and not store.exists():
        store.create()
        created = [f"{p.data_repo}: created"]
    paths, commit = data.put(store, given.local, given.to, given.message)
    more = [f"and {len(paths) - 20} more"] if len(paths) > 20 else []
    return [*created, *paths[:20], *more, f"commit {commit}" if commit else "nothing to commit, they are there already"]


def _resolved(p: parameters.Export, store: Store, revision: str | None) -> Snapshot:
    """Unlike a stage, reading never makes a branch: a missing one is probably a typo."""
    branches = store.branches() if store.exists() else {}
    if branches and p.branch not in branches:
        raise NotFound(f"{p.data_repo} has no branch {p.branch}; it has {', '.join(sorted(branches))}")
    snapshot = store.resolve(revision)
    for note in snapshot.notes:
        stage.log.info("%s", note)
    return snapshot


def export(name: str, to: Path, p: parameters.Export) -> None:
    """Write the checkpoint `name` (M1/dpo) of the data repository to the folder `to`, its adapters merged."""
    with disk.explained(*stage.disks(p), to.parent):
        commit = _export(name, to, p)
    print(f"{name} of {p.data_repo} at {commit} is in {to}")


def _export(name: str, to: Path, p: parameters.Export) -> str:
    from self_reward.models import checkpoints
    from self_reward.run import loading

    store = stage.open_data_repo(p)
    snapshot = _resolved(p, store, p.revision)
    inputs = artifacts.checkpoint_inputs(name, p, snapshot.files, snapshot.contents)
    with stage.scratch_folder(p, f"export-{name.replace('/', '-')}") as folder:
        run = stage.Run("export", inputs, stage.base_id(p, inputs, snapshot), store, snapshot, folder)
        base, adapters = loading.chain(run, p, name)
        checkpoints.export(
            base,
            adapters,
            to,
            cache_dir=Path(p.cache_dir).expanduser(),
            keep=p.cache_keep,
            trust_remote_code=p.trust_remote_code,
        )
    return snapshot.commit


if __name__ == "__main__":
    sys.exit(main())
