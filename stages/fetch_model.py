"""fetch_model: bring the base model into the cache, so that no GPU waits for a download.

A model of the hub goes into the hub's cache (HF_HOME), one of the data repository into cache_dir. What is cached
already is kept; a run that starts from its own full weights needs no base model. Takes the parameters of plan.
Run     python stages/fetch_model.py --data_repo ADDRESS --base_model MODEL --cache_dir /cache
"""

import sys

from self_reward import disk, plan
from self_reward.parameters.sources import parse
from self_reward.parameters.stages import Plan
from self_reward.run.checkout import disks
from self_reward.run.process import guard


def main() -> None:
    p = parse(Plan, __doc__ or "")
    with disk.explained(*disks(p)):
        plan.fetch_base_model(p)


if __name__ == "__main__":
    sys.exit(guard(main, "fetch_model"))
