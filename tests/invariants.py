"""What holds for every input of the parsers and readers, whatever a model or a person wrote: one function a claim, used
by test_properties.py (hypothesis) and by fuzz/ (atheris). Each raises AssertionError where the claim fails; anything
else that comes out is a bug too."""

import time
from collections.abc import Callable

from self_reward import judge, prompts

# no digit, no number word, no "score"; it ends the line that stands before it
PROSE = "\nAll in all this says it well."


def seconds(function: Callable[[str], object], text: str) -> float:
    """CPU time of one call."""
    start = time.process_time()
    function(text)
    return time.process_time() - start


def assert_linear(function: Callable[[str], object], head: str, middle: str, tail: str, size: int = 40_000) -> None:
    """`middle` repeated to `size` characters costs milliseconds when linear and seconds when quadratic. A slow call is
    measured again at a quarter of the size: what is merely slow (a busy machine) then takes about a quarter."""
    text = head + middle * (size // max(len(middle), 1)) + tail
    if seconds(function, text) < 0.5:
        return
    slow = min(seconds(function, text) for _ in range(2))
    quarter = seconds(function, head + middle * (size // 4 // max(len(middle), 1)) + tail)
    assert slow < 0.5 or slow < 8 * quarter, f"{slow:.1f} s for {len(text)} characters of {head!r}, {middle!r}, {tail!r}"


def score(text: str, low: float = 0, high: float = 5) -> None:
    """parse_score and score_prefix: a score of the scale or None; prose around a stated score changes nothing; a
    judgement cut before its score reads the digit that is put there."""
    found = judge.parse_score(text, low, high)
    assert found is None or low <= found <= high, found
    stated = judge._last_stated(text.replace("\u00a0", " ")) is not None
    if stated:
        assert judge.parse_score("It says much, and well.\n" + text, low, high) == found
        if found is not None:
            assert judge.parse_score(text + PROSE, low, high) == found
    prefix = judge.score_prefix(text)
    for digit in range(int(low), min(int(high), 9) + 1):
        read = judge.parse_score(f"{prefix}{digit}", low, high)
        assert read == digit, f"{prefix!r} + {digit} reads as {read}"


def new_prompts(text: str, finish_reason: str = "stop") -> None:
    """parse_prompts: nothing empty, nothing that is not in the answer and in its order; cut off, the answer has the
    same tasks without the last."""
    found = prompts.parse_prompts(text, finish_reason)
    folded = text.replace("\r\n", "\n").replace("\r", "\n")
    for prompt in found:
        assert prompt == prompt.strip() != "", found
        at = 0
        for line in prompt.split("\n"):
            at = folded.find(line, at) + len(line)
            assert at >= len(line), f"{line!r} is not in the answer, or not there"
    whole = prompts.parse_prompts(text, "stop")
    cut = prompts.parse_prompts(text, "length")
    assert len(whole) - 1 <= len(cut) <= len(whole), (whole, cut)
    assert cut == whole[: len(cut)], (whole, cut)


def split(rubric: str, prompt: str, response: str) -> None:
    """judge_prompt then split_judge_prompt gives both texts back (stripped, "<" of a rubric's tag as "&lt;")."""
    parts = judge.split_judge_prompt(rubric, judge.judge_prompt(rubric, prompt, response))
    assert parts is not None
    tagged = [part.replace("&lt;", "<") for part in parts]
    assert tagged == [text.strip().replace("&lt;", "<") for text in (prompt, response)], parts
