"""The vLLM sampler: requests are fed continuously, so that the engine's batches never run empty.

The engine runs in this process (unless VLLM_ENABLE_V1_MULTIPROCESSING=1), so a kill leaves nothing behind; with
tensor_parallel_size above 1 its workers are child processes that end with this one. vLLM's batches depend on timing, so
a second run with the same `seed` gives other samples.
"""

import logging
import os
from collections.abc import Iterator, Set
from typing import Any

# before the import, at which vLLM reads them
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
# FlashInfer compiles its kernels for top-p at the first request with nvcc, which our images and most machines lack
os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")

import torch
from vllm import EngineArgs, LLMEngine, SamplingParams
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind

from self_reward.errors import TryAgain, UserError
from self_reward.method.asking import Sample
from self_reward.models.model import Model
from self_reward.parameters.settings import Engine, Sampling

log = logging.getLogger(__name__)


class VllmSampler:
    engine = "vllm"

    def __init__(self, model: Model, engine: Engine, *, seed: int):
        on_cpu = current_platform.is_cpu()
        if on_cpu:
            os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB; vLLM would take a share of all memory
            # binding costs 8/9 of the speed in a container
            os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        dtype = model.loading.dtype
        if dtype == "auto":  # vLLM's own "auto" turns float32 into bfloat16, even on a CPU
            dtype = "float32" if on_cpu else "bfloat16"
        self.tokenizer = model.tokenizer
        arguments = EngineArgs(
            model=str(model.folder),
            dtype=dtype,
            seed=seed,
            max_model_len=engine.max_model_len,  # type: ignore[arg-type]
            tensor_parallel_size=max(1, engine.generate_gpus),
            gpu_memory_utilization=engine.gpu_memory_utilization,
            trust_remote_code=model.loading.trust_remote_code,
            enforce_eager=on_cpu,
            enable_prefix_caching=True,
            generation_config="vllm",  # not the folder's: its penalties and end tokens would leak in (B10)
            skip_tokenizer_init=True,  # token ids in and out, as in the transformers sampler
            disable_log_stats=True,
            use_tqdm_on_load=False,
        )
        try:
            self.llm = LLMEngine.from_engine_args(arguments)
        except torch.OutOfMemoryError as error:
            raise TryAgain(f"{model.folder}: the model does not fit into the GPU's free memory: {error}") from error
        except ValueError as error:  # settings that cannot work, or too little memory for the cache
            raise UserError(f"vLLM cannot load {model.folder} with these settings: {error}") from error
        except Exception as error:  # vLLM gives no details when a worker ends
            if engine.generate_gpus > 1 and "initialization failed" in str(error):
                raise TryAgain(
                    f"{model.folder}: a process of vLLM's engine ended while it loaded the model: out of memory, or "
                    "killed; see the log"
                ) from error
            raise
        self.max_model_len: int = self.llm.vllm_config.model_config.max_model_len
        self.calls = 0

    def chunks(self, prompts: list[list[int]]) -> list[list[int]]:
        """Each prompt by itself: the engine fills its own batches."""
        return [[index] for index in range(len(prompts))]

    def sample(
        self,
        prompts: list[list[int]],
        n: int,
        sampling: Sampling,
        stop_token_ids: list[int],
        seed: int,
        done: Set[int] = frozenset(),
    ) -> Iterator[tuple[int, list[Sample]]]:
        """As TransformersSampler.sample, but each prompt is yielded when it is finished, and `seed` is not used: the
        engine was seeded when it was loaded, and a seed per request breaks chunked prefill on a CPU."""
        todo = []
        greedy = sampling.temperature == 0
        for index, prompt in enumerate(prompts):
            if index in done:
                continue
            room = self.max_model_len - len(prompt)
            if room <= 0:
                yield index, [Sample("", [], "length")] * n
                continue
            params = SamplingParams(
                n=1 if greedy else n,
                temperature=sampling.temperature,
                top_p=1.0 if greedy else sampling.top_p,
                max_tokens=min(sampling.max_tokens, room),
                stop_token_ids=stop_token_ids,
                ignore_eos=True,  # only the given stop tokens
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            todo.append((index, prompt, params))
        for index, outputs in self._run(todo, sequences=n):
            samples = [self._sample(output, stop_token_ids) for output in outputs]
            yield index, samples * n if greedy else samples

    def _sample(self, output: Any, stop_token_ids: list[int]) -> Sample:
        ids = list(output.token_ids)
        if output.finish_reason == "stop" and ids and ids[-1] in stop_token_ids:
            ids.pop()
        text = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return Sample(str(text), ids, output.finish_reason)

    def choice_logprobs(self, prompts: list[list[int]], choices: list[int]) -> list[list[float]]:
        """As TransformersSampler.choice_logprobs."""
        # vLLM's log-probabilities are over the whole vocabulary
        params = SamplingParams(
            max_tokens=1, temperature=0, logprob_token_ids=choices, detokenize=False, ignore_eos=True
        )
        result: list[list[float]] = [[] for _ in prompts]
        for index, outputs in self._run([(i, p, params) for i, p in enumerate(prompts)], sequences=1):
            logprobs = outputs[0].logprobs[0]
            result[index] = torch.tensor([logprobs[c].logprob for c in choices]).log_softmax(-1).tolist()
        return result

    def _run(
        self, todo: list[tuple[int, list[int], SamplingParams]], *, sequences: int
    ) -> Iterator[tuple[int, list[Any]]]:
        """Feed (index, prompt, parameters) to the engine; at most twice as many sequences wait or run as it can run."""
        window = max(1, 2 * self.llm.vllm_config.scheduler_config.max_num_seqs // sequences)
        self.calls += 1
        request_of: dict[str, int] = {}
        waiting = iter(todo)
        try:
            while True:
                while len(request_of) < window and (item := next(waiting, None)) is not None:
                    index, prompt, params = item
                    name = f"{self.calls}:{index}"
                    self.llm.add_request(name, {"prompt_token_ids": prompt}, params)
                    request_of[name] = index
                if not request_of:
                    return
                for output in self._step():
                    if output.finished:
                        yield request_of.pop(output.request_id), output.outputs  # type: ignore[misc]
        finally:
            if request_of:  # the caller left early
                self.llm.abort_request(list(request_of))

    def _step(self) -> list[Any]:
        try:
            return self.llm.step()
        except RuntimeError as error:  # vLLM reports a dead worker as "cancelled" or "Executor failed."
            core = getattr(self.llm.engine_core, "engine_core", None)  # if the engine is in this process
            if getattr(getattr(core, "model_executor", None), "is_failed", False):
                raise TryAgain(
                    "a process of vLLM's engine died: out of memory, or killed; run again to resume after the finished "
                    "prompts"
                ) from error
            raise

    def close(self) -> None:
        """Stop the engine and its processes, and free the memory."""
        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        self.llm.engine_core.shutdown()
        del self.llm
        cleanup_dist_env_and_memory()
