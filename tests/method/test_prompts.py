import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from self_reward import texts
from self_reward.errors import UserError
from self_reward.method.prompts import (
    PromptFilter,
    choose_shots,
    few_shot_prompt,
    is_held_out,
    parse_prompts,
    prompt_id,
)
from self_reward.parameters.settings import PromptRules
from self_reward.parameters.sources import parse
from self_reward.parameters.stages import GenPrompts

SIMILARITY = PromptRules(min_words=1, max_words=1000, keywords=[])  # the one rule of most tests here
EQUALITY = SIMILARITY.model_copy(update={"similarity": 1.0})


def test_the_request_shows_numbered_examples():
    text = few_shot_prompt(
        texts.builtin("prompt_template", "few_shot"), ["Sort a list.", "Use {examples} and {next}.", "Two\nlines"]
    )
    assert "Task 1: Sort a list.\nTask 2: Use {examples} and {next}.\nTask 3: Two\nlines" in text
    assert "starting with Task 4" in text and "# example" not in text and "{number}" not in text


def test_template_may_define_its_example_line():
    template = "# example: task {prompt} end\nwrite a new task . {examples}\n"
    assert few_shot_prompt(template, ["sort : a b", "repeat : {prompt}"]) == (
        "write a new task . task sort : a b end\ntask repeat : {prompt} end"
    )


def test_all_problems_of_a_template_are_reported():
    with pytest.raises(UserError) as error:
        few_shot_prompt("# example: Task {number}\nno examples", ["a"])
    assert len(error.value.problems) == 2
    with pytest.raises(UserError, match="few_shot"):
        texts.builtin("prompt_template", "nothing")


def test_shots_are_six_seeds_and_two_generated():
    seeds, generated = [f"s{i}" for i in range(20)], [f"g{i}" for i in range(20)]
    shots = choose_shots(random.Random(0), seeds, generated)
    assert len(set(shots)) == 8 and sum(shot[0] == "g" for shot in shots) == 2
    assert shots == choose_shots(random.Random(0), seeds, generated) != choose_shots(random.Random(1), seeds, generated)
    assert any(choose_shots(random.Random(i), seeds, generated)[-1][0] == "s" for i in range(9))  # order is random too
    assert sorted(shot[0] for shot in choose_shots(random.Random(0), seeds, [])) == ["s"] * 8
    assert sorted(shot[0] for shot in choose_shots(random.Random(0), seeds, ["g"])) == ["g"] + ["s"] * 7
    assert len(choose_shots(random.Random(0), ["a", "b"], [])) == 2
    with pytest.raises(UserError, match="ift.jsonl"):
        choose_shots(random.Random(0), [], ["g"])


PARSED = {
    "Write a haiku.": ["Write a haiku."],
    "Task 9: Write a haiku.": ["Write a haiku."],
    "Task 9: Write a haiku.\nTask 10: Sort the list.": ["Write a haiku.", "Sort the list."],
    "**Task 9:** Write a haiku.\n\n**Task 10:** Sort it.": ["Write a haiku.", "Sort it."],
    "### Task 9\nWrite a haiku.\n### Task 10\nSort it.": ["Write a haiku.", "Sort it."],
    "Write a haiku.\nTask 10: Sort it.": ["Write a haiku.", "Sort it."],
    "Sure, here are two new tasks:\n\n1. Write a haiku.\n2. Sort it.": ["Write a haiku.", "Sort it."],
    "1) Write a haiku.\n2) Sort it.\n\nLet me know if you need more!": ["Write a haiku.", "Sort it."],
    "9. Write a haiku.\n10. Sort it.": ["Write a haiku.", "Sort it."],
    "Write a haiku.\n10. Sort it.": ["Write a haiku.", "Sort it."],
    "- Write a haiku.\n- Sort it.": ["Write a haiku.", "Sort it."],
    "* Write a haiku.\n• Sort it.": ["Write a haiku.", "Sort it."],
    '1. "Write a haiku."\n2. “Sort it.”\n3. **Run.**': ["Write a haiku.", "Sort it.", "Run."],
    "```\nTask 1: Write a haiku.\nTask 2: Sort it.\n```": ["Write a haiku.", "Sort it."],
    "Sort these:\n1. b\n2. a": ["Sort these:\n1. b\n2. a"],
    "Pick the odd one out:\n- cat\n- car\n- dog": ["Pick the odd one out:\n- cat\n- car\n- dog"],
    "Task 9: Sort these:\n1. b\n2. a\nTask 10: Run.": ["Sort these:\n1. b\n2. a", "Run."],
    "Here is a new task:\n\nWrite a haiku.": ["Write a haiku."],
    "Prompt: Write a haiku.": ["Write a haiku."],
    'Say "yes" and "no"': ['Say "yes" and "no"'],
    'What does "yes" mean in "yes"': ['What does "yes" mean in "yes"'],
    '"yes" or "no"': ['"yes" or "no"'],
    "1. Write a haiku.\n---\n2. Sort it.\n---": ["Write a haiku.", "Sort it."],
    "reverse the list : ant bat": ["reverse the list : ant bat"],
    "": [], "  \n": [], "Task 9:": [], "***": [], "Sure!\n\n": ["Sure!"],
}  # fmt: skip


@pytest.mark.parametrize("text", PARSED)
def test_tasks_are_read_from_what_models_write(text):
    assert parse_prompts(text) == PARSED[text]


def test_a_cut_off_last_task_is_left_out():
    assert parse_prompts("Task 9: Write a haiku.\nTask 10: Sort the", "length") == ["Write a haiku."]
    assert parse_prompts("Write a hai", "length") == []


def test_b2_seed_prompts_are_not_parsed():
    seeds = ["Write a haiku about rain.", "Sort the list of cities."]
    request = few_shot_prompt(texts.builtin("prompt_template", "few_shot"), seeds)
    completion = "Task 3: Explain tides to a child.\nTask 4: Write a haiku about rain."
    tasks = parse_prompts(completion)
    assert not any(line in tasks for line in request.splitlines())
    keep = PromptFilter(seeds, SIMILARITY)
    assert [p for p, reason in zip(tasks, keep.take(tasks), strict=True) if not reason] == ["Explain tides to a child."]


def test_b4_nothing_is_cut_at_a_marker():
    text = "What does [/INST] mean? <|assistant|> and ### Response: too.\nLast line stays"
    assert parse_prompts(text) == [text]


@given(
    st.lists(st.sampled_from([*list("ab1.:-*`\"' \n"), "Task 2: ", "Sure, ", "\n\n", "```"]), max_size=30).map("".join),
    st.sampled_from(["stop", "length"]),
)
def test_parse_prompts_never_raises_and_invents_nothing(text, finish_reason):
    for prompt in parse_prompts(text, finish_reason):
        assert prompt == prompt.strip() != ""
        assert all(line in text for line in prompt.split("\n"))


@given(st.lists(st.text(alphabet="abc ", min_size=1, max_size=20).map(str.strip).filter(bool), min_size=1, max_size=6))
def test_numbered_answer_is_read_completely(tasks):
    assert parse_prompts("\n".join(f"Task {n}: {task}" for n, task in enumerate(tasks, 9))) == tasks


def test_prompt_id_and_held_out_depend_on_the_text_alone():
    assert prompt_id("hello") == "2cf24dba5fb0a30e"
    assert len(prompt_id("\ud800é")) == 16
    everything = [f"prompt {i}" for i in range(2000)]
    assert 150 < sum(is_held_out(prompt, 0.1) for prompt in everything) < 250
    assert {p for p in everything if is_held_out(p, 0.1)} < {p for p in everything if is_held_out(p, 0.2)}
    assert not any(is_held_out(p, 0) for p in everything) and all(is_held_out(p, 1) for p in everything)


def test_the_filter_gives_its_reason():
    rules = PromptRules(min_words=2, max_words=8, keywords=["draw", "go to"], pattern="^[A-Z]")
    keep = PromptFilter(["Write a haiku about the rain"], rules)
    reasons = {
        "  ": "empty",
        "Run": "too_short",
        "A b c d e f g h i": "too_long",
        "Draw a cat": "keyword",
        "Please GO TO Rome": "keyword",
        "write a poem": "pattern",
        "Write a  haiku about the rain": "exact",
        "Write a haiku about the snow": "similar",
        "Explain drawing and mapping": None,
    }
    assert dict(zip(reasons, keep.take(list(reasons)), strict=True)) == reasons
    assert keep.take(["Explain drawing and mapping"]) == ["exact"]


def test_prompts_of_one_batch_are_compared_with_each_other():
    keep = PromptFilter(["Write a haiku about the rain"], SIMILARITY)
    taken = ["Write a haiku about the snow", "Name a bird", "Name  a bird", "Name a bird now", "Say no more to me"]
    assert keep.take([*taken, taken[0]]) == ["similar", None, "exact", "similar", None, "similar"]
    keep.add(["Who was it that did it", "Who was it that did it"])
    assert keep.take(["Who was it that did that", "Name a bird"]) == ["similar", "exact"]
    assert PromptFilter([], EQUALITY).take(["a  b", "a b", "a c"]) == [None, "exact", None]


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--prompt_pattern=(", "prompt_pattern is not a regular expression: "),
        ("--prompt_similarity=0", "prompt_similarity = '0'"),
        ("--prompt_similarity=1.1", "prompt_similarity = '1.1'"),
    ],
)
def test_unusable_prompt_rules_are_refused_with_the_parameters(flag, said):
    with pytest.raises(UserError) as error:
        parse(GenPrompts, "", [flag], {})
    assert said in str(error.value)


def test_similarity_one_compares_the_text_alone():
    keep = PromptFilter(["write a haiku"], EQUALITY)
    assert keep.take(["write a haiku!", "write  a haiku"]) == [None, "exact"]


def test_b20_prompts_in_other_scripts_differ():
    keep = PromptFilter(["写一首关于雨的诗"], SIMILARITY)
    assert keep.take(["解释潮汐", "写一首关于雨的诗", "解释潮汐"]) == [None, "exact", "exact"]
