"""Parameters that contradict each other, and paths that cannot work."""

import itertools
import math
import re
from pathlib import Path

from self_reward.types import Json

# Shard pods of one kind in one run. A Workflow object holds 1 MiB; each pod is a node of some 0.5 KB in it, compressed.
MOST_SHARDS = 1500  # iterations x shards


def contradictions(values: Json) -> list[str]:
    """What is wrong with parameters that are each valid alone: `values` by flat name, of one stage or of all."""
    problems = []
    for smaller, larger in (
        ("score_min", "score_max"),
        ("prompt_min_words", "prompt_max_words"),
        ("sft_min_learning_rate", "sft_learning_rate"),
        ("dpo_min_learning_rate", "dpo_learning_rate"),
    ):
        if larger in values and values[smaller] > values[larger]:
            problems.append(f"{smaller} = {values[smaller]} is above {larger} = {values[larger]}")
    for micro, batch in (("sft_micro_batch_size", "sft_batch_size"), ("dpo_micro_batch_size", "dpo_batch_size")):
        if batch in values:
            processes = max(values["train_gpus"], 1)
            each, rest = divmod(values[batch], processes)
            if rest:
                problems.append(f"{batch} = {values[batch]} is not a multiple of train_gpus = {processes}")
            elif each % min(values[micro], each):
                on = f", {each} on each of {processes} GPUs," if processes > 1 else ""
                problems.append(f"{batch} = {values[batch]}{on} is not a multiple of {micro} = {values[micro]}")
    if values.get("score_max") is not None and values["score_min"] == values["score_max"]:
        problems.append(f"score_min and score_max are both {values['score_min']}: such a scale cannot rank responses")
    if values.get("sampler") == "transformers" and values["generate_gpus"] > 1:
        problems.append(
            f"generate_gpus = {values['generate_gpus']}: the transformers sampler uses one GPU; set generate_gpus to "
            "1, or sampler to vllm"
        )
    for votes in ("judge_votes", "eval_judge_votes"):
        if values.get("judge_temperature") == 0 and values.get(votes, 1) > 1:
            problems.append(f"judge_temperature = 0 makes all {votes} equal; set {votes} to 1 or a temperature above 0")
    if "max_pairs" in values and values["max_pairs"] > values.get("responses_per_prompt", math.inf) // 2:
        problems.append(
            f"max_pairs = {values['max_pairs']} needs {2 * values['max_pairs']} responses to a prompt, "
            f"responses_per_prompt = {values['responses_per_prompt']} gives fewer"
        )
    span = values.get("score_max", math.inf) - values.get("score_min", 0)
    if values.get("min_margin", -math.inf) >= span:
        problems.append(f"min_margin = {values['min_margin']:g} rejects every pair: scores differ by at most {span}")
    if values.get("label_smoothing") and values["dpo_loss"] != "sigmoid":
        problems.append(
            f"label_smoothing = {values['label_smoothing']:g} needs dpo_loss = sigmoid, not {values['dpo_loss']}"
        )
    problems += [*_folders(values), *(_in_cluster(values) if values.get("in_cluster") else [])]
    if values.get("shard"):
        number, count = map(int, values["shard"].split("/"))
        if number >= count:
            problems.append(
                f"shard = {values['shard']}: of {count} shards the first is 0/{count}, the last {count - 1}/{count}"
            )
    branch = values["branch"]
    if ".." in branch or "//" in branch or branch.endswith(("/", ".", ".lock")):
        problems.append(f"branch = {branch!r} is not a branch name: no '..' or '//', no '/', '.' or '.lock' at its end")
    try:
        re.compile(values.get("prompt_pattern") or "")
    except (re.error, OverflowError, RecursionError) as error:
        problems.append(f"prompt_pattern is not a regular expression: {error}")
    return problems


def _in_cluster(values: Json) -> list[str]:
    """What works on one machine but not in a workflow, whose pods share no folder with the user."""
    problems = [
        f"{name} = {values[name]} is a folder, and the pods of a workflow share none; give a server's address "
        "(oxen://HOST/NAMESPACE/NAME, or oxen+http://HOST/NAMESPACE/NAME)"
        for name in ("data_repo", "seed_data")
        if values[name] and "://" not in values[name]
    ]
    if (values["base_model"] or "").startswith(("/", ".", "~")):
        problems.append(
            f"base_model = {values['base_model']} is a folder, and the pods of a workflow share none; give a hub "
            "id, or oxen:<path in the data repository>"
        )
    if (shards := values["iterations"] * values["shards"]) > MOST_SHARDS:
        problems.append(
            f"iterations = {values['iterations']} of shards = {values['shards']} make {shards}, and a Workflow object "
            f"holds at most {MOST_SHARDS}; run fewer iterations at a time (start_iteration continues), or fewer shards"
        )
    return problems


def _folders(values: Json) -> list[str]:
    """Problems with the folders and files that a stage writes to outside the data repository."""
    problems = []
    repository = None
    for name in ("data_repo", "cache_dir", "work_dir", "commit_file", "result_file", "stop_file"):
        if not values.get(name) or (name == "data_repo" and "://" in values[name]):
            continue
        try:
            path = Path(values[name]).expanduser().resolve()
            exists, is_dir = path.exists(), path.is_dir()
        except (OSError, RuntimeError, ValueError) as error:  # a link to itself, ~nobody, a zero byte
            problems.append(f"{name} {values[name]!r} is not a path: {error}")
            continue
        if name == "data_repo":
            repository = path
        elif repository and path.is_relative_to(repository):
            problems.append(
                f"{name} {values[name]} is inside the data repository {values['data_repo']}, which would commit it; "
                "choose a place outside it"
            )
        elif file := next((parent for parent in path.parents if parent.exists() and not parent.is_dir()), None):
            problems.append(f"{name} {values[name]}: {file} is not a folder")
        elif name.endswith("_dir") and exists and not is_dir:
            problems.append(f"{name} {values[name]} is a file; expected a folder")
        elif name.endswith("_file") and is_dir:
            problems.append(f"{name} {values[name]} is a folder; expected a file")
    for first, second in itertools.combinations(("commit_file", "result_file", "stop_file"), 2):
        if values.get(first) and values[first] == values[second]:
            problems.append(f"{first} and {second} are both {values[first]}; give each a separate file")
    return problems
