"""Every parameter of every stage, once: name, type, default, bounds and docstring.

The field name is the flag (`--judge_votes 3`), the key in a parameter file and the Argo parameter. The namespace is
flat: a name means one thing in all stages. The docstring under a field is its help, its row in docs/parameters.md and
its description in the Argo UI. Fields made with `neutral` do not change what a stage computes (paths, timeouts,
hardware), so they are no part of the key by which a stage recognises its finished work.

Sources, later ones win: defaults, SELF_REWARD_PARAMETERS (a JSON list of {name, value}, as Argo renders
`workflow.parameters.json`), `--parameter_file` (YAML), flags. All problems of all sources are reported at once.
"""

import argparse
import difflib
import json
import math
import os
import re
import reprlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from self_reward.errors import UserError

ENVIRONMENT = "SELF_REWARD_PARAMETERS"


def neutral(default: Any, **bounds: Any) -> Any:
    """A field that does not affect what a stage writes."""
    return Field(default, json_schema_extra={"affects_output": False}, **bounds)


class Fields(BaseModel):
    """How all groups of fields below are read."""

    # defer_build: only the stage that is asked for is built, which saves a fifth of a second at every start
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, defer_build=True, allow_inf_nan=False)


class Run(Fields):
    """What every stage takes."""

    data_repo: str = neutral("data", min_length=1)
    """Data repository: a folder (a plain folder with M0/train/*.jsonl becomes a local Oxen repository), or a server's
    address: oxen://HOST/NAMESPACE/NAME (https) or oxen+http://HOST:PORT/NAMESPACE/NAME."""
    branch: str = neutral("main", pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$")
    """Branch of the data repository that the run reads and commits to."""
    iteration: int = Field(0, ge=0)
    """Iteration k: turns model M{k} into M{k+1}; its files live under M{k}/."""
    revision: str | None = neutral(None)
    """Commit to read the inputs from; default: the branch's head."""
    seed: int = Field(0, ge=0, le=2**31 - 1)
    """Seed of sampling, shuffling and training."""
    force: bool = neutral(False)
    """Run the stage even when its result is there."""
    commit_file: str | None = neutral(None)
    """File that receives the id of the commit that holds the stage's result."""
    stop_file: str | None = neutral(None)
    """File that receives the reason when a stop rule fires, and is empty otherwise."""
    cache_dir: str = neutral("~/.cache/self-reward", min_length=1)
    """Folder for base models and merged checkpoints; may be shared by runs."""
    work_dir: str | None = neutral(None)
    """Folder for partial results, from which an interrupted stage goes on; default: cache_dir/work."""
    lock_timeout: float = neutral(600.0, ge=0)
    """Seconds to wait while another process holds the local data repository."""
    store_timeout: float = neutral(1800.0, gt=0)
    """Seconds that one Oxen operation may take. One on a server is tried again until then, where that may help."""


class Shards(Fields):
    """How several processes share a stage's work."""

    shard: str | None = neutral(None, pattern=r"^(0|[1-9]\d*)/[1-9]\d*$")
    """The part of the work that this process does: i/n, i from 0. It commits to a branch of its own on the data
    repository's server; stages/merge.py makes the stage's one commit of all n."""
    shards: int = neutral(1, ge=1)
    """For stages/merge.py: how many shards the work was divided into."""


class BaseModelSource(Fields):
    """Where the first weights come from, and how any weights are loaded."""

    base_model: str | None = neutral(None)  # what it resolves to is part of the key instead
    """M0: a Hugging Face hub id (optionally id@revision), a folder, or oxen:<path in the data repository>."""
    sft: Literal["auto", "always", "never"] = "auto"
    """Whether an iteration begins with SFT; auto: where M{k}/train has data; never: the start model is the policy."""
    trust_remote_code: bool = False
    """Run Python code that comes with a model. Only for models whose code you have read."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of loaded weights; auto: bfloat16 on a GPU, float32 on CPU."""
    cache_keep: int = neutral(3, ge=1)
    """Merged checkpoints that are kept in cache_dir; the oldest are removed first."""


class Sampling(Fields):
    """How text is generated."""

    sampler: Literal["auto", "vllm", "transformers"] = "auto"
    """Engine that generates text; auto: vllm where it is installed and there is a GPU, else transformers."""
    sampler_batch_size: int = Field(64, ge=1)
    """Prompts in one chunk of the transformers sampler. Rounding depends on the batch, so it can affect samples."""
    max_model_len: int | None = Field(None, ge=16)
    """Longest sequence (prompt and answer, in tokens); default: the model's."""
    generate_gpus: int = neutral(1, ge=1)
    """GPUs of one generating process (vllm's tensor_parallel_size)."""
    gpu_memory_utilization: float = neutral(0.9, gt=0, le=1)
    """Share of GPU memory that vllm takes."""


class Rubric(Fields):
    """What the judge is asked."""

    rubric: str = Field("additive", min_length=1)
    """The judge's rubric: `additive` (the paper's five points) or a path in the data repository to a text file that
    holds {prompt} and {response} once each."""


class Scale(Fields):
    """The scores that there are."""

    score_min: int = Field(0, ge=0, le=9)
    """Lowest score on the rubric's scale."""
    score_max: int = Field(5, ge=1, le=9)
    """Highest score on the rubric's scale."""


class Judging(Rubric, Scale):
    """How a response is judged."""

    judge_temperature: float = Field(0.7, ge=0)
    """Sampling temperature of the judge."""
    judge_top_p: float = Field(0.9, gt=0, le=1)
    """Nucleus sampling of the judge."""
    judge_max_tokens: int = Field(512, ge=1)
    """Longest judgement, in tokens."""
    judge_forced_score: bool = False
    """After each justification ask for the score alone and take its expected value over the digits' probabilities,
    so that no judgement is unreadable (G-Eval, arXiv 2303.16634)."""


class Answering(Fields):
    """How a prompt is answered."""

    response_top_p: float = Field(0.9, gt=0, le=1)
    """Nucleus sampling of responses."""
    response_max_tokens: int = Field(1024, ge=1)
    """Longest response, in tokens."""


class Generated(Fields):
    """How files that an earlier stage wrote are read."""

    max_bad_rows: float = neutral(0.01, ge=0, lt=1)
    """Share of rows of a generated file that may be unusable: they are left out, counted and shown. Above it the stage
    ends with an error."""


class HeldOut(Fields):
    """What is kept out of training."""

    eval_fraction: float = Field(0.05, ge=0, lt=1)
    """Share of prompts held out of training where M0/eval is missing, chosen by a hash of the prompt."""


class Lora(Fields):
    """The shape of adapters, and training in general."""

    lora_rank: int = Field(16, ge=1)
    """Rank of LoRA adapters."""
    lora_alpha: int = Field(32, ge=1)
    """Scale of LoRA adapters: their output is multiplied by lora_alpha / lora_rank."""
    lora_target_modules: str = "all-linear"
    """Modules that get an adapter: all-linear, or names joined by commas."""
    checkpoint_steps: int = neutral(200, ge=1)
    """Steps between checkpoints, from which an interrupted training goes on."""
    gradient_checkpointing: bool = neutral(True)
    """Recompute activations in the backward pass: less memory, about a third more time. Has no effect on CPU."""


class Sft(Run, BaseModelSource, Rubric, HeldOut, Lora):
    """00_sft"""

    chat_template: str = "auto"
    """Chat template, stored with the tokenizer at SFT: auto (the tokenizer's own, else plain), plain, or a path in the
    data repository."""
    sft_finetune: Literal["lora", "full"] = "lora"
    """Train an adapter or all weights."""
    sft_epochs: float = Field(1.0, gt=0)
    """Passes over the data."""
    sft_max_steps: int | None = Field(None, ge=1)
    """Optimizer steps; wins over sft_epochs."""
    sft_learning_rate: float = Field(1e-4, gt=0, le=1)
    """Highest learning rate. The default is for lora; full fine-tuning of a large model wants 5.5e-6 (the paper)."""
    sft_min_learning_rate: float = Field(1e-5, ge=0, le=1)
    """Learning rate at the end of the cosine."""
    sft_warmup_ratio: float = Field(0.0, ge=0, lt=1)
    """Share of steps with rising learning rate."""
    sft_batch_size: int = Field(16, ge=1)
    """Examples a step."""
    sft_micro_batch_size: int = neutral(4, ge=1)
    """Examples at once on one device; gradients are accumulated up to sft_batch_size."""
    sft_max_length: int = Field(2048, ge=8)
    """Longest example in tokens; longer ones are left out and counted."""
    sft_dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout in training: of the adapters (lora) or of attention (full)."""
    sft_weight_decay: float = Field(0.0, ge=0)
    """Weight decay of AdamW."""
    sft_adam_beta2: float = Field(0.999, gt=0, lt=1)
    """Second moment decay of AdamW."""


class GenPrompts(Run, BaseModelSource, Sampling, HeldOut, Generated):
    """01_gen_prompts"""

    num_prompts: int = Field(5000, ge=1)
    """New prompts an iteration."""
    prompt_model: str = "policy"
    """Who writes new prompts: policy, or a checkpoint such as base, M0/sft or M0/dpo (the paper: a fixed model)."""
    prompt_template: str = "few_shot"
    """Text that asks for a new prompt: few_shot, or a path in the data repository to a text file with {examples}."""
    prompt_seed_shots: int = Field(6, ge=1)
    """Examples from the seed data in each request for a new prompt."""
    prompt_generated_shots: int = Field(2, ge=0)
    """Examples from prompts already generated in each request for a new prompt."""
    prompt_temperature: float = Field(0.6, ge=0)
    """Sampling temperature of new prompts."""
    prompt_top_p: float = Field(0.9, gt=0, le=1)
    """Nucleus sampling of new prompts."""
    prompt_max_tokens: int = Field(256, ge=1)
    """Longest answer to a request for new prompts, in tokens."""
    prompt_similarity: float = Field(0.7, gt=0, le=1)
    """A new prompt whose ROUGE-L with an existing one reaches this is rejected; 1: only equal texts are."""
    prompt_min_words: int = Field(3, ge=1)
    """Shortest new prompt, in words."""
    prompt_max_words: int = Field(150, ge=1)
    """Longest new prompt, in words."""
    prompt_keywords: list[str] = Field(
        default=[
            "image", "images", "graph", "graphs", "picture", "pictures", "file", "files", "map", "maps", "draw", "plot",
            "go to", "video", "audio", "music", "flowchart", "diagram",
        ]
    )  # fmt: skip
    """New prompts with one of these words are rejected: a text model cannot answer them (JSON list; the words of
    Self-Instruct, arXiv 2212.10560)."""
    prompt_pattern: str | None = None
    """Regular expression that must be found in a new prompt; ^ and $ make it match as a whole."""
    prompt_max_requests: float = Field(8.0, ge=1)
    """Requests for new prompts at most, as a multiple of num_prompts; then the stage goes on with what it has."""
    min_prompt_yield: float = neutral(0.02, ge=0, le=1)
    """The stage ends with an error when a smaller share of what the model writes is usable."""


class GenResponses(Run, BaseModelSource, Sampling, Answering, Generated, Shards):
    """02_gen_responses"""

    responses_per_prompt: int = Field(4, ge=2)
    """Responses to each prompt. One alone makes no pair."""
    response_temperature: float = Field(0.7, gt=0)
    """Sampling temperature of responses."""


class GenScores(Run, BaseModelSource, Sampling, Judging, Generated, Shards):
    """03_gen_scores"""

    judge_votes: int = Field(3, ge=1)
    """Judgements of each response; their mean is its score."""
    min_parse_rate: float = neutral(0.5, ge=0, le=1)
    """Stop rule: share of judgements that must be readable."""


class GenPreferences(Run, Generated):
    """04_gen_preferences"""

    length_rho: float = Field(0.0, ge=0, lt=0.5)
    """Length control (Meta-Rewarding, arXiv 2407.19594): among responses within this share of the score range of the
    best, the shortest is chosen; of the worst, the longest is rejected. 0: plain best against worst."""
    min_margin: float = Field(0.0, ge=0)
    """A pair's scores must differ by more than this."""
    tie_break: Literal["none", "variance"] = "none"
    """Which of equally scored responses is taken: the first, or the one whose votes agree most."""
    drop_truncated: bool = False
    """Leave out responses that were cut off by response_max_tokens."""
    drop_identical: bool = True
    """Responses of the same text count as one, with the mean of their scores."""
    max_pairs: int = Field(1, ge=1)
    """Pairs a prompt at most: best against worst, second best against second worst, and so on."""
    shuffle_preferences: bool = False
    """Control experiment: pair by random scores instead of the judge's. A run that still improves did not learn from
    the judge."""
    min_pairs: int = neutral(1, ge=1)
    """Stop rule: pairs that an iteration must have."""


class Dpo(Run, BaseModelSource, Rubric, Scale, HeldOut, Lora, Generated):
    """05_dpo"""

    dpo_finetune: Literal["lora", "full"] = "lora"
    """Train an adapter or all weights."""
    dpo_loss: Literal["sigmoid", "sigmoid_norm"] = "sigmoid"
    """DPO's loss, plain or with log-probabilities divided by length (then beta is about ten times larger)."""
    beta: float = Field(0.1, gt=0)
    """Strength of the pull towards the reference, which is the policy that DPO starts from."""
    nll_weight: float = Field(0.0, ge=0)
    """Weight of the negative log-likelihood of the chosen response, added to the loss (Iterative RPO, arXiv
    2404.19733)."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Assumed share of wrongly labelled pairs."""
    eft_replay: float = Field(0.0, ge=0, lt=1)
    """Judging examples mixed in as pairs (the right judgement against one with another score), as a share of all."""
    dpo_epochs: float = Field(1.0, gt=0)
    """Passes over the pairs."""
    dpo_max_steps: int | None = Field(None, ge=1)
    """Optimizer steps; wins over dpo_epochs."""
    dpo_learning_rate: float = Field(5e-6, gt=0, le=1)
    """Highest learning rate. The default is for lora; full fine-tuning of a large model wants 1e-6 (the paper)."""
    dpo_min_learning_rate: float = Field(5e-7, ge=0, le=1)
    """Learning rate at the end of the cosine."""
    dpo_warmup_ratio: float = Field(0.0, ge=0, lt=1)
    """Share of steps with rising learning rate."""
    dpo_batch_size: int = Field(16, ge=1)
    """Pairs a step."""
    dpo_micro_batch_size: int = neutral(2, ge=1)
    """Pairs at once on one device; gradients are accumulated up to dpo_batch_size."""
    dpo_max_length: int = Field(2048, ge=8)
    """Longest prompt and response in tokens; pairs with a longer one are left out and counted."""
    dpo_dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout in training: of the adapters (lora) or of attention (full)."""
    dpo_weight_decay: float = Field(0.0, ge=0)
    """Weight decay of AdamW."""


class Evaluate(Run, BaseModelSource, Sampling, Answering, Judging, HeldOut):
    """06_evaluate"""

    eval_prompts: int = Field(1000, ge=1)
    """Held-out prompts that are answered, at most."""
    eval_judge_groups: int = Field(500, ge=1)
    """Held-out prompts with ranked responses that are judged, at most."""
    eval_temperature: float = Field(0.7, ge=0)
    """Sampling temperature of answers to held-out prompts; 0: greedy."""
    eval_judge_votes: int = Field(1, ge=1)
    """Judgements of each held-out response."""
    verifier: str | None = None
    """module:function that is given (prompt, response) and returns a number or a dict of them, for measuring only."""


class Export(Run, BaseModelSource):
    """07_export"""

    export_merged: bool = True
    """After the last iteration, commit the merged model, ready to be served."""


class Plan(GenPrompts, GenResponses, GenScores, GenPreferences, Dpo, Evaluate, Export, Sft):
    """plan"""

    iterations: int = neutral(1, ge=1, le=90)
    """Iterations to run. Above 90 an Argo workflow would reach its recursion limit; go on with start_iteration."""
    start_iteration: int = neutral(0, ge=0)
    """First iteration to run."""
    create_repo: bool = neutral(False)
    """Create data_repo on its server, private, when it does not exist."""
    seed_data: str | None = neutral(None)
    """Address or folder of a data repository from which M0/train (and M0/eval) is copied when data_repo has no
    M0/train; one that was made with the community reproduction is taken as it is."""


STAGES: dict[str, type[Run]] = {
    "plan": Plan,
    "00_sft": Sft,
    "01_gen_prompts": GenPrompts,
    "02_gen_responses": GenResponses,
    "03_gen_scores": GenScores,
    "04_gen_preferences": GenPreferences,
    "05_dpo": Dpo,
    "06_evaluate": Evaluate,
    "07_export": Export,
}


def key_parameters(parameters: Run) -> dict[str, Any]:
    """The parameters that affect what the stage writes, by name."""
    return {
        name: getattr(parameters, name) for name in type(parameters).model_fields if affects_output(parameters, name)
    }


def affects_output(model: Run | type[Run], name: str) -> bool:
    """Whether the field `name` changes what a stage computes."""
    extra = model.model_fields[name].json_schema_extra
    return not (isinstance(extra, dict) and extra.get("affects_output") is False)


def parse(stage: str, doc: str, argv: Sequence[str] | None = None, environment: Mapping[str, str] = os.environ) -> Any:
    """The validated parameters of `stage`, an instance of STAGES[stage]. `doc` is what --help prints first.

    Raises UserError with every problem of every source: unknown names (with the nearest one), wrong types, values out
    of bounds, contradictions, a parameter file that cannot be read.
    """
    model = STAGES[stage]
    problems: list[str] = []
    flags, file = _read_flags(model, doc, sys.argv[1:] if argv is None else list(argv), problems)
    sources: dict[str, tuple[Any, str]] = {}
    for name, value in _read_environment(environment.get(ENVIRONMENT, ""), problems):
        if name in sources and sources[name][0] != value:
            problems.append(
                f"{ENVIRONMENT} gives {name} twice: {_short(sources[name][0])} and {_short(value)}; keep one"
            )
        sources[name] = (value, ENVIRONMENT)
    if file is not None:
        sources |= {name: (value, file) for name, value in _read_file(file, problems)}
    sources |= {name: (value, f"--{name}") for name, value in flags.items()}
    for name, (_, source) in sources.items():
        if name not in Plan.model_fields:
            problems.append(f"unknown parameter {name[:200]} (from {source}){nearest(name)}")
    values = {
        name: _read_value(value, field)
        for name, (value, _) in sources.items()
        if (field := model.model_fields.get(name)) is not None
    }
    try:
        parameters = model(**values)
    except ValidationError as error:
        first = {
            str(detail["loc"][0]): detail for detail in reversed(error.errors())
        }  # of a list of a million words too
        for name, detail in reversed(first.items()):
            problems.append(
                f"{name} = {_short(detail['input'])} (from {sources[name][1]}): "
                + detail["msg"]
                .replace("Input should be", "must be")
                .replace("a valid list", 'a JSON list such as ["map"]')
            )
        bad = {str(detail["loc"][0]) for detail in error.errors()}
        parameters = model(**{name: value for name, value in values.items() if name not in bad})
        # what stands there for a bad value is its default, so nothing is said about that
        problems += [found for found in contradictions(parameters) if not any(name in found for name in bad)]
        raise UserError(problems) from None
    problems += contradictions(parameters)
    if problems:
        raise UserError(problems)
    return parameters


def contradictions(parameters: Run) -> list[str]:
    """What is wrong with values that are each good alone. Looks at the fields that this stage has."""
    values = parameters.model_dump()
    found = []
    for smaller, larger in (
        ("score_min", "score_max"),
        ("prompt_min_words", "prompt_max_words"),
        ("sft_min_learning_rate", "sft_learning_rate"),
        ("dpo_min_learning_rate", "dpo_learning_rate"),
    ):
        if larger in values and values[smaller] > values[larger]:
            found.append(f"{smaller} = {values[smaller]} is above {larger} = {values[larger]}")
    for micro, batch in (("sft_micro_batch_size", "sft_batch_size"), ("dpo_micro_batch_size", "dpo_batch_size")):
        if batch in values and values[batch] % min(values[micro], values[batch]):
            found.append(f"{batch} = {values[batch]} is not a multiple of {micro} = {values[micro]}")
    if values.get("score_max") is not None and values["score_min"] == values["score_max"]:
        found.append(f"score_min and score_max are both {values['score_min']}: such a scale tells nothing apart")
    for votes in ("judge_votes", "eval_judge_votes"):
        if values.get("judge_temperature") == 0 and values.get(votes, 1) > 1:
            found.append(f"judge_temperature = 0 makes all {votes} equal; set {votes} to 1 or a temperature above 0")
    if "max_pairs" in values and values["max_pairs"] > values.get("responses_per_prompt", math.inf) // 2:
        found.append(
            f"max_pairs = {values['max_pairs']} needs {2 * values['max_pairs']} responses to a prompt, "
            f"responses_per_prompt = {values['responses_per_prompt']} gives fewer"
        )
    if "min_margin" in values and values["min_margin"] >= (
        span := values.get("score_max", math.inf) - values.get("score_min", 0)
    ):
        found.append(f"min_margin = {values['min_margin']:g} lets no pair be: scores differ by {span} at most")
    found += _folders(values)
    if values.get("shard"):
        number, count = map(int, values["shard"].split("/"))
        if number >= count:
            found.append(
                f"shard = {values['shard']}: of {count} shards the first is 0/{count}, the last {count - 1}/{count}"
            )
    branch = values["branch"]
    if ".." in branch or "//" in branch or branch.endswith(("/", ".", ".lock")):
        found.append(f"branch = {branch!r} is no name for a branch: no '..' or '//', no '/', '.' or '.lock' at its end")
    if values.get("prompt_pattern"):
        try:
            re.compile(values["prompt_pattern"])
        except (re.error, OverflowError, RecursionError) as error:
            found.append(f"prompt_pattern is no regular expression: {error}")
    return found


def _folders(values: dict[str, Any]) -> list[str]:
    """What is wrong with the folders and files that a stage writes to outside the data repository."""
    found = []
    repository = None
    for name in ("data_repo", "cache_dir", "work_dir", "commit_file", "stop_file"):
        if not values[name] or (name == "data_repo" and "://" in values[name]):
            continue
        try:
            path = Path(values[name]).expanduser().resolve()
            exists, is_dir = path.exists(), path.is_dir()
        except (OSError, RuntimeError, ValueError) as error:  # a link to itself, ~nobody, a zero byte
            found.append(f"{name} {values[name]!r} is no path: {error}")
            continue
        if name == "data_repo":
            repository = path
        elif repository and path.is_relative_to(repository):
            found.append(
                f"{name} {values[name]} is inside the data repository {values['data_repo']}, which would commit it; "
                "choose a place outside it"
            )
        elif file := next((parent for parent in path.parents if parent.exists() and not parent.is_dir()), None):
            found.append(f"{name} {values[name]}: {file} is no folder")
        elif name.endswith("_dir") and exists and not is_dir:
            found.append(f"{name} {values[name]} is a file; expected a folder")
        elif name.endswith("_file") and is_dir:
            found.append(f"{name} {values[name]} is a folder; expected a file")
    if values["commit_file"] and values["commit_file"] == values["stop_file"]:
        found.append(f"commit_file and stop_file are both {values['stop_file']}; give each a file of its own")
    return found


def nearest(name: str) -> str:
    """A hint for a misspelled parameter name."""
    close = difflib.get_close_matches(name, Plan.model_fields, n=1)
    return f"; did you mean {close[0]}?" if close else "; docs/parameters.md lists all"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (--help lists the flags)")


def _read_flags(model: type[Run], doc: str, argv: list[str], problems: list[str]) -> tuple[dict[str, str], str | None]:
    parser = _Parser(
        description=doc,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--parameter_file", metavar="FILE", default=None, help="YAML file of parameters (presets/).")
    for name, field in model.model_fields.items():
        is_flag = field.annotation is bool
        parser.add_argument(
            f"--{name}",
            metavar=type_name(field),
            help=f"{' '.join((field.description or '').split())} (default: {shown(field.default)})".replace("%", "%%"),
            **({"nargs": "?", "const": "true"} if is_flag else {}),  # type: ignore[arg-type]
        )
    known, unknown = parser.parse_known_args(argv)
    for i, word in enumerate(unknown):
        name = word.removeprefix("--").split("=")[0]
        if word.startswith("--") and name in Plan.model_fields:
            owners = ", ".join(stage for stage, other in STAGES.items() if name in other.model_fields)
            problems.append(f"--{name} is no parameter of this stage, but of {owners}")
        elif word.startswith("--"):
            problems.append(f"unknown parameter --{name}{nearest(name)}")
        elif i == 0 or not unknown[i - 1].startswith("--"):
            problems.append(f"unexpected word {word!r} on the command line")
    given = vars(known)  # of a flag that is given twice the last one counts, so that scripts' flags can be overridden
    file = given.pop("parameter_file")
    return given, file


def _read_environment(text: str, problems: list[str]) -> list[tuple[str, Any]]:
    if not text:
        return []
    try:
        entries = json.loads(text)
        if not isinstance(entries, list):
            raise TypeError(f"a {type(entries).__name__}")
        return [(str(entry["name"]), entry.get("value")) for entry in entries]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        problems.append(f'{ENVIRONMENT} must be a JSON list of {{"name": ..., "value": ...}}: {error!r}')
        return []


def _read_file(path: str, problems: list[str]) -> list[tuple[str, Any]]:
    """Every scalar comes back as the text that stands there, so that it is read as the flag would be: `branch: no`,
    `revision: 1234567` and `seed: 010` are no boolean, number or octal."""
    import yaml

    try:
        text = Path(path).read_text(encoding="utf-8")
        node = yaml.compose(text, yaml.BaseLoader)
        content = yaml.load(text, yaml.BaseLoader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        problems.append(f"parameter file {path} cannot be read: {error}")
        return []
    if content is None:
        return []
    if not isinstance(content, dict):
        problems.append(f"parameter file {path} holds a {type(content).__name__}; expected lines of `name: value`")
        return []
    names = [str(name.value) for name, _ in node.value] if node else []
    for name in sorted({name for name in names if names.count(name) > 1}):
        problems.append(f"parameter file {path} gives {name[:200]} more than once; keep one")
    return [(name, None if value == "~" else value) for name, value in content.items()]


def _short(value: Any) -> str:
    """A value as it is shown in a message: YAML's aliases can make one that is too large to be printed."""
    text = repr(value) if isinstance(value, str) else reprlib.repr(value)
    return text if len(text) <= 300 else text[:300] + " ..."


def _read_value(value: Any, field: Any) -> Any:
    """A value of any source as pydantic is to see it. JSON's true is the text `true`, as in a file: it would be 1
    for a number. What is shown as `none` can be given so."""
    if isinstance(value, bool):
        return shown(value)
    if value in ("", "null") or (value == shown(None) and field.default is None):
        return None
    if isinstance(value, str) and value.startswith("[") and type_name(field) == "JSON":
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def type_name(field: Any) -> str:
    """A field's type as a person would write it: INT, FLOAT, TEXT, `lora|full`."""
    text = str(field.annotation)
    if "Literal" in text:
        return "|".join(re.findall(r"'([^']+)'", text))
    for word, kind in (("bool", "true|false"), ("int", "INT"), ("float", "FLOAT"), ("list", "JSON")):
        if word in text:
            return kind
    return "TEXT"


def shown(value: Any) -> str:
    """A default as it would be typed."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value) if isinstance(value, list) else str(value)


def as_environment(parameters: Run, names: Sequence[str]) -> str:
    """The value of SELF_REWARD_PARAMETERS that hands `names` on to other stages."""
    return json.dumps([{"name": name, "value": getattr(parameters, name)} for name in names], ensure_ascii=False)


def markdown() -> str:
    """docs/parameters.md."""
    lines = [
        "# Parameters",
        "",
        "Generated from self_reward/parameters.py by `make docs`. A name is the flag (`--judge_votes 3`), the key in",
        "a parameter file and the Argo parameter. Fields marked with * do not affect what a stage writes.",
        "",
        "| parameter | type | default | bounds | stages | meaning |",
        "|---|---|---|---|---|---|",
    ]
    models: list[type[Run]] = [*list(STAGES.values())[1:], Plan]  # what is plan's alone comes last
    for name in dict.fromkeys(name for model in models for name in model.model_fields):
        field = Plan.model_fields[name]
        stages = [stage for stage, model in STAGES.items() if name in model.model_fields and stage != "plan"]
        everywhere = len(stages) == len(STAGES) - 1
        bounds = ", ".join(
            f"{sign} {getattr(bound, attribute)}"
            for bound in field.metadata
            for attribute, sign in (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<"), ("pattern", "matches"))
            if getattr(bound, attribute, None) is not None
        )
        mark = "" if affects_output(Plan, name) else " \\*"
        where = "all" if everywhere else ", ".join(stages) or "plan"
        meaning = " ".join((field.description or "").split())
        row = [f"`{name}`{mark}", type_name(field), f"`{shown(field.default)}`", bounds, where, meaning]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(markdown())
