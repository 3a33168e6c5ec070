"""parse_score and score_prefix on whatever a judge may write."""

from harness import bytes_of, invariants, run, stretch, text_of

from self_reward.method import judge

PIECES = [
    "Score", "score", "SCORE", "Score: ", ":", "=", "|", ">", "\uff1a", " is ", " was ", " would be ", " - ", " of ",
    " out of ", "/", "/5", "/10", "(", ")", "[", "]", "{", "}", "<", "</", "<score>", "</score>", "*", "**", "_", "`",
    '"', "'", "$", "\\boxed{", "#", "## ", "+", " + ", "=", " = ", "-", "\u2013", "\u2212", "~", " to ", " or ", ".",
    ",", "%", " ", "  ", "\t", "\n", "\r", "\n\n", "\u00a0", "0", "1", "2", "3", "4", "5", "6", "9", "10", "05",
    "4.5", ".5", "5.0", "four", "five", "ten", "one", "zero", " and a half", " hundred", " point ", "n/a", "none",
    "NaN", "inf", "minus ", "between ", "a", "The", "word", "I ", "e9", "\u00bd", "\u00b2", "\uff14", "\u201c",
    "\u201d", "\ufeff", "\u200b", "(0-5)", "(out of 5)", "points", "1. ", "2) ",
]  # fmt: skip
SEEDS = [
    "Score: 4", "**Score:** 4", "Final score is 3", "<score>4</score>", "Score: [[4]]", "Score: 1 + 1 + 1 = 3",
    "## Score\n\n**4**", '{"score": 4, "why": "x"}', "| Score | 4 |", "Score (0-5): 4/5", "Score: $\\boxed{4}$",
    "4/5", "I give it a score of 4.", "4 out of 5", "Score: five out of five", "Score: 3\nScore:", "Score: N/A",
    "4.5", "Score: 4 - good", "Score:\n1. good\n2. bad", "Score: 4 (out of 5)", "Score: 10", "Score: 4-5",
    "Score\uff1a4",
]  # fmt: skip


def check(data: bytes) -> None:
    text = text_of(data, PIECES)
    invariants.score(text)
    invariants.score(text, 1, 9)
    stretch(judge.parse_score, text, data)


run(check, [bytes_of(seed) for seed in SEEDS] + [bytes([1, i, (7 * i) % 256, 56]) for i in range(len(PIECES))])
