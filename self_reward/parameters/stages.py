"""Every parameter of every stage: one class per stage, made of groups of settings, flat to the outside.

The namespace is flat: a name is the flag (`--judge_votes 3`), the key in a parameter file and the Argo parameter, and
means one thing in all stages. A group's fields get the group's prefix in front: `judging.temperature` is
`judge_temperature` (flat.py translates).
"""

from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field

from self_reward.parameters import settings
from self_reward.parameters.settings import Fields, Settings, neutral

# Set per step, never for a whole run.
BY_STEP = ("iteration", "revision", "commit_file", "result_file", "stop_file", "shard", "merge", "sft_file")
# Set by argo/templates, or of no use there.
BY_TEMPLATE = ("cache_dir", "work_dir", "in_cluster", "lock_timeout")


def group(kind: type[Settings], prefix: str = "") -> Any:
    """The settings `kind` inside a stage's parameters; each field of it is the flat parameter `prefix` + name."""
    return Field(default_factory=kind, json_schema_extra={"prefix": prefix})


class Repository(Fields):
    """Where the data is."""

    data_repo: str = neutral("data", min_length=1)
    """Data repository: a folder (a plain folder with M0/train/*.jsonl becomes a local Oxen repository), or a server's
    address: oxen://HOST/NAMESPACE/NAME (https) or oxen+http://HOST:PORT/NAMESPACE/NAME."""
    branch: str = neutral("main", pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$")
    """Branch of the data repository that the run reads and commits to."""
    revision: str | None = neutral(None)
    """Commit to read the inputs from; default: the branch's head."""
    cache_dir: str = neutral("~/.cache/self-reward", min_length=1)
    """Folder for base models and merged checkpoints; may be shared by runs."""
    work_dir: str | None = neutral(None)
    """Folder for partial results, from which an interrupted stage resumes; default: cache_dir/work."""
    lock_timeout: float = neutral(600.0, ge=0)
    """Seconds to wait while another process holds the local data repository."""
    store_timeout: float = neutral(1800.0, gt=0)
    """Seconds that one Oxen operation may take. Operations on a server are retried until then if that may help."""

    @property
    def cache(self) -> Path:
        """`cache_dir`, with ~ resolved."""
        return Path(self.cache_dir).expanduser()


class Common(Repository):
    """What every stage takes."""

    iteration: int = Field(0, ge=0)
    """Iteration k: turns model M{k} into M{k+1}; its files live under M{k}/."""
    seed: int = Field(0, ge=0, le=2**31 - 1)
    """Seed of sampling, shuffling and training."""
    force: bool = neutral(False)
    """Run the stage even if its result already exists."""
    commit_file: str | None = neutral(None)
    """File that receives the id of the commit that the next step reads: it holds the stage's result."""
    result_file: str | None = neutral(None)
    """File that receives the id of the commit that made the stage's result: commit_file's, or an earlier one if the
    result already existed and the stage is skipped."""
    stop_file: str | None = neutral(None)
    """File that receives the reason when a stop rule fires, and is empty otherwise."""


class Shards(Fields):
    """How several processes share a stage's work."""

    shard: str | None = neutral(None, pattern=r"^(0|[1-9]\d*)/[1-9]\d*$")
    """Which of n parts this process does, as i/n with i from 0. The part is committed to a separate branch on the data
    repository's server; the same stage with merge then joins all n in one commit."""
    shards: int = neutral(1, ge=1, le=64)
    """Parts into which responses and scores are divided in a cluster, one pod each; with merge: how many parts to
    join."""
    merge: bool = neutral(False)
    """Join the shards of this stage into its one commit, and remove their branches. Needs shards, their number."""


class ModelStage(Common):
    """A stage that loads a model."""

    base_model: str | None = neutral(None)  # what it resolves to is part of the key instead
    """M0: a Hugging Face hub id (optionally id@revision), a folder, or oxen:<path in the data repository>."""
    sft: Literal["auto", "always", "never"] = "auto"
    """Whether an iteration begins with SFT; auto: if M{k}/train has data; never: the start model is the policy."""
    loading: settings.Loading = group(settings.Loading)
    cache_keep: int = neutral(3, ge=1)
    """Merged checkpoints that are kept in cache_dir; the oldest are removed first."""


class SamplingStage(ModelStage):
    """A stage that generates text."""

    engine: settings.Engine = group(settings.Engine)


class Rubric(Fields):
    """What the judge is asked."""

    rubric: str = Field("additive", min_length=1)
    """The judge's rubric: `additive` (the paper's five points) or a path in the data repository to a text file that
    holds {prompt} and {response} once each."""


class Generated(Fields):
    """How files that an earlier stage wrote are read."""

    max_bad_rows: float = neutral(0.01, ge=0, lt=1)
    """Share of rows of a generated file that may be unusable: they are left out, counted and shown. Above it the stage
    ends with an error."""


class HeldOut(Fields):
    """What is kept out of training."""

    eval_fraction: float = Field(0.05, ge=0, lt=1)
    """Share of prompts held out of training if M0/eval is missing, chosen by a hash of the prompt."""


class Sft(ModelStage, Rubric, HeldOut):
    """00_sft"""

    chat_template: str = "auto"
    """Chat template, stored with the tokenizer at SFT: auto (the tokenizer's own, else plain), plain, or a path in the
    data repository."""
    sft_training: settings.SftTraining = group(settings.SftTraining, "sft_")
    lora: settings.Lora = group(settings.Lora, "lora_")
    hardware: settings.Hardware = group(settings.Hardware)


class GenPrompts(SamplingStage, HeldOut, Generated):
    """01_gen_prompts"""

    prompt_model: str = "policy"
    """Which model writes new prompts: policy, or a checkpoint such as base, M0/sft or M0/dpo (the paper: a fixed
    model)."""
    prompt_template: str = "few_shot"
    """Text that asks for a new prompt: few_shot, or a path in the data repository to a text file with {examples}."""
    writing: settings.Writing = group(settings.Writing)
    prompt_sampling: settings.PromptSampling = group(settings.PromptSampling, "prompt_")
    prompt_rules: settings.PromptRules = group(settings.PromptRules, "prompt_")


class GenResponses(SamplingStage, Generated, Shards):
    """02_gen_responses"""

    responses_per_prompt: int = Field(4, ge=2)
    """Responses to each prompt. A single one makes no pair."""
    response_temperature: float = Field(0.7, gt=0)
    """Sampling temperature of responses."""
    answers: settings.Answers = group(settings.Answers, "response_")


class GenScores(SamplingStage, Rubric, Generated, Shards):
    """03_gen_scores"""

    judge_votes: int = Field(3, ge=1)
    """Judgements of each response; their mean is its score."""
    min_parse_rate: float = neutral(0.5, ge=0, le=1)
    """Stop rule: share of judgements that must be readable."""
    scale: settings.Scale = group(settings.Scale, "score_")
    judging: settings.Judging = group(settings.Judging, "judge_")


class GenPreferences(Common, Generated):
    """04_gen_preferences"""

    pair_rules: settings.PairRules = group(settings.PairRules)
    min_pairs: int = neutral(1, ge=1)
    """Stop rule: pairs that an iteration must have."""


class Dpo(ModelStage, Rubric, HeldOut, Generated):
    """05_dpo"""

    eft_replay: float = Field(0.0, ge=0, lt=1)
    """Judging examples mixed in as pairs (the right judgement against one with another score), as a share of all."""
    scale: settings.Scale = group(settings.Scale, "score_")
    preference_loss: settings.PreferenceLoss = group(settings.PreferenceLoss)
    dpo_training: settings.DpoTraining = group(settings.DpoTraining, "dpo_")
    lora: settings.Lora = group(settings.Lora, "lora_")
    hardware: settings.Hardware = group(settings.Hardware)


class Evaluate(SamplingStage, Rubric, HeldOut):
    """06_evaluate"""

    eval_prompts: int = Field(1000, ge=1)
    """Most held-out prompts that are answered."""
    eval_judge_groups: int = Field(500, ge=1)
    """Most held-out prompts with ranked responses that are judged."""
    eval_temperature: float = Field(0.7, ge=0)
    """Sampling temperature of answers to held-out prompts; 0: greedy."""
    eval_judge_votes: int = Field(1, ge=1)
    """Judgements of each held-out response."""
    verifier: str | None = None
    """module:function that is given (prompt, response) and returns a number or a dict of them, for measuring only."""
    answers: settings.Answers = group(settings.Answers, "response_")
    scale: settings.Scale = group(settings.Scale, "score_")
    judging: settings.Judging = group(settings.Judging, "judge_")


class Export(ModelStage):
    """07_export"""

    export_merged: bool = True
    """After the last iteration, commit the merged model, ready to be served."""


class Plan(GenPrompts, GenResponses, GenScores, GenPreferences, Dpo, Evaluate, Export, Sft):
    """plan"""

    iterations: int = neutral(1, ge=1, le=90)
    """Iterations to run. Above 90 an Argo workflow would reach its recursion limit; continue with start_iteration."""
    start_iteration: int = neutral(0, ge=0)
    """First iteration to run."""
    create_repo: bool = neutral(False)
    """Create data_repo on its server, private, if it does not exist."""
    seed_data: str | None = neutral(None)
    """Address or folder of a data repository from which M0/train (and M0/eval) is copied if data_repo has no M0/train;
    one that was made with the community reproduction is taken as it is."""
    check_nodes: bool = neutral(True)
    """In a cluster: refuse a run if no node is large enough for its pods. Switch it off if an autoscaler makes nodes on
    demand."""
    in_cluster: bool = neutral(False)
    """Set by the plan step of the Argo workflow: look at the cluster instead of this machine."""
    sft_file: str | None = neutral(None)
    """File that receives the iterations that begin with SFT, as a JSON list."""


STAGES: dict[str, type[Common]] = {
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

P = TypeVar("P", bound=Repository)
S = TypeVar("S", bound=Common)
