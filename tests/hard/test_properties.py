"""Properties of the pure pieces under near-valid input. What is claimed of the parsers and readers is in invariants.py,
which fuzz/ uses too; the inputs at the end of a test are what it, or a fuzzer, has found."""

import json
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from self_reward import texts
from self_reward.errors import UserError
from self_reward.method import judge, preferences, prompts
from self_reward.method.asking import Sample
from self_reward.models import chat
from self_reward.parameters.flat import flat, flattened, key_parameters
from self_reward.parameters.settings import PairRules
from self_reward.parameters.sources import ENVIRONMENT, parse
from self_reward.parameters.stages import STAGES, GenScores, Plan
from self_reward.repository import artifacts, examples, held_out, jsonl
from self_reward.rows import Score
from self_reward.store.content import hash_file, walk
from self_reward.store.local import index
from tests.support import invariants

ADDITIVE = texts.builtin("rubric", "additive")
TOY = "judge the response . instruction : {prompt} response : {response} end"
TURNED = "<answer> {response} </answer> is it good for <task>{prompt}</task>"
# files are written to one folder of a test over and over
REASONS = get_args(preferences.Reason)
in_a_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def words(text, separator="|"):
    return st.sampled_from(text.split(separator))


# ---- scores

score_pieces = words(
    "Score|score|Score: |**Score:** |<score>|</score>|Score (0-5)|:|=| is | was | of | out of |/5|/10|(|)|[[|]]|"
    "{|}|*|**|`|"
    '"|\\boxed{|+| + | = |-|–|−|~| to |.|,|%| |\n|\n\n|\t|\u00a0|0|3|4|5|10|05|4.5|.5|four|ten| and a half|n/a|'
    "NaN|none|"
    "prose |The |e9|½|²|４|: \n"
)
judgements = st.lists(score_pieces | st.text(max_size=3), max_size=14).map("".join)


@given(judgements)
@example("score" + " " * 15 + "(")  # found: the label's own space was one too many to look over
@example("Score:" + "*" * 16)
@example("Score: 0")
def test_parsed_scores_are_on_the_scale_or_none(text):
    invariants.score(text)
    invariants.score(text, 1, 9)


FORMS = [
    "Score: {}", "score: {}", "**Score:** {}", "**Score: {}**", "Total score = {}", "Final score is {}",
    "Score (0-5): {}",
    "<score>{}</score>", "Score: <{}>", "Score: [[{}]]", "Score: {}/5", "Score: {} out of 5", "Score: {} (out of 5)",
    '{{"why": "it is", "score": {}}}', '"score": "{}"', "| Score | {} |", "Score: ${{{}}}$", "Score: $\\boxed{{{}}}$",
    "## Score\n\n{}", "## Score\n**{}**", "Score:\n{}", "Score - {}", "Score – {}", "Score: {} points", "Score: {}.",
    "Score: {} - well done", "Score: 2 + 1 = {}", "Score：{}", "The score would be {}", "Score: “{}”", "SCORE:\t{}",
]  # fmt: skip
before = st.lists(
    words(
        "It is good.|At first: Score: 1.|I count 3 of them|4/5 of the users|in 2019|1. first|underscore: 2|Scores vary|"
        "A score of 5 needs more|"
        "\n|\n\n|# Points|- yes|a 5/5 answer|rate: 1|“5”|</score>|\ud800|（3）|0.5|4"
    ),
    max_size=8,
).map(" ".join)
after = words("|\n|\n\nAll in all, well done.|\nThat is why.|\n\n---\n|\n```")


@given(st.sampled_from(FORMS), st.integers(0, 5), before, after)
def test_stated_score_is_read_in_any_context(form, score, prose, end):
    assert judge.parse_score(f"{prose}\n{form.format(score)}{end}") == score


@given(st.sampled_from(FORMS), st.integers(0, 9).filter(lambda number: number > 5) | st.integers(11, 99), before)
def test_a_stated_score_off_the_scale_is_none(form, score, prose):
    assert judge.parse_score(f"{prose}\n{form.format(score)}") is None


# ---- linear time

shapes = st.lists(
    words(
        'a|\n| |\t|Score|Score: |4|4/5 | + |*|<|</response|`|"|```|Task 1: |1. |- |#|---\n|response :|\\|\u200b|（|.|1+'
    ),
    min_size=1,
    max_size=3,
).map("".join)
LINEAR = {
    "parse_score": judge.parse_score,
    "score_prefix": judge.score_prefix,
    "parse_prompts": prompts.parse_prompts,
    "split_judge_prompt": lambda text: judge.split_judge_prompt(ADDITIVE, judge.judge_prompt(ADDITIVE, text, text)),
    "split_of_a_toy": lambda text: judge.split_judge_prompt(TOY, judge.judge_prompt(TOY, text, text)[:-3]),
    "split_of_anything": lambda text: judge.split_judge_prompt("{prompt} is {response}", text),
    "without_end": lambda text: chat._without_end(SimpleNamespace(eos_token="a"), text, SimpleNamespace(close="</s>")),
}


@pytest.mark.parametrize("name", LINEAR)
@settings(max_examples=40, deadline=None)
@given(head=shapes, middle=shapes, tail=shapes)
@example(head="a", middle="\n", tail="b")  # found: a new task, and white space before what a judge prompt is split at
@example(head="a", middle=" ", tail="b")
@example(head="b", middle="a", tail="")
def test_readers_are_linear(name, head, middle, tail):
    invariants.assert_linear(LINEAR[name], head, middle, tail, size=400_000 if name == "without_end" else 20_000)


# ---- judge prompts

rubric_parts = re.split(r"\{prompt\}|\{response\}", ADDITIVE)
texts = st.lists(
    st.sampled_from([part[:40] for part in rubric_parts] + [part[-40:] for part in rubric_parts])
    | words(
        "{prompt}|{response}|{|}|<response>|</response>|< / RESPONSE>|<answer>|</task>|Score: 5|User: |&lt;|\\1|\\g<0>"
    )
    | st.text(max_size=8),
    max_size=8,
).map("".join)


@pytest.mark.parametrize("rubric", [ADDITIVE, TURNED])
@given(prompt=texts, response=texts)
def test_tagged_judge_prompt_can_be_split(rubric, prompt, response):
    invariants.split(rubric, prompt, response)


@given(
    st.lists(words("response|:| |\n|end|judge the response .|x|{prompt}|{response}"), max_size=8).map("".join),
    st.lists(words("response|:| |\n|end|judge the response .|x|response :"), max_size=8).map("".join),
)
def test_untagged_judge_prompt_splits_at_an_unambiguous_separator(prompt, response):
    if not re.search(r"response\s+:", prompt):
        invariants.split(TOY, prompt, response)


# ---- new prompts

answers = st.lists(
    words(
        "Task 9: |**Task 10:** |Task|New task 3.|1. |2) |10. |#1. |- |* |• |```|```text|\n|\n\n|\r\n|\r|\u2028|"
        "\x0b|---\n| |"
        "Sure, |Sure, here are two:\n\n|Let me know|\n\nI hope|Prompt: |Write a haiku.|Sort these:\n|a|\"|“|”|'|"
        "`|**|_|#|>|写"
    )
    | st.text(max_size=3),
    max_size=14,
).map("".join)


@given(answers, st.sampled_from(["stop", "length"]))
def test_parsed_prompts_are_parts_of_the_answer(text, finish_reason):
    invariants.new_prompts(text, finish_reason)


tasks = st.lists(
    st.lists(words("write|sort|a|list|of {examples}|3|names|{prompt}|why?|é|写"), min_size=1, max_size=6).map(
        lambda found: " ".join(["Explain", *found])
    ),
    min_size=1,
    max_size=5,
)
LISTS = [
    "Task {n}: {task}", "**Task {n}:** {task}", "### Task {n}\n{task}", "{n}. {task}", "{n}) {task}", "- {task}",
    "* {task}",
    '{n}. "{task}"', "Task {n}: “{task}”", "{n}. **{task}**", "New task {n}: {task}", "Question {n} - {task}",
]  # fmt: skip


@given(st.sampled_from(LISTS), tasks, words("|Sure, here they are:\n\n|Here are some new tasks:\n|```\n"), st.data())
def test_list_of_tasks_is_read_completely(form, tasks, lead, data):
    between = data.draw(st.sampled_from(["\n", "\n\n"]))
    end = "\n```" if lead == "```\n" else data.draw(words("|\n|\n\nLet me know if you need more!|\n\n"))
    text = lead + between.join(form.format(n=n, task=task) for n, task in enumerate(tasks, 1)) + end
    assert prompts.parse_prompts(text) == tasks
    assert prompts.parse_prompts(text.removesuffix(end), "length") == tasks[:-1]


@given(st.lists(texts, min_size=1, max_size=8), words("Task {number}: {prompt}|{prompt}|<{prompt}> {number}"))
def test_request_shows_every_example_unchanged(shown, form):
    request = prompts.few_shot_prompt("# example: " + form + "\nBegin.\n{examples}\nNow {next} end.", shown)
    before, after = form.split("{prompt}")
    lines = [
        before.replace("{number}", str(n)) + task + after.replace("{number}", str(n)) for n, task in enumerate(shown, 1)
    ]
    assert request == "Begin.\n" + "\n".join(lines) + f"\nNow {len(shown) + 1} end."


# ---- files of rows

text_value = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
json_value = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | text_value,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text_value, inner, max_size=3),
    max_leaves=6,
)
json_rows = st.lists(st.dictionaries(text_value | words("prompt|score|completion"), json_value, max_size=4), max_size=5)


@in_a_folder
@given(rows=json_rows, cut=st.integers(0, 200))
def test_truncated_rows_file_gives_a_prefix_or_an_error_with_line(tmp_path, rows, cut):
    path = tmp_path / "f.jsonl"
    assert jsonl.write(path, rows) == len(rows)
    assert list(jsonl.read(path)) == rows
    content = path.read_bytes()[:cut]
    path.write_bytes(content)
    whole = content.count(b"\n")
    found = []
    try:
        found.extend(jsonl.read(path))
        assert found == rows[: len(found)] and len(found) - whole in (0, 1)
    except UserError as error:
        assert [problem.partition(": ")[0] for problem in error.problems] == [f"{path}:{whole + 1}"]


whole_lines = [
    b'{"prompt": "a", "score": 1}',
    b'{"score": null, "prompt": "\xc3\xa9"}',
    b'{"prompt": "\\ud83d\\ude00", "score": 1e5}',
    b'\xef\xbb\xbf{"prompt": "a", "score": 1}',
    b'{"prompt": "a", "score": 1}\r',
    b'{"prompt": "", "score": true}',
    b'{"prompt": null, "score": 1}',
    b'{"prompt": "a"}',
    b'{"prompt": "\\ud800", "score": 1}',
    b'{"prompt": "\xff", "score": 1}',
    b'{"prompt": "a", "score": NaN}',
    b'{"prompt": "a", "score": 1}{}',
    b'{"prompt": "a", "sc',
    b'{"prompt": 1, "prompt": "a", "score": "1", "score": 1}',
    b'{"prompt": "a\tb", "score": 1}',
    *(b"", b" ", b"\r", b"[1]", b"null", b'"prompt"', b"\x00\x00", b"\x0b", b"\x85"),
]
bits = [b'{"prompt": "a", "score": ', b'{"prompt": "', b'", "score": 1.5}', b"\xed\xa0\x80", b"\\ud800", b"\\u00e9"]
bits += [b"\xe2\x80\xa8", *(bytes([byte]) for byte in b'\t\x1c1-.0e{}[]",:'), b"1e5", b"Infinity", b"true"]
pieces = st.lists(st.sampled_from(bits) | st.binary(max_size=3), max_size=6).map(b"".join)
row_bytes = st.lists(st.sampled_from(whole_lines) | st.sampled_from(whole_lines) | pieces, max_size=6).map(b"\n".join)


@in_a_folder
@given(content=row_bytes)
def test_any_bytes_are_rows_or_problems_with_lines(tmp_path, content):
    invariants.jsonl_bytes(tmp_path / "f.jsonl", content)


@settings(in_a_folder, max_examples=50)
@given(lengths=st.lists(st.integers(26, 90), max_size=5), ends=st.booleans())
def test_only_too_long_rows_are_left_out(tmp_path, monkeypatch, lengths, ends):
    monkeypatch.setattr(jsonl, "LONGEST_ROW", 60)
    path = tmp_path / "f.jsonl"
    lines = [b'{"prompt": "%s", "score": 1}' % (b"x" * (length - 26)) for length in lengths]
    path.write_bytes(b"\n".join(lines) + b"\n" * ends)
    assert [len(line) for line in lines] == lengths
    try:
        assert len(list(jsonl.read(path))) == len(lines) and all(length <= 60 for length in lengths)
    except UserError as error:
        bad = [f"{path}:{n}: a row of {length} bytes" for n, length in enumerate(lengths, 1) if length > 60]
        assert [problem.partition(";")[0] for problem in error.problems] == bad


train_rows = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "prompt": words("|p| |\n|q") | json_value,
            "response": words("|r| ") | json_value,
            "completion": words("|c| ") | json_value,
            "source": words("ift|eft|EFT|") | json_value,
            "responses": st.lists(
                st.fixed_dictionaries({"text": text_value, "rank": st.integers(0, 3) | json_value | st.just(10**400)}),
                max_size=3,
            )
            | json_value,
        },
    ),
    max_size=4,
)


@in_a_folder
@given(rows=train_rows)
def test_user_data_is_read_completely_or_every_bad_row_is_named(tmp_path, rows):
    path = tmp_path / "f.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for read in (examples.read, held_out.read_prompts, held_out.read_ranked):
        try:
            found = read(path)
        except UserError as error:
            assert all(str(path) in problem for problem in error.problems) and len(error.problems) <= max(len(rows), 1)
            named = {int(match[1]) for problem in error.problems if (match := re.search(r"jsonl:(\d+): ", problem))}
            assert not rows or len(named) == len(error.problems)
            continue
        assert len(found) == len(rows) > 0
        if read is examples.read:
            assert all(row.prompt.strip() and row.response.strip() for _, row in found)
            assert [(line, row.prompt) for line, row in found] == [(n, row["prompt"]) for n, row in enumerate(rows, 1)]
        if read is held_out.read_ranked:
            assert all(len(row.responses) >= 2 for row in found)
            assert all(response.rank == response.rank for row in found for response in row.responses)


# ---- partial results

finished = st.dictionaries(
    st.integers(0, 50),
    st.lists(st.builds(Sample, text_value, st.lists(st.integers(0, 9), max_size=3), words("stop|length")), max_size=3),
    max_size=5,
).map(lambda found: list(found.items()))


@in_a_folder
@given(rows=finished, kept=st.integers(0, 400), garbage=row_bytes)
@example(rows=[(0, [])], kept=22, garbage=b"[" * 5000 + b"\n")
def test_truncated_partial_file_is_resumed_after_complete_rows(tmp_path, rows, kept, garbage):
    # no row in it: nothing could tell that one from a real one
    garbage = garbage.translate(bytes.maketrans(b"{}]", b"\0\0\0"))
    invariants.partial_file(tmp_path / "f.jsonl", rows, kept, garbage)


@in_a_folder
@given(
    content=st.lists(
        row_bytes | words('{"index": 1, "samples": []}|{"index": |, "samples": [|]}|"abc"|0').map(str.encode)
    )
)
def test_any_partial_file_is_read_or_replaced(tmp_path, content):
    invariants.partial_bytes(tmp_path / "f.jsonl", invariants.HEADER + b"".join(content))


# ---- pairs

scored_rows = st.lists(
    st.fixed_dictionaries(
        {
            "completion": words("a|b|c |c|dd|eeee"),
            "score": st.sampled_from([0, 1, 2.5, 2.75, 3, 4, 4.25, 5, None, -1, float("nan")]),
            "tokens": st.integers(1, 5),
            "finish_reason": words("stop|length"),
            "votes": st.lists(st.none() | st.integers(0, 5), max_size=3),
        }
    ),
    min_size=1,
    max_size=8,
).map(lambda rows: [Score(prompt="p", prompt_id="0", response_id=f"{i}", **row) for i, row in enumerate(rows)])
rules = st.builds(
    PairRules,
    **{
        "length_rho": st.sampled_from([0.0, 0.1, 0.25, 0.4]),
        "min_margin": st.sampled_from([0.0, 0.25, 1.0, 2.5]),
        "tie_break": words("none|variance"),
        "drop_truncated": st.booleans(),
        "drop_identical": st.booleans(),
        "max_pairs": st.integers(1, 4),
    },
)


def texts_of(made):
    return [(pair.chosen, pair.rejected) for pair in made]


def readable(row):
    return row.score is not None and row.score >= 0


@settings(max_examples=300)
@given(scored_rows.filter(lambda rows: len(rows) > 2), rules)
def test_pair_is_best_and_worst_or_shortest_and_longest_in_bands(rows, rules):
    made, _ = preferences.pairs(rows, rules.model_copy(update={"drop_identical": False}))
    usable = [row for row in rows if readable(row)]
    if rules.drop_truncated:
        usable = [row for row in usable if row.finish_reason == "stop"]
    if not made:
        return
    high, low, rho = max(r.score for r in usable), min(r.score for r in usable), rules.length_rho
    top = [row for row in usable if row.score >= (1 - rho) * high + rho * low - 1e-9]
    bottom = [row for row in usable if row.score <= (1 - rho) * low + rho * high + 1e-9]
    if rho:
        assert made[0].chosen in [row.completion for row in top if row.tokens == min(r.tokens for r in top)]
        assert made[0].rejected in [row.completion for row in bottom if row.tokens == max(r.tokens for r in bottom)]
    else:
        assert (made[0].score_chosen, made[0].score_rejected) == (high, low)
    # disjoint: no pair takes a response that an earlier one has taken
    available = Counter((row.completion, row.score) for row in usable)
    taken = Counter(side for p in made for side in ((p.chosen, p.score_chosen), (p.rejected, p.score_rejected)))
    assert taken <= available
    gaps = [pair.score_chosen - pair.score_rejected for pair in made]
    assert all(gap > rules.min_margin for gap in gaps)
    assert rho or gaps == sorted(gaps, reverse=True)


@settings(max_examples=300)
@given(scored_rows.filter(lambda rows: len(rows) > 2), rules, st.sampled_from([0.25, 1.0, 4.5]))
def test_adding_a_constant_to_scores_keeps_the_pairs(rows, rules, rise):
    higher = [replace(row, score=row.score + rise if readable(row) else row.score) for row in rows]
    made, reason = preferences.pairs(rows, rules)
    again, reason_again = preferences.pairs(higher, rules)
    assert (texts_of(made), reason) == (texts_of(again), reason_again)


@settings(max_examples=300)
@given(scored_rows.filter(lambda rows: len(rows) > 2), rules)
def test_smaller_margin_and_max_pairs_keep_the_pairs(rows, rules):
    made, _ = preferences.pairs(rows, rules)
    more, _ = preferences.pairs(rows, rules.model_copy(update={"min_margin": 0.0, "max_pairs": 9}))
    assert more[: len(made)] == made


@given(st.lists(scored_rows, max_size=5), rules, st.randoms())
def test_counts_add_up_and_pairs_stay_within_prompts(groups, rules, rng):
    groups = [[replace(row, prompt=f"p{g}", prompt_id=f"{g}") for row in rows] for g, rows in enumerate(groups)]
    counts: Counter[str] = Counter()
    made = list(preferences.build((row for rows in groups for row in rows), rules, 0, counts))
    with_pairs = len({pair.prompt_id for pair in made})
    assert counts["prompts"] == len(groups) == with_pairs + sum(counts[reason] for reason in REASONS)
    assert counts["pairs"] == len(made) and counts["responses"] == sum(map(len, groups))
    assert counts["unreadable"] == sum(not readable(row) for rows in groups for row in rows)
    assert set(counts) <= {*preferences.TOTALS, *REASONS}
    assert made == [pair for rows in groups for pair in preferences.pairs(rows, rules)[0]]
    for rows in groups:
        rng.shuffle(rows)
    rng.shuffle(groups)
    turned = list(preferences.build((row for rows in groups for row in rows), rules, 0, Counter()))
    assert sorted(map(repr, turned)) == sorted(map(repr, made))


@given(scored_rows.filter(lambda rows: len(rows) > 2), rules, st.integers(0, 3), st.randoms())
def test_shuffled_control_ignores_the_scores(rows, rules, seed, rng):
    rules = rules.model_copy(update={"shuffle_preferences": True})
    made = list(preferences.build(rows, rules, seed, Counter()))
    scores = [row.score for row in rows if readable(row)]
    rng.shuffle(scores)
    other = [replace(row, score=scores.pop(), votes=[1]) if readable(row) else row for row in rows]
    assert list(preferences.build(other, rules, seed, Counter())) == made


# ---- parameters

VALID = {
    "judge_votes": [1, 3, 12], "judge_temperature": [0.5, 1, 1e-5], "judge_top_p": [0.25, 1], "seed": [0, 8, 2**31 - 1],
    "branch": ["main", "no", "1e5", "v1/x", "0x10", "010"], "judge_forced_score": [True, False], "sampler": ["auto",
    "vllm"],
    "rubric": ["additive", "true", "12:30", "~x", "a: b", "# x", "*a", "é"], "max_model_len": [None, 16, 100000],
    "base_model": ["mistralai/Mistral-7B-v0.1", "2020-01-02", "yes", None], "data_repo": ["a b", "x"],
    "prompt_keywords": [[], ["no", "1"], ["a", "é"]],
}  # fmt: skip
INVALID = {
    "judge_votes": [0, "x", [1], 1.5, "1e400"], "judge_temperature": [-1, "no", {}, "nan", "1e400"],
    "judge_top_p": [2, "inf"],
    "seed": [2**31, "2020-13-45", "010-"], "branch": ["-x", [], "a b"], "judge_forced_score": ["maybe", 7, []],
    "sampler": ["no", False], "max_model_len": ["x", 3],
}  # fmt: skip
NEUTRAL = {
    "data_repo": ["x"], "branch": ["b"], "force": [True], "cache_dir": ["c"], "lock_timeout": [1], "base_model": ["m"],
    "generate_gpus": [2], "gpu_memory_utilization": [0.5], "store_timeout": [5], "min_parse_rate": [0.1],
    "cache_keep": [9],
}  # fmt: skip


def chosen_from(values):
    return st.fixed_dictionaries({}, optional={name: st.sampled_from(found) for name, found in values.items()})


def flag(value):
    """A value as it is typed after a flag."""
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)


def flags(values):
    return [f"--{name}={flag(value)}" for name, value in values.items()]


def as_environment(values):
    return json.dumps([{"name": name, "value": value} for name, value in values.items()])


@in_a_folder
@given(environment=chosen_from(VALID), file=chosen_from(VALID), given_flags=chosen_from(VALID), typed=st.booleans())
def test_later_sources_win_and_values_mean_the_same_in_each(tmp_path, environment, file, given_flags, typed):
    path = tmp_path / "p.yaml"
    dump = file if typed else {name: flag(value) for name, value in file.items()}
    found = invariants.parameter_sources(
        "plan", flags(given_flags), as_environment(environment), path, yaml.safe_dump(dump).encode()
    )
    assert found is not None
    values, fields = flattened(found), flat(Plan)
    for name in VALID:
        default = fields[name][1].get_default(call_default_factory=True)
        last = next((source[name] for source in (given_flags, file, environment) if name in source), default)
        assert values[name] == last, name


@in_a_folder
@given(good=chosen_from(VALID), bad=chosen_from(INVALID), source=words("flags|file|environment"))
def test_exactly_the_bad_values_are_named_once(tmp_path, good, bad, source):
    path = tmp_path / "p.yaml"
    values = good | bad
    path.write_text(yaml.safe_dump(values) if source == "file" else "")
    environment = as_environment(values) if source == "environment" else ""
    argv = ["--parameter_file", str(path), *(flags(values) if source == "flags" else [])]
    try:
        parse(Plan, "", argv, {ENVIRONMENT: environment})
        assert not bad
    except UserError as error:
        named = [problem.split(" = ")[0] for problem in error.problems if " = " in problem and "from " in problem]
        assert sorted(named) == sorted(bad), error.problems


yaml_pieces = words(
    "seed|judge_votes|prompt_keywords|branch|: |:|\n|\n  |- |  - |[|]|{|}|, |1|010|0x1|1e400|2020-13-45|12:30|~|"
    "null|no|yes|.inf|"
    '""|"|\'|&a |*a|!!bool x|!!int |!!set |!!python/name:os.x|? |<<: |%YAML 1.1|---|...|#|@|`|\t|\x00|\x85|é|'
    "\u2028||-|[[[["
)

# each alias stands for nine of the one before
LAUGHS = b"z0: &a0 [x]\n"
LAUGHS += b"".join(b"z%d: &a%d [%s]\n" % (n, n, b", ".join([b"*a%d" % (n - 1)] * 9)) for n in range(1, 9))
LAUGHS += b"base_model: *a8\n"


@in_a_folder
@given(content=st.lists(yaml_pieces, max_size=12).map("".join).map(str.encode) | st.binary(max_size=12))
@example(content=b"seed: !!bool x")
@example(content=b"seed: 2020-13-45")
@example(content=b"seed: !!timestamp x")
@example(content=b"[" * 1500)
@example(content=b"seed: 1\nseed: 2")
@example(content=b"prompt_pattern: a{99999999999999}")
@example(content=b"prompt_pattern: " + b"(" * 3000)
@example(content=b"prompt_keywords: '" + b"[" * 5000 + b"'")
@example(content=b"prompt_keywords: [" + b"[], " * 5000 + b"]")
@example(content=b"seed: " + b"9" * 5000)
@example(content=LAUGHS)
def test_any_parameter_file_gives_parameters_or_user_error(tmp_path, content):
    invariants.parameter_sources("01_gen_prompts", [], "", tmp_path / "p.yaml", content)


json_text = st.lists(
    words('{"name": "|", "value": |"}|}|{|[|]|, |seed|"1"|1|null|NaN|1e400|"|true|\\ud800|[]|{}'), max_size=9
).map("".join)


@given(
    json_text | json_value.map(json.dumps),
    st.lists(words("--seed|--seed=1|--|-|--force|x|--=|--é|--beta=1|1|\udc80|\x00|-1"), max_size=4),
)
@example("[" * 100_000, [])
@example('[{"name": "prompt_keywords", "value": ' + "[" * 900 + "]" * 900 + "}]", [])
def test_any_environment_and_flags_give_parameters_or_user_error(text, argv):
    invariants.parameter_sources("03_gen_scores", argv, text, None)


@given(chosen_from(NEUTRAL), chosen_from({"judge_votes": [7], "seed": [5], "rubric": ["r.txt"], "iteration": [2]}))
def test_key_depends_exactly_on_what_changes_the_output(neutral, other):
    def key(values):
        return key_parameters(parse(GenScores, "", flags(values), {}))

    assert key(neutral | other) == key(other)
    assert (key(other) == key({})) == (not other)


# ---- conversations


@pytest.fixture(scope="module")
def tokenizers():
    from tests.models.test_chat import TEMPLATES, make_bpe

    made = []
    for adds_bos in (False, True):
        tokenizer = make_bpe(adds_bos=adds_bos)
        made += [(tokenizer, name, template) for name, template in TEMPLATES.items()]
    return made


turns = st.lists(
    words(
        "<s>|</s>|<|im_start|>|<|im_end|>|<|eot_id|>|< /s>|<<s>s>|[INST]|[/INST]|user|\n|the air| |{{ x }}|{% raise %}",
        "|",
    )
    | words("<|im_start|>;<|im_end|>;<|eot_id|>;<|start_header_id|>", ";")
    | st.text(max_size=4),
    max_size=8,
).map("".join)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), prompt=turns, response=turns)
def test_conversation_has_one_bos_one_end_and_one_prompt(tokenizers, data, prompt, response):
    tokenizer, name, template = data.draw(st.sampled_from(tokenizers))
    tokenizer.chat_template = template
    before = chat.prompt_ids(tokenizer, prompt)
    start, completion = chat.example_ids(tokenizer, prompt, response)
    assert start == before
    assert chat.example_ids(tokenizer, prompt, response + tokenizer.eos_token) == (start, completion)
    plain, _ = chat.example_ids(tokenizer, "a", "b")
    assert (start + completion).count(tokenizer.bos_token_id) == plain.count(tokenizer.bos_token_id) <= 1
    assert tokenizer.bos_token_id not in start[1:]
    stops = chat.stop_token_ids(tokenizer)
    assert completion[-1] in stops and not any(token in stops for token in completion[:-1])
    # the prompt holds no special token but the template's own
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    assert [token for token in start if token in special] == [token for token in plain if token in special], name


# ---- files of the data repository

repository_files = st.sets(
    st.sampled_from([
        *(f"M{k}/models/{kind}/final_checkpoint/{name}" for k in range(3) for kind in ("sft", "dpo")
          for name in ("self_reward.json", "adapter_config.json", "x")),
        *(f"M{k}/generated/{name}.jsonl" for k in range(3) for name in ("prompts", "responses", "scores",
        "preferences")),
        "M0/train/ift+eft.jsonl", "M0/train/ift_eft.jsonl", "M1/train/ift+eft.jsonl", "M0/train/ift.jsonl",
        "M0/eval/prompts.jsonl", "M0/eval/eft.jsonl", "base/config.json", "rubric.txt", "/models/",
        "models/final_checkpoint/",
        "M0/models/final_checkpoint/x", "x/models//final_checkpoint/",
    ])
)  # fmt: skip
metadata = st.fixed_dictionaries(
    {},
    optional={
        "parent": words("M0/sft|M0/dpo|M1/dpo|M2/sft|base||x|../..|M0") | json_value,
        "finetune": words("lora|full|x") | json_value,
        "base_model": words("hub:a@1|path:/x|oxen:base") | json_value,
    },
)
small_files = st.one_of(metadata.map(json.dumps).map(str.encode), json_value.map(json.dumps).map(str.encode), row_bytes)
stage_parameters = st.fixed_dictionaries(
    {
        "iteration": st.integers(0, 3),
        "sft": words("auto|always|never"),
        "base_model": st.none() | words("oxen:base|oxen:|oxen:/|m|/x"),
        "rubric": words("additive|rubric.txt|nothing"),
        "prompt_model": words("policy|base|M0/sft|M1/dpo|x|M9/dpo/..|M0"),
        "prompt_template": words("few_shot|x"),
        "chat_template": words("auto|plain|x"),
        "eft_replay": st.sampled_from([0.0, 0.5]),
        "start_iteration": st.integers(0, 2),
    }
)


@given(
    st.sampled_from(list(STAGES)[1:]),
    stage_parameters,
    repository_files,
    st.lists(small_files, min_size=6, max_size=6),
)
def test_any_repository_has_inputs_or_missing_ones_are_named(stage, values, files, contents):
    paths = [f"M{k}/models/{kind}/final_checkpoint/self_reward.json" for k in range(3) for kind in ("sft", "dpo")]
    small = {path: content for path, content in zip(paths, contents, strict=True) if path in files}
    settings = Plan().model_copy(update=values)
    try:
        found = artifacts.inputs(stage, settings, files, small)
    except UserError as error:
        assert error.problems and all(problem.strip() for problem in error.problems)
    else:
        for path in found.paths.values():
            assert path in files or any(file.startswith(path + "/") for file in files), path
        for chain in found.chains.values():
            assert len(set(chain)) == len(chain) >= 1
        assert not set(found.paths.values()) & set(found.outputs.values())
    _, problems = artifacts.run_inputs(settings, files, small)
    assert len(problems) == len(set(problems)), problems


names = st.lists(words("a|b|c|.h|é|M0|x y"), min_size=1, max_size=3).map("/".join)
trees = st.dictionaries(names, words("one|two|"), max_size=6)


def lay_out(folder: Path, tree: dict[str, str]) -> dict[str, str]:
    """Write the files of `tree` for which there is room: "a" cannot be a file where it is a folder."""
    made = {}
    for path, text in tree.items():
        if not any(other != path and (other.startswith(path + "/") or path.startswith(other + "/")) for other in tree):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)
            made[path] = text
    return made


@settings(max_examples=40, deadline=None)
@given(then=trees, now=trees, known=st.booleans())
def test_working_tree_differs_exactly_where_files_do(tmp_path_factory, then, now, known):
    old, new = tmp_path_factory.mktemp("old"), tmp_path_factory.mktemp("new")
    then, now = lay_out(old, then), lay_out(new, now)
    visible = {path for path in then if not any(part.startswith(".") for part in path.split("/"))}
    assert set(walk(old)) == visible
    tree = {path: hash_file(old / path) for path in then}
    stats: dict[str, list] = {}
    for _ in range(2):  # the second time from what is remembered
        changed, missing = index.compare(new, tree, stats if known else {})
        seen = {path for path in now if path in then or not any(part.startswith(".") for part in path.split("/"))}
        assert set(changed) == {path for path in seen if then.get(path) != now[path]}
        assert missing == sorted(set(then) - set(now))
        assert all(changed[path] == hash_file(new / path) for path in changed)
    index.write_tree(new, "c", tree)
    assert index.read_tree(new, "c") == tree
