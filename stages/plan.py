"""plan: check everything that can be checked before the first hour of work, and say what will be run.

Prints shell assignments for self-reward.sh to standard output: the parameters that were given, for all stages, as
SELF_REWARD_PARAMETERS, and the iterations to run. Makes no commit, but for the user's own new data.
Run     python stages/plan.py --data_repo DIR --base_model MODEL --start_iteration 0 --iterations 3
"""

import shlex
import sys

from self_reward import artifacts, parameters, stage, store
from self_reward.errors import UserError

BY_STEP = ("iteration", "revision", "commit_file", "stop_file")  # set a step, never for the whole run


def main() -> None:
    p = parameters.parse("plan", __doc__)
    problems = [
        f"{name} is for one stage, not for a run: self-reward.sh sets it itself; give it to a program in stages/"
        for name in BY_STEP
        if name in p.model_fields_set
    ]
    snapshot = store.open_store(
        p.data_repo, branch=p.branch, lock_timeout=p.lock_timeout, store_timeout=p.store_timeout
    ).resolve()
    problems += artifacts.missing_for_run(p, snapshot.files, snapshot.small)
    from self_reward import base_model, evaluation, sampler

    checks = [lambda: sampler.resolve_engine(p.sampler)]
    if p.base_model and not p.base_model.startswith("oxen:"):
        checks.append(lambda: base_model.resolve(p.base_model, trust_remote_code=p.trust_remote_code))
    if p.verifier:
        checks.append(lambda: evaluation.load_verifier(p.verifier))
    for check in checks:
        try:
            check()
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(problems)
    last = p.start_iteration + p.iterations - 1
    for k in range(p.start_iteration, last + 1):
        policy = artifacts.policy_name(k, p.sft, snapshot.files)
        sys.stderr.write(f"plan: M{k}: policy {policy}, then M{k}/dpo; results under {p.data_repo}/M{k}\n")
    given = sorted(p.model_fields_set - set(BY_STEP))
    print(f"export SELF_REWARD_PARAMETERS={shlex.quote(parameters.as_environment(p, given))}")
    print(f"iterations={p.iterations} data_repo={shlex.quote(p.data_repo)}")


if __name__ == "__main__":
    sys.exit(stage.guard(main, "plan"))
