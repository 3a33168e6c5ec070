"""self-reward: what people do with a run beside running it.

self-reward export M1/dpo --to DIR --data_repo DIR [--base_model MODEL]   a servable folder of any checkpoint
self-reward accept PATH [PATH ...] --data_repo DIR    go on with generated files that you changed on purpose
"""

import argparse
import itertools
import sys
from pathlib import Path

from self_reward import artifacts, disk, parameters, stage
from self_reward.errors import UserError
from self_reward.store import open_store


def main() -> int:
    """Entry point of the `self-reward` command."""
    return stage.guard(lambda: _main(sys.argv[1:]), "self-reward")


def _main(words: list[str]) -> None:
    if not words or words[0] in ("-h", "--help"):
        print(__doc__)
        return
    if words[0] == "accept":
        return accept(words[1:])
    if words[0] != "export":
        raise UserError(f"unknown command {words[0]!r}; expected: export, accept")
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
    store = open_store(p.data_repo, branch=p.branch, lock_timeout=p.lock_timeout, store_timeout=p.store_timeout)
    with disk.explained(*stage.disks(p)):
        commit, notes = store.accept(paths)
    for note in notes:
        print(note)
    print(f"{', '.join(paths)}: accepted; {p.data_repo} is at commit {commit}")


def export(name: str, to: Path, p: parameters.Export) -> None:
    """Write the checkpoint `name` (M1/dpo) of the data repository to the folder `to`, its adapters merged."""
    with disk.explained(*stage.disks(p), to.parent):
        commit = _export(name, to, p)
    print(f"{name} of {p.data_repo} at {commit} is in {to}")


def _export(name: str, to: Path, p: parameters.Export) -> str:
    from self_reward import checkpoints, loading

    store = open_store(p.data_repo, branch=p.branch, lock_timeout=p.lock_timeout, store_timeout=p.store_timeout)
    snapshot = store.resolve(p.revision)
    inputs = artifacts.checkpoint_inputs(name, p, snapshot.files, snapshot.small)
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
