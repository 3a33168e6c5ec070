"""What stages load: a text that is built in or in the data repository, a model's folder, its tokenizer, its sampler."""

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from self_reward import texts
from self_reward.errors import UserError, all_of
from self_reward.repository import artifacts, jsonl
from self_reward.run.stage import Run

if TYPE_CHECKING:
    from self_reward.repository.examples import Example


def text(run: Run, name: str, value: str, check: Callable[[str], object] | None = None) -> str:
    """The text that parameter `name` names: a file of the data repository, else a built-in one (`auto` stays `auto`).
    `check` raises UserError for a text that cannot be used."""
    try:
        if run.has(name):
            found = run.input(name).read_text(encoding="utf-8")
        else:
            found = value if value == "auto" else texts.builtin(name, value)
    except UnicodeDecodeError as error:
        raise UserError(f"{name} {value}: not UTF-8 at byte {error.start}; save the file as UTF-8") from None
    try:
        if check:
            check(found)
    except UserError as error:
        raise UserError([f"{name} {value}: {problem}" for problem in error.problems]) from None
    return found


def rows(
    run: Run,
    parameters: Any,
    name: str,
    required: artifacts.Columns,
    check: jsonl.Check = artifacts.row_problem,
) -> Iterator[jsonl.Row]:
    """The good rows of the generated file `name`. Bad ones are left out, counted by reason in the run's counts and
    details, and shown; more than `max_bad_rows` of them end the stage when the file's end is reached."""
    bad = jsonl.Bad()
    path, repository_path = run.input(name), run.inputs.paths[name]
    yield from jsonl.read_generated(path, required, bad, max_bad_rows=parameters.max_bad_rows, check=check)
    if bad.reasons:
        bad.places = [place.replace(str(path), repository_path) for place in bad.places]
        run.log.warning("%s: %s; they are left out", repository_path, bad)
        run.counts["bad_rows"] = run.counts.get("bad_rows", 0) + bad.reasons.total()
        run.details.setdefault("bad_rows", {})[repository_path] = {
            "rows": bad.rows,
            "reasons": dict(bad.reasons),
            "first": bad.places,
        }


def chain(run: Run, parameters: Any, role: str) -> tuple[Path, list[Path]]:
    """The folders of the checkpoint in `role` (policy, start, M0/dpo ...): its base model and its adapters in order."""
    names = run.inputs.chains[role]
    folders = [run.input(f"checkpoint:{name}") for name in names if name != "base"]
    if names[0] != "base":
        return folders[0], folders[1:]
    return base_folder(run, parameters), folders


def base_folder(run: Run, parameters: Any) -> Path:
    """The folder of the base model, fetched into cache_dir or the hub's cache where it is not there."""
    from self_reward.models import base_model

    assert run.base_id is not None, "a chain that begins with the base has its id"
    resolved = base_model.Resolved(run.base_id, "hub", run.base_id)
    if run.has("base"):
        resolved = base_model.Resolved(run.base_id, "oxen", run.inputs.paths["base"])
    elif run.base_id.startswith("path:"):
        resolved = base_model.Resolved(run.base_id, "path", str(Path(parameters.base_model).expanduser()))
    return base_model.fetch(
        resolved,
        trust_remote_code=parameters.trust_remote_code,
        cache_dir=Path(parameters.cache_dir).expanduser(),
        pull=lambda path, to: shutil.copytree(run.input("base"), to, dirs_exist_ok=True),
    )


def model_folder(run: Run, parameters: Any, role: str) -> Path:
    """A plain Hugging Face folder of the checkpoint in `role`, its adapters merged."""
    from self_reward.models import checkpoints

    return checkpoints.materialise(
        *chain(run, parameters, role),
        cache_dir=Path(parameters.cache_dir).expanduser(),
        keep=parameters.cache_keep,
        trust_remote_code=parameters.trust_remote_code,
    )


def tokenizer(folder: Path, chat_template: str = "auto", trust_remote_code: bool = False) -> Any:
    """The tokenizer of a model's folder, with a chat template and a padding token."""
    from transformers import AutoTokenizer

    from self_reward.models import chat

    try:
        loaded = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # the tokenizers library raises bare ones
        raise UserError(
            f"no tokenizer can be loaded from the model's folder {folder}: {type(error).__name__}: {error}"
        ) from error
    loaded.chat_template = chat.choose_template(loaded, chat_template)
    if loaded.pad_token is None:
        loaded.pad_token = loaded.eos_token  # only ever masked
    return loaded


def sampler(parameters: Any, folder: Path, seed: int) -> Any:
    """The sampler of a stage with these parameters, over the model in `folder`. `seed`: vLLM's engine takes it here."""
    from self_reward.models import engines as samplers

    return samplers.load(
        parameters.sampler,
        folder,
        dtype=parameters.dtype,
        seed=seed,
        batch_size=parameters.sampler_batch_size,
        max_model_len=parameters.max_model_len,
        tensor_parallel_size=parameters.generate_gpus or 1,
        gpu_memory_utilization=parameters.gpu_memory_utilization,
        trust_remote_code=parameters.trust_remote_code,
    )


def held_out(run: Run, parameters: Any) -> tuple[set[str], float]:
    """What no training data may hold: the prompts of M0/eval, or else a share of all prompts, chosen by hash."""
    from self_reward.repository import held_out

    texts, ranked = held_out.read_files(
        run.input("eval_prompts") if run.has("eval_prompts") else None,
        run.input("eval_eft") if run.has("eval_eft") else None,
    )
    prompts = {*texts, *(prompt for prompt, _ in ranked)}
    return prompts, 0.0 if run.has("eval_prompts") or run.has("eval_eft") else parameters.eval_fraction


def rubric(run: Run, parameters: Any) -> str:
    """The rubric's text. Raises UserError where it does not hold {prompt} and {response} once each."""
    from self_reward.method import judge

    return text(run, "rubric", parameters.rubric, lambda found: judge.judge_prompt(found, "", ""))


def prompt_template(run: Run, parameters: Any) -> str:
    """The text that asks for new prompts. Raises UserError where it does not hold {examples} once."""
    from self_reward.method import prompts

    return text(
        run,
        "prompt_template",
        parameters.prompt_template,
        lambda found: prompts.few_shot_prompt(found, []),
    )


def training_examples(run: Run, parameters: Any, name: str = "train") -> "tuple[list[Example], dict[str, int]]":
    """The examples of M{k}/train that may be trained on, and how many of which kind there are. Raises UserError with
    the problems of the train file (the input `name`), the held-out files and the rubric together."""
    from self_reward.repository import examples, sft_data

    (prompts, fraction), found, asked = all_of(
        lambda: held_out(run, parameters),
        lambda: examples.read(run.input(name)),
        lambda: rubric(run, parameters),
    )
    return sft_data.select(found, rubric=asked, held_out=prompts, held_out_fraction=fraction, path=run.input(name))


def replay_pairs(run: Run, parameters: Any, count: int, name: str = "train") -> list[tuple[str, str, str]]:
    """`count` pairs of judging examples that may be trained on, for eft_replay. Raises UserError as
    `training_examples`, or where their scores make no pair."""
    from self_reward.method import preferences

    examples, _ = training_examples(run, parameters, name)
    eft = [(row.prompt, row.response) for row in examples if row.source == "eft"]
    low, high = parameters.score_min, parameters.score_max
    return preferences.replay_pairs(eft, count, random.Random(run.seed), low=low, high=high)


def seeds(run: Run, parameters: Any, name: str = "seeds") -> tuple[list[str], list[str], set[str]]:
    """(prompts to show as examples, all prompts of the seed data, held-out prompts). What is held out is not shown.
    Raises UserError with the problems of all these files together, or where no seed is left."""
    from self_reward.method import prompts
    from self_reward.repository import examples

    (held, fraction), rows = all_of(lambda: held_out(run, parameters), lambda: examples.read(run.input(name)))
    known = list(dict.fromkeys(row.prompt for row in rows if row.source != "eft"))
    shown = [prompt for prompt in known if prompt not in held and not prompts.held_out(prompt, fraction)]
    if not shown:
        raise UserError(
            f"{run.input(name)}: of {len(rows)} rows none is a prompt to show as an example ({len(known)} have another "
            f"source than eft, of which {len(known) - len(shown)} are held out); put more prompts there"
        )
    return shown, known, held


def check_data(run: Run, parameters: Any) -> None:
    """Read all of the user's files that a run will read; raises UserError with the problems of all of them."""
    steps: list[Callable[[], Any]] = [lambda: rubric(run, parameters), lambda: prompt_template(run, parameters)]
    for name in run.inputs.paths:
        if name.startswith("train:") and parameters.eft_replay > 0:
            steps.append(lambda name=name: replay_pairs(run, parameters, 1, name))  # type: ignore[misc]
        elif name.startswith("train:"):
            steps.append(lambda name=name: training_examples(run, parameters, name))  # type: ignore[misc]
        elif name.startswith("seeds:"):
            steps.append(lambda name=name: seeds(run, parameters, name))  # type: ignore[misc]
    steps.append(lambda: held_out(run, parameters))
    all_of(*steps)


def parent(run: Run, role: str) -> str | None:
    """The checkpoint that training in this stage starts from, as self_reward.json records it; None: the base model."""
    name = run.inputs.chains[role][-1]
    return None if name == "base" else name
