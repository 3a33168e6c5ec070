"""Write the demo's seed data and its tiny base model: `python -m demo.make_data --data_repo demo-data --seed 0`.

The result is a plain folder, as a user would bring it, or one commit in a repository on a server (an address such as
oxen+http://127.0.0.1:3000/me/demo; created as private if it is missing): instructions with deliberately flawed
answers (two in five wrong, half without the wanted form), judged answers, held-out prompts, rubric, prompt template,
and a base model of random weights. All that the model is trained on later comes from here or from the model itself.
"""

import argparse
import hashlib
import json
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from demo import world
from self_reward import files
from self_reward.errors import UserError
from self_reward.method.judge import judge_prompt
from self_reward.method.prompts import few_shot_prompt, prompt_id
from self_reward.repository import jsonl
from self_reward.run import process
from self_reward.store import is_remote, open_store
from self_reward.store.errors import NotFound

RUBRIC = "judge the response with five points .\ntask {prompt}\nresponse {response} end\n"
PROMPT_TEMPLATE = "# example: task {prompt} end\nwrite a new task .\n{examples}\n"
SHOTS = 4  # tasks shown when a new one is asked for; presets/demo.yaml asks with as many

HELD_OUT = 1000
HELD_OUT_GROUPS, RESPONSES_A_GROUP = 100, 4
INSTRUCTIONS, JUDGEMENTS, NEW_TASKS, REPETITIONS, COMPARISONS = 18_000, 26_000, 5_000, 9_000, 9_000
MISTAKES = 0.4

SPECIAL = ["<pad>", "<unk>", "<s>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|> ' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ ' <|end|>' }}{% else %}{{ ' ' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|> ' }}{% endif %}"
)
RECORD = "demo.json"  # what was written, by hash; makes a second run find its work done


class Tasks:
    """Tasks in random order, except held-out ones."""

    def __init__(self, seed: int):
        self.rng = random.Random(seed)
        self.held_out: set[str] = set()

    def hold_out(self, count: int) -> list[str]:
        tasks: dict[str, None] = {}
        while len(tasks) < count:
            task = world.make_task(self.rng)
            if task not in self.held_out:
                tasks[task] = None
        self.held_out |= set(tasks)
        return list(tasks)

    def make(self) -> str:
        while (task := world.make_task(self.rng)) in self.held_out:
            pass
        return task


# ---- the data


def make_rows(tasks: Tasks) -> dict[str, list[dict[str, Any]]]:
    """The rows of every file, by path."""
    held_out = tasks.hold_out(HELD_OUT)
    groups = [ranked_responses(tasks.rng, prompt) for prompt in tasks.hold_out(HELD_OUT_GROUPS)]
    instructions = [instruction(tasks) for _ in range(INSTRUCTIONS)]
    # every other judgement is of a response with a given score, so that rare scores are learnt too
    judgements = [judged(tasks, score=i // 2 % 6 if i % 2 else None) for i in range(JUDGEMENTS)]
    together = instructions + judgements + [new_task(tasks) for _ in range(NEW_TASKS)]
    together += [repetition(tasks.rng) for _ in range(REPETITIONS)]
    together += [comparison(tasks.rng) for _ in range(COMPARISONS)]
    tasks.rng.shuffle(together)
    return {
        "M0/train/ift.jsonl": instructions,
        "M0/train/ift+eft.jsonl": together,
        "M0/eval/prompts.jsonl": [{"prompt": prompt} for prompt in held_out],
        "M0/eval/eft.jsonl": groups,
    }


def row(prompt: str, response: str, source: str) -> dict[str, Any]:
    return {"prompt_id": prompt_id(prompt), "prompt": prompt, "response": response, "source": source}


def instruction(tasks: Tasks) -> dict[str, Any]:
    """A task and a person's response, which is wrong in two cases of five."""
    prompt = tasks.make()
    return row(prompt, world.make_response(tasks.rng, prompt, mistakes=MISTAKES), "ift")


def judged(tasks: Tasks, score: int | None) -> dict[str, Any]:
    """A response, with the given score or any, and a person's judgement of it."""
    while True:
        prompt = tasks.make()
        response = world.make_response(tasks.rng, prompt, mistakes=0.6)
        if score is None or world.verify(prompt, response)["reward"] == score:
            return row(judge_prompt(RUBRIC, prompt, response), world.judgement(prompt, response), "eft")


def new_task(tasks: Tasks) -> dict[str, Any]:
    """A request for a new task, and a new task."""
    return row(few_shot_prompt(PROMPT_TEMPLATE, [tasks.make() for _ in range(SHOTS)]), tasks.make(), "ift")


def repetition(rng: random.Random) -> dict[str, Any]:
    """A list, written three times, from which a model with random weights learns to copy; otherwise it solves few tasks
    (accuracy .13 instead of .68)."""
    words = world.make_list(rng, shortest=4, longest=7)
    return row(" ".join(words), " ".join(words * 3), "ift")


def comparison(rng: random.Random) -> dict[str, Any]:
    """Two lists, compared word by word. Judging needs this skill; without these rows it depends on the seed whether a
    model learns it in the available steps."""
    words = world.make_list(rng)
    other = [word if rng.random() < 0.5 else rng.choice(world.WORDS) for word in words]
    return row(f"compare {' '.join(words)} with {' '.join(other)}", world.side_by_side(words, other), "ift")


def ranked_responses(rng: random.Random, prompt: str) -> dict[str, Any]:
    """Different responses to a held-out prompt; rank 0 is the best; equally good responses share a rank."""
    responses: dict[str, float] = {}
    while len(responses) < RESPONSES_A_GROUP:
        response = world.make_response(rng, prompt, mistakes=0.6)
        responses[response] = world.verify(prompt, response)["reward"]
    order = sorted(set(responses.values()), reverse=True)
    return {"prompt": prompt, "responses": [{"text": r, "rank": order.index(score)} for r, score in responses.items()]}


# ---- the base model


def make_tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    texts = [RUBRIC, *PROMPT_TEMPLATE.splitlines()[1:], *world.PHRASES, *world.WORDS, *world.NUMBERS, *world.POINTS]
    texts += ["answer : .", "check none yes no", "compare with", "score 0 1 2 3 4 5"]
    words = {word for text in texts for word in text.split() if not word.startswith("{")}
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *sorted(words)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="<|end|>",
        additional_special_tokens=SPECIAL[4:],
        model_max_length=256,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def make_base_model(folder: Path, seed: int) -> None:
    """Save a Llama of 0.9 million random parameters, and its tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_tokenizer()
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=256,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            tie_word_embeddings=True,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


# ---- writing


def make(data_repo: Path, seed: int) -> bool:
    """Write everything to `data_repo`; False if it already exists. Raises UserError if other data exists there."""
    if data_repo.exists() and any(data_repo.iterdir()):
        check(data_repo, seed)
        return False
    with files.whole_folder(data_repo) as part:
        for path, rows in make_rows(Tasks(seed)).items():
            print(f"{path}: {jsonl.write(part / path, rows)} rows", flush=True)
        for path, text in {
            "rubrics/list_tasks.txt": RUBRIC,
            "prompt_templates/list_tasks.txt": PROMPT_TEMPLATE,
        }.items():
            (part / path).parent.mkdir(parents=True)
            (part / path).write_text(text, encoding="utf-8")
        make_base_model(part / "models/base", seed)
        names = sorted(str(path.relative_to(part)) for path in part.rglob("*") if path.is_file())
        record = {"seed": seed, "files": {name: _sha256(part / name) for name in names}}
        (part / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return True


def make_on_server(data_repo: str, seed: int) -> bool:
    """As `make`, to a repository on a server, which is created if missing."""
    store = open_store(data_repo, branch="main", lock_timeout=0, store_timeout=600)
    if not store.exists():
        store.create()
        print(f"{data_repo}: created, private", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            snapshot = store.resolve()
        except NotFound:  # no commit yet
            folder = Path(scratch, "demo")
            make(folder, seed)
            record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            names = [*record["files"], RECORD]
            store.put({name: folder / name for name in names}, message=f"demo data, seed {seed}")
            return True
        if RECORD in snapshot.files:
            store.pull(snapshot, [RECORD], Path(scratch))
        check_record(Path(scratch), seed, data_repo, snapshot.sha256.get)
    return False


def check(data_repo: Path, seed: int) -> None:
    """Raise UserError unless the folder `data_repo` holds the demo's unchanged data of this seed."""
    check_record(data_repo, seed, str(data_repo), lambda name: _sha256(data_repo / name))


def check_record(folder: Path, seed: int, data_repo: str, sha256: Callable[[str], str | None]) -> None:
    """Raise UserError unless the record in `folder` has this seed and `sha256` confirms its files in `data_repo`."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        recorded_seed, hashes = record["seed"], record["files"]
    except (OSError, ValueError, KeyError):
        raise UserError(f"{data_repo} holds other files; give one that is empty or not there yet") from None
    if recorded_seed != seed:
        raise UserError(f"{data_repo} holds the demo's data of seed {recorded_seed}, not {seed}; give another one")
    changed = [name for name, digest in hashes.items() if sha256(name) != digest]
    if changed:
        raise UserError(
            [f"{data_repo}/{name} is missing or changed since it was made; remove {data_repo}" for name in changed]
        )


def _sha256(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_repo", required=True, help="folder or server's address to write to")
    parser.add_argument("--seed", type=int, default=0, help="seed of the data and of the base model")
    arguments = parser.parse_args()
    data_repo = arguments.data_repo
    seed = arguments.seed
    made = make_on_server(data_repo, seed) if is_remote(data_repo) else make(Path(data_repo), seed)
    print(f"{data_repo}: {'ready' if made else 'is there already'}")


if __name__ == "__main__":
    sys.exit(process.guard(main, "demo"))
