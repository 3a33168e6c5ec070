import math

import pytest

from self_reward.method import judge, scoring
from self_reward.models import chat
from self_reward.models.model import Job
from self_reward.models.policy import Policy
from self_reward.parameters.settings import Judging, Scale
from self_reward.rows import Score
from tests.support.engines import load_engine
from tests.support.saying import Saying

RUBRIC = "judge the response <response> {response} </response> of {prompt} . score : 0 1 2 3 4 5"
JUDGING = Judging(temperature=1.0, top_p=1.0, max_tokens=12)
FORCED = JUDGING.model_copy(update={"forced_score": True})
ANSWER = ("ant", "bat")
OTHER = ("cat", "dog")


def test_equal_answers_are_judged_once_and_share_their_votes():
    policy = Saying(lambda text, i: f"{'ant' in text} score : {i}")
    judged = scoring.score(policy, [ANSWER, OTHER, ANSWER], RUBRIC, Scale(), JUDGING, votes=3, part="votes")
    assert judged[0] is judged[2] and judged[0] != judged[1]
    (asked,) = policy.asked
    assert asked.texts == [judge.judge_prompt(RUBRIC, *answer) for answer in (ANSWER, OTHER)]
    assert (asked.sampling, asked.n, asked.part) == (JUDGING, 3, "votes")
    assert [j.reasoning for j in judged[:2]] == [[f"{word} score : {i}" for i in range(3)] for word in (True, False)]


def test_b12_b14_the_score_is_the_mean_of_the_readable_votes():
    said = ["score : 4", "nothing", "score : 1"]
    (judged,) = scoring.score(Saying(lambda text, i: said[i]), [ANSWER], RUBRIC, Scale(), JUDGING, votes=3)
    assert judged.votes == [4.0, None, 1.0] and judged.score == 2.5
    assert judged.reasoning == said


def test_votes_outside_the_scale_are_not_read():
    said = ["score : 9", "score : 1", "score : 3"]
    (judged,) = scoring.score(Saying(lambda text, i: said[i]), [ANSWER], RUBRIC, Scale(min=2, max=5), JUDGING, votes=3)
    assert judged.votes == [None, None, 3.0] and judged.score == 3.0


@pytest.mark.parametrize("judging", [JUDGING, FORCED], ids=["read", "forced"])
def test_a_response_of_another_shard_has_no_votes(judging):
    policy = Saying(lambda text, i: "score : 2" if "ant" in text else None, lambda question, begun: [0.0, -math.inf])
    other, own = scoring.score(policy, [OTHER, ANSWER], RUBRIC, Scale(min=2, max=3), judging, votes=2)
    assert (other.votes, other.reasoning, other.score) == ([], [], None)
    assert own.votes == [2.0, 2.0] and own.score == 2.0


def test_forced_score_follows_each_justification_if_there_is_room():
    begun = [judge.score_prefix(text) for text in ("fine .", "good . Score: 2")]
    assert begun == ["fine .\nScore: ", "good . Score: "]
    seen = []

    def logprobs(question, answer):
        seen.append((question, answer))
        return [math.log(0.25), -math.inf, math.log(0.75)] if answer == begun[0] else None

    policy = Saying(lambda text, i: ("fine .", "good . Score: 2")[i], logprobs)
    (judged,) = scoring.score(policy, [ANSWER], RUBRIC, Scale(min=1, max=3), FORCED, votes=2)
    assert seen == [(judge.judge_prompt(RUBRIC, *ANSWER), text) for text in begun]
    assert judged.votes == [pytest.approx(2.5), None] and judged.score == pytest.approx(2.5)


def test_a_forced_score_is_the_expected_value_over_the_digits(tiny_model, tmp_path):
    """Against a forward pass by hand: softmax over the six digits at the position after `score :`."""
    import torch

    engine = load_engine("transformers", tiny_model, batch_size=8)
    tokenizer = engine.tokenizer
    policy = Policy(engine, tokenizer, Job(tmp_path, 0))
    (judged,) = scoring.score(policy, [ANSWER], RUBRIC, Scale(), FORCED, votes=2)
    digits = tokenizer.convert_tokens_to_ids(list("012345"))
    for vote, text in zip(judged.votes, judged.reasoning, strict=True):
        question = chat.prompt_ids(tokenizer, judge.judge_prompt(RUBRIC, "ant", "bat"))
        ids = question + tokenizer(judge.score_prefix(text), add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = engine.model(torch.tensor([ids])).logits[0, -1, digits]
        expected = (torch.softmax(logits, 0) * torch.arange(6)).sum().item()
        assert math.isclose(vote, expected, abs_tol=1e-4)
    assert judged.score == pytest.approx(sum(judged.votes) / 2)


def test_votes_are_counted_and_unreadable_judgements_are_shown_once():
    def row(score, votes, reasoning):
        return Score(prompt_id="1", prompt="p", completion="c", score=score, votes=votes, reasoning=reasoning)

    rows = [
        row(2.0, [2.0, None], ["Score: 2", "what?"]),
        row(None, [None, None], ["what?", "no"]),
        row(None, [None, None], ["never", "ever"]),
        row(1.0, [1.0], ["Score: 1"]),
    ]
    assert scoring.counts(rows) == {"responses": 4, "votes": 7, "unreadable_votes": 5, "unscored_responses": 2}
    assert scoring.unreadable_samples(rows) == ["what?", "no", "never"]
    assert scoring.unreadable_samples(rows[3:]) == []
