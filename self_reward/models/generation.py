"""Generation that survives a kill: each finished prompt is appended to a partial file, and a restart goes on there."""

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from self_reward.models.engines import Sample

if TYPE_CHECKING:
    from self_reward.models.engines import Sampler

FSYNC_SECONDS = 5.0

log = logging.getLogger(__name__)


def generate(
    sampler: "Sampler",
    prompts: list[list[int]],
    *,
    n: int,
    temperature: float,
    top_p: float,
    max_tokens: int,
    stop_token_ids: list[int],
    seed: int,
    partial: Path,
    name: str = "samples",
    shard: tuple[int, int] = (0, 1),
    progress: Callable[[int, int], None] | None = None,
) -> list[list[Sample]]:
    """The n samples of each prompt, in the order of `prompts`.

    Of `shard` (i, m) every m-th of the sampler's chunks, from the i-th on, is sampled; the prompts of the others have
    no samples. So m processes divide the work evenly, long prompts and short, and with the transformers sampler each
    sample is that of an undivided run.

    Finished prompts are kept in `partial`/`name`.jsonl, one line each, appended as they come; the first line says what
    was asked for, and a file of other work is started anew. A stage that generates twice gives two names. `progress`
    gets (prompts done, prompts of this shard). With the transformers sampler an interrupted run returns exactly what an
    undisturbed one does.
    """
    request = {
        "engine": sampler.engine,
        "n": n,
        "temperature": temperature,
        "top_p": top_p,
        "max_tokens": max_tokens,
        "max_model_len": sampler.max_model_len,
        "stop_token_ids": stop_token_ids,
        "seed": seed,
        "prompts": hashlib.sha256(json.dumps(prompts).encode()).hexdigest(),
    }
    partial.mkdir(parents=True, exist_ok=True)
    path = partial / f"{name}.jsonl"
    header = json.dumps({"request": request}).encode() + b"\n"
    samples = read_partial(path, header)
    own = set(range(len(prompts)))
    if shard != (0, 1):
        chunks = sampler.chunks(prompts)
        own = {index for chunk in chunks[shard[0] :: shard[1]] for index in chunk}
        if not own:
            log.warning("shard %d/%d has nothing to do: %d prompts make %d chunks", *shard, len(prompts), len(chunks))
    if samples:
        log.info("going on in %s/%s after %d of %d prompts", partial.name, path.name, len(samples), len(own))
    with open(path, "ab") as file:
        if file.tell() == 0:
            file.write(header)
        if progress:
            progress(len(samples), len(own))
        synced = time.monotonic()
        for index, answers in sampler.sample(
            prompts,
            n=n,
            temperature=temperature,
            top_p=top_p,
            max_tokens=max_tokens,
            stop_token_ids=stop_token_ids,
            seed=seed,
            done=set(range(len(prompts))) - own | set(samples),
        ):
            samples[index] = answers
            row = {"index": index, "samples": [[s.text, s.token_ids, s.finish_reason] for s in answers]}
            file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
            file.flush()
            if time.monotonic() - synced > FSYNC_SECONDS:
                os.fsync(file.fileno())
                synced = time.monotonic()
            if progress:
                progress(len(samples), len(own))
    return [samples[index] if index in own else [] for index in range(len(prompts))]


def read_partial(path: Path, header: bytes) -> dict[int, list[Sample]]:
    """The finished prompts of a partial file, by index. The file is cut after its last whole line, or emptied when it
    does not begin with `header`."""
    samples: dict[int, list[Sample]] = {}
    if not path.exists():
        return samples
    with open(path, "r+b") as file:
        whole = 0
        for number, line in enumerate(file):
            if number == 0 and line != header:
                break
            if not line.endswith(b"\n"):
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
