import pytest

from self_reward.errors import UserError
from self_reward.method import new_prompts, prompts
from self_reward.parameters.settings import PromptRules, Writing

SEEDS = [f"name the capital of country number {i} please" for i in range(20)]
TEMPLATE = "Examples:\n{examples}\nTask 9:"
WRITING = Writing(num_prompts=10, prompt_max_requests=20)
RULES = PromptRules(similarity=1.0, min_words=2, max_words=50, keywords=[])


def run(ask, seed=0, **writing):
    accept = prompts.PromptFilter(SEEDS, RULES)
    return new_prompts.write(ask, SEEDS, accept, TEMPLATE, WRITING.model_copy(update=writing), seed)


def test_generated_prompts_become_shots_until_enough_are_written():
    seen = []

    def ask(number, requests):
        seen.extend(requests)
        return [(f"write story {number} about thing {i}", "stop") for i in range(min(len(requests), 4))]

    written = run(ask)
    assert len(written.prompts) == len(set(written.prompts)) == 10
    assert not any(text in seen[0] for text in written.prompts)
    assert any("write story 0" in request for request in seen)
    assert all(sum(seed in request for seed in SEEDS) >= 6 for request in seen[:20])


def test_b2_seed_prompts_are_never_returned():
    def ask(number, requests):
        return [(SEEDS[0], "stop"), (f"write something new {number}", "stop")] * (len(requests) // 2 + 1)

    written = run(ask, min_prompt_yield=0.0)
    assert not set(written.prompts) & set(SEEDS)
    assert written.reasons["exact"] > 0


def test_b20_the_loop_is_bounded_and_seeded():
    asked = []

    def ask(number, requests):
        asked.append(len(requests))
        return [("the same new prompt", "stop") for _ in requests]

    written = run(ask, min_prompt_yield=0.0, prompt_max_requests=5)
    assert sum(asked) == written.requests == 50
    assert written.prompts == ["the same new prompt"]

    def first_requests(seed):
        caught = []
        run(
            lambda n, requests: caught.append(requests) or [(f"new prompt {n} {i}", "stop") for i in range(9)],
            seed=seed,
        )
        return caught[0]

    assert first_requests(1) == first_requests(1) != first_requests(2)


def test_no_usable_prompt_is_an_error_with_counts_and_samples():
    with pytest.raises(UserError, match=r"cannot write prompts: 0 of \d+ are usable \(too_short \d+\).*'no'"):
        run(lambda number, requests: [("no", "stop") for _ in requests])


def test_low_yield_is_an_error_after_the_first_round():
    rounds = []

    def ask(number, requests):
        rounds.append(number)
        return [(f"write about thing {i}" if i % 10 == 0 else "no", "stop") for i in range(20)]

    with pytest.raises(UserError, match=r"cannot write prompts: 2 of 20 are usable \(too_short 18\)"):
        run(ask, min_prompt_yield=0.11)
    assert rounds == [0]
    assert len(run(ask, min_prompt_yield=0.1, num_prompts=2).prompts) == 2


def test_truncated_prompt_is_not_accepted():
    written = run(
        lambda n, requests: [
            (f"write all about thing {n} {i}", "stop" if i % 2 else "length") for i in range(len(requests))
        ]
    )
    assert all(int(text.split()[-1]) % 2 == 1 for text in written.prompts)
