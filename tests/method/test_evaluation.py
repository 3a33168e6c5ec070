import pytest

from self_reward.errors import UserError
from self_reward.method import evaluation
from self_reward.method.scoring import Judgement
from self_reward.rows import Ranked, RankedResponse
from tests.support.engines import sampling
from tests.support.saying import Saying


def judged(score):
    return Judgement(score, [score], ["text"])


def test_a_verifier_may_return_a_number_or_several():
    assert evaluation.verified(lambda p, r: len(r), [("a", "xx"), ("a", "y")]) == {"reward": [2.0, 1.0]}
    columns = evaluation.verified(lambda p, r: {"reward": 1, "form": r == "x"}, [("a", "x"), ("a", "y")])
    assert columns == {"reward": [1.0, 1.0], "form": [1.0, 0.0]}
    assert evaluation.summary(columns)["form"] == {"mean": 0.5, "se": 0.5, "n": 2}


def test_verifier_comparison_uses_readable_judgements_only():
    measures = evaluation.judge_against_verifier([judged(1.0), judged(None), judged(3.4), judged(5.0)], [1, 5, 3, 2])
    assert measures["verifier_n"] == 3
    assert measures["verifier_exact"] == pytest.approx(2 / 3)
    assert measures["verifier_correlation"] == pytest.approx(0.596, abs=1e-3)
    assert evaluation.parse_rate([judged(1.0), judged(None)]) == 0.5
    assert evaluation.judge_against_verifier([judged(None)], [1.0])["verifier_exact"] is None


def test_ranked_responses_get_their_own_judgements():
    good, fair, bad = (RankedResponse(text, rank) for text, rank in (("good", 0.0), ("fair", 0.5), ("bad", 1.0)))
    groups = [Ranked("p", [good, bad]), Ranked("q", [bad, good, fair])]
    measures = evaluation.judge_against_ranks([judged(s) for s in (5.0, 1.0, 0.0, 5.0, 3.0)], groups, 5)
    assert measures["pairwise_accuracy"] == 1.0 and measures["pairs"] == 4 and measures["five_best"] == 1.0


def test_answers_and_ranked_responses_are_measured_separately():
    policy = Saying(lambda text, i: f"{text} is nice" if text == "ant" else "no")
    groups = [Ranked("goat", [RankedResponse("good", 0.0), RankedResponse("bad", 1.0)])]
    scores = {"ant is nice": 4.0, "no": None, "good": 3.0, "bad": 0.0}
    asked = []

    def judge(answers):
        asked.extend(answers)
        return [judged(scores[response]) for _, response in answers]

    measured = evaluation.measure(
        policy, ["ant", "bat"], groups, answering=sampling(0.5), judge=judge, verifier=lambda p, r: len(r), perfect=3
    )
    assert [(one.texts, one.sampling, one.n, one.part) for one in policy.asked] == [
        (["ant", "bat"], sampling(0.5), 1, "answers")
    ]
    assert asked == [("ant", "ant is nice"), ("bat", "no"), ("goat", "good"), ("goat", "bad")]
    assert measured["prompts"] == 2 and measured["truncated"] == 0
    assert measured["verifier"] == {"reward": {"mean": 6.5, "se": 4.5, "n": 2}}
    assert measured["judge"]["parse_rate"] == 0.75 and measured["judge"]["mean_score"] == 4.0
    assert measured["judge"]["verifier_n"] == 1
    agreement = measured["judge"]["agreement"]
    assert (agreement["groups"], agreement["pairwise_accuracy"], agreement["five_best"]) == (1, 1.0, 1.0)
    assert (measured["tokens"]["min"], measured["tokens"]["max"]) == (1, 3)
    assert measured["samples"] == [{"prompt": p, "response": r} for p, r in asked[:2]]


@pytest.mark.parametrize(
    ("verifier", "said"),
    [
        (lambda p, r: 1 / 0, r"test_evaluation.py:\d+ .ZeroDivisionError: .*prompt 'a' and response 'x'"),
        (lambda p, r: "good", "ValueError: could not convert.*'good'"),
        (lambda p, r: None, "TypeError"),
        (lambda p, r: exit(0), "SystemExit"),
        (lambda p, r: {} if r == "x" else 1, "returned {} for prompt 'a' and response 'x'"),
        (lambda p, r: {"reward": 1} if r == "x" else {"form": 1}, "'form': 1.* response 'y'; expected reward, as"),
        (lambda p, r: {"reward": float("nan")}, "returned {'reward': nan} for prompt 'a'"),
    ],
)
def test_failing_verifier_is_a_user_error(verifier, said):
    with pytest.raises(UserError, match=said):
        evaluation.verified(verifier, [("a", "x"), ("a", "y")])


def test_any_import_error_of_a_verifier_is_a_user_error(tmp_path, monkeypatch):
    (tmp_path / "verifier_with_a_slip.py").write_text("def f(:")
    (tmp_path / "verifier_that_is_a_script.py").write_text("import sys; sys.exit(0)")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="verifier = verifier_with_a_slip:f: SyntaxError"):
        evaluation.load_verifier("verifier_with_a_slip:f")
    with pytest.raises(UserError, match="verifier = verifier_that_is_a_script:f: SystemExit"):
        evaluation.load_verifier("verifier_that_is_a_script:f")


@pytest.mark.parametrize("name", ["nothing", "no.such.module:f", "math:no_such", "math:pi"])
def test_missing_verifier_is_named(name):
    with pytest.raises(UserError, match=f"verifier = {name}"):
        evaluation.load_verifier(name)
