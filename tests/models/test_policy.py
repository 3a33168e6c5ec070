import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from self_reward.errors import UserError
from self_reward.method.asking import Sample
from self_reward.models import chat, policy
from self_reward.models.model import Job
from self_reward.models.policy import Policy
from tests.support.engines import load_engine, sampling
from tests.support.tiny import make_tokenizer

ROOT = Path(__file__).parents[2]
SAMPLING = sampling(temperature=0.7, top_p=0.9, max_tokens=20)
PROMPTS = [[2, 7 + i % 30, 8 + i % 11] * (1 + i % 4) for i in range(48)]

PROGRAM = """
import sys
from pathlib import Path
from tests.models import test_policy as t
t.generate(t.load_engine("transformers", Path(sys.argv[1]), batch_size=4), Path(sys.argv[2]), **t.LONG)
"""


def generate(sampler, folder, prompts=PROMPTS, *, n=2, sampling=SAMPLING, stops=(3,), **job):
    return policy.generate(sampler, prompts, n, sampling, list(stops), Job(folder, **{"seed": 1, **job}))


class Counting:
    """A sampler at the interface: answers at once, and remembers what it was asked to skip."""

    engine = "counting"
    max_model_len = 100

    def __init__(self):
        self.skipped: list[set[int]] = []

    def sample(self, prompts, n, sampling, stop_token_ids, seed, done):
        self.skipped.append(set(done))
        for index in reversed(range(len(prompts))):
            if index not in done:
                yield index, [Sample(f"{index} é\n", prompts[index], "stop")] * n


def test_shards_are_disjoint_and_together_the_undivided_run(tmp_path, tiny_model, caplog):
    """48 prompts in chunks of 4 over 5 shards: 12 chunks, so 3, 3, 2, 2, 2; and of 13 shards one has no work."""
    sampler = load_engine("transformers", tiny_model, batch_size=4)
    whole = generate(sampler, tmp_path / "whole")
    seen: list[tuple[int, int]] = []
    parts = [
        generate(
            sampler, tmp_path / str(i), shard=(i, 5), progress=lambda done, total, what: seen.append((done, total))
        )
        for i in range(5)
    ]
    assert [sum(map(bool, part)) for part in parts] == [12, 12, 8, 8, 8]
    assert {total for _, total in seen} == {12, 8} and seen[-1] == (8, 8)
    for index, expected in enumerate(whole):
        assert [part[index] for part in parts if part[index]] == [expected]
    assert not any(generate(sampler, tmp_path / "idle", shard=(12, 13)))
    assert "shard 12/13 has no work: 48 prompts make 12 chunks" in caplog.text


def test_order_text_and_progress(tmp_path):
    seen: list[tuple[int, int]] = []
    result = generate(Counting(), tmp_path, PROMPTS[:5], progress=lambda done, total, what: seen.append((done, total)))
    assert [answers[0].text for answers in result] == [f"{i} é\n" for i in range(5)]
    assert [answers[1].token_ids for answers in result] == PROMPTS[:5]
    assert seen == [(done, 5) for done in range(6)]


@pytest.mark.parametrize("cut", [1, 30, 200])
def test_incomplete_line_is_dropped_and_the_rest_kept(tmp_path, cut):
    whole = generate(Counting(), tmp_path)
    path = tmp_path / "samples.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    left = path.read_bytes().count(b"\n") - 1
    sampler = Counting()
    assert generate(sampler, tmp_path) == whole
    assert [len(done) for done in sampler.skipped] == [left]
    indices = [json.loads(line)["index"] for line in path.read_bytes().splitlines()[1:]]
    assert sorted(indices) == list(range(len(PROMPTS)))


def test_zeros_after_a_machine_crash_are_cut(tmp_path):
    whole = generate(Counting(), tmp_path)
    path = tmp_path / "samples.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:5]) + b"\0" * 40 + b"\n" + b"".join(lines[6:]))
    sampler = Counting()
    assert generate(sampler, tmp_path) == whole
    assert [len(done) for done in sampler.skipped] == [4]


@pytest.mark.parametrize(
    "change", [{"seed": 2}, {"n": 3}, {"sampling": SAMPLING.model_copy(update={"temperature": 0.8})}, {"stops": [4]}]
)
def test_partial_file_of_another_request_is_not_used(tmp_path, change):
    generate(Counting(), tmp_path)
    sampler = Counting()
    result = generate(sampler, tmp_path, **change)
    assert sampler.skipped == [set()]
    assert all(len(answers) == change.get("n", 2) for answers in result)


def test_partial_file_of_other_prompts_is_not_used(tmp_path):
    generate(Counting(), tmp_path)
    sampler = Counting()
    generate(sampler, tmp_path, [*PROMPTS[:-1], [9]])
    assert sampler.skipped == [set()]


def test_b18_the_partial_file_is_only_appended_to(tmp_path):
    path = tmp_path / "samples.jsonl"
    sizes, starts, files = [], [], set()

    def look(done: int, total: int, what: str) -> None:
        content = path.read_bytes()
        sizes.append(len(content))
        starts.append(content[: sizes[1] if len(sizes) > 1 else 0])
        files.add(path.stat().st_ino)

    generate(Counting(), tmp_path, [[7, 8]] * 50, progress=look)
    grown = [b - a for a, b in itertools.pairwise(sizes[1:])]
    assert len(grown) == 49 and max(grown) - min(grown) <= 4  # a row's own bytes and no more, the last as the first
    assert len(files) == 1 and len(set(starts[2:])) == 1


LONG = {"sampling": SAMPLING.model_copy(update={"max_tokens": 100}), "stops": []}


def test_killed_and_resumed_sampling_changes_nothing(tmp_path, tiny_model):
    sampler = load_engine("transformers", tiny_model, batch_size=4)
    undisturbed = generate(sampler, tmp_path / "undisturbed", **LONG)
    partial = tmp_path / "killed"
    path = partial / "samples.jsonl"
    child = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tiny_model), str(partial)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    try:
        deadline = time.monotonic() + 120
        while not (path.exists() and path.read_bytes().count(b"\n") > 5):
            assert child.poll() is None and time.monotonic() < deadline, "the child ended before it could be killed"
            time.sleep(0.005)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    done = path.read_bytes().count(b"\n") - 1
    assert 0 < done < len(PROMPTS)
    seen: list[int] = []
    again = generate(sampler, partial, **LONG, progress=lambda done, total, what: seen.append(done))
    assert seen[0] == done
    assert again == undisturbed


# ---- asking in texts


@pytest.fixture(scope="module")
def engine(tiny_model):
    return load_engine("transformers", tiny_model, batch_size=4)


NAMES = "ant bat cat dog eel fox goat hen".split()
TEXTS = [" ".join(NAMES[(i * j) % 8] for j in range(1 + i % 5)) for i in range(12)]


def test_policy_asks_with_chat_tokens_and_answers_in_order(tmp_path, engine):
    seen: list[tuple[int, int]] = []
    job = Job(tmp_path / "job", 5, lambda done, total, what: seen.append((done, total)))
    result = Policy(engine, engine.tokenizer, job).ask(TEXTS, SAMPLING, n=2)
    prompts = [chat.prompt_ids(engine.tokenizer, text) for text in TEXTS]
    stops = chat.stop_token_ids(engine.tokenizer)
    assert stops == [3]
    expected = generate(engine, tmp_path / "expected", prompts, stops=stops, seed=5)
    assert result == expected and len({samples[0].text for samples in result}) > 6
    assert seen == [(0, 12), *[(done, 12) for done in range(1, 13)]]
    assert (tmp_path / "job/samples.jsonl").read_bytes() == (tmp_path / "expected/samples.jsonl").read_bytes()


def test_parts_have_their_own_folder_and_seed_offset(tmp_path, engine):
    asked = Policy(engine, engine.tokenizer, Job(tmp_path, 5))
    first, again = (asked.ask(TEXTS, SAMPLING, part=part) for part in ("round-0", "answers"))
    assert first == again
    other = asked.ask(TEXTS, SAMPLING, part="round-1", seed_offset=1)
    assert other != first
    assert other == Policy(engine, engine.tokenizer, Job(tmp_path / "six", 6)).ask(TEXTS, SAMPLING)
    kept = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.jsonl")}
    assert kept == {f"{part}/samples.jsonl" for part in ("round-0", "answers", "round-1", "six")}


def test_policy_resumes_a_part_from_its_own_answers(tmp_path):
    tokenizer, job = make_tokenizer(), Job(tmp_path, 1)
    whole = Policy(Counting(), tokenizer, job).ask(TEXTS, SAMPLING, part="answers")
    path = tmp_path / "answers/samples.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:5]))
    sampler = Counting()
    resumed = Policy(sampler, tokenizer, job)
    assert resumed.ask(TEXTS, SAMPLING, part="answers") == whole
    assert resumed.ask(TEXTS, SAMPLING, part="judgements") == whole
    assert [len(done) for done in sampler.skipped] == [4, 0]


def test_policy_of_a_shard_answers_only_its_texts(tmp_path, engine):
    whole = Policy(engine, engine.tokenizer, Job(tmp_path, 5)).ask(TEXTS, SAMPLING, part="whole")
    parts = [
        Policy(engine, engine.tokenizer, Job(tmp_path / str(i), 5, shard=(i, 2))).ask(TEXTS, SAMPLING) for i in range(2)
    ]
    assert sorted(sum(map(bool, part)) for part in parts) == [4, 8]
    assert [first or second for first, second in zip(*parts, strict=True)] == whole
    assert not any(first and second for first, second in zip(*parts, strict=True))


def test_choice_logprobs_continue_the_given_answer(tmp_path, engine):
    """Against a forward pass by hand, at the position after `score :`."""
    import torch

    digits = list("012345")
    begun = [(text, f"{text} score : ") for text in TEXTS]
    result = Policy(engine, engine.tokenizer, Job(tmp_path, 0)).choice_logprobs(begun, digits)
    ids = engine.tokenizer.convert_tokens_to_ids(digits)
    for (question, answer), row in zip(begun, result, strict=True):
        asked = chat.prompt_ids(engine.tokenizer, question)
        asked += engine.tokenizer(answer, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            expected = engine.model(torch.tensor([asked])).logits[0, -1, ids].log_softmax(-1)
        assert row == pytest.approx(expected.tolist(), abs=1e-4)
        assert sum(map(math.exp, row)) == pytest.approx(1)


def test_choice_logprobs_are_none_at_the_models_length(tmp_path, engine):
    """256 tokens: <s>, <|user|>, question, <|assistant|>, answer, and the choice itself."""
    texts = [" ".join(["ant"] * count) for count in (251, 252, 253)]
    result = Policy(engine, engine.tokenizer, Job(tmp_path, 0)).choice_logprobs(
        [(text, "score ") for text in texts] + [("ant", "score ")], ["1", "2"]
    )
    assert [row is None for row in result] == [False, True, True, False]


def bpe(texts):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_choices_joined_with_a_space_are_distinguished():
    tokenizer = bpe([f"fine answer. Score: {digit}" for digit in range(6)] * 50)
    before, tokens = policy.next_tokens(tokenizer, "fine answer. Score: ", list("012345"))
    assert len(set(tokens)) == 6
    for digit, token in enumerate(tokens):
        assert tokenizer.decode([*before, token]) == f"fine answer. Score: {digit}"
    assert tokenizer.decode([tokens[0]]) == " 0"  # joined: asking for "0" alone would have been another token


def test_tokenizer_without_a_token_per_choice_is_refused(tmp_path):
    tokenizer = make_tokenizer(["score", ":"])
    with pytest.raises(UserError, match="judge_forced_score: this tokenizer has no separate token for each score"):
        policy.next_tokens(tokenizer, "score : ", list("012345"))
