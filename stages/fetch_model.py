"""fetch_model: bring the base model into the cache, so that no GPU waits for a download.

A model of the hub goes into the hub's cache (HF_HOME), one of the data repository into cache_dir. What is there is
kept; a run that starts from full weights of its own needs none. Takes the parameters of plan.
Run     python stages/fetch_model.py --data_repo ADDRESS --base_model MODEL --cache_dir /cache
"""

import sys
import time

from self_reward import disk, parameters
from self_reward.errors import UserError
from self_reward.repository import artifacts
from self_reward.run import stage


def main() -> None:
    p = parameters.parse("plan", __doc__)
    with disk.explained(*stage.disks(p)):
        fetch(p)


def fetch(p: parameters.Plan) -> None:
    from self_reward.models import engines as sampler
    from self_reward.run import loading

    started = time.monotonic()
    repository = stage.open_data_repo(p)
    snapshot = repository.resolve(p.revision)
    inputs, missing = artifacts.run_inputs(p, snapshot.files, snapshot.contents)
    if missing:
        raise UserError(missing)
    if not inputs.needs_base:
        print("fetch_model  no base model is needed")
        return
    base = stage.base_id(p, inputs, snapshot)
    with stage.scratch_folder(p, "fetch-model") as folder:
        run = stage.Run("fetch_model", inputs, base, repository, snapshot, folder)
        place = loading.base_folder(run, p)
    if problems := sampler.tensor_parallel_problems(place, p.generate_gpus):
        raise UserError(problems)
    print(f"fetch_model  {time.monotonic() - started:.1f} s  {base} is in {place}")


if __name__ == "__main__":
    sys.exit(stage.guard(main, "fetch_model"))
