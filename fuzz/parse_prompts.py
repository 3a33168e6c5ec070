"""parse_prompts on whatever a model may write when asked for new tasks."""

from harness import bytes_of, invariants, run, stretch, text_of

from self_reward.method import prompts

PIECES = [
    "Task", "Task 9", "Task 10: ", "task 3.", "Prompt: ", "Prompt", "Instruction 2 - ", "New task 7:",
    "Question no. 3)", "1. ", "2. ", "3) ", "9. ", "10. ", "#1. ", "(1) ", "1", "2", "99999", "- ", "* ", "+ ",
    "\u2022 ", "\u2013 ", "-", "*", "**", "***", "_", "#", "## ", "### ", ">", "> ", "`", "```", "```text", '"', "'",
    "\u201c", "\u201d", "\u2018", "\u2019", "\u00ab", "\u00bb", ":", ".", "!", "?", ")", " ", "  ", "\t", "\n",
    "\n\n", "\n\n\n", "\r", "\r\n", "---", "===", "\n---\n", "Sure, ", "Sure", "Here are two new tasks:",
    "Here is a new task:\n\n", "Of course!", "Okay", "Let me know", "I hope", "Note: ", "Enjoy", "Write a haiku.",
    "Sort these:", "a", "b", "word ", "\u5199\u4e00\u9996", "\u00e9", "\u2028", "\x85", "\x0b", "\x1c", "\u200b",
    "\ufeff", "\u00a0",
]  # fmt: skip
SEEDS = [
    "Task 9: Write a haiku.\nTask 10: Sort the list.", "**Task 9:** Write.\n\n**Task 10:** Sort it.",
    "### Task 9\nWrite a haiku.\n### Task 10\nSort it.", "Sure, here are two new tasks:\n\n1. Write.\n2. Sort it.",
    "1) Write.\n2) Sort it.\n\nLet me know if you need more!", "Write a haiku.\n10. Sort it.", "- Write.\n- Sort it.",
    '1. "Write."\n2. \u201cSort it.\u201d\n3. **Run.**', "```\nTask 1: Write.\nTask 2: Sort it.\n```",
    "Sort these:\n1. b\n2. a", "Here is a new task:\n\nWrite a haiku.", "Prompt: Write a haiku.",
    "1. Write.\n---\n2. Sort it.\n---", "Task 9:",
]  # fmt: skip


def check(data: bytes) -> None:
    text = text_of(data, PIECES)
    for finish_reason in ("stop", "length"):
        invariants.new_prompts(text, finish_reason)
    stretch(prompts.parse_prompts, text, data)


run(check, [bytes_of(seed) for seed in SEEDS] + [bytes([1, i, (7 * i) % 256, 53]) for i in range(len(PIECES))])
