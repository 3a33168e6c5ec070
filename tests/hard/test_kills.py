"""The short form of `make test-kills`: a few ends at chosen moments of the first two stages, over the real script."""

import json

import pytest

from tests.hard import kills
from tests.hard.kills import Counts, Kill, Loop, Violation, World

STOP = """
import sys
with open(sys.argv[sys.argv.index("--stop_file") + 1], "w") as file:
    file.write("enough for a test")
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two real stages, SFT and new prompts, and then one that stops the loop."""
    folder = tmp_path_factory.mktemp("kills")
    stages = folder / "stages"
    stages.mkdir()
    for name in ("plan", "00_sft", "01_gen_prompts"):
        (stages / f"{name}.py").symlink_to(kills.ROOT / "stages" / f"{name}.py")
    (stages / "02_gen_responses.py").write_text(STOP)
    world = World(folder, stages=stages, iterations=1, settings={**kills.SETTINGS, "sft_max_steps": 14})
    world.make()
    return world


@pytest.fixture(scope="module")
def reference(world):
    return kills.undisturbed(world)


@pytest.fixture(scope="module")
def ended(world, reference):
    """One loop, ended three times on its way: an Oxen process, the whole tree, and in order."""
    loop, counts, lines = Loop(world, "ended"), Counts(), []
    ends = [
        Kill("plan", "start", 0.0, "OXEN"),
        Kill("M0 00_sft", "push", 0.0),
        Kill("M0 01_gen_prompts", "commit", 0.05, "TERM"),
    ]
    done = kills.play(loop, ends, reference, counts, lines.append)
    return loop, done, counts, lines


def test_a_loop_that_is_ended_again_and_again_loses_doubles_and_leaves_nothing(ended):
    _, done, counts, lines = ended
    assert done == 3, lines
    assert counts.resumed["M0 00_sft checkpoint"] == 1, lines
    assert counts.slowest < kills.SECONDS_TO_END


def test_the_checks_see_what_they_are_there_for(ended, reference):
    loop, *_ = ended
    planted = [
        loop.data / "M0/generated/.self_reward-tmp-1-prompts.jsonl",
        loop.data / ".oxen/versions/files/ab/cd/data.oxentmp.1",
        loop.cache / "work/0123/4567.lock",
        loop.cache / "merged/0123.part/model.safetensors",
        loop.tmp / "request-1/result",
    ]
    for path in planted:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    weights = loop.data / "M0/models/sft/final_checkpoint/model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + b"x")
    other = json.loads(json.dumps(reference.result))
    other["files"]["M0/generated/prompts.jsonl"] = "0"
    other["messages"].append(other["messages"].pop(1))
    with pytest.raises(Violation) as found:
        kills.check_loop(loop, other)
    expected = [*map(str, planted[:3]), str(planted[3].parent), str(planted[4].parent), "in another order"]
    expected += ["M0/generated/prompts.jsonl: files of this loop has", "model.safetensors: the working tree has"]
    for words in expected:
        assert words in str(found.value)
    for path in planted:
        path.unlink()
    weights.write_bytes(whole)
