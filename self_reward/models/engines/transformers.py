"""The transformers sampler: batched decoding with a cache, reproducible to the token.

Its own decoding loop does three things that `model.generate` does not: it prefills a prompt once for its n samples,
drops finished rows from the batch, and gives each sample its own random stream (together about twice as fast on a small
model). It ignores the folder's generation_config.json (B10: a forced end token, a penalty or top_k = 50 would leak in).
"""

import hashlib
import logging
from collections.abc import Iterator, Set
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.utils import logging as transformers_logging

from self_reward.errors import TryAgain, UserError
from self_reward.method.asking import Sample
from self_reward.models import base_model
from self_reward.models.model import Model
from self_reward.parameters.settings import Engine, Sampling

COMPACT = 0.75  # share of unfinished rows at which the batch is compacted

log = logging.getLogger(__name__)


class TransformersSampler:
    engine = "transformers"

    def __init__(self, model: Model, engine: Engine):
        transformers_logging.disable_progress_bar()
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.tokenizer = model.tokenizer
        dtype = model.loading.dtype
        if dtype == "auto":
            dtype = "bfloat16" if self.device.type == "cuda" else "float32"
        try:
            self.model = base_model.load(
                model.folder, dtype=getattr(torch, dtype), trust_remote_code=model.loading.trust_remote_code
            )
            self.model.to(self.device).eval()  # type: ignore[arg-type]
        except torch.OutOfMemoryError as error:
            raise TryAgain(f"{model.folder}: the model does not fit into the GPU's free memory: {error}") from error
        longest = getattr(self.model.config, "max_position_embeddings", None)
        if engine.max_model_len and longest and engine.max_model_len > longest:
            raise UserError(
                f"max_model_len is {engine.max_model_len}; the model in {model.folder} allows at most {longest}"
            )
        self.max_model_len: int = engine.max_model_len or longest or 2**31
        self.batch_size = engine.sampler_batch_size

    def sample(
        self,
        prompts: list[list[int]],
        n: int,
        sampling: Sampling,
        stop_token_ids: list[int],
        seed: int,
        done: Set[int] = frozenset(),
    ) -> Iterator[tuple[int, list[Sample]]]:
        """Yield (index of the prompt, its n samples) for every prompt that is not in `done`, longest prompts first.

        Chunks of `batch_size` prompts are cut from all prompts, whatever is done already; a partly done chunk is
        computed again. Each prompt has a random stream seeded by (seed, its index). So an interrupted run gives exactly
        the samples of an undisturbed one. Temperature 0 is greedy: n equal samples. A prompt that leaves no room in the
        model gives n empty samples with finish_reason "length".
        """
        for chunk in self.chunks(prompts):
            if not all(index in done for index in chunk):
                for index, samples in self._sample_chunk(prompts, chunk, n, sampling, stop_token_ids, seed):
                    if index not in done:
                        yield index, samples

    def chunks(self, prompts: list[list[int]]) -> list[list[int]]:
        """Indices of the prompts that are sampled together: dividing work at these borders costs nothing."""
        return chunks_by_length(prompts, self.batch_size)

    def _sample_chunk(
        self,
        prompts: list[list[int]],
        chunk: list[int],
        n: int,
        sampling: Sampling,
        stop_token_ids: list[int],
        seed: int,
    ) -> list[tuple[int, list[Sample]]]:
        room = {i: min(sampling.max_tokens, self.max_model_len - len(prompts[i])) for i in chunk}
        fits = [i for i in chunk if room[i] > 0]
        result = [(i, [Sample("", [], "length")] * n) for i in chunk if room[i] <= 0]
        greedy = sampling.temperature == 0
        rows = 1 if greedy else n  # greedy samples of one prompt are the same
        waiting = [fits] if fits else []
        while waiting:
            part = waiting.pop(0)
            try:
                answers = decode(
                    self.model,
                    [prompts[i] for i in part],
                    rows,
                    sampling,
                    [room[i] for i in part],
                    stop_token_ids,
                    None if greedy else uniforms(seed, part, rows, sampling.max_tokens),
                )
            except torch.OutOfMemoryError as error:
                waiting = self._halve(part, waiting, error)
                continue
            texts = self.tokenizer.batch_decode(
                [ids for ids, _ in answers], skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
            samples = [Sample(text, ids, reason) for text, (ids, reason) in zip(texts, answers, strict=True)]
            for k, i in enumerate(part):
                own = samples[k * rows : (k + 1) * rows]
                result.append((i, own * n if greedy else own))
        return result

    def _halve(self, part: list[int], waiting: list[list[int]], error: Exception) -> list[list[int]]:
        if len(part) == 1:
            raise TryAgain(
                f"the GPU's memory does not hold the samples of a single prompt: {error}; lower max_tokens or the "
                "number of samples per prompt, or use a larger GPU"
            ) from error
        log.warning("out of GPU memory with %d prompts in a batch; continuing with half batches", len(part))
        torch.cuda.empty_cache()
        half = len(part) // 2
        return [part[:half], part[half:], *waiting]

    @torch.inference_mode()
    def choice_logprobs(self, prompts: list[list[int]], choices: list[int]) -> list[list[float]]:
        """Log-probabilities (nats) of `choices` as the next token of each prompt, renormalised over the choices."""
        result: list[list[float]] = [[] for _ in prompts]
        waiting = chunks_by_length(prompts, self.batch_size)
        while waiting:
            part = waiting.pop(0)
            try:
                ids, mask = left_pad([prompts[i] for i in part], self.device)
                logits = self.model(
                    ids, attention_mask=mask, position_ids=positions(mask), use_cache=False, logits_to_keep=1
                ).logits[:, -1]
            except torch.OutOfMemoryError as error:
                waiting = self._halve(part, waiting, error)
                continue
            for i, row in zip(part, logits[:, choices].float().log_softmax(-1).tolist(), strict=True):
                result[i] = row
        return result

    def close(self) -> None:
        """Give the memory back."""
        del self.model
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def chunks_by_length(prompts: list[list[int]], batch_size: int) -> list[list[int]]:
    """Indices of `prompts`, longest first (so memory runs out at once or never), in chunks of `batch_size`."""
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def uniforms(seed: int, indices: list[int], n: int, max_tokens: int) -> torch.Tensor:
    """One uniform number per token, [len(indices) * n, max_tokens]: drawn on the CPU, per prompt, so that they depend
    neither on the device nor on how batches are cut."""
    rows = []
    for index in indices:
        digest = hashlib.sha256(f"{seed}:{index}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))
        rows.append(torch.rand(n, max_tokens, generator=generator))
    return torch.cat(rows)


def left_pad(prompts: list[list[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, [prompts, longest]; the id under the mask does not matter and is 0."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    return ids, mask


def positions(mask: torch.Tensor) -> torch.Tensor:
    return (mask.cumsum(-1) - 1).clamp(min=0)


def pick(logits: torch.Tensor, sampling: Sampling, uniform: torch.Tensor | None) -> torch.Tensor:
    """The next token of each row of `logits` [rows, vocabulary]; greedy at temperature 0.

    Inverse of the cumulative distribution at `uniform` [rows]. top_p keeps the smallest set of most likely tokens whose
    mass reaches top_p (at least one), after the temperature, as vLLM and generate() do; there is no top_k.
    """
    if sampling.temperature == 0 or uniform is None:
        return logits.argmax(-1)
    probabilities, tokens = (logits.float() / sampling.temperature).softmax(-1), None
    if sampling.top_p < 1:
        probabilities, tokens = probabilities.sort(-1, descending=True)
    cumulative = probabilities.cumsum(-1)
    kept = cumulative[:, -1:]
    if tokens is not None:
        # the first position where the mass reaches top_p is the last one kept
        last = (cumulative < sampling.top_p).sum(-1, keepdim=True).clamp(max=logits.shape[-1] - 1)
        kept = cumulative.gather(-1, last)
    # rounding must not lift the draw to `kept` itself: the next position has no probability
    draw = torch.minimum(uniform[:, None] * kept, torch.nextafter(kept, torch.zeros_like(kept)))
    position = torch.searchsorted(cumulative, draw, right=True)
    return (position if tokens is None else tokens.gather(-1, position)).squeeze(-1)


class RoomyLayer(DynamicLayer):
    """A layer of the cache with spare room at its end: DynamicLayer copies the whole cache for every token, which took
    28 % of a small model's time on a CPU."""

    SPARE = 64  # tokens
    room: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if self.room is None or self.room[0].shape[-2] < end:
            rows, heads, _, width = key_states.shape
            self.room = (
                key_states.new_empty(rows, heads, end + self.SPARE, width),
                value_states.new_empty(rows, heads, end + self.SPARE, value_states.shape[-1]),
            )
            if start:
                self.room[0][:, :, :start] = self.keys  # type: ignore[assignment]
                self.room[1][:, :, :start] = self.values  # type: ignore[assignment]
        self.room[0][:, :, start:end] = key_states
        self.room[1][:, :, start:end] = value_states
        self.keys, self.values = self.room[0][:, :, :end], self.room[1][:, :, :end]
        return self.keys, self.values

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self.room = None

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        super().batch_select_indices(indices)
        self.room = None


@torch.inference_mode()
def decode(
    model: Any,
    prompts: list[list[int]],
    n: int,
    sampling: Sampling,
    max_tokens: list[int],
    stop_token_ids: list[int],
    uniforms: torch.Tensor | None,
) -> list[tuple[list[int], str]]:
    """n answers per prompt, in order: (token ids without the stop token, "stop" or "length"). `max_tokens` is each
    prompt's own limit (at least 1), `uniforms` [prompts * n, longest limit] drive the sampling."""
    device = model.device
    ids, mask = left_pad(prompts, device)
    cache = DynamicCache(config=model.config)
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    out = model(
        ids, attention_mask=mask, position_ids=positions(mask), past_key_values=cache, use_cache=True, logits_to_keep=1
    )
    logits = out.logits[:, -1]
    if n > 1:  # one prefill for the n samples of a prompt
        cache.batch_repeat_interleave(n)
        logits, mask = logits.repeat_interleave(n, 0), mask.repeat_interleave(n, 0)
    stops = torch.tensor(stop_token_ids, dtype=torch.long, device=device)
    limits = torch.tensor(max_tokens, device=device).repeat_interleave(n)
    draws = None if uniforms is None else uniforms.to(device)
    rows = torch.arange(len(limits), device=device)  # which sample each row of the batch is
    written = torch.zeros(len(limits), max(max_tokens), dtype=torch.long, device=device)
    lengths, stopped = limits.clone(), torch.zeros_like(limits, dtype=torch.bool)
    alive = torch.ones_like(stopped)  # of the rows in the batch
    position = mask.sum(-1, keepdim=True)
    for step in range(max(max_tokens)):
        token = pick(logits, sampling, None if draws is None else draws[rows, step])
        written[rows, step] = token
        ends = alive & torch.isin(token, stops)
        stopped[rows] |= ends
        lengths[rows[ends]] = step
        alive = alive & ~ends & (limits[rows] > step + 1)
        count = int(alive.sum())
        if count == 0:
            break
        if count <= COMPACT * len(rows):  # finished rows stay until enough of them can be dropped at once
            keep = alive.nonzero().squeeze(-1)
            cache.batch_select_indices(keep)
            rows, mask, position, token, alive = rows[keep], mask[keep], position[keep], token[keep], alive[keep]
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], -1)
        options = {"attention_mask": mask, "position_ids": position, "past_key_values": cache}
        out = model(token[:, None], **options, use_cache=True, logits_to_keep=1)
        logits = out.logits[:, -1]
        position = position + alive[:, None]  # a finished row must not run past the model's last position
    return [
        (ids[:length], "stop" if stop else "length")
        for ids, length, stop in zip(written.tolist(), lengths.tolist(), stopped.tolist(), strict=True)
    ]
