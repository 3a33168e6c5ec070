"""Every file of the data repository, once: its path, its rows, and which stage writes it and which read it.

Pure: works on the list of files of a commit and on the contents of its small JSON files. `{k}` is the iteration. No
other module of the library sees the parameters of a stage; here they decide which files the stage reads.

The policy of iteration k is `M{k}/sft` where that iteration has SFT, else `M{k-1}/dpo` (`base` in iteration 0). A
checkpoint that is an adapter names its parent, so a checkpoint is a chain: a base model plus adapters in order.
"""

import json
import re
import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from self_reward import texts
from self_reward.errors import UserError
from self_reward.parameters.stages import (
    Common,
    Dpo,
    Evaluate,
    Export,
    GenPreferences,
    GenPrompts,
    GenResponses,
    GenScores,
    ModelStage,
    Plan,
    Sft,
)
from self_reward.rows import Example, HeldOutPrompt, Preference, Prompt, Ranked, Response, Row, Score

TRAIN = "M{k}/train/ift+eft.jsonl"
TRAIN_OLD = "M{k}/train/ift_eft.jsonl"  # the reproduction's name
SEEDS = "M{k}/train/ift.jsonl"
EVAL_PROMPTS = "M0/eval/prompts.jsonl"
EVAL_EFT = "M0/eval/eft.jsonl"
SFT = "M{k}/models/sft/final_checkpoint"
PROMPTS = "M{k}/generated/prompts.jsonl"
RESPONSES = "M{k}/generated/responses.jsonl"
SCORES = "M{k}/generated/scores.jsonl"
PREFERENCES = "M{k}/generated/preferences.jsonl"
DPO = "M{k}/models/dpo/final_checkpoint"
EVAL_OF_SFT = "M{k}/eval/sft.json"
EVAL_OF_DPO = "M{k}/eval/dpo.json"
MERGED = "M{k}/models/dpo/merged"


@dataclass(frozen=True)
class Artifact:
    """A file or folder of the data repository."""

    path: str
    written_by: str  # a stage, or "user"
    meaning: str
    rows: type[Row] | None = None


ARTIFACTS: dict[str, Artifact] = {
    "train": Artifact(TRAIN, "user", "Training data of SFT; `ift_eft.jsonl` in the reproduction.", Example),
    "seeds": Artifact(SEEDS, "user", "Instructions that new prompts are modelled on.", Example),
    "eval_prompts": Artifact(EVAL_PROMPTS, "user", "Held-out prompts, which evaluation answers.", HeldOutPrompt),
    "eval_eft": Artifact(EVAL_EFT, "user", "Held-out ranked responses, which evaluation has judged.", Ranked),
    "sft": Artifact(SFT, "00_sft", "The checkpoint after SFT: an adapter, or all weights."),
    "prompts": Artifact(PROMPTS, "01_gen_prompts", "New prompts.", Prompt),
    "responses": Artifact(RESPONSES, "02_gen_responses", "The policy's responses to them.", Response),
    "scores": Artifact(SCORES, "03_gen_scores", "The responses with the judge's scores.", Score),
    "preferences": Artifact(PREFERENCES, "04_gen_preferences", "Pairs for DPO.", Preference),
    "dpo": Artifact(DPO, "05_dpo", "The checkpoint after DPO, with which the next iteration starts."),
    "eval_of_sft": Artifact(EVAL_OF_SFT, "06_evaluate", "Measurements of the checkpoint after SFT (iteration 0 only)."),
    "eval_of_dpo": Artifact(EVAL_OF_DPO, "06_evaluate", "Measurements of the checkpoint after DPO."),
    "merged": Artifact(MERGED, "07_export", "The model after the last iteration, merged, ready to be served."),
}


def written_paths(k: int) -> dict[str, str]:
    """The files and folders that stages write in iteration k, each with the stage."""
    return {
        artifact.path.format(k=k): artifact.written_by
        for artifact in ARTIFACTS.values()
        if artifact.written_by != "user"
    }


@dataclass(frozen=True)
class Inputs:
    """What a stage needs from the data repository, and what it will write to it."""

    paths: dict[str, str]  # input name -> repository path of a file or folder
    outputs: dict[str, str]  # output name -> repository path of a file or folder
    chains: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Checkpoints by name ("policy", "M0/dpo", "base"), each as the checkpoints to load in order, oldest first; the
    files of checkpoint C are the input "checkpoint:C". A chain whose first checkpoint is an adapter begins with
    "base"."""
    recorded_base: str | None = None  # the resolved id of the base model, where a checkpoint's metadata has it
    nothing_to_do: str = ""  # why the stage has no work in this iteration

    @property
    def needs_base(self) -> bool:
        return any(chain[0] == "base" for chain in self.chains.values())


def has_sft(iteration: int, sft: str, files: Collection[str]) -> bool:
    """Whether iteration `iteration` begins with SFT (`sft` is the parameter: auto, always, never)."""
    return sft == "always" or (sft == "auto" and train_path(iteration, files) is not None)


def train_path(iteration: int, files: Collection[str]) -> str | None:
    """The SFT data of an iteration, under its name or the reproduction's; if both exist, ift+eft wins."""
    for template in (TRAIN, TRAIN_OLD):
        if (path := template.format(k=iteration)) in files:
            return path
    return None


def start_name(iteration: int) -> str:
    """The checkpoint that iteration k starts from (the paper's M_t)."""
    return "base" if iteration == 0 else f"M{iteration - 1}/dpo"


def policy_name(iteration: int, sft: str, files: Collection[str]) -> str:
    """The checkpoint that writes, answers, judges, and from which DPO starts in iteration k."""
    return f"M{iteration}/sft" if has_sft(iteration, sft, files) else start_name(iteration)


def checkpoint_path(name: str) -> str:
    """The folder of a checkpoint: M0/sft -> M0/models/sft/final_checkpoint."""
    model, _, kind = name.partition("/")
    return f"{model}/models/{kind}/final_checkpoint"


def chain(
    name: str, files: Collection[str], small: Mapping[str, bytes], model: str = "BASE_MODEL", data_repo: str = "DIR"
) -> tuple[tuple[str, ...], str | None]:
    """The checkpoints to load for `name`, oldest first ("base" first when it starts from the base model), and the
    base model's id where it is recorded.

    An adapter without our metadata (the reproduction's) is taken to sit on the base model. Raises UserError for
    metadata that cannot be read and for a checkpoint that does not exist, with the command that makes it from the base
    model `model` in `data_repo`.
    """
    links: list[str] = []
    base = None
    current: str | None = name
    while current is not None and current != "base":
        folder = checkpoint_path(current)
        if not any(path.startswith(folder + "/") for path in files):
            raise UserError(_no_checkpoint(current, files, model, data_repo))
        if current in links:
            raise UserError(f"checkpoint {current} is its own parent in {folder}/self_reward.json; train it again")
        links.insert(0, current)
        metadata = _metadata(f"{folder}/self_reward.json", small)
        base = metadata.get("base_model") or base
        if metadata.get("finetune", "lora" if f"{folder}/adapter_config.json" in files else "full") == "full":
            return tuple(links), base
        current = metadata.get("parent") or "base"
    return ("base", *links), base


def _metadata(path: str, small: Mapping[str, bytes]) -> dict[str, Any]:
    """How a checkpoint was made: finetune (lora, full), parent, base_model; {} for one that we did not make."""
    try:
        metadata = json.loads(small.get(path, b"{}"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); remove this checkpoint's folder and make it again") from None
    if not isinstance(metadata, dict) or any(
        not isinstance(metadata.get(name), str | None) for name in ("finetune", "parent", "base_model")
    ):
        raise UserError(
            f"{path}: expected a JSON object with the texts finetune, parent and base_model, found "
            f"{json.dumps(metadata)[:200]}; remove this checkpoint's folder and make it again"
        )
    return metadata


def _no_checkpoint(name: str, files: Collection[str], model: str, data_repo: str) -> str:
    wanted = re.fullmatch(r"M(\d+)/(sft|dpo)", name)
    if not wanted:
        return f"{name!r} is not the name of a checkpoint; expected base, or a name such as M0/sft or M0/dpo"
    existing = sorted({p.split("/models/")[0] + "/" + p.split("/")[2] for p in files if "/final_checkpoint/" in p})
    k = int(wanted[1])
    first = next((i + 1 for i in reversed(range(k)) if f"M{i}/dpo" in existing), 0)
    return (
        f"checkpoint {name} does not exist; the data repository has {', '.join(existing) or 'none'}. "
        f"Make it with ./self-reward.sh stages {shlex.quote(model)} M{first} --iterations {k - first + 1} "
        f"--data_repo {shlex.quote(data_repo)} and the parameters of this run"
    )


def inputs(stage: str, parameters: Common, files: Collection[str], small: Mapping[str, bytes]) -> Inputs:
    """What `stage` reads and writes with these parameters, given the files of the data repository.

    Raises UserError with everything that is missing, and the command that makes it.
    """
    k = parameters.iteration
    needs = _Needs(parameters, k, files, small)
    match stage, parameters:
        case "00_sft", Sft() as p:
            if not has_sft(k, p.sft, files):
                return Inputs({}, {}, nothing_to_do=f"M{k} has no SFT; its policy is {start_name(k)}")
            needs.training_data()
            needs.held_out_data()
            needs.text("rubric", p.rubric)
            needs.text("chat_template", p.chat_template)
            needs.checkpoint("start", start_name(k))
            return needs.inputs("sft")
        case "01_gen_prompts", GenPrompts() as p:
            needs.seeds(k)
            needs.held_out_data()
            for earlier in range(k):
                if (path := PROMPTS.format(k=earlier)) in files:
                    needs.paths[f"prompts:M{earlier}"] = path
            needs.text("prompt_template", p.prompt_template)
            own = p.prompt_model == "policy"
            needs.checkpoint("policy", policy_name(k, p.sft, files) if own else p.prompt_model)
            return needs.inputs("prompts")
        case "02_gen_responses", GenResponses() as p:
            needs.generated("prompts")
            needs.checkpoint("policy", policy_name(k, p.sft, files))
            return needs.inputs("responses")
        case "03_gen_scores", GenScores() as p:
            needs.generated("responses")
            needs.text("rubric", p.rubric)
            needs.checkpoint("policy", policy_name(k, p.sft, files))
            return needs.inputs("scores")
        case "04_gen_preferences", GenPreferences():
            needs.generated("scores")
            return needs.inputs("preferences")
        case "05_dpo", Dpo() as p:
            needs.generated("preferences")
            if p.eft_replay > 0:
                needs.judging_examples(k)
                needs.held_out_data()
                needs.text("rubric", p.rubric)
            needs.checkpoint("policy", policy_name(k, p.sft, files))
            return needs.inputs("dpo")
        case "06_evaluate", Evaluate() as p:
            needs.held_out_data()
            if not needs.paths and (train := train_path(0, files)) is not None:
                needs.paths["train"] = train
            if not needs.paths:
                return Inputs({}, {}, nothing_to_do=f"no held-out data: neither {EVAL_PROMPTS} nor {EVAL_EFT} exists")
            also_sft = k == 0 and has_sft(0, p.sft, files)
            if also_sft:
                needs.checkpoint("M0/sft", "M0/sft")
            needs.checkpoint(f"M{k}/dpo", f"M{k}/dpo")
            needs.text("rubric", p.rubric)
            return needs.inputs("eval_of_sft", "eval_of_dpo") if also_sft else needs.inputs("eval_of_dpo")
        case "07_export", Export() as p:
            if not p.export_merged:
                return Inputs({}, {}, nothing_to_do="export_merged is false")
            needs.checkpoint(f"M{k}/dpo", f"M{k}/dpo")
            return needs.inputs("merged")
    raise ValueError(f"{stage} does not take {type(parameters).__name__}")


def checkpoint_inputs(name: str, p: ModelStage, files: Collection[str], small: Mapping[str, bytes]) -> Inputs:
    """The files of one checkpoint and of all that it stands on."""
    needs = _Needs(p, p.iteration, files, small)
    needs.checkpoint(name, name)
    return needs.inputs()


def run_inputs(p: Plan, files: Collection[str], small: Mapping[str, bytes]) -> tuple[Inputs, list[str]]:
    """The user's files that the iterations from `start_iteration` on will read (train:M0, seeds:M0, eval_prompts,
    rubric ...), and what the user must still provide before they can begin, all of it."""
    start, files = p.start_iteration, set(files)
    needs = _Needs(p, start, files, small)
    needs.checkpoint("start", start_name(start))
    if start == 0 and p.sft != "never" and train_path(0, files) is None:
        needs.problems.append(
            f"{TRAIN.format(k=0)} is not in the data repository{_similar('M0/train', files)}; it holds the SFT data, "
            "one JSON object per line: prompt, response, source (ift or eft). For a model that can already follow "
            "instructions and judge, set sft: never"
        )
    for k in range(start, start + p.iterations):
        train = train_path(k, files)
        if train and (has_sft(k, p.sft, files) or p.eft_replay > 0):
            needs.paths[f"train:M{k}"] = train
        elif train is None and p.sft == "always" and k > 0:
            needs.problems.append(
                f"sft is always, but {TRAIN.format(k=k)} is not in the data repository{_similar(f'M{k}/train', files)}"
            )
        if k == start or SEEDS.format(k=k) in files:
            needs.seeds(k)
            if seeds := needs.paths.pop("seeds", None):
                needs.paths[f"seeds:M{k}"] = seeds
    needs.held_out_data()
    if p.eft_replay > 0:
        needs.judging_examples(start)
        if replay := needs.paths.pop("train", None):
            needs.paths.setdefault(f"train:M{start}", replay)
    needs.text("rubric", p.rubric)
    needs.text("chat_template", p.chat_template)
    needs.text("prompt_template", p.prompt_template)
    if p.prompt_model not in ("policy", "base", policy_name(start, p.sft, files)):
        needs.checkpoint("prompt_model", p.prompt_model)
    needs.base()
    return Inputs(needs.paths, {}, needs.chains, needs.recorded_base), needs.problems


def _similar(folder: str, files: Collection[str]) -> str:
    """What else is in a folder in which a file is missing."""
    others = sorted(path for path in files if path.startswith(folder + "/"))
    return f" ({folder} has {', '.join(others[:5])}{' ...' if len(others) > 5 else ''})" if others else ""


class _Needs:
    """Collects the inputs of one stage, and every problem on the way."""

    def __init__(self, parameters: Common, k: int, files: Collection[str], small: Mapping[str, bytes]):
        self.k, self.files, self.small = k, files, small
        self.data_repo = parameters.data_repo
        self.base_model = parameters.base_model if isinstance(parameters, ModelStage) else None
        self.paths: dict[str, str] = {}
        self.chains: dict[str, tuple[str, ...]] = {}
        self.recorded_base: str | None = None
        self.problems: list[str] = []

    def inputs(self, *outputs: str) -> Inputs:
        self.base()
        if self.problems:
            raise UserError(self.problems)
        paths = {name: ARTIFACTS[name].path.format(k=self.k) for name in outputs}
        return Inputs(self.paths, paths, self.chains, self.recorded_base)

    def base(self) -> None:
        """The base model, where a chain begins with it."""
        if any(chain[0] == "base" for chain in self.chains.values()):
            base = self.base_model
            if base is None and (self.recorded_base is None or self.recorded_base.startswith(("path:", "oxen:"))):
                self.problems.append("base_model is not set; give --base_model (a hub id, a folder, or oxen:<path>)")
            elif base is not None and base.startswith("oxen:"):
                folder = base.removeprefix("oxen:").strip("/")
                if any(path.startswith(folder + "/") for path in self.files):
                    self.paths["base"] = folder
                else:
                    models = sorted({path.rpartition("/")[0] for path in self.files if path.endswith("/config.json")})
                    self.problems.append(
                        f"base_model {base}: expected oxen:<path>; no folder {folder!r} in the data repository; "
                        f"folders with a config.json: {', '.join(models) or 'none'}"
                    )

    def checkpoint(self, role: str, name: str) -> None:
        try:
            names: tuple[str, ...] = ("base",)
            base = None
            if name != "base":
                names, base = chain(name, self.files, self.small, self.base_model or "BASE_MODEL", self.data_repo)
        except UserError as error:  # two roles may want the same checkpoint
            self.problems += [problem for problem in error.problems if problem not in self.problems]
            return
        self.chains[role] = names
        self.recorded_base = self.recorded_base or base
        for link in names:
            if link != "base":
                self.paths[f"checkpoint:{link}"] = checkpoint_path(link)

    def training_data(self) -> None:
        train = train_path(self.k, self.files)
        if train is None:
            names = f"{TRAIN.format(k=self.k)} nor {TRAIN_OLD.format(k=self.k)}"
            raise UserError(f"sft is always, but neither {names} is in the data repository")
        self.paths["train"] = train

    def generated(self, name: str) -> None:
        path, stage = ARTIFACTS[name].path.format(k=self.k), ARTIFACTS[name].written_by
        if path in self.files:
            self.paths[name] = path
        else:
            self.problems.append(
                f"{path} is not in the data repository; make it with stages/{stage}.py --iteration {self.k}"
            )

    def text(self, name: str, value: str) -> None:
        """A built-in name needs no file; anything else is a path in the data repository."""
        if value in self.files:
            self.paths[name] = value
        elif value not in (builtin := (["auto"] if name == "chat_template" else []) + texts.names(name)):
            self.problems.append(
                f"{name} = {value}: no such file in the data repository, nor built in ({', '.join(builtin)} is)"
            )

    def held_out_data(self) -> None:
        for name, path in (("eval_prompts", EVAL_PROMPTS), ("eval_eft", EVAL_EFT)):
            if path in self.files:
                self.paths[name] = path

    def seeds(self, k: int) -> None:
        """Seed prompts: ift.jsonl of this iteration or the last one that has it, else the IFT rows of ift+eft."""
        for i in range(k, -1, -1):
            if (path := SEEDS.format(k=i)) in self.files:
                self.paths["seeds"] = path
                return
        for i in range(k, -1, -1):
            if (train := train_path(i, self.files)) is not None:
                self.paths["seeds"] = train
                return
        self.problems.append(
            f"{SEEDS.format(k=k)} is not in the data repository, nor is that of an earlier iteration; it holds the "
            "prompts that new ones are modelled on, one JSON object per line: prompt, response"
        )

    def judging_examples(self, k: int) -> None:
        for i in range(k, -1, -1):
            if (train := train_path(i, self.files)) is not None:
                self.paths["train"] = train
                return
        self.problems.append(
            f"eft_replay > 0 needs judging examples: {TRAIN.format(k=0)} is not in the data repository"
        )
