"""The tables of the chart's README are the comments and defaults of its values.yaml, word for word."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.support import argo

README = (argo.CHART / "README.md").read_text(encoding="utf-8")
TEXT = (argo.CHART / "values.yaml").read_text(encoding="utf-8")
LINES = TEXT.splitlines()


def comment_above(line: int) -> str | None:
    """What stands after `# -- ` in the comment above a line."""
    words: list[str] = []
    while (text := LINES[line - 1].strip()).startswith("#"):
        line -= 1
        words.insert(0, text.removeprefix("# "))
        if text.startswith("# -- "):
            return " ".join(words).removeprefix("-- ")
    return None


def documented(node: yaml.MappingNode, path: str = "") -> Iterator[tuple[str, str, Any]]:
    """(name, comment, default) of each value; one that has no comment of its own is a group of values."""
    for key, value in node.value:
        name = f"{path}{key.value}"
        if comment := comment_above(key.start_mark.line):
            yield name, comment, yaml.safe_load(yaml.serialize(value))
        elif isinstance(value, yaml.MappingNode):
            yield from documented(value, f"{name}.")


VALUES = list(documented(yaml.compose(TEXT)))
ROWS = {name: row for name, *row in re.findall(r"^\| `([\w.-]+)` \| `(.+?)` \| (.+) \|$", README, re.MULTILINE)}


@pytest.mark.parametrize(("name", "comment", "default"), VALUES, ids=[name for name, _, _ in VALUES])
def test_a_row_has_the_default_and_the_comment(name: str, comment: str, default: Any):
    shown, meaning = ROWS[name]
    assert meaning == comment
    assert yaml.safe_load(shown) == default


def test_no_row_is_of_a_value_that_is_not_there():
    assert set(ROWS) == {name for name, _, _ in VALUES}


def test_the_keys_of_a_stage_are_told_alike():
    comment = TEXT.split("Keys, of each:\n")[1].split("\nstages:")[0]
    joined = re.sub(r"\n# {5,}", " ", comment)
    told = dict(re.findall(r"^#   (\w+(?:, \w+)?) +(.+)$", joined, re.MULTILINE))
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)?) \| ([^`|\n].*) \|$", README, re.MULTILINE)
    assert len(told) > 8 and told == {names.replace("`", ""): text for names, text in rows}
