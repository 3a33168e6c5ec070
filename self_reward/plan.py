"""What happens before the first stage: all checks that can be made before the first hour of work, and the fetching of
the base model. stages/plan.py and stages/fetch_model.py run it."""

import json
import shlex
import sys
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from self_reward.errors import TryAgain, UserError, all_of
from self_reward.parameters.flat import given
from self_reward.parameters.sources import as_environment, of_workflow
from self_reward.parameters.stages import BY_STEP, Plan
from self_reward.repository import artifacts
from self_reward.run.checkout import Checkout, base_id, open_data_repo
from self_reward.run.stage import finish
from self_reward.run.workdir import scratch_folder
from self_reward.store import Snapshot, Store, is_remote, recorded_sha256

REACH_SECONDS = 60.0  # within which a server must answer before anything is run
SOON_SECONDS = 5.0  # the same where the run cannot begin anyway
SMALL = 1 << 20  # bytes; smaller files of a model on a server are read, since they may be Git LFS pointers


def prepare(p: Plan) -> None:
    """Check the run, create the repository and copy seed data if that is asked for, and tell the next step where to
    begin. Raises UserError with all problems; TryAgain only if nothing else is wrong."""
    problems = problems_without_data(p)
    try:
        # somebody may be waiting: a wrong address is reported sooner than in a stage
        soon = p.model_copy(update={"store_timeout": min(p.store_timeout, SOON_SECONDS if problems else REACH_SECONDS)})
        unreachable = problems_of(open_data_repo(soon).exists)
        if p.create_repo or p.seed_data:
            problems += unreachable + problems_of(lambda: check_hub_model(p))
            refuse(problems)  # nothing is created for a run that cannot begin
            bring_data(p)
        refuse(problems + unreachable if unreachable else [])
        _, snapshot = all_of(lambda: refuse(problems), lambda: check_data_repo(p))
    except TryAgain as error:
        if problems:  # trying again does not help against these
            raise UserError([*problems, f"and for now: {error}"]) from error
        raise
    tell_next_step(p, snapshot)


def refuse(problems: Sequence[str]) -> None:
    """Raise UserError if any problems exist."""
    if problems:
        raise UserError(list(problems))


def problems_of(step: Callable[[], object], known: Sequence[str] = ()) -> list[str]:
    """The problems that `step` reports. Its TryAgain is raised, unless other problems are `known`: trying again does
    not help against these."""
    try:
        step()
    except UserError as error:
        return error.problems
    except TryAgain as error:
        if not known:
            raise
        return [f"and for now: {error}"]
    return []


def tell_next_step(p: Plan, snapshot: Snapshot) -> None:
    """Print what self-reward.sh reads; in a cluster write the files that the workflow reads instead."""
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
        finish(p, snapshot.commit, snapshot.commit, "")
        print(f"plan  iterations {p.start_iteration} to {last}, SFT in {with_sft or 'none'}  commit {snapshot.commit}")
        return
    names = sorted(given(p) - set(BY_STEP))
    print(f"export SELF_REWARD_PARAMETERS={shlex.quote(as_environment(p, names))}")
    print(f"iterations={p.iterations} data_repo={shlex.quote(p.data_repo)} commit={snapshot.commit}")


# ---- without the data repository


def problems_without_data(p: Plan) -> list[str]:
    """Problems with the parameters, this machine or the cluster."""
    from self_reward.method import evaluation
    from self_reward.models import engines

    problems = [
        f"{name} is for one stage, not for a run: self-reward.sh sets it itself; give it to a program in stages/"
        for name in BY_STEP
        if name in given(p) and not p.in_cluster
    ]
    if p.create_repo and not is_remote(p.data_repo):
        problems.append(f"create_repo is for a server, and data_repo {p.data_repo} is a folder; leave it out")
    if verifier := p.verifier:
        problems += problems_of(lambda: evaluation.load_verifier(verifier))
    if p.in_cluster:
        return problems + problems_of(check_cluster, problems)
    return problems + problems_of(lambda: engines.resolve_engine(p.engine.sampler))


def check_cluster() -> None:
    """Raise UserError with what the cluster lacks for the pods of this workflow."""
    from self_reward.cluster.api import connect
    from self_reward.cluster.check import check_run

    api, namespace = connect()
    findings = check_run(api, namespace, of_workflow())
    for note in findings.notes:
        sys.stderr.write(f"plan: {note}\n")
    refuse(findings.problems)


def check_hub_model(p: Plan) -> None:
    """Check that a base model of the hub, or in a folder, exists."""
    from self_reward.models import base_model

    if p.base_model and p.start_iteration == 0 and not p.base_model.startswith("oxen:"):
        base_model.resolve(p.base_model, trust_remote_code=p.loading.trust_remote_code, cache_dir=p.cache)


# ---- the data repository


def bring_data(p: Plan) -> None:
    """Create the repository and copy the seed data, if that is asked for and not done yet."""
    from self_reward.run.seed_data import copy_seed_data

    if p.create_repo:
        repository = open_data_repo(p)
        if not repository.exists():
            repository.create()
            sys.stderr.write(f"plan: created {p.data_repo}, private\n")
    if p.seed_data:
        with scratch_folder(p, "seed") as folder:
            copy_seed_data(p, folder)


def check_data_repo(p: Plan) -> Snapshot:
    """The commit that the run starts from. Raises UserError with all problems of what the run will read in it."""
    repository = open_data_repo(p)
    snapshot = repository.resolve()
    inputs, missing = artifacts.run_inputs(p, snapshot.files, snapshot.contents)
    all_of(
        lambda: refuse(missing + files_in_the_way(p, snapshot)),
        repository.check_writable,
        lambda: check_base_model(p, inputs, repository, snapshot),
        lambda: check_data(p, inputs, repository, snapshot),
    )
    return snapshot


def files_in_the_way(p: Plan, snapshot: Snapshot) -> list[str]:
    """The user's files where a stage will write: the stage would refuse them only after all the work before it."""
    written = recorded_sha256(snapshot.contents)
    sft_is_measured = artifacts.has_sft(0, p.sft, snapshot.files)  # in iteration 0
    paths = {
        path: stage_name
        for k in range(p.start_iteration, p.start_iteration + p.iterations)
        for path, stage_name in artifacts.written_paths(k).items()
        if stage_name != "00_sft"  # the user's own checkpoint may take the place of 00_sft's
        and (path != artifacts.EVAL_OF_SFT.format(k=k) or (k == 0 and sft_is_measured))
        and (stage_name != "07_export" or p.export_merged)
    }
    return [
        f"{name} exists and was not written by a stage; {stage_name} will write it. Move it out of data_repo"
        for path, stage_name in paths.items()
        for name in sorted(snapshot.files)
        if (name == path or name.startswith(path + "/")) and name not in written
    ]


def check_base_model(p: Plan, inputs: artifacts.Inputs, repository: Store, snapshot: Snapshot) -> None:
    """Check that the base model exists, is that of the run's checkpoints, and loads; its code is not run."""
    from self_reward.models import base_model

    folder = inputs.paths.get("base")
    remote = is_remote(p.data_repo)
    # the hash of a model on a server takes reading all of it, until a stage has done so and recorded it in its manifest
    if inputs.needs_base and (not (folder and remote) or inputs.recorded_base):
        base_id(p, inputs, snapshot)
    if folder and remote:
        files = [path for path in snapshot.files if path.rpartition("/")[0] == folder]
        small = [f for f in files if snapshot.files[f] < SMALL or f.endswith(("config.json", base_model.INDEX))]
        with scratch_folder(p, "plan-base") as scratch:
            if small:
                repository.pull(snapshot, small, scratch)
            left = {path.rpartition("/")[2] for path in set(files) - set(small)}
            check_model_folder(p, scratch / folder, folder, left_on_server=left)
    elif folder:  # a local repository's files can be read in place
        check_model_folder(p, Path(p.data_repo).expanduser() / folder, folder)


def check_model_folder(p: Plan, local: Path, name: str, left_on_server: Collection[str] = ()) -> None:
    """Raise UserError with what keeps the model in `local`, the folder `name` to the user, from loading."""
    from self_reward.models import base_model, engines

    problems = base_model.folder_problems(
        local, trust_remote_code=p.loading.trust_remote_code, elsewhere=left_on_server
    ) or engines.tensor_parallel_problems(local, p.engine.generate_gpus)
    refuse([problem.replace(str(local), name) for problem in problems])


def check_data(p: Plan, inputs: artifacts.Inputs, repository: Store, snapshot: Snapshot) -> None:
    """Read the user's files as the stages will. One pass over each file: about 13 seconds per gigabyte."""
    from self_reward.run import user_data

    with scratch_folder(p, "plan") as folder:
        checkout = Checkout(repository, snapshot, inputs, None, folder)
        with checkout.named_as_in_repository():
            user_data.check(checkout, p)


# ---- the base model


def fetch_base_model(p: Plan) -> None:
    """Fetch the base model into the cache, unless the run starts from its own full weights and needs none."""
    from self_reward.models import engines
    from self_reward.run import models

    started = time.monotonic()
    repository = open_data_repo(p)
    snapshot = repository.resolve(p.revision)
    inputs, missing = artifacts.run_inputs(p, snapshot.files, snapshot.contents)
    refuse(missing)
    if not inputs.needs_base:
        print("fetch_model  no base model is needed")
        return
    base = base_id(p, inputs, snapshot)
    with scratch_folder(p, "fetch-model") as folder:
        local = models.base_folder(Checkout(repository, snapshot, inputs, base, folder), p)
    refuse(engines.tensor_parallel_problems(local, p.engine.generate_gpus))
    print(f"fetch_model  {time.monotonic() - started:.1f} s  {base} is in {local}")
