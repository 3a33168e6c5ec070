"""fetch_model: bring the base model into the cache, so that no GPU waits for a download.

A model of the hub goes into the hub's cache (HF_HOME), one of the data repository into cache_dir. What is there is
kept; a run that starts from full weights of its own needs none. Takes the parameters of plan.
Run     python stages/fetch_model.py --data_repo ADDRESS --base_model MODEL --cache_dir /cache
"""

import sys
import time

from self_reward import disk
from self_reward.errors import UserError
from self_reward.parameters.sources import parse
from self_reward.parameters.stages import Plan
from self_reward.repository import artifacts
from self_reward.run import process
from self_reward.run.checkout import Checkout, base_id, disks, open_data_repo
from self_reward.run.workdir import scratch_folder


def main() -> None:
    p = parse(Plan, __doc__ or "")
    with disk.explained(*disks(p)):
        fetch(p)


def fetch(p: Plan) -> None:
    from self_reward.models import engines as sampler
    from self_reward.run import models

    started = time.monotonic()
    repository = open_data_repo(p)
    snapshot = repository.resolve(p.revision)
    inputs, missing = artifacts.run_inputs(p, snapshot.files, snapshot.small)
    if missing:
        raise UserError(missing)
    if not inputs.needs_base:
        print("fetch_model  no base model is needed")
        return
    base = base_id(p, inputs, snapshot)
    with scratch_folder(p, "fetch-model") as folder:
        place = models.base_folder(Checkout(repository, snapshot, inputs, base, folder), p)
    if problems := sampler.tensor_parallel_problems(place, p.engine.generate_gpus):
        raise UserError(problems)
    print(f"fetch_model  {time.monotonic() - started:.1f} s  {base} is in {place}")


if __name__ == "__main__":
    sys.exit(process.guard(main, "fetch_model"))
