"""Parameters read from their sources, into one checked object.

Sources, later ones win: defaults, SELF_REWARD_PARAMETERS (a JSON list of {name, value}, as Argo renders
`workflow.parameters.json`), `--parameter_file` (YAML), flags. All problems of all sources are reported at once.
"""

import argparse
import difflib
import json
import os
import re
import reprlib
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from self_reward.errors import UserError
from self_reward.parameters.checks import contradictions
from self_reward.parameters.flat import flat, flattened, nested
from self_reward.parameters.stages import BY_STEP, BY_TEMPLATE, STAGES, Fields, P, Plan, Repository
from self_reward.types import Json

ENVIRONMENT = "SELF_REWARD_PARAMETERS"


def parse(kind: type[P], doc: str, argv: Sequence[str] | None = None, environment: Mapping[str, str] = os.environ) -> P:
    """The checked parameters of a stage, an instance of `kind`. `doc` is what --help prints first.

    Raises UserError with every problem of every source: unknown names (with the nearest one), wrong types, values out
    of bounds, contradictions, a parameter file that cannot be read.
    """
    problems: list[str] = []
    flags, file = _read_flags(kind, doc, sys.argv[1:] if argv is None else list(argv), problems)
    sources: dict[str, tuple[object, str]] = {}
    for name, value in _read_environment(environment.get(ENVIRONMENT, ""), problems):
        if name in sources and sources[name][0] != value:
            both = f"{_short(sources[name][0])} and {_short(value)}"
            problems.append(f"{ENVIRONMENT} gives {name} twice: {both}; keep one")
        sources[name] = (value, ENVIRONMENT)
    if file is not None:
        sources |= {name: (value, file) for name, value in _read_file(file, problems)}
    sources |= {name: (value, f"--{name}") for name, value in flags.items()}
    if "in_cluster" in flags:
        problems += [
            f"{name} (from {source}): the workflow sets it itself; leave it out"
            for name, (_, source) in sources.items()
            if source == ENVIRONMENT and name in (*BY_STEP, *BY_TEMPLATE)
        ]
    problems += [
        f"unknown parameter {name[:200]} (from {source}){nearest(name)}"
        for name, (_, source) in sources.items()
        if name not in flat(Plan)
    ]
    fields = flat(kind)
    values = {name: _read_value(value, fields[name][1]) for name, (value, _) in sources.items() if name in fields}
    try:
        parameters = kind(**nested(kind, values))
    except ValidationError as error:
        problems += _invalid(error, kind, values, sources)
        raise UserError(problems) from None
    problems += contradictions(flattened(parameters))
    if getattr(parameters, "in_cluster", False):
        problems += _not_canonical(parameters, sources)
    if problems:
        raise UserError(problems)
    return parameters


def _invalid(
    error: ValidationError, kind: type[Repository], values: Json, sources: dict[str, tuple[object, str]]
) -> list[str]:
    """Problems with the values that pydantic refuses, and contradictions among the others."""
    names = {place: name for name, (place, _) in flat(kind).items()}
    first: Json = {}  # one problem per parameter, even for a list of a million bad words
    for detail in error.errors():
        location = detail["loc"]
        name = next(names[place] for n in (1, 2) if (place := tuple(map(str, location[:n]))) in names)
        first.setdefault(name, detail)
    problems = [
        f"{name} = {_short(detail['input'])} (from {sources[name][1]}): "
        + detail["msg"].replace("Input should be", "must be").replace("a valid list", 'a JSON list such as ["map"]')
        for name, detail in first.items()
    ]
    good = {name: value for name, value in values.items() if name not in first}
    # a bad value has been replaced by its default, so nothing is reported about that
    others = contradictions(flattened(kind(**nested(kind, good))))
    return problems + [problem for problem in others if not any(name in problem for name in first)]


def _not_canonical(parameters: Fields, sources: Mapping[str, tuple[object, str]]) -> list[str]:
    """Values that we parse but Argo would misread, since it evaluates the raw text (`True`, `08`)."""
    values = flattened(parameters)
    return [
        f"{name} = {value!r}: write {shown(values[name])}, since Argo computes with the text"
        for name, (value, source) in sources.items()
        if source == ENVIRONMENT and isinstance(values.get(name), int) and str(value) not in (shown(values[name]), "")
    ]


def of_workflow(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The parameters of the Argo workflow that this program is a step of, as Argo itself sees them: all are strings."""
    entries = _read_environment(environment.get(ENVIRONMENT, ""), [])
    return {name: "" if value is None else str(value) for name, value in entries}


def nearest(name: str) -> str:
    """A hint for a misspelled parameter name."""
    close = difflib.get_close_matches(name, flat(Plan), n=1)
    return f"; did you mean {close[0]}?" if close else "; docs/parameters.md lists all"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (--help lists the flags)")


def _read_flags(
    kind: type[Repository], doc: str, argv: list[str], problems: list[str]
) -> tuple[dict[str, str], str | None]:
    parser = _Parser(
        description=doc,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--parameter_file", metavar="FILE", default=None, help="YAML file of parameters (presets/).")
    for name, (_, field) in flat(kind).items():
        parser.add_argument(f"--{name}", **flag_options(field))
    known, unknown = parser.parse_known_args(argv)
    every = flat(Plan) if unknown else {}
    for i, word in enumerate(unknown):
        name = word.removeprefix("--").split("=")[0]
        if word.startswith("--") and name in every:
            owners = ", ".join(stage for stage, other in STAGES.items() if name in flat(other))
            problems.append(f"--{name} is not a parameter of this stage, but of {owners}")
        elif word.startswith("--"):
            problems.append(f"unknown parameter --{name}{nearest(name)}")
        elif i == 0 or not unknown[i - 1].startswith("--"):
            problems.append(f"unexpected word {word!r} on the command line")
    flags = vars(known)  # the last one of a repeated flag counts, so that a script's flags can be overridden
    return flags, flags.pop("parameter_file")


def _read_environment(text: str, problems: list[str]) -> list[tuple[str, object]]:
    if not text:
        return []
    try:
        entries = json.loads(text)
        if not isinstance(entries, list):
            raise TypeError(f"a {type(entries).__name__}")
        return [(str(entry["name"]), entry.get("value")) for entry in entries]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        problems.append(f'{ENVIRONMENT} must be a JSON list of {{"name": ..., "value": ...}}: {error!r}')
        return []


def _read_file(path: str, problems: list[str]) -> list[tuple[str, object]]:
    """Every scalar as the text in the file, read as a flag would be: `branch: no`, `revision: 1234567` and `seed: 010`
    must not become a boolean, a number and an octal number."""
    import yaml

    try:
        text = Path(path).read_text(encoding="utf-8")
        node = yaml.compose(text, yaml.BaseLoader)
        content = yaml.load(text, yaml.BaseLoader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        problems.append(f"parameter file {path} cannot be read: {error}")
        return []
    if content is None:
        return []
    if not isinstance(content, dict):
        problems.append(f"parameter file {path} holds a {type(content).__name__}; expected lines of `name: value`")
        return []
    names = Counter(str(name.value) for name, _ in (node.value if node else ()))
    for name in sorted(name for name, count in names.items() if count > 1):
        problems.append(f"parameter file {path} gives {name[:200]} more than once; keep one")
    return [(name, None if value == "~" else value) for name, value in content.items()]


def _short(value: object) -> str:
    """A value as a message shows it: YAML's aliases can make one too large to be printed."""
    text = repr(value) if isinstance(value, str) else reprlib.repr(value)
    return text if len(text) <= 300 else text[:300] + " ..."


def _read_value(value: object, field: FieldInfo) -> object:
    """A value of any source as pydantic is to see it. JSON's true becomes the text `true`, since pydantic would take it
    for 1 in a number. `none`, which is how an empty default is shown, is accepted."""
    if isinstance(value, bool):
        return shown(value)
    if value in ("", "null") or (value == shown(None) and field.default is None):
        return None
    if isinstance(value, str) and value.startswith("[") and type_name(field) == "JSON":
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def flag_options(field: FieldInfo) -> Json:
    """What argparse needs to know of a parameter."""
    alone = {"nargs": "?", "const": "true"} if field.annotation is bool else {}
    text = f"{description(field)} (default: {shown(field.default)})"
    return {"metavar": type_name(field), "help": text.replace("%", "%%"), **alone}


def description(field: FieldInfo) -> str:
    """The docstring of a parameter, on one line."""
    return " ".join((field.description or "").split())


def type_name(field: FieldInfo) -> str:
    """A field's type as a person would write it: INT, FLOAT, TEXT, `lora|full`."""
    text = str(field.annotation)
    if "Literal" in text:
        return "|".join(re.findall(r"'([^']+)'", text))
    for word, name in (("bool", "true|false"), ("int", "INT"), ("float", "FLOAT"), ("list", "JSON")):
        if word in text:
            return name
    return "TEXT"


def shown(value: object) -> str:
    """A value as it would be typed."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value) if isinstance(value, list) else str(value)


def as_environment(parameters: Fields, names: Sequence[str]) -> str:
    """The value of SELF_REWARD_PARAMETERS that hands `names` on to other stages."""
    values = flattened(parameters)
    return json.dumps([{"name": name, "value": values[name]} for name in names], ensure_ascii=False)
