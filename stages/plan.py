"""plan: check everything that can be checked before the first hour of work, and say what will be run.

Reads all of the user's data that the run will read, and looks at the base model. Prints shell assignments for
self-reward.sh to standard output: the parameters that were given, for all stages, as SELF_REWARD_PARAMETERS, the
iterations to run, and the commit that the first stage starts from. Makes no commit, but for the user's own new data.
Run     python stages/plan.py --data_repo DIR --base_model MODEL --start_iteration 0 --iterations 3
"""

import shlex
import sys
from pathlib import Path

from self_reward import artifacts, disk, parameters, stage, store
from self_reward.errors import UserError, all_of

REACH_SECONDS = 60.0  # in which a server must answer before anything is run
SMALL = 1 << 20  # bytes; files of a model on a server are looked into below this, such as a Git LFS pointer


def main() -> None:
    p = parameters.parse("plan", __doc__)
    with disk.explained(*stage.disks(p)):
        plan(p)


def plan(p: parameters.Plan) -> None:
    problems = [
        f"{name} is for one stage, not for a run: self-reward.sh sets it itself; give it to a program in stages/"
        for name in parameters.BY_STEP
        if name in p.model_fields_set
    ]
    if p.create_repo and not store.is_remote(p.data_repo):
        problems.append(f"create_repo is for a server, and data_repo {p.data_repo} is a folder; leave it out")
    if problems and (p.create_repo or p.seed_data):
        raise UserError(problems)  # nothing is made for a run that cannot begin
    if store.is_remote(p.data_repo):  # somebody may be waiting: a wrong address is said sooner than in a stage
        stage.open_data_repo(p.model_copy(update={"store_timeout": min(p.store_timeout, REACH_SECONDS)})).exists()
    bring_data(p)
    repository = stage.open_data_repo(p)
    snapshot = repository.resolve()
    inputs, missing = artifacts.run_inputs(p, snapshot.files, snapshot.small)
    from self_reward import evaluation, sampler

    def say(found: list[str]) -> None:
        if found:
            raise UserError(found)

    all_of(
        lambda: say(problems + missing + in_the_way(p, snapshot)),
        lambda: check_base_model(p, inputs, repository, snapshot),
        lambda: check_data(p, inputs, repository, snapshot),
        lambda: sampler.resolve_engine(p.sampler),
        lambda: evaluation.load_verifier(p.verifier) if p.verifier else None,
    )
    last = p.start_iteration + p.iterations - 1
    for k in range(p.start_iteration, last + 1):
        policy = artifacts.policy_name(k, p.sft, snapshot.files)
        sys.stderr.write(f"plan: M{k}: policy {policy}, then M{k}/dpo; results under {p.data_repo}/M{k}\n")
    given = sorted(p.model_fields_set - set(parameters.BY_STEP))
    print(f"export SELF_REWARD_PARAMETERS={shlex.quote(parameters.as_environment(p, given))}")
    print(f"iterations={p.iterations} data_repo={shlex.quote(p.data_repo)} commit={snapshot.commit}")


def in_the_way(p, snapshot) -> list[str]:
    """Files of the user's where a later stage will write: it would refuse them only after the work before it."""
    written = store.recorded_sha256(snapshot.small)
    paths = {
        one.path.format(k=k): one.written_by
        for k in range(p.start_iteration, p.start_iteration + p.iterations)
        for name, one in artifacts.ARTIFACTS.items()
        if one.written_by not in ("user", "00_sft")  # a checkpoint of the user's own may stand for 00_sft
        and (name != "eval_of_sft" or (k == 0 and artifacts.has_sft(0, p.sft, snapshot.files)))
        and (name != "merged" or p.export_merged)
    }
    return [
        f"{name} is there and was not written by a stage; {stage_name} will write it. Move it out of data_repo"
        for path, stage_name in paths.items()
        for name in sorted(snapshot.files)
        if (name == path or name.startswith(path + "/")) and name not in written
    ]


def bring_data(p) -> None:
    """Make the repository and copy the seed data, where that is asked for and not done."""
    if p.create_repo:
        repository = stage.open_data_repo(p)
        if not repository.exists():
            repository.create()
            sys.stderr.write(f"plan: created {p.data_repo}, private\n")
    if p.seed_data:
        from self_reward import data

        with stage.scratch_folder(p, "seed") as folder:
            data.seed(
                p.data_repo,
                p.seed_data,
                folder,
                branch=p.branch,
                lock_timeout=p.lock_timeout,
                store_timeout=p.store_timeout,
                cache_dir=Path(p.cache_dir).expanduser(),
                progress=stage.Progress(),
            )


def check_base_model(p, inputs, repository, snapshot) -> None:
    """That the base model is there and can be loaded without running its code; a checkpoint may stand on another."""
    from self_reward import base_model

    folder = inputs.paths.get("base")
    on_server = folder and store.is_remote(p.data_repo)
    # on a server its hash means reading all of it, until a stage has done so, in whose manifest it is from then on
    if inputs.needs_base and (not on_server or inputs.recorded_base):
        stage.base_id(p, inputs, snapshot)
    if on_server:
        files = [path for path in snapshot.files if path.rpartition("/")[0] == folder]
        small = [f for f in files if snapshot.files[f] < SMALL or f.endswith(("config.json", base_model.INDEX))]
        with stage.scratch_folder(p, "plan-base") as scratch:
            if small:
                repository.pull(snapshot, small, scratch)
            problems = base_model.folder_problems(
                scratch / folder,
                trust_remote_code=p.trust_remote_code,
                elsewhere={path.rpartition("/")[2] for path in set(files) - set(small)},
            )
            if problems:
                raise UserError([problem.replace(str(scratch / folder), folder) for problem in problems])
    elif folder:  # here its files can be looked at without a copy
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
