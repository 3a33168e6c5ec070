"""The demo's world: what its program says of answers, and what its seed data holds."""

import json
import random
import re

import pytest

from demo import make_data, world
from self_reward import files
from self_reward.errors import UserError
from self_reward.method.judge import judge_prompt, parse_score, split_judge_prompt


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("reverse the list : dog ant cat", "cat ant dog"),
        ("put the list in order : dog ant cat", "ant cat dog"),
        ("copy the list : dog ant cat", "dog ant cat"),
        ("move the first word to the end : dog ant cat eel", "ant cat eel dog"),
        ("exchange the ends of the list : dog ant cat eel", "eel ant cat dog"),
        ("drop the first word : dog ant cat", "ant cat"),
        ("remove the last word of the list : dog ant cat", "dog ant"),
        ("how many words are in the list : dog ant cat", "three"),
    ],
)
def test_right_answers(prompt, answer):
    assert world.verify(prompt, f"answer : {answer} .") == {
        "reward": 5, "accuracy": 1, "form": 1, "reward_without_form": 4,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("response", "points"),
    [
        ("answer : cat ant dog .", "relevant length half correct form"),
        ("cat ant dog", "relevant length half correct"),
        ("answer : cat ant dog", "relevant length half correct"),
        ("answer : cat dog ant .", "relevant length form"),
        ("answer : cat ant .", "relevant half form"),
        ("answer : cat ant dog dog .", "relevant half form"),
        ("answer : cat ant zebra .", "length half form"),
        ("answer : zebra .", "form"),
        ("zebra", ""),
        ("answer : .", ""),
        ("", ""),
    ],
)
def test_points_of_flawed_answers(response, points):
    got = world.points("reverse the list : dog ant cat", response)
    assert [name for name, value in got.items() if value] == points.split()


@pytest.mark.parametrize(
    "prompt",
    ["", "reverse the list", "reverse the list : ant", "reverse it : ant bat", "reverse the list : ant yes bat",
     "write a new task . task reverse the list : ant bat end"],
)  # fmt: skip
def test_other_prompts_cannot_be_verified(prompt):
    with pytest.raises(ValueError, match="no task of this world"):
        world.verify(prompt, "answer : ant .")


def test_judgement_is_explained_and_its_score_is_the_reward():
    rng = random.Random(1)
    seen = set()
    for _ in range(500):
        prompt = world.make_task(rng)
        response = world.make_response(rng, prompt, mistakes=0.6)
        judgement, reward = world.judgement(prompt, response), world.verify(prompt, response)["reward"]
        assert parse_score(judgement) == reward
        check, verdicts = judgement.removeprefix("check ").split(" . ")
        expected = [word for word in check.split()[::3] if word != "none"]
        assert expected == world.solve(*world.parse_task(prompt))
        assert check.split()[2::3] == [
            "yes" if a == b else "no" for a, b in zip(*[iter_(check, i) for i in (0, 1)], strict=True)
        ]
        assert verdicts.split(" score")[0].split()[1::2].count("yes") == reward
        seen.add(reward)
    assert seen == {0, 1, 2, 3, 4, 5}


def iter_(check: str, start: int) -> list[str]:
    return check.split()[start::3]


@pytest.fixture(scope="module")
def rows():
    return make_data.make_rows(make_data.Tasks(0))


def judged_task(prompt: str) -> str:
    return re.search(r"task (.*)\nresponse", prompt)[1]


def test_no_held_out_prompt_is_in_training(rows):
    held_out = {row["prompt"] for path in ("prompts", "eft") for row in rows[f"M0/eval/{path}.jsonl"]}
    assert len(held_out) == make_data.HELD_OUT + make_data.HELD_OUT_GROUPS >= 1000
    train = rows["M0/train/ift+eft.jsonl"]
    tasks = {row["prompt"] for row in rows["M0/train/ift.jsonl"]}
    tasks |= {judged_task(row["prompt"]) for row in train if row["source"] == "eft"}
    for row in train:
        if row["prompt"].startswith("write a new task"):
            tasks |= {row["response"], *re.findall(r"task ([a-z ]+ : [a-z ]+) end", row["prompt"])}
    assert len(tasks) > 40_000 and all(world.parse_task(task) for task in tasks)
    assert not tasks & held_out


def test_seed_answers_are_flawed_and_judgements_are_not(rows):
    answers = [world.verify(row["prompt"], row["response"]) for row in rows["M0/train/ift.jsonl"]]
    assert 0.60 < sum(a["accuracy"] for a in answers) / len(answers) < 0.65  # 40 % wrong, less the lucky ones
    assert 0.48 < sum(a["form"] for a in answers) / len(answers) < 0.52
    judgements = [row for row in rows["M0/train/ift+eft.jsonl"] if row["source"] == "eft"]
    assert len(judgements) == make_data.JUDGEMENTS
    for row in judgements[:1000]:
        task, response = re.search(r"task (.*)\nresponse (.*) end", row["prompt"]).groups()
        assert row["prompt"] == judge_prompt(make_data.RUBRIC, task, response)
        assert split_judge_prompt(make_data.RUBRIC, row["prompt"]) is not None
        assert row["response"] == world.judgement(task, response)


def test_ranks_follow_the_points(rows):
    for group in rows["M0/eval/eft.jsonl"]:
        rewards = [world.verify(group["prompt"], answer["text"])["reward"] for answer in group["responses"]]
        ranks = [answer["rank"] for answer in group["responses"]]
        assert min(ranks) == 0 and len({answer["text"] for answer in group["responses"]}) == len(ranks)
        for a, b in zip(rewards, ranks, strict=True):
            assert b == len({other for other in rewards if other > a})


def test_tokenizer_round_trips_every_word(rows):
    tokenizer = make_data.make_tokenizer()
    for row in rows["M0/train/ift+eft.jsonl"][:2000]:
        for text in (row["prompt"], row["response"]):
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids) == " ".join(text.split())
    messages = [{"role": "user", "content": "copy the list : ant bat"}, {"role": "assistant", "content": "ant bat"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text == "<s><|user|> copy the list : ant bat <|assistant|> ant bat <|end|>"
    assert (
        tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
        == text[: text.index("ant bat <|end")]
    )


@pytest.fixture
def small(monkeypatch):
    for name, value in {
        "INSTRUCTIONS": 30,
        "JUDGEMENTS": 24,
        "NEW_TASKS": 5,
        "REPETITIONS": 5,
        "COMPARISONS": 5,
        "HELD_OUT": 10,
        "HELD_OUT_GROUPS": 3,
    }.items():
        monkeypatch.setattr(make_data, name, value)


def test_same_seed_gives_same_bytes_and_keeps_other_data(small, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    assert make_data.make(one, 0) and make_data.make(two, 0)
    assert not make_data.make(one, 0)
    record = json.loads((one / make_data.RECORD).read_text())
    assert {"models/base/model.safetensors", "models/base/tokenizer.json", "M0/train/ift.jsonl"} <= set(record["files"])
    assert (one / make_data.RECORD).read_bytes() == (two / make_data.RECORD).read_bytes()
    for name in record["files"]:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name

    with pytest.raises(UserError, match="seed 0, not 1"):
        make_data.make(one, 1)
    (one / "M0/train/ift.jsonl").write_text("mine\n")
    with pytest.raises(UserError, match="ift.jsonl is missing or changed"):
        make_data.make(one, 0)
    assert (one / "M0/train/ift.jsonl").read_text() == "mine\n"
    (tmp_path / "other").mkdir()
    (tmp_path / "other/notes.txt").write_text("mine")
    with pytest.raises(UserError, match="other files"):
        make_data.make(tmp_path / "other", 0)
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["notes.txt"]


def test_killed_run_does_not_block_the_next(small, tmp_path):
    part = files.partial(tmp_path / "data")
    (part / "M0").mkdir(parents=True)
    (part / "M0/half").write_text("half")
    assert make_data.make(tmp_path / "data", 0)
    assert not part.exists() and not (tmp_path / "data/M0/half").exists()
