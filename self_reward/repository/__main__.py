"""docs/files.md, to standard output: python -m self_reward.repository"""

import ast
import inspect
import re
import sys

from self_reward.repository.artifacts import ARTIFACTS
from self_reward.rows import Row

INTRODUCTION = """\
# Files of the data repository

Generated from self_reward/repository/artifacts.py and self_reward/rows.py by `make docs`. `{k}` is the iteration.
Beside these, each stage leaves `M{k}/STAGE.manifest.json`: what it read, with which parameters, and what it counted.

| path | written by | content |
|---|---|---|
"""
ROWS = """
## Columns

Each line of a .jsonl file is one JSON object. Columns marked with * may be missing or null. Other columns are allowed;
those of responses.jsonl are copied to scores.jsonl.
"""
IN_WORDS = [(r"list\[(.*?)\]", r"list of \1"), (r"RankedResponse", "{text, rank}"), (r" \| ", " or ")]
IN_WORDS += [("None", "null"), ("str", "text"), ("int", "integer"), ("float", "number")]


def markdown() -> str:
    lines = [f"| `{file.path}` | {file.written_by} | {file.meaning} |" for file in ARTIFACTS.values()]
    parts = [INTRODUCTION + "\n".join(lines) + "\n" + ROWS]
    paths: dict[type[Row], list[str]] = {}
    for file in ARTIFACTS.values():
        if file.rows:
            paths.setdefault(file.rows, []).append(f"`{file.path}`")
    for kind, names in paths.items():
        about = " ".join((inspect.getdoc(kind) or "").split())
        parts.append(f"\n### {', '.join(names)}\n\n{about}\n\n| column | type | meaning |\n|---|---|---|\n")
        parts += [f"| `{name}`{mark} | {type_} | {meaning} |\n" for name, mark, type_, meaning in columns(kind)]
    return "".join(parts)


def columns(kind: type[Row]) -> list[tuple[str, str, str, str]]:
    """(name, " \\*" if it may be missing, type, meaning) of each column: annotations and docstrings of the fields."""
    described: dict[str, tuple[str, str, str]] = {}
    for owner in reversed(kind.__mro__[: kind.__mro__.index(Row)]):
        (definition,) = ast.parse(inspect.getsource(owner)).body
        assert isinstance(definition, ast.ClassDef)
        for node, after in zip(definition.body, definition.body[1:], strict=False):
            if (
                isinstance(node, ast.AnnAssign)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
            ):
                type_ = ast.unparse(node.annotation)
                if node.value is not None:
                    type_ = type_.removesuffix(" | None")
                for python, plain in IN_WORDS:
                    type_ = re.sub(python, plain, type_)
                mark = "" if node.value is None else " \\*"
                described[ast.unparse(node.target)] = mark, type_, " ".join(str(after.value.value).split())
    return [(name, *described[name]) for name in kind.__struct_fields__]


if __name__ == "__main__":
    sys.stdout.write(markdown())
