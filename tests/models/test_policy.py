import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from self_reward.models import engines as samplers
from self_reward.models.engines import Sample
from self_reward.models.generation import generate
from tests.support.tiny import make_tiny_model

SETTINGS = {"n": 2, "temperature": 0.7, "top_p": 0.9, "max_tokens": 20, "stop_token_ids": [3], "seed": 1}
PROMPTS = [[2, 7 + i % 30, 8 + i % 11] * (1 + i % 4) for i in range(48)]

PROGRAM = """
import json, sys
from pathlib import Path
from self_reward.models import engines as sampler
from self_reward.models.generation import generate
model, partial, request = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
generate(sampler.load("transformers", model, batch_size=4), partial=partial, **request)
"""


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"))


class Counting:
    """A sampler at the interface: answers at once, and remembers what it was asked to skip."""

    engine = "counting"
    max_model_len = 100

    def __init__(self):
        self.skipped: list[set[int]] = []

    def sample(self, prompts, *, n, done, **settings):
        self.skipped.append(set(done))
        for index in reversed(range(len(prompts))):
            if index not in done:
                yield index, [Sample(f"{index} é\n", prompts[index], "stop")] * n


def test_shards_are_disjoint_and_together_the_undivided_run(tmp_path, model_dir, caplog):
    """48 prompts in chunks of 4 over 5 shards: 12 chunks, so 3, 3, 2, 2, 2; and of 13 shards one has nothing to do."""
    sampler = samplers.load("transformers", model_dir, batch_size=4)
    whole = generate(sampler, PROMPTS, **SETTINGS, partial=tmp_path / "whole")
    seen: list[tuple[int, int]] = []
    parts = [
        generate(
            sampler, PROMPTS, **SETTINGS, partial=tmp_path / str(i), shard=(i, 5),
            progress=lambda done, total: seen.append((done, total)),
        )
        for i in range(5)
    ]  # fmt: skip
    assert [sum(map(bool, part)) for part in parts] == [12, 12, 8, 8, 8]
    assert {total for _, total in seen} == {12, 8} and seen[-1] == (8, 8)
    for index, expected in enumerate(whole):
        assert [part[index] for part in parts if part[index]] == [expected]
    assert not any(generate(sampler, PROMPTS, **SETTINGS, partial=tmp_path / "idle", shard=(12, 13)))
    assert "shard 12/13 has nothing to do: 48 prompts make 12 chunks" in caplog.text


def test_order_text_and_progress(tmp_path):
    seen: list[tuple[int, int]] = []
    found = generate(
        Counting(), PROMPTS[:5], **SETTINGS, partial=tmp_path, progress=lambda done, total: seen.append((done, total))
    )
    assert [answers[0].text for answers in found] == [f"{i} é\n" for i in range(5)]
    assert [answers[1].token_ids for answers in found] == PROMPTS[:5]
    assert seen == [(done, 5) for done in range(6)]


@pytest.mark.parametrize("cut", [1, 30, 200])
def test_a_half_written_line_is_dropped_and_the_rest_kept(tmp_path, cut):
    whole = generate(Counting(), PROMPTS, **SETTINGS, partial=tmp_path)
    path = tmp_path / "samples.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    left = path.read_bytes().count(b"\n") - 1
    sampler = Counting()
    assert generate(sampler, PROMPTS, **SETTINGS, partial=tmp_path) == whole
    assert [len(done) for done in sampler.skipped] == [left]
    indices = [json.loads(line)["index"] for line in path.read_bytes().splitlines()[1:]]
    assert sorted(indices) == list(range(len(PROMPTS)))


def test_zeros_left_by_a_crash_of_the_machine_are_cut(tmp_path):
    whole = generate(Counting(), PROMPTS, **SETTINGS, partial=tmp_path)
    path = tmp_path / "samples.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:5]) + b"\0" * 40 + b"\n" + b"".join(lines[6:]))
    sampler = Counting()
    assert generate(sampler, PROMPTS, **SETTINGS, partial=tmp_path) == whole
    assert [len(done) for done in sampler.skipped] == [4]


@pytest.mark.parametrize("change", [{"seed": 2}, {"n": 3}, {"temperature": 0.8}, {"stop_token_ids": [4]}])
def test_a_partial_file_of_other_work_is_not_taken(tmp_path, change):
    generate(Counting(), PROMPTS, **SETTINGS, partial=tmp_path)
    sampler = Counting()
    found = generate(sampler, PROMPTS, **{**SETTINGS, **change}, partial=tmp_path)
    assert sampler.skipped == [set()]
    assert all(len(answers) == {**SETTINGS, **change}["n"] for answers in found)


def test_a_partial_file_of_other_prompts_is_not_taken(tmp_path):
    generate(Counting(), PROMPTS, **SETTINGS, partial=tmp_path)
    sampler = Counting()
    generate(sampler, [*PROMPTS[:-1], [9]], **SETTINGS, partial=tmp_path)
    assert sampler.skipped == [set()]


def test_b18_the_partial_file_is_only_appended_to(tmp_path):
    path = tmp_path / "samples.jsonl"
    sizes, starts, files = [], [], set()

    def look(done: int, total: int) -> None:
        content = path.read_bytes()
        sizes.append(len(content))
        starts.append(content[: sizes[1] if len(sizes) > 1 else 0])
        files.add(path.stat().st_ino)

    generate(Counting(), [[7, 8]] * 50, **SETTINGS, partial=tmp_path, progress=look)
    grown = [b - a for a, b in itertools.pairwise(sizes[1:])]
    assert len(grown) == 49 and max(grown) - min(grown) <= 4  # a row's own bytes and no more, the last as the first
    assert len(files) == 1 and len(set(starts[2:])) == 1


def test_sigkill_in_the_middle_changes_nothing(tmp_path, model_dir):
    request = {"prompts": PROMPTS, **SETTINGS, "max_tokens": 100, "stop_token_ids": []}
    sampler = samplers.load("transformers", model_dir, batch_size=4)
    undisturbed = generate(sampler, **request, partial=tmp_path / "undisturbed")
    partial = tmp_path / "killed"
    path = partial / "samples.jsonl"
    root = Path(__file__).parents[2]
    child = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(model_dir), str(partial), json.dumps(request)],
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
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
    again = generate(sampler, **request, partial=partial, progress=lambda done, total: seen.append(done))
    assert seen[0] == done
    assert again == undisturbed
