"""A small world whose tasks a program can check: eight operations on a list of words, each in two phrasings.

`verify` measures; the rest makes the seed data. Neither the stages nor any training code imports this module: they know
the world only from the seed data and from the model's own judgements.
"""

import random
import re

WORDS = (
    "ant bat cat dog eel fox goat hen ibex jay koala lion mole "
    "newt owl pig quail rat seal toad urchin vole wolf xerus yak zebra"
).split()
NUMBERS = "zero one two three four five six seven eight nine".split()
PHRASES = {  # what is asked -> operation; a task is "<phrase> : <words>"
    "reverse the list": "reverse",
    "write the list backwards": "reverse",
    "sort the list": "sort",
    "put the list in order": "sort",
    "repeat the list": "repeat",
    "copy the list": "repeat",
    "rotate the list": "rotate",
    "move the first word to the end": "rotate",
    "swap the first and last word": "swap",
    "exchange the ends of the list": "swap",
    "drop the first word": "tail",
    "remove the first word of the list": "tail",
    "drop the last word": "head",
    "remove the last word of the list": "head",
    "count the words": "count",
    "how many words are in the list": "count",
}
OPERATIONS = sorted(set(PHRASES.values()))
POINTS = ("relevant", "length", "half", "correct", "form")
SHORTEST, LONGEST = 3, 5  # words in a list of the data; a task with 2 to 8 can still be checked


def parse_task(prompt: str) -> tuple[str, list[str]] | None:
    """The operation and the list that `prompt` asks for, or None if it is not a task of this world."""
    phrase, colon, rest = prompt.partition(" : ")
    words = rest.split()
    if not colon or phrase.strip() not in PHRASES or not 2 <= len(words) <= 8 or not set(words) <= set(WORDS):
        return None
    return PHRASES[phrase.strip()], words


def _task(prompt: str) -> tuple[str, list[str]]:
    task = parse_task(prompt)
    if task is None:
        raise ValueError(f"no task of this world: {prompt!r}; expected e.g. 'reverse the list : ant bat cat'")
    return task


def solve(operation: str, words: list[str]) -> list[str]:
    """The correct answer, word by word."""
    match operation:
        case "reverse":
            return words[::-1]
        case "sort":
            return sorted(words)
        case "repeat":
            return list(words)
        case "rotate":
            return words[1:] + words[:1]
        case "swap":
            return [words[-1], *words[1:-1], words[0]]
        case "tail":
            return words[1:]
        case "head":
            return words[:-1]
        case "count":
            return [NUMBERS[len(words)]]
    raise ValueError(f"unknown operation {operation!r}; expected one of {', '.join(OPERATIONS)}")


def write_response(answer: list[str], *, form: bool) -> str:
    """The answer as text, in the wanted form ("answer : ... .") or bare."""
    return f"answer : {' '.join(answer)} ." if form else " ".join(answer)


def read_response(response: str) -> tuple[list[str], bool]:
    """The answer's words, and whether it has the wanted form."""
    whole = re.fullmatch(r"answer : (.*) \.", response.strip())
    if whole:
        return whole[1].split(), True
    return response.replace("answer :", " ").replace(".", " ").split(), False


def points(prompt: str, response: str) -> dict[str, bool]:
    """The five additive points of a response. Raises ValueError if the prompt is not a task of this world.

    relevant: only words of the list or of the correct answer; length: as many words as the correct answer;
    half: at least half of the words are right and in place; correct: the correct answer; form: the wanted form.
    """
    operation, words = _task(prompt)
    expected = solve(operation, words)
    given, form = read_response(response)
    in_place = sum(a == b for a, b in zip(given, expected, strict=False))
    return {
        "relevant": bool(given) and set(given) <= {*words, *expected},
        "length": len(given) == len(expected),
        "half": 2 * in_place >= len(expected),
        "correct": given == expected,
        "form": form,
    }


def verify(prompt: str, response: str) -> dict[str, float]:
    """Measure a response: reward 0..5 (the points), reward_without_form 0..4, accuracy and form 0 or 1.

    Raises ValueError if the prompt is not a task of this world, so that the response cannot be checked.
    """
    got = points(prompt, response)
    return {
        "reward": float(sum(got.values())),
        "accuracy": float(got["correct"]),
        "form": float(got["form"]),
        "reward_without_form": float(sum(got.values()) - got["form"]),
    }


def judgement(prompt: str, response: str) -> str:
    """A worked judgement: the expected and the given words side by side, five verdicts, and the score.

    The working makes the score learnable: if a model of this size writes only the verdicts, it agrees with the truth at
    r = .6; with the words side by side at r = .95.
    """
    got = points(prompt, response)
    expected, given = solve(*_task(prompt)), read_response(response)[0]
    verdicts = " ".join(f"{name} {_yes(value)}" for name, value in got.items())
    return f"{side_by_side(expected, given)} {verdicts} score : {sum(got.values())}"


def side_by_side(expected: list[str], given: list[str]) -> str:
    """Two lists word by word, and whether the words are equal."""
    size = max(len(expected), len(given))
    rows = zip(expected + ["none"] * (size - len(expected)), given + ["none"] * (size - len(given)), strict=True)
    return f"check {' '.join(f'{a} {b} {_yes(a == b)}' for a, b in rows)} ."


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def make_list(rng: random.Random, *, shortest: int = SHORTEST, longest: int = LONGEST) -> list[str]:
    """Different words in random order."""
    return rng.sample(WORDS, rng.randint(shortest, longest))


def make_task(rng: random.Random) -> str:
    return f"{rng.choice(list(PHRASES))} : {' '.join(make_list(rng))}"


def corrupt(rng: random.Random, prompt: str) -> list[str]:
    """An answer with one to three careless mistakes (rarely, it is still correct)."""
    operation, words = _task(prompt)
    answer = solve(operation, words)
    if operation == "count":
        if rng.random() < 0.8:
            return [rng.choice([number for number in NUMBERS[2:8] if number != answer[0]])]
        return rng.sample(words, 2)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        match rng.randrange(6):
            case 0 if len(answer) > 1:
                i, j = rng.sample(range(len(answer)), 2)
                answer[i], answer[j] = answer[j], answer[i]
            case 1 if len(answer) > 1:
                answer.pop(rng.randrange(len(answer)))
            case 2:
                answer.insert(rng.randrange(len(answer) + 1), rng.choice(words))
            case 3:
                answer[rng.randrange(len(answer))] = rng.choice(WORDS)
            case 4:
                answer[rng.randrange(len(answer))] = rng.choice(words)
            case _:  # another operation's answer
                answer = solve(rng.choice([other for other in OPERATIONS if other != operation]), words)
    return answer


def make_response(rng: random.Random, prompt: str, *, mistakes: float, form: float = 0.5) -> str:
    """A person's response: wrong with probability `mistakes`, in the wanted form with probability `form`."""
    answer = corrupt(rng, prompt) if rng.random() < mistakes else solve(*_task(prompt))
    return write_response(answer, form=rng.random() < form)
