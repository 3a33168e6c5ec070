"""A model that answers: text in, samples out. Finished answers survive a kill, and the next try resumes after them."""

import hashlib
import json
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from self_reward.errors import UserError
from self_reward.method.asking import Sample
from self_reward.models import chat, engines
from self_reward.models.model import Job, Model
from self_reward.parameters.settings import Engine, Sampling
from self_reward.types import Tokenizer

if TYPE_CHECKING:
    from self_reward.models.engines import Sampler

FSYNC_SECONDS = 5.0

log = logging.getLogger(__name__)


class Policy:
    """method.asking.Policy over a sampler and its tokenizer. Finished prompts are kept in `job.folder`."""

    def __init__(self, sampler: "Sampler", tokenizer: Tokenizer, job: Job):
        self.sampler, self.tokenizer, self.job = sampler, tokenizer, job
        self.engine = sampler.engine

    def ask(
        self, texts: Sequence[str], sampling: Sampling, *, n: int = 1, part: str = "", seed_offset: int = 0
    ) -> list[list[Sample]]:
        """As the protocol. `part` is a folder below the job's, for a stage that asks several times; `seed_offset` is
        added to the job's seed, so that such a stage draws new random numbers."""
        job = replace(self.job, folder=self.job.folder / part, seed=self.job.seed + seed_offset)
        prompts = [chat.prompt_ids(self.tokenizer, text) for text in texts]
        return generate(self.sampler, prompts, n, sampling, chat.stop_token_ids(self.tokenizer), job)

    def choice_logprobs(self, begun: Sequence[tuple[str, str]], choices: Sequence[str]) -> list[list[float] | None]:
        """As the protocol. Raises UserError if the tokenizer does not distinguish the choices by one token."""
        by_tokens: dict[tuple[int, ...], list[int]] = {}
        prompts: dict[int, list[int]] = {}
        for i, (question, answer) in enumerate(begun):
            asked = chat.prompt_ids(self.tokenizer, question)
            before, tokens = next_tokens(self.tokenizer, answer, choices)
            if len(asked) + len(before) < self.sampler.max_model_len:
                by_tokens.setdefault(tokens, []).append(i)
                prompts[i] = asked + before
        result: list[list[float] | None] = [None] * len(begun)
        for tokens, indices in by_tokens.items():
            rows = self.sampler.choice_logprobs([prompts[i] for i in indices], list(tokens))
            for i, logprobs in zip(indices, rows, strict=True):
                result[i] = logprobs
        return result

    def close(self) -> None:
        """Give the memory back."""
        self.sampler.close()


def load(model: Model, engine: Engine, job: Job) -> Policy:
    """The policy over `model`. Raises as engines.load."""
    return Policy(engines.load(model, engine, seed=job.seed + job.shard[0]), model.tokenizer, job)


def next_tokens(tokenizer: Tokenizer, text: str, choices: Sequence[str]) -> tuple[list[int], tuple[int, ...]]:
    """Ids of `text`, and the id with which each of `choices` would continue it. Text and choice are tokenised together,
    since many tokenizers join a space and a digit. Raises UserError if the choices do not differ in one token."""
    written = [tokenizer(f"{text}{choice}", add_special_tokens=False)["input_ids"] for choice in choices]
    common = 0
    while all(len(ids) > common + 1 and ids[common] == written[0][common] for ids in written):
        common += 1
    tokens = tuple(ids[common] for ids in written)
    if len(set(tokens)) < len(tokens):
        raise UserError(
            "judge_forced_score: this tokenizer has no separate token for each score; set judge_forced_score: false"
        )
    return written[0][:common], tokens


def generate(
    sampler: "Sampler", prompts: list[list[int]], n: int, sampling: Sampling, stop_token_ids: list[int], job: Job
) -> list[list[Sample]]:
    """The n samples of each prompt, in the order of `prompts`.

    Shard (i, m) samples the sampler's chunks i, i+m, i+2m, ..., so that m processes share long and short prompts
    evenly; prompts of other shards get no samples. Finished prompts are appended to `job.folder`/samples.jsonl, one
    line each; its first line holds the request, and a file of another request is replaced. With the transformers
    sampler, a resumed or divided run returns exactly the samples of an undisturbed one.
    """
    request = {
        "engine": sampler.engine,
        "n": n,
        **{name: getattr(sampling, name) for name in Sampling.model_fields},  # not those of subclasses
        "max_model_len": sampler.max_model_len,
        "stop_token_ids": stop_token_ids,
        "seed": job.seed,
        "prompts": hashlib.sha256(json.dumps(prompts).encode()).hexdigest(),
    }
    job.folder.mkdir(parents=True, exist_ok=True)
    path = job.folder / "samples.jsonl"
    header = json.dumps({"request": request}).encode() + b"\n"
    samples = read_partial(path, header)
    own = set(range(len(prompts)))
    if job.shard != (0, 1):
        number, count = job.shard
        chunks = sampler.chunks(prompts)
        own = {index for chunk in chunks[number::count] for index in chunk}
        if not own:
            log.warning("shard %d/%d has no work: %d prompts make %d chunks", number, count, len(prompts), len(chunks))
    if samples:
        log.info("resuming %s/%s after %d of %d prompts", job.folder.name, path.name, len(samples), len(own))
    with open(path, "ab") as file:
        if file.tell() == 0:
            file.write(header)
        job.progress(len(samples), len(own), "")
        synced = time.monotonic()
        done = set(range(len(prompts))) - own | set(samples)
        for index, answers in sampler.sample(prompts, n, sampling, stop_token_ids, job.seed, done):
            samples[index] = answers
            row = {"index": index, "samples": [[s.text, s.token_ids, s.finish_reason] for s in answers]}
            file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
            file.flush()
            if time.monotonic() - synced > FSYNC_SECONDS:
                os.fsync(file.fileno())
                synced = time.monotonic()
            job.progress(len(samples), len(own), "")
    return [samples[index] if index in own else [] for index in range(len(prompts))]


def read_partial(path: Path, header: bytes) -> dict[int, list[Sample]]:
    """The finished prompts of a partial file, by index. Cuts the file after its last complete line, or empties it if it
    does not begin with `header`."""
    samples: dict[int, list[Sample]] = {}
    if not path.exists():
        return samples
    with open(path, "r+b") as file:
        whole = 0
        for number, line in enumerate(file):
            if (number == 0 and line != header) or not line.endswith(b"\n"):
                break
            if number > 0:
                try:
                    row = json.loads(line)
                    samples[row["index"]] = [Sample(*fields) for fields in row["samples"]]
                except (ValueError, KeyError, TypeError, RecursionError):  # zeros, after a crash of the machine
                    break
            whole += len(line)
        file.truncate(whole)
    return samples
