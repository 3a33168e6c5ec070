"""New prompts written by a model: the few-shot request, reading its answer, and filtering (paper section 2.2)."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from random import Random

from self_reward.errors import UserError
from self_reward.parameters.settings import PromptRules


def prompt_id(prompt: str) -> str:
    """16 hex digits of the SHA-256 of the prompt."""
    return _digest(prompt).hex()[:16]


def is_held_out(prompt: str, fraction: float) -> bool:
    """Whether `prompt` belongs to the held-out `fraction` (0..1) of all prompts; depends only on its text."""
    return int.from_bytes(_digest(prompt)[8:16], "big") < fraction * 2**64


def _digest(prompt: str) -> bytes:
    return hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).digest()


# ---- the request


def choose_shots(
    rng: Random, seeds: Sequence[str], generated: Sequence[str], seed_shots: int = 6, generated_shots: int = 2
) -> list[str]:
    """Examples for one request, in random order: the paper's 8 = 6 seeds + 2 generated prompts; more seeds while there
    are too few generated."""
    if not seeds:
        raise UserError("no seed prompts to show as examples; add prompts to M0/train/ift.jsonl")
    new = rng.sample(generated, min(generated_shots, len(generated)))
    shots = rng.sample(seeds, min(seed_shots + generated_shots - len(new), len(seeds))) + new
    rng.shuffle(shots)
    return shots


def few_shot_prompt(template: str, examples: Sequence[str]) -> str:
    """The request that shows `examples` and asks for new tasks.

    `template` holds {examples} once and {next} (the number of the next task) at most once. Its first line may be
    `# example: ...`, how one example is written, with {prompt} once and {number} at most once. One pass, so braces in
    an example stay as they are. Raises UserError for any other template.
    """
    example_format = "Task {number}: {prompt}"
    if template.startswith("# example:"):
        line, _, template = template.partition("\n")
        example_format = line.removeprefix("# example:").strip()
    problems = []
    if template.count("{examples}") != 1:
        problems.append(f"the prompt template has {{examples}} {template.count('{examples}')} times, expected once")
    if example_format.count("{prompt}") != 1:
        problems.append(f"the template's example line {example_format!r} must have {{prompt}} once")
    if problems:
        raise UserError(problems)
    before, after = example_format.split("{prompt}")
    shown = "\n".join(
        before.replace("{number}", str(number)) + example + after.replace("{number}", str(number))
        for number, example in enumerate(examples, 1)
    )
    filled = re.sub(
        r"\{(?:examples|next)\}", lambda match: shown if match[0] == "{examples}" else str(len(examples) + 1), template
    )
    return filled.strip()


# ---- the answer

_LEAD = r"^[ \t]{0,8}(?:[*_#>]{1,4}[ \t]{0,3})?"
_TASK = re.compile(
    _LEAD + r"(?:new[ \t])?(?:task|prompt|instruction|question)[ \t]{0,2}(?:number[ \t]|no\.?[ \t])?#?[ \t]?[0-9]{1,5}"
    r"[ \t]{0,2}(?:[*_]{1,3})?[ \t]{0,2}(?:[:.)\-\u2013\u2014]|$)[ \t]{0,2}(?:[*_]{1,3}(?=\s))?",
    re.IGNORECASE | re.MULTILINE,
)
_NUMBERED = re.compile(_LEAD + r"#?([0-9]{1,5})[ \t]{0,2}[.):][*_]{0,3}[ \t]{1,8}", re.MULTILINE)
_BULLET = re.compile(r"^[ \t]{0,8}[-*+\u2022\u2013][ \t]{1,8}(?=\S)", re.MULTILINE)
_CHATTER = re.compile(
    r"(?:sure|certainly|of course|okay|ok|great|here (?:is|are)|here['\u2019]s|below (?:is|are)|the following)\b",
    re.IGNORECASE,
)
_FAREWELL = re.compile(
    r"(?:let me know|i hope|i've |feel free|would you like|these tasks|these prompts|note:|enjoy)", re.IGNORECASE
)
_LABEL = re.compile(
    r"(?:[*_]{1,3})?(?:task|prompt|instruction)(?:[*_]{1,3})?[ \t]?:(?:[*_]{1,3})?[ \t]{0,4}", re.IGNORECASE
)
_FENCE = re.compile(r"[ \t]{0,3}```[^\s`]{0,20}[ \t]{0,8}")
# `---` and the like at the end; the lookbehind and the possessive repeat keep it linear in a run of empty lines
_RULE = re.compile(r"(?<![-*_#=\s])[-*_#=\s]++\Z")
_QUOTES = {'"': '"', "\u201c": "\u201d", "\u2018": "\u2019", "'": "'", "\u00ab": "\u00bb", "`": "`", "**": "**"}


def parse_prompts(text: str, finish_reason: str = "stop") -> list[str]:
    """The tasks in a model's answer to `few_shot_prompt`.

    `text` is the completion alone, so the request's examples are never read as new tasks (bug B2). Reads `Task 9: ...`,
    numbered lists and bullets, tasks of several lines, quotes, code fences around all; leaves out chatter before and
    after. A text without such marks is one task, even if it contains a list after its first words. `finish_reason`
    "length": the last task is cut off and left out.
    """
    lines = text.replace("\r\n", "\n").replace("\r", "\n").strip().split("\n")
    if _FENCE.fullmatch(lines[0]):
        lines = [line for line in lines if not _FENCE.fullmatch(line)]
    items = _split("\n".join(lines))
    if finish_reason == "length":
        items = items[:-1]
    elif items:
        head, blank, tail = items[-1].rpartition("\n\n")
        if blank and _FAREWELL.match(tail.lstrip()):
            items[-1] = head
    return [prompt for item in items if (prompt := _clean(item))]


def _split(text: str) -> list[str]:
    for mark in (_TASK, _NUMBERED, _BULLET):
        marks = list(mark.finditer(text))
        if not marks:
            continue
        lead = text[: marks[0].start()].strip()
        chatter = not lead or _is_chatter(lead)
        # "Sort these:" followed by a list is one task. If numbers continue the request's, it is the first of many.
        if not chatter and (mark is _BULLET or (mark is _NUMBERED and int(marks[0][1]) == 1)):
            return [text]
        ends = [match.start() for match in marks[1:]] + [len(text)]
        items = [text[match.end() : end] for match, end in zip(marks, ends, strict=True)]
        return items if chatter else [lead, *items]
    head, blank, tail = text.partition("\n\n")
    return [tail if blank and _is_chatter(head.strip()) else text]


def _is_chatter(lead: str) -> bool:
    return len(lead) < 300 and bool(_CHATTER.match(lead)) and lead.rstrip("*_ ").endswith((":", ".", "!"))


def _clean(item: str) -> str:
    item = item.strip()
    if (rule := _RULE.search(item)) and "\n" in rule[0]:
        item = item[: item.index("\n", rule.start())].strip()
    if label := _LABEL.match(item):
        item = item[label.end() :].strip()
    for opening, closing in _QUOTES.items():
        inner = item[len(opening) : -len(closing)]
        quoted = item.startswith(opening) and item.endswith(closing) and inner.strip()
        if quoted and opening not in inner and closing not in inner:
            item = inner.strip()
    return item if any(character.isalnum() for character in item) else ""


# ---- the filter


class PromptFilter:
    """Refuses prompts: too similar to an existing one, wrong length in words, a keyword, a missing pattern.

    `rules.similarity` is the ROUGE-L F-measure (tokens as in the rouge-score package, no stemmer) from which two
    prompts count as equal; 1.0, and prompts without a-z or digits (no ROUGE tokens), compare texts, white space folded.
    Keywords match whole words in any case.
    """

    def __init__(self, existing: Iterable[str], rules: PromptRules):
        self._rules = rules
        self._pattern = re.compile(rules.pattern) if rules.pattern else None
        words = "|".join(re.escape(word) for word in rules.keywords)
        self._keywords = re.compile(rf"(?<!\w)(?:{words})(?!\w)", re.IGNORECASE) if words else None
        self._exact: set[str] = set()
        self._index = None
        if rules.similarity < 1:
            from self_reward.method.rouge_index import RougeIndex

            self._index = RougeIndex(rules.similarity)
        self.add(existing)

    def add(self, prompts: Iterable[str]) -> None:
        """Compare later prompts with these too."""
        new = list(dict.fromkeys(text for prompt in prompts if (text := " ".join(prompt.split())) not in self._exact))
        self._exact.update(new)
        if self._index:
            self._index.add(new)

    def take(self, prompts: Sequence[str]) -> list[str | None]:
        """Why each prompt is refused: "empty", "too_short", "too_long", "keyword", "pattern", "exact" or "similar"; or
        None if it is accepted, after which later prompts are compared with it too."""
        reasons = [self._alone(prompt) for prompt in prompts]
        places: dict[str, list[int]] = {}  # indices of each text, white space folded
        for i, prompt in enumerate(prompts):
            if reasons[i] is None:
                text = " ".join(prompt.split())
                if text in self._exact:
                    reasons[i] = "exact"
                else:
                    places.setdefault(text, []).append(i)
        accepted = self._index.accept(list(places)) if self._index else [True] * len(places)
        for (text, (first, *others)), is_new in zip(places.items(), accepted, strict=True):
            if is_new:
                self._exact.add(text)
            else:
                reasons[first] = "similar"
            for i in others:
                reasons[i] = "exact" if is_new else "similar"
        return reasons

    def _alone(self, prompt: str) -> str | None:
        words = prompt.split()
        if not words:
            return "empty"
        if len(words) < self._rules.min_words:
            return "too_short"
        if len(words) > self._rules.max_words:
            return "too_long"
        if self._keywords and self._keywords.search(prompt):
            return "keyword"
        if self._pattern and not self._pattern.search(prompt):
            return "pattern"
        return None
