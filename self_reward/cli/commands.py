"""The commands of self-reward: the words that each takes, and what it does with them.

A command is a function of the words that it was given and of the parameters; it returns the lines to print.
"""

import argparse
import logging
import os
import re
from pathlib import Path

from self_reward import disk
from self_reward.cli import compare, data
from self_reward.cli.arguments import Parser, add_command
from self_reward.errors import UserError
from self_reward.parameters.stages import Export, Repository
from self_reward.repository import artifacts
from self_reward.run import models
from self_reward.run.checkout import Checkout, base_id, disks, open_data_repo
from self_reward.run.progress import Progress
from self_reward.run.workdir import scratch_folder
from self_reward.store import Snapshot, Store, is_remote
from self_reward.store.errors import NotFound

EXAMPLES = """examples:
  self-reward export M1/dpo --to DIR --data_repo DIR --base_model MODEL
  self-reward accept M0/generated/preferences.jsonl --data_repo DIR
  self-reward data ls M0 --data_repo DIR
"""
DATA_EXAMPLES = """examples:
  self-reward data get M0/eval/dpo.json --to - --data_repo DIR
  self-reward data diff M0 M1 --data_repo oxen://HOST/NAMESPACE/NAME
  self-reward data put ift.jsonl --to M0/train --data_repo DIR
"""


def parser() -> Parser:
    """All commands."""
    top = Parser(prog="self-reward", description="Commands for the results and the data of a run.", epilog=EXAMPLES)
    top.set_defaults(run=None, parser=top)
    commands = top.add_subparsers(metavar="COMMAND", title="commands")

    command = add_command(
        commands, "export", export, Export, "write a checkpoint as a Hugging Face folder, to serve it"
    )
    command.add_argument("checkpoint", metavar="CHECKPOINT", help="such as M1/dpo or M0/sft; adapters are merged")
    command.add_argument("--to", metavar="DIR", required=True, help="a new or empty folder")

    command = add_command(commands, "accept", accept, Repository, "use generated files that you changed on purpose")
    command.add_argument("paths", nargs="+", metavar="PATH", help="a changed file, as in the data repository")

    data_parser = commands.add_parser("data", help="read and add files of a data repository", epilog=DATA_EXAMPLES)
    data_parser.description = "Look at a data repository, a folder or on a server, without the Oxen CLI."
    data_parser.set_defaults(run=None, parser=data_parser)
    commands = data_parser.add_subparsers(metavar="COMMAND", title="commands")

    command = add_command(
        commands, "ls", ls, Repository, "list files: size, which stage wrote them and when, its counts"
    )
    command.add_argument("path", nargs="?", default="", help="folder or file; default: everything")
    command.add_argument("--all", action="store_true", help="every file, also those of models and manifests")

    command = add_command(commands, "get", get, Repository, "copy a file or folder of any commit, checked")
    command.add_argument("path", help="file or folder, as data ls shows it")
    command.add_argument("--to", default=".", help="a new name, or a folder to put it into; -: standard output")

    command = add_command(commands, "log", log, Repository, "list commits, newest first")
    command.add_argument("-n", type=int, default=20, metavar="N", help="at most N commits (default: 20)")

    command = add_command(commands, "diff", diff, Repository, "compare two commits, or two iterations (M0 M1)")
    command.add_argument(
        "old", help="commit (six digits of its id or more), iteration such as M0, or branch on a server"
    )
    command.add_argument("new", help="another one of the same kind")
    command.add_argument("path", nargs="?", default="", help="only what is below it; of iterations e.g. eval")

    command = add_command(commands, "put", put, Repository, "commit your own files, such as training data")
    command.add_argument("local", nargs="+", help="a file, or a folder whose contents are meant")
    command.add_argument("--to", required=True, help="folder in the data repository; for one file also its name")
    command.add_argument("--message", default="", help="message of the commit")
    command.add_argument("--create_repo", action="store_true", help="create the repository, private, if it is missing")
    return top


def accept(given: argparse.Namespace, p: Repository) -> list[str]:
    """Commit changed generated files as if their stages had written them."""
    commit, notes = open_data_repo(p).accept(given.paths)
    return [*notes, f"{', '.join(given.paths)}: accepted in {p.data_repo}, commit {commit}"]


def ls(given: argparse.Namespace, p: Repository) -> list[str]:
    return data.ls(_snapshot(p, open_data_repo(p), p.revision), given.path, every=given.all)


def get(given: argparse.Namespace, p: Repository) -> list[str]:
    store = open_data_repo(p)
    return data.get(store, _snapshot(p, store, p.revision), given.path, given.to, Progress())


def log(given: argparse.Namespace, p: Repository) -> list[str]:
    if given.n < 1:
        raise UserError(f"-n {given.n}: expected how many commits to show, 1 or more")
    return data.history(_snapshot(p, open_data_repo(p), p.revision).log, given.n)


def diff(given: argparse.Namespace, p: Repository) -> list[str]:
    store = open_data_repo(p)
    iterations = [bool(re.fullmatch(r"M\d+", revision)) for revision in (given.old, given.new)]
    if iterations[0] != iterations[1]:
        raise UserError(f"{given.old} and {given.new}: expected two commits, or two iterations such as M0 M1")
    with scratch_folder(p, f"data-{os.getpid()}") as scratch:
        if iterations[0]:
            snapshot = _snapshot(p, store, p.revision)
            return compare.iterations(store, snapshot, given.old, given.new, given.path, scratch)
        branches = store.branches()
        old, new = (
            store.on(word).resolve() if word in branches else _snapshot(p, store, word)
            for word in (given.old, given.new)
        )
        return compare.commits(store, old, new, given.path, scratch)


def put(given: argparse.Namespace, p: Repository) -> list[str]:
    if p.revision:
        raise UserError("--revision is for reading; put makes a new commit at the end of the branch")
    store = open_data_repo(p)
    created = []
    if given.create_repo and not store.exists():
        store.create()
        created = [f"{p.data_repo}: created, private"] if is_remote(p.data_repo) else []
    paths, commit = data.put(store, given.local, given.to, given.message)
    more = [f"and {len(paths) - 20} more"] if len(paths) > 20 else []
    result = f"commit {commit}" if commit else "nothing to commit: already in the repository"
    return [*created, *paths[:20], *more, result]


def export(given: argparse.Namespace, p: Export) -> list[str]:
    """Write a checkpoint of the data repository to a folder, its adapters merged."""
    name, to = given.checkpoint, Path(given.to)
    store = open_data_repo(p)
    snapshot = _snapshot(p, store, p.revision)
    inputs = artifacts.checkpoint_inputs(name, p, snapshot.files, snapshot.contents)
    with (
        disk.explained(*disks(p), to.parent),
        scratch_folder(p, f"export-{name.replace('/', '-')}") as folder,
    ):
        models.export(Checkout(store, snapshot, inputs, base_id(p, inputs, snapshot), folder), p, name, to)
    return [f"{name} of {p.data_repo} at {snapshot.commit} is in {to}"]


def _snapshot(p: Repository, store: Store, revision: str | None) -> Snapshot:
    """The commit to read. Unlike a stage, reading never creates a branch: a missing one is probably a typo."""
    branches = store.branches() if store.exists() else {}
    if branches and p.branch not in branches:
        raise NotFound(f"{p.data_repo} has no branch {p.branch}; it has {', '.join(sorted(branches))}")
    snapshot = store.resolve(revision)
    for note in snapshot.notes:
        logging.getLogger("self_reward").info("%s", note)
    return snapshot
