import pytest

from self_reward.errors import UserError
from self_reward.method import judge, prompts
from self_reward.parameters.settings import Scale
from self_reward.repository import examples, held_out, jsonl
from self_reward.repository.held_out import KeptOut
from self_reward.rows import Example, Ranked, RankedResponse

RUBRIC = "judge <response>{response}</response> for {prompt}. Score: <total points>"


def test_b5_answers_are_read_under_either_column_name(tmp_path):
    path = tmp_path / "t.jsonl"
    jsonl.write(path, [{"prompt": "a", "completion": "b"}, {"prompt": "c", "response": "d", "source": "eft"}])
    assert examples.read(path) == [(1, Example("a", "b", "ift")), (2, Example("c", "d", "eft"))]
    rows = [{"prompt": "a", "response": empty, "completion": "b"} for empty in ("", None)]
    jsonl.write(path, [*rows, {"prompt": "a", "response": "b", "completion": "c", "source": None}])
    assert [row for _, row in examples.read(path)] == [Example("a", "b")] * 3
    jsonl.write(path, [{"prompt": "a", "response": "b", "source": source} for source in ("EFT", "", "Other")])
    assert [row.source for _, row in examples.read(path)] == ["eft", "ift", "other"]


def test_bad_examples_are_all_named(tmp_path):
    path = tmp_path / "t.jsonl"
    empty = {"prompt": " ", "response": "x"}
    jsonl.write(path, [empty, {"prompt": "a"}, {"prompt": "a", "response": 1}, {"prompt": "a", "response": " "}])
    with pytest.raises(UserError) as caught:
        examples.read(path)
    assert [problem.removeprefix(f"{path}:").split(";")[0] for problem in caught.value.problems] == [
        "1: the prompt is empty",
        "2: missing column response (or completion)",
        "3: response is int, expected str",
        "4: the response is empty",
    ]


def test_lines_are_those_of_the_file_and_all_kinds_of_problems_come_together(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text(
        '\n{"prompt": "a", "response": "b"}\nx\n{"prompt": "", "response": "b"}\n{"response": "b"}\n'
        '{"prompt": "a", "response": "", "completion": ""}\n{"prompt": "a", "response": "b", "source": 3}\n'
        '{"prompt": "a", "response": ["b"]}\n'
    )
    with pytest.raises(UserError) as caught:
        examples.read(path)
    said = [problem.removeprefix(f"{path}:") for problem in caught.value.problems]
    assert [line.split(":")[0] for line in said] == ["3", "4", "5", "6", "7", "8"]
    assert said[3:5] == ["6: the response is empty", "7: source is int, expected str"]
    assert said[5] == "8: response is list, expected str"
    path.write_text('\n{"prompt": "a", "response": "b"}\n')
    assert examples.read(path) == [(2, Example("a", "b"))]


@pytest.mark.parametrize("reader", [held_out.read_prompts, held_out.read_ranked])
def test_held_out_files_without_rows_and_empty_prompts_are_refused(tmp_path, reader):
    path = tmp_path / "eval.jsonl"
    path.write_text("")
    with pytest.raises(UserError, match="eval.jsonl has no rows"):
        reader(path)
    ranks = [{"text": "x", "rank": 0}, {"text": "y", "rank": 1}]
    jsonl.write(path, [{"prompt": "a", "responses": ranks}, {"prompt": " ", "responses": ranks}])
    with pytest.raises(UserError, match="eval.jsonl:2: the prompt is empty"):
        reader(path)


def test_problems_of_both_held_out_files_come_together(tmp_path):
    for name in ("prompts", "eft"):
        (tmp_path / f"{name}.jsonl").write_text("x\n")
    with pytest.raises(UserError) as caught:
        held_out.evaluation_data(tmp_path / "prompts.jsonl", tmp_path / "eft.jsonl", None, 0, RUBRIC, Scale())
    assert [problem.split(":")[0][-13:] for problem in caught.value.problems] == [
        "prompts.jsonl",
        f"{tmp_path}/eft.jsonl"[-13:],
    ]


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "t.jsonl").write_text("")
    with pytest.raises(UserError, match="has no rows"):
        examples.read(tmp_path / "t.jsonl")


def test_ranked_responses_need_text_and_rank(tmp_path):
    path = tmp_path / "eft.jsonl"
    good = {"prompt": "a", "responses": [{"text": "x", "rank": 0}, {"text": "y", "rank": 1}]}
    jsonl.write(path, [good])
    assert held_out.read_ranked(path) == [Ranked("a", [RankedResponse("x", 0.0), RankedResponse("y", 1.0)])]
    missing = {"prompt": "a", "responses": [{"text": "x"}, {"text": "y", "rank": 1}]}
    wrong = {"prompt": "a", "responses": [{"text": "x", "rank": 1, "more": 2}, {"text": "y", "rank": True}]}
    jsonl.write(path, [good, missing, wrong, {"prompt": "a", "responses": [{"text": "x", "rank": 0}]}])
    with pytest.raises(UserError) as caught:
        held_out.read_ranked(path)
    assert [problem.removeprefix(f"{path}:") for problem in caught.value.problems] == [
        "2: responses[0]: missing `rank`",
        "3: responses[1].rank is bool, expected float",
        "4: 1 responses; expected two or more of {text, rank}",
    ]


def numbered(rows):
    return list(enumerate(rows, 1))


def eft(prompt, score, response="r"):
    return Example(judge.judge_prompt(RUBRIC, prompt, response), f"fine. Score: {score}", "eft")


def test_held_out_prompts_are_kept_from_sft_in_both_forms():
    rows = [Example("seen", "x", "ift"), Example("hidden", "x", "ift"), eft("seen", 3), eft("hidden", 4)]
    kept, counts = examples.select(numbered(rows), RUBRIC, {"hidden"})
    assert kept == [rows[0], rows[2]]
    assert counts == {"ift": 1, "eft": 1, "held_out": 2}


def test_judgements_that_do_not_have_the_rubrics_form_are_refused():
    rows = [Example("a", "x", "ift"), Example("how good is it?", "Score: 3", "eft")]
    with pytest.raises(
        UserError, match=r"^t.jsonl:7: source is eft.*1 of 2 rows.*prompt has 'how good is it.*--rubric"
    ):
        examples.select([(1, rows[0]), (7, rows[1])], RUBRIC, set(), "t.jsonl")


@pytest.mark.parametrize(
    ("change", "rubric_has", "prompt_has"),
    [
        (lambda text: text.replace("judge", "rate"), "judge <response>", "rate <response>"),
        (lambda text: text.replace("<response>", "<answer>"), "<response>", "<answer>r</response>"),
        (lambda text: text.replace("for", "of"), "for", "of p. Score"),
        (lambda text: text.replace("Score", "Points"), "Score: <total points>", "Points: <total points>"),
        (lambda text: text + " Thanks!", None, "Thanks!"),
        (lambda text: "Please " + text, "judge <response>", "Please judge"),
        (lambda text: text[:-8], "points>", "nothing"),
        (lambda text: "", "judge", "nothing"),
    ],
)
def test_the_first_difference_from_the_rubric_is_shown(change, rubric_has, prompt_has):
    text = change(judge.judge_prompt(RUBRIC, "p", "r"))
    assert judge.split_judge_prompt(RUBRIC, text) is None
    said = examples.difference(RUBRIC, text)
    assert prompt_has in said.split("prompt has")[-1]
    assert rubric_has is None or f"the rubric has '{rubric_has}" in said, said


def test_without_an_eval_folder_a_fraction_is_held_out_of_training_and_measured_on(tmp_path):
    path = tmp_path / "t.jsonl"
    texts = [f"prompt {i}" for i in range(200)]
    rows = [Example(text, "x", "ift") for text in texts]
    rows += [eft(text, score, f"r{score}") for text in texts for score in (1, 4)]
    jsonl.write(path, [{"prompt": r.prompt, "response": r.response, "source": r.source} for r in rows])
    kept, _ = examples.select(numbered(rows), RUBRIC, KeptOut(frozenset(), 0.2))
    asked, groups = held_out.evaluation_data(None, None, path, 0.2, RUBRIC, Scale())
    trained = {row.prompt for row in kept if row.source == "ift"}
    assert 20 < len(asked) < 60
    assert not trained & set(asked) and trained | set(asked) == set(texts)
    expected = {text for text in texts if prompts.is_held_out(text, 0.2)}
    assert {group.prompt for group in groups} == set(asked) == expected
    # rank: the best scored is lowest
    assert groups[0].responses == [RankedResponse("r1", 4.0), RankedResponse("r4", 1.0)]


def test_what_is_kept_out_of_training_is_m0_eval_or_a_fraction(tmp_path):
    asked, ranked = tmp_path / "prompts.jsonl", tmp_path / "eft.jsonl"
    jsonl.write(asked, [{"prompt": "a"}])
    jsonl.write(ranked, [{"prompt": "b", "responses": [{"text": "x", "rank": 0}, {"text": "y", "rank": 1}]}])
    for files, prompts_of_files in (((asked, None), {"a"}), ((None, ranked), {"b"}), ((asked, ranked), {"a", "b"})):
        kept_out = held_out.kept_out(*files, 1.0)
        assert kept_out.prompts == prompts_of_files and "c" not in kept_out
        assert all(prompt in kept_out for prompt in prompts_of_files)
    texts = [f"prompt {i}" for i in range(200)]
    kept_out = held_out.kept_out(None, None, 0.2)
    assert [text in kept_out for text in texts] == [prompts.is_held_out(text, 0.2) for text in texts]
