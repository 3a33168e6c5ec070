"""LLM-as-a-judge: the judge's prompt, the score read from its answer, and the mean of its votes (paper section 2.2)."""

import math
import re
from functools import lru_cache
from statistics import fmean
from typing import NamedTuple

from self_reward.errors import UserError

# ---- the judge's prompt


class _Rubric(NamedTuple):
    before: str
    first: str  # "prompt" or "response": which placeholder comes first
    middle: str
    after: str
    tags: re.Pattern[str] | None  # matches the "<" of a tag that surrounds a placeholder


@lru_cache(maxsize=16)
def _parts(rubric: str) -> _Rubric:
    problems = [
        f"the rubric has {{{name}}} {rubric.count('{' + name + '}')} times, expected once"
        for name in ("prompt", "response")
        if rubric.count("{" + name + "}") != 1
    ]
    if problems:
        raise UserError(problems)
    before, first, middle, _, after = re.split(r"\{(prompt|response)\}", rubric)
    if not middle.strip():
        raise UserError("the rubric has nothing between {prompt} and {response}; put text or a tag there")
    surrounding = re.findall(r"<([A-Za-z][\w-]*)\s*>\s*\{(?:prompt|response)\}\s*</\1\s*>", rubric)
    tags = None
    if surrounding:
        # \s and zero-width characters, which a model may ignore; possessive, so that matching stays linear
        gap = r"[\s\u00ad\u200b-\u200f\u2060\ufeff]*+"
        names = "|".join(re.escape(name) for name in surrounding)
        tags = re.compile(rf"<(?={gap}(?:[/\\]{gap})*+(?:{names})(?![\w-]))", re.IGNORECASE)
    return _Rubric(before, first, middle, after, tags)


def judge_prompt(rubric: str, prompt: str, response: str) -> str:
    """The judge's prompt about `response` to `prompt`. Raises UserError if `rubric` does not hold {prompt} and
    {response} once each.

    Both are replaced in one pass: a prompt that contains "{response}" stays as it is. The texts cannot open or close a
    tag that surrounds a placeholder in the rubric: its "<" becomes "&lt;" in them.
    """
    parts = _parts(rubric)
    if parts.tags:
        prompt, response = parts.tags.sub("&lt;", prompt), parts.tags.sub("&lt;", response)
    first, second = (prompt, response) if parts.first == "prompt" else (response, prompt)
    return parts.before + first + parts.middle + second + parts.after


@lru_cache(maxsize=64)
def _folded(text: str, end: str = "") -> re.Pattern[str]:
    """Matches `text` with any white space where it has some; not around it, since a search for white space followed by
    a word is quadratic in a long run of it."""
    return re.compile(r"\s++".join(re.escape(word) for word in text.split()) + end)


def split_judge_prompt(rubric: str, text: str) -> tuple[str, str] | None:
    """The (prompt, response), stripped, if judge_prompt(rubric, ...) could have made `text`, up to white space; else
    None. The first occurrence of the text between the placeholders splits it. Linear time."""
    parts = _parts(rubric)
    text = text.strip()
    before = _folded(parts.before).match(text)
    middle = _folded(parts.middle).search(text, before.end()) if before else None
    after = _folded(parts.after, r"\Z").search(text, middle.end()) if middle else None
    if not (before and middle and after):
        return None
    first, second = text[before.end() : middle.start()].strip(), text[middle.end() : after.start()].strip()
    return (first, second) if parts.first == "prompt" else (second, first)


# ---- the score in the judge's answer
#
# Every repetition below is bounded, so that reading is linear in the length of the text, whatever a model wrote.

_WORDS = {word: i for i, word in enumerate("zero one two three four five six seven eight nine ten".split())}
_NUMBER = rf"(?:[0-9]{{1,9}}(?:\.[0-9]{{1,20}})?|\.[0-9]{{1,20}}|(?:{'|'.join(_WORDS)})(?![A-Za-z]))"
_OPEN = r"(?:[\s*_`\"'\u2018\u201c$(\[{<|]|\\boxed){0,16}"
_CLOSE = r"[*_`\"'\u2019\u201d$)\]}>]{0,8}"
_FLAGS = re.IGNORECASE | re.ASCII

_KEYWORD = re.compile(r"(?<![A-Za-z])(?<!</)(?<!</ )score(?![A-Za-z0-9])", _FLAGS)
# `Score: 4`, `**Score:** 4`, `"score": 4`, `Score (0-5) = 4`, `| Score | 4`, `<score>4`, `Final score is 3`
_SAYS = re.compile(
    r"[*_`\"'\]]{0,4}[ \t]{0,8}(?:(?:\([^()\n]{1,40}\)|\[[^\[\]\n]{1,40}\])[*_ \t]{0,8})?(?:[:=|>]|\uff1a)"
    r"|[*_`\"']{0,4}[ \t]{1,8}(?:is|was|(?:would|should|will)[ \t]{1,4}be)(?![A-Za-z])[ \t]{0,4}:?"
    r"|[*_`\"']{0,4}[ \t]{1,4}(?:-(?=[ \t])|\u2013|\u2014)"
    r"|[*_`\"']{0,4}[ \t]{0,8}\n(?=[\s*_#]{0,8}[0-9])",  # a heading; the number must then be alone on its line
    _FLAGS,
)
# `score of 4`, `score 4`: also how people talk about a score that was not given ("a score of 5 would need ...")
_MENTIONS = re.compile(r"[*_`\"']{0,4}[ \t]{1,4}(?:of(?![A-Za-z]))?(?=[\s*_`\"'$(\[{<]{0,16}[0-9.+-])", _FLAGS)
_OPENING = re.compile(_OPEN, _FLAGS)
_SUM = re.compile(rf"{_NUMBER}(?:\s{{0,3}}\+\s{{0,3}}{_NUMBER}){{1,12}}\s{{0,3}}=[\s*_]{{0,6}}", _FLAGS)
_VALUE = re.compile(rf"({_NUMBER})({_CLOSE})", _FLAGS)
_OUT_OF = (
    r"[ \t]{0,3}\(?(?:/|out[ \t]{1,3}of|of(?=[ \t]{1,3}[0-9]))"
    rf"[ \t]{{0,3}}(?:a[ \t](?:possible|total[ \t]of|maximum[ \t]of)[ \t])?[*_(\[]{{0,4}}({_NUMBER}){_CLOSE}"
)
_DENOMINATOR = re.compile(_OUT_OF, _FLAGS)
# What makes the number before it another one: 4e9, 4,5, 4.5.1, 4%, 4-5, 4 to 5, 4 5, 4 and a half, 4+1, 1/
_NOT_THE_END = re.compile(
    r"[A-Za-z0-9_]|[.,:][0-9]|[ \t]{0,3}(?:%|/|\+[ \t]{0,3}[0-9])|[ \t]{1,3}[0-9]|-[A-Za-z]"
    r"|[ \t]{0,3}(?:[-\u2010-\u2014\u2212~]|to[ \t]|or[ \t]|through[ \t])"
    rf"[ \t]{{0,3}}[*_]{{0,4}}{_NUMBER}"
    r"|[ \t]{1,3}(?:hundred|thousand)"
    r"|[ \t]{1,3}and[ \t]{1,3}a[ \t]{1,3}(?:half|quarter)|[ \t]{1,3}point[ \t]{1,3}" + _NUMBER,
    _FLAGS,
)
_END_OF_LINE = re.compile(r"[ \t.*_]{0,8}(?:\n|\r|\Z)")
_NO_SCORE = re.compile(
    r"(?:n/?a|none|null|nan|inf|infinity|unknown|undefined|between|minus|negative)(?![A-Za-z])", _FLAGS
)
_FRACTION = re.compile(
    rf"(?<![A-Za-z0-9_./,+\-\u2212\u2013])(?<![0-9][ \t]){_NUMBER}{_CLOSE}{_OUT_OF}(?![ \t]{{1,3}}of[ \t])", _FLAGS
)


def _number(text: str) -> float:
    return float(_WORDS[text.lower()]) if text.lower() in _WORDS else float(text)


def _value_at(text: str, start: int, low: float, high: float) -> tuple[float | None, int]:
    """The score at `start` (None if it is not a score on the scale), and where it ends."""
    value = _VALUE.match(text, start)
    if not value:
        return None, start
    end = value.end()
    out_of = _DENOMINATOR.match(text, end)
    if out_of:
        end = out_of.end()
        if _number(out_of[1]) != high:
            return None, end
    if _NOT_THE_END.match(text, end) or text[end : end + 1].isalnum():  # isalnum: 4², 4½
        return None, end
    number = _number(value[1])
    return (number if low <= number <= high else None), end


def _after_keyword(text: str, keyword: int, link: re.Pattern[str]) -> int | None:
    """Where the value starts that the word "score" ending at `keyword` announces, or None."""
    says = link.match(text, keyword)
    if not says:
        return None
    start = _OPENING.match(text, says.end()).end()  # type: ignore[union-attr]  # matches the empty string too
    total = _SUM.match(text, start)
    if total:
        start = total.end()
    if text[start : start + 1].isalpha() and not _VALUE.match(text, start) and not _NO_SCORE.match(text, start):
        return None  # prose: "a word on the score: it is ..."
    if "\n" in text[keyword:start]:  # `Score:` and the value below it; but not a numbered list
        end = _value_at(text, start, -math.inf, math.inf)[1]
        if end > start and not _END_OF_LINE.match(text, end):
            return None
    return start


def _last_stated(text: str) -> int | None:
    """Where the value of the last `Score: ...` starts."""
    starts = (_after_keyword(text, match.end(), _SAYS) for match in reversed(list(_KEYWORD.finditer(text))))
    return next((start for start in starts if start is not None), None)


def parse_score(text: str, low: float = 0, high: float = 5) -> float | None:
    """The score that a judge's answer ends with, or None (bugs B11, B14). Linear time; never raises on a str.

    `text` is the answer alone, without the judge's prompt, which holds the candidate's text. The last stated score
    counts; if it is unreadable or not between `low` and `high`, no earlier one does. If none is stated, the answer
    counts if it is only a number, otherwise a fraction whose denominator is `high`, otherwise "a score of 4"; a stated
    score takes precedence, since a judge also writes what "a 5/5 answer" would have.
    """
    text = text.replace("\u00a0", " ")
    stated = _last_stated(text)
    if stated is not None:
        return _value_at(text, stated, low, high)[0]
    if len(text) <= 1000:
        whole = _OPENING.match(text).end()  # type: ignore[union-attr]
        score, end = _value_at(text, whole, low, high)
        if score is not None and not text[end:].strip(" \t\r\n.*_`"):
            return score
    last = None
    for fraction in _FRACTION.finditer(text):
        if _number(fraction[1]) == high:
            last = fraction.start()
    if last is None:
        for keyword in _KEYWORD.finditer(text):
            start = _after_keyword(text, keyword.end(), _MENTIONS)
            last = last if start is None else start
    return None if last is None else _value_at(text, last, low, high)[0]


def score_prefix(text: str, label: str = "\nScore: ") -> str:
    """For forced scoring: a judgement up to the value of its last "Score:", or with `label` appended if it states none.
    The next token is then one of the scale's digits, whose log-probabilities are read."""
    stated = _last_stated(text)
    if stated is None:
        return text + label
    prefix = text[:stated]
    if prefix[-1].isspace() or stated < len(text):
        return prefix
    spaced = prefix + " "
    return spaced if _last_stated(spaced) == len(spaced) else prefix  # white space before a value is bounded too


def expected_score(logprobs: list[float], values: list[float]) -> float:
    """The mean of `values` under softmax(`logprobs`): G-Eval's score (arXiv 2303.16634). Raises ValueError if it is
    undefined."""
    if not values or len(logprobs) != len(values):
        raise ValueError(f"{len(logprobs)} log-probabilities for {len(values)} values; expected one each, at least one")
    highest = max(logprobs)
    if not all(logprob < math.inf for logprob in logprobs) or highest == -math.inf:
        raise ValueError(f"log-probabilities must be numbers below infinity, not all -infinity; found {logprobs}")
    weights = [math.exp(logprob - highest) for logprob in logprobs]
    return math.fsum(w * v for w, v in zip(weights, values, strict=True)) / math.fsum(weights)


def average(votes: list[float | None]) -> float | None:
    """Mean of the readable votes (bug B12), or None; an unreadable vote (None) does not count (bug B14)."""
    readable = [vote for vote in votes if vote is not None]
    return fmean(readable) if readable else None
