"""Which files a stage reads and writes, and what is said when they are missing."""

import json

import pytest

from self_reward.errors import UserError
from self_reward.parameters.sources import parse
from self_reward.parameters.stages import Plan
from self_reward.repository import artifacts

USER_DATA = {"M0/train/ift.jsonl", "M0/train/ift+eft.jsonl", "M0/eval/prompts.jsonl", "M0/eval/eft.jsonl"}
ORDER = ["00_sft", "01_gen_prompts", "02_gen_responses", "03_gen_scores", "04_gen_preferences", "05_dpo", "06_evaluate"]


def p(**values):
    """The parameters of plan, which has those of all stages."""
    flags = [
        word for name, value in {"base_model": "org/model", **values}.items() for word in (f"--{name}", str(value))
    ]
    return parse(Plan, "", flags, {})


def adapter(parent):
    return json.dumps({"finetune": "lora", "parent": parent, "base_model": "org/model@1"}).encode()


def checkpoint(name, small, parent):
    folder = artifacts.checkpoint_path(name)
    small[f"{folder}/self_reward.json"] = adapter(parent)
    return {f"{folder}/self_reward.json", f"{folder}/adapter_config.json", f"{folder}/adapter_model.safetensors"}


def test_b6_the_loop_is_closed_every_stage_finds_what_the_stages_before_it_wrote():
    """Runs the order of the loop over three iterations on names alone."""
    files, small = set(USER_DATA), {}
    for k in range(3):
        for stage in ORDER:
            needed = artifacts.inputs(stage, p(iteration=k, eft_replay=0.1), files, small)
            for path in needed.paths.values():
                assert path in files or any(file.startswith(path + "/") for file in files), (stage, k, path)
            for name, path in needed.outputs.items():
                assert artifacts.ARTIFACTS[name].written_by == stage == artifacts.written_paths(k)[path]
                assert path == artifacts.ARTIFACTS[name].path.format(k=k)
                if name in ("sft", "dpo"):
                    role = "start" if name == "sft" else "policy"
                    parent = needed.chains[role][-1]
                    files |= checkpoint(f"M{k}/{name}", small, None if parent == "base" else parent)
                else:
                    files.add(path)
    assert artifacts.chain("M2/dpo", files, small) == (("base", "M0/sft", "M0/dpo", "M1/dpo", "M2/dpo"), "org/model@1")


def test_what_stages_read_and_write_is_in_the_table():
    files, small = set(USER_DATA), {}
    written, read = set(), set()
    for stage in [*ORDER, "07_export"]:
        needed = artifacts.inputs(stage, p(iteration=0, eft_replay=0.1), files, small)
        read |= set(needed.paths.values())
        written |= set(needed.outputs.values())
        for name, path in needed.outputs.items():
            files |= checkpoint(f"M0/{name}", small, None) if name in ("sft", "dpo") else {path}
    table = {artifact.path.format(k=0) for artifact in artifacts.ARTIFACTS.values()}
    assert written == set(artifacts.written_paths(0)) and table == written | read
    assert table - written == USER_DATA


def test_a_stage_takes_its_own_parameters():
    with pytest.raises(ValueError, match="05_dpo does not take Sft"):
        artifacts.inputs("05_dpo", parse(artifacts.Sft, "", [], {}), USER_DATA, {})


@pytest.mark.parametrize(
    "iteration, sft, files, expected",
    [
        (0, "auto", USER_DATA, "M0/sft"),
        (0, "never", USER_DATA, "base"),
        (0, "auto", set(), "base"),
        (1, "auto", USER_DATA, "M0/dpo"),
        (1, "auto", {*USER_DATA, "M1/train/ift_eft.jsonl"}, "M1/sft"),
        (1, "always", USER_DATA, "M1/sft"),
        (2, "never", {*USER_DATA, "M2/train/ift+eft.jsonl"}, "M1/dpo"),
    ],
)
def test_the_policy_of_an_iteration(iteration, sft, files, expected):
    assert artifacts.policy_name(iteration, sft, files) == expected


def test_of_both_train_files_the_current_name_wins():
    assert artifacts.train_path(0, {"M0/train/ift_eft.jsonl"}) == "M0/train/ift_eft.jsonl"
    assert artifacts.train_path(0, {"M0/train/ift_eft.jsonl", "M0/train/ift+eft.jsonl"}) == "M0/train/ift+eft.jsonl"


def test_a_full_checkpoint_ends_the_chain_and_a_reproductions_adapter_sits_on_the_base():
    full = {"M0/models/sft/final_checkpoint/model.safetensors"}
    assert artifacts.chain("M0/sft", full, {}) == (("M0/sft",), None)
    old = {"M0/models/sft/final_checkpoint/adapter_config.json"}
    assert artifacts.chain("M0/sft", old, {}) == (("base", "M0/sft"), None)


def test_a_missing_iteration_is_named_with_what_is_there_and_the_command_that_makes_it():
    small = {}
    files = USER_DATA | checkpoint("M0/sft", small, None)
    with pytest.raises(UserError) as caught:
        artifacts.inputs("02_gen_responses", p(iteration=2), files | {"M2/generated/prompts.jsonl"}, small)
    assert "M1/dpo does not exist; the data repository has M0/sft" in caught.value.problems[0]
    assert "./self-reward.sh stages org/model M0 --iterations 2 --data_repo data" in caught.value.problems[0]
    files |= checkpoint("M0/dpo", small, "M0/sft")
    with pytest.raises(UserError) as caught:
        artifacts.inputs("02_gen_responses", p(iteration=4, data_repo="a b"), files, small)
    missing, command = caught.value.problems
    assert missing == "M4/generated/prompts.jsonl is not in the data repository; make it with stages/" + (
        "01_gen_prompts.py --iteration 4"
    )
    assert "M3/dpo does not exist; the data repository has M0/dpo, M0/sft" in command
    assert "./self-reward.sh stages org/model M1 --iterations 3 --data_repo 'a b'" in command


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"parent": 1}', b'{"finetune": ["lora"]}', b"\xff"])
def test_a_checkpoints_metadata_that_cannot_be_read_is_named(content):
    small = {}
    files = USER_DATA | checkpoint("M0/sft", small, None)
    small["M0/models/sft/final_checkpoint/self_reward.json"] = content
    with pytest.raises(UserError, match="M0/models/sft/final_checkpoint/self_reward.json: "):
        artifacts.chain("M0/sft", files, small)


def test_all_that_a_run_lacks_is_said_at_once():
    lacking = p(rubric="rubrics/mine.txt", chat_template="t.jinja", prompt_model="gpt", sft="always", iterations=2)
    lacking = lacking.model_copy(update={"base_model": None})
    text = "\n".join(artifacts.run_inputs(lacking, {"M0/train/sft.jsonl"}, {})[1])
    for word in (
        "base_model is not set",
        "M0/train/ift+eft.jsonl is not in the data repository (M0/train has M0/train/sft.jsonl)",
        "M0/train/ift.jsonl",
        "M1/train/ift+eft.jsonl",
        "rubric",
        "chat_template",
        "gpt",
    ):
        assert word in text
    assert artifacts.run_inputs(p(), USER_DATA, {})[1] == []


@pytest.mark.parametrize(
    "values, more, expected",
    [
        ({}, set(), {"train:M0", "seeds:M0"}),
        ({"iterations": 3}, {"M2/train/ift+eft.jsonl"}, {"train:M0", "seeds:M0", "train:M2"}),
        ({"iterations": 2}, {"M1/train/ift.jsonl"}, {"train:M0", "seeds:M0", "seeds:M1"}),
        ({"sft": "never"}, set(), {"seeds:M0"}),
        ({"sft": "never", "eft_replay": 0.1}, set(), {"train:M0", "seeds:M0"}),
    ],
)
def test_what_a_run_will_read_of_the_users_is_known_beforehand(values, more, expected):
    found, problems = artifacts.run_inputs(p(**values), USER_DATA | more, {})
    assert problems == []
    assert set(found.paths) == expected | {"eval_prompts", "eval_eft"}
    assert set(found.paths.values()) <= USER_DATA | more


def test_a_base_model_in_the_data_repository_is_an_input():
    files = {*USER_DATA, "models/base/model.safetensors"}
    assert artifacts.inputs("00_sft", p(base_model="oxen:models/base"), files, {}).paths["base"] == "models/base"
    with pytest.raises(UserError, match="no folder 'models/other'"):
        artifacts.inputs("00_sft", p(base_model="oxen:models/other"), files, {})
