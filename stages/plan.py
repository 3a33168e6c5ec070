"""plan: check everything that can be checked before the first hour of work, and say what will be run.

Reads all of the user's data that the run will read, and looks at the base model. On one machine it prints shell
assignments for self-reward.sh to standard output: the parameters that were given, for all stages, as
SELF_REWARD_PARAMETERS, the iterations to run, and the commit that the first stage starts from. In a cluster
(--in_cluster, set by the Argo workflow) it looks at what the run's pods need of it instead of at this machine, and
writes that commit and the iterations that begin with SFT to files. Makes no commit, but for the user's own new data.
Run     python stages/plan.py --data_repo DIR --base_model MODEL --start_iteration 0 --iterations 3
"""

import json
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from self_reward import disk, parameters, store
from self_reward.errors import TryAgain, UserError, all_of
from self_reward.repository import artifacts
from self_reward.run import stage

REACH_SECONDS = 60.0  # in which a server must answer before anything is run
SOON_SECONDS = 5.0  # the same where the run cannot begin anyway
SMALL = 1 << 20  # bytes; files of a model on a server are looked into below this, such as a Git LFS pointer


def main() -> None:
    try:
        p = parameters.parse("plan", __doc__)
    except UserError as error:
        if "--in_cluster" in sys.argv:  # whoever looks at the workflow's page wants to mend all of it at once
            raise UserError([*error.problems, *problems_of(look_at_cluster, error.problems)]) from None
        raise
    with disk.explained(*stage.disks(p)):
        plan(p)


def plan(p: parameters.Plan) -> None:
    problems = before(p)
    try:
        # somebody may be waiting: a wrong address is said sooner than in a stage
        soon = p.model_copy(update={"store_timeout": min(p.store_timeout, SOON_SECONDS if problems else REACH_SECONDS)})
        refused = problems_of(stage.open_data_repo(soon).exists) if store.is_remote(p.data_repo) else []
        if p.create_repo or p.seed_data:
            problems += refused + problems_of(lambda: check_hub_model(p))
            say(problems)  # nothing is made for a run that cannot begin
            bring_data(p)
        say(problems + refused if refused else [])
        _, snapshot = all_of(lambda: say(problems), lambda: check(p))
    except TryAgain as error:
        if problems:  # to try again does not help against these
            raise UserError([*problems, f"and for now: {error}"]) from error
        raise
    last = p.start_iteration + p.iterations - 1
    with_sft = []
    for k in range(p.start_iteration, last + 1):
        policy = artifacts.policy_name(k, p.sft, snapshot.files)
        with_sft += [k] if artifacts.has_sft(k, p.sft, snapshot.files) else []
        sys.stderr.write(f"plan: M{k}: policy {policy}, then M{k}/dpo; results under {p.data_repo}/M{k}\n")
    if p.in_cluster:
        if p.sft_file:
            Path(p.sft_file).parent.mkdir(parents=True, exist_ok=True)
            Path(p.sft_file).write_text(json.dumps(with_sft), encoding="utf-8")
        stage.finish(p, snapshot.commit, snapshot.commit, "")
        print(f"plan  iterations {p.start_iteration} to {last}, SFT in {with_sft or 'none'}  commit {snapshot.commit}")
        return
    given = sorted(p.model_fields_set - set(parameters.BY_STEP))
    print(f"export SELF_REWARD_PARAMETERS={shlex.quote(parameters.as_environment(p, given))}")
    print(f"iterations={p.iterations} data_repo={shlex.quote(p.data_repo)} commit={snapshot.commit}")


def say(problems: list[str]) -> None:
    if problems:
        raise UserError(problems)


def problems_of(step: Callable[[], object], known: Sequence[str] = ()) -> list[str]:
    """What the user must change, as `step` finds it. Its TryAgain is raised, unless problems are `known` against which
    trying again does not help."""
    try:
        step()
    except UserError as error:
        return error.problems
    except TryAgain as error:
        if not known:
            raise
        return [f"and for now: {error}"]
    return []


def before(p: parameters.Plan) -> list[str]:
    """What is wrong that can be known without the data repository."""
    from self_reward.method import evaluation
    from self_reward.models import engines as sampler

    problems = [
        f"{name} is for one stage, not for a run: self-reward.sh sets it itself; give it to a program in stages/"
        for name in parameters.BY_STEP
        if name in p.model_fields_set and not p.in_cluster
    ]
    if p.create_repo and not store.is_remote(p.data_repo):
        problems.append(f"create_repo is for a server, and data_repo {p.data_repo} is a folder; leave it out")
    if p.verifier:
        problems += problems_of(lambda: evaluation.load_verifier(p.verifier))
    if p.in_cluster:
        return problems + problems_of(look_at_cluster, problems)
    return problems + problems_of(lambda: sampler.resolve_engine(p.sampler))


def look_at_cluster() -> None:
    """Raise UserError with what the cluster lacks for the pods of this workflow."""
    from self_reward import cluster

    api, namespace = cluster.connect()
    problems, notes = cluster.look(api, namespace, parameters.of_workflow())
    for note in notes:
        sys.stderr.write(f"plan: {note}\n")
    say(problems)


def check(p: parameters.Plan) -> store.Snapshot:
    """The commit that the run starts from, all of whose data that the run reads is right."""
    repository = stage.open_data_repo(p)
    snapshot = repository.resolve()
    inputs, missing = artifacts.run_inputs(p, snapshot.files, snapshot.contents)
    all_of(
        lambda: say(missing + in_the_way(p, snapshot)),
        lambda: repository.check_writable() if store.is_remote(p.data_repo) else None,
        lambda: check_base_model(p, inputs, repository, snapshot),
        lambda: check_data(p, inputs, repository, snapshot),
    )
    return snapshot


def in_the_way(p, snapshot) -> list[str]:
    """Files of the user's where a later stage will write: it would refuse them only after the work before it."""
    written = store.recorded_sha256(snapshot.contents)
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
        from self_reward.cli import data

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


def check_hub_model(p) -> None:
    """That the base model can be had, as far as that does not depend on the data repository."""
    from self_reward.models import base_model

    if p.base_model and p.start_iteration == 0 and not p.base_model.startswith("oxen:"):
        base_model.resolve(
            p.base_model, trust_remote_code=p.trust_remote_code, cache_dir=Path(p.cache_dir).expanduser()
        )


def check_base_model(p, inputs, repository, snapshot) -> None:
    """That the base model is there and can be loaded without running its code; a checkpoint may stand on another."""
    from self_reward.models import base_model
    from self_reward.models import engines as sampler

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
            ) or sampler.tensor_parallel_problems(scratch / folder, p.generate_gpus)
            if problems:
                raise UserError([problem.replace(str(scratch / folder), folder) for problem in problems])
    elif folder:  # here its files can be looked at without a copy
        local = Path(p.data_repo).expanduser() / folder
        problems = base_model.folder_problems(
            local, trust_remote_code=p.trust_remote_code
        ) or sampler.tensor_parallel_problems(local, p.generate_gpus)
        if problems:
            raise UserError([problem.replace(str(local), folder) for problem in problems])


def check_data(p, inputs, repository, snapshot) -> None:
    """Read the user's files as the stages will. One pass over each file: about 13 seconds a gigabyte."""
    from self_reward.run import loading

    with stage.scratch_folder(p, "plan") as folder:
        run = stage.Run("plan", inputs, None, repository, snapshot, folder)
        try:
            loading.check_data(run, p)
        except UserError as error:
            raise UserError([problem.replace(f"{folder}/inputs/", "") for problem in error.problems]) from error


if __name__ == "__main__":
    sys.exit(stage.guard(main, "plan"))
