"""plan: check everything that can be checked before the first hour of work, and report what will be run.

Reads all of the user's data that the run will read, and looks at the base model. On one machine it prints shell
assignments for self-reward.sh to standard output: the parameters that were given, for all stages, as
SELF_REWARD_PARAMETERS, the iterations to run, and the commit that the first stage starts from. In a cluster
(--in_cluster, set by the Argo workflow) it checks what the run's pods need there instead of checking this machine, and
writes that commit and the iterations that begin with SFT to files. It makes no commit, except of the user's new data.
Run     python stages/plan.py --data_repo DIR --base_model MODEL --start_iteration 0 --iterations 3
"""

import sys

from self_reward import disk, plan
from self_reward.errors import UserError
from self_reward.parameters.sources import parse
from self_reward.parameters.stages import Plan
from self_reward.run.checkout import disks
from self_reward.run.process import guard


def main() -> None:
    try:
        p = parse(Plan, __doc__ or "")
    except UserError as error:
        if "--in_cluster" in sys.argv:  # whoever looks at the workflow's page wants to fix all of it at once
            raise UserError([*error.problems, *plan.problems_of(plan.check_cluster, error.problems)]) from None
        raise
    with disk.explained(*disks(p)):
        plan.prepare(p)


if __name__ == "__main__":
    sys.exit(guard(main, "plan"))
