"""plan: check everything that can be checked before the first hour of work, and say what will be run.

Reads all of the user's data that the run will read, and looks at the base model. Prints shell assignments for
self-reward.sh to standard output: the parameters that were given, for all stages, as SELF_REWARD_PARAMETERS, and the
iterations to run. Makes no commit, but for the user's own new data.
Run     python stages/plan.py --data_repo DIR --base_model MODEL --start_iteration 0 --iterations 3
"""

import shlex
import sys
from pathlib import Path

from self_reward import artifacts, disk, parameters, stage, store
from self_reward.errors import UserError, all_of

BY_STEP = ("iteration", "revision", "commit_file", "stop_file")  # set a step, never for the whole run


def main() -> None:
    p = parameters.parse("plan", __doc__)
    with disk.explained(*stage.disks(p)):
        plan(p)


def plan(p: parameters.Plan) -> None:
    problems = [
        f"{name} is for one stage, not for a run: self-reward.sh sets it itself; give it to a program in stages/"
        for name in BY_STEP
        if name in p.model_fields_set
    ]
    repository = store.open_store(
        p.data_repo, branch=p.branch, lock_timeout=p.lock_timeout, store_timeout=p.store_timeout
    )
    snapshot = repository.resolve()
    inputs, missing = artifacts.run_inputs(p, snapshot.files, snapshot.small)
    from self_reward import evaluation, sampler

    def say(found: list[str]) -> None:
        if found:
            raise UserError(found)

    all_of(
        lambda: say(problems + missing),
        lambda: check_base_model(p, inputs, snapshot),
        lambda: check_data(p, inputs, repository, snapshot),
        lambda: sampler.resolve_engine(p.sampler),
        lambda: evaluation.load_verifier(p.verifier) if p.verifier else None,
    )
    last = p.start_iteration + p.iterations - 1
    for k in range(p.start_iteration, last + 1):
        policy = artifacts.policy_name(k, p.sft, snapshot.files)
        sys.stderr.write(f"plan: M{k}: policy {policy}, then M{k}/dpo; results under {p.data_repo}/M{k}\n")
    given = sorted(p.model_fields_set - set(BY_STEP))
    print(f"export SELF_REWARD_PARAMETERS={shlex.quote(parameters.as_environment(p, given))}")
    print(f"iterations={p.iterations} data_repo={shlex.quote(p.data_repo)}")


def check_base_model(p, inputs, snapshot) -> None:
    """That the base model is there and can be loaded without running its code; a checkpoint may stand on another."""
    from self_reward import base_model

    if inputs.needs_base:
        stage.base_id(p, inputs, snapshot)
    if folder := inputs.paths.get("base"):  # here its files can be looked at without a copy
        local = Path(p.data_repo).expanduser() / folder
        problems = base_model.folder_problems(local, trust_remote_code=p.trust_remote_code)
        if problems:
            raise UserError([problem.replace(str(local), folder) for problem in problems])


def check_data(p, inputs, repository, snapshot) -> None:
    """Read the user's files as the stages will. One pass over each file: about 13 seconds a gigabyte."""
    from self_reward import loading

    with stage.scratch_folder(p, "plan") as folder:
        run = stage.Run("plan", inputs, None, repository, snapshot, folder)
        try:
            loading.check_data(run, p)
        except UserError as error:
            raise UserError([problem.replace(f"{folder}/inputs/", "") for problem in error.problems]) from error


if __name__ == "__main__":
    sys.exit(stage.guard(main, "plan"))
