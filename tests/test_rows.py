"""The rows of the data files: what is accepted, what is refused with which words, and what is written."""

import json

import pytest

from self_reward.errors import UserError
from self_reward.repository import jsonl
from self_reward.repository.__main__ import columns
from self_reward.repository.artifacts import ARTIFACTS
from self_reward.rows import Preference, Prompt, Response, Score, response_counts

SCORE = {"prompt_id": "a", "prompt": "b", "completion": "", "score": 2.5}


def problem_of(tmp_path, row, kind):
    jsonl.write(tmp_path / "f.jsonl", [row])
    try:
        list(jsonl.read(tmp_path / "f.jsonl", kind))
    except UserError as error:
        (problem,) = error.problems
        return problem.removeprefix(f"{tmp_path}/f.jsonl:1: ")
    return None


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, None),
        ({"score": None}, None),
        ({"score": -1}, None),
        ({"score": -0.5}, None),
        ({"votes": [1, None, 2.5]}, None),
        ({"votes": None}, None),
        ({"response_id": "x"}, None),
        ({"response_id": None, "tokens": None, "finish_reason": None, "reasoning": None}, None),
        ({"reasoning": ["x"]}, None),
        ({"reasoning": "the reproduction has a text"}, None),
        ({"more": [1]}, None),
        ({"score": 10}, "the score is 10; expected a number on the rubric's scale, within 0 to 9, or null"),
        ({"score": -2}, "the score is -2; expected a number"),
        ({"score": "3"}, "score is str, expected float or null"),
        ({"score": True}, "score is bool, expected float or null"),
        ({"votes": 3}, "votes is int, expected list or null"),
        ({"votes": [True]}, "votes[0] is bool, expected float or null"),
        ({"votes": [1, "3"]}, "votes[1] is str, expected float or null"),
        ({"response_id": 1}, "response_id is int, expected str or null"),
        ({"tokens": "9"}, "tokens is str, expected int or null"),
        ({"prompt_id": 1, "prompt": None}, "prompt_id is int, expected str; prompt is null, expected str"),
        ({"prompt_id": ""}, "prompt_id is empty"),
        ({"prompt": " \n"}, "the prompt is empty"),
        ({"prompt": ""}, "the prompt is empty"),
    ],
)
def test_a_row_of_scores_is_right_or_what_is_wrong_is_reported(tmp_path, changed, said):
    problem = problem_of(tmp_path, SCORE | changed, Score)
    assert (problem is None) == (said is None) and (said or "") in (problem or "")


def test_columns_that_a_row_must_have(tmp_path):
    for kind, missing in (
        (Prompt, "prompt_id, prompt"),
        (Response, "prompt_id, prompt, completion"),
        (Score, "prompt_id, prompt, completion, score"),
        (Preference, "prompt_id, prompt, chosen, rejected"),
    ):
        assert problem_of(tmp_path, {"x": 1}, kind) == f"missing column {missing}; found x"
        empty = dict.fromkeys(missing.split(", "), "")
        assert problem_of(tmp_path, empty | {"score": 1}, kind) == "prompt_id is empty"
        assert (
            problem_of(tmp_path, empty | {"score": 1, "prompt_id": "1", "prompt": "\t"}, kind) == "the prompt is empty"
        )


def test_rows_are_written_with_these_columns_in_this_order(tmp_path):
    """The bytes of version 0.1."""
    path = tmp_path / "f.jsonl"
    response = Response(
        prompt_id="1", response_id="1-0", prompt="é", completion='"\n', finish_reason="stop", tokens=2, position=None
    )
    judged = Score.of(response, 2.0, [3.0, None, 1.0], ["Score: 3", "?", "Score: 1"], None)
    rows = [
        Prompt("1", "é", source="generated"),
        response,
        Score.of(response, None, [], [], 7),
        judged,
        Preference("1", "p", "c", "r", score_chosen=4.0, score_rejected=7 / 3),
    ]
    assert jsonl.write(path, rows) == 5
    answer = '"prompt_id":"1","response_id":"1-0","prompt":"é","completion":"\\"\\n","finish_reason":"stop","tokens":2'
    assert path.read_text(encoding="utf-8").splitlines() == [
        '{"prompt_id":"1","prompt":"é","source":"generated"}',
        f"{{{answer}}}",
        f'{{{answer},"score":null,"votes":[],"reasoning":[],"position":7}}',
        f'{{{answer},"score":2.0,"votes":[3.0,null,1.0],"reasoning":["Score: 3","?","Score: 1"]}}',
        '{"prompt_id":"1","prompt":"p","chosen":"c","rejected":"r","score_chosen":4.0,"score_rejected":2.3333333333333335}',
    ]


def test_a_score_has_all_columns_of_its_response(tmp_path):
    """Those of other people's files too; what the response lacks, the score lacks."""
    line = {"more": {"a": [1, None]}, "prompt": "p", "prompt_id": "1", "completion": "c", "null": None}
    jsonl.write(tmp_path / "f.jsonl", [line])
    (response,) = jsonl.read(tmp_path / "f.jsonl", Response)
    jsonl.write(tmp_path / "g.jsonl", [Score.of(response, 1.0, [1.0], ["x"], position=None)])
    written = json.loads((tmp_path / "g.jsonl").read_text())
    assert written == line | {"score": 1.0, "votes": [1.0], "reasoning": ["x"]}
    (score,) = jsonl.read(tmp_path / "g.jsonl", Score)
    score.position = None
    jsonl.write(tmp_path / "h.jsonl", [score])
    assert (tmp_path / "h.jsonl").read_bytes() == (tmp_path / "g.jsonl").read_bytes()


def test_responses_are_counted():
    rows = [
        Response(prompt_id="1", prompt="p", completion="c", finish_reason=reason, tokens=tokens)
        for reason, tokens in (("stop", 3), ("length", 9), ("length", None))
    ]
    assert response_counts(rows) == {"responses": 3, "truncated": 2, "tokens": 12}


@pytest.mark.parametrize("kind", [file.rows for file in ARTIFACTS.values() if file.rows])
def test_every_column_is_described(kind):
    described = columns(kind)
    assert [name for name, *_ in described] == list(kind.__struct_fields__)
    assert all(type_ and meaning for _, _, type_, meaning in described)
