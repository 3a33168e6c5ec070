"""The fields of Argo's Workflow and WorkflowTemplate, as a strict JSON schema: Argo itself ignores a misspelled field.

tests/argo_fields.json lists them, one definition a line: field name and type, "!" after names of required fields,
"[X]" a list, "{X}" a map, "=X" this very text. It was made from the schema that Argo publishes with each release:

    python -m tests.support.argo_fields api/jsonschema/schema.json > argo_fields.json  # argo-workflows 4.1.2
"""

import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema

KINDS = ("WorkflowTemplate", "Workflow")
PREFIX = "io.argoproj.workflow.v1alpha1."
FILE = Path(__file__).with_name("argo_fields.json")
# What is written differently from how the published schema describes it
WORDS = {"IntOrString": ["string", "integer"], "Quantity": ["string", "number"], "any": None}


@cache
def listed() -> dict[str, Any]:
    """What argo_fields.json says."""
    fields: dict[str, Any] = json.loads(FILE.read_text())
    return fields


def schema(kind: str) -> dict[str, Any]:
    """The strict JSON schema of `kind`: WorkflowTemplate, or any other name in argo_fields.json."""
    definitions = {name: _expanded(fields) for name, fields in listed().items()}
    return {"$ref": f"#/definitions/{kind}", "definitions": definitions}


def problems(kind: str, value: Any) -> list[str]:
    """What is wrong with `value` as an object of `kind`, with the path to each place."""
    found = jsonschema.Draft7Validator(schema(kind)).iter_errors(value)
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message}" for error in found]


def _expanded(fields: Any) -> dict[str, Any]:
    if isinstance(fields, str):
        return _type(fields)
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {name.rstrip("!"): _type(word) for name, word in fields.items()},
        "required": [name.rstrip("!") for name in fields if name.endswith("!")],
    }


def _type(word: str) -> dict[str, Any]:
    if word.startswith("="):
        return {"const": word[1:]}
    if word.startswith("["):
        return {"type": "array", "items": _type(word[1:-1])}
    if word.startswith("{"):
        return {"type": "object", "additionalProperties": _type(word[1:-1])}
    if word in WORDS:
        return {"type": WORDS[word]} if WORDS[word] else {}
    if word[0].islower():
        return {"type": word}
    return {"$ref": f"#/definitions/{word}"}


def _listed(published: dict[str, Any]) -> dict[str, Any]:
    """argo_fields.json from the definitions of the published schema: what KINDS need, but for what only Argo writes."""
    found: dict[str, Any] = {}
    left = [PREFIX + kind for kind in KINDS]
    while left:
        full = left.pop()
        name = full.rpartition(".")[2]
        if name in found or name in WORDS:
            continue
        definition = published[full]
        required = definition.get("required", ())
        properties = {key: value for key, value in definition.get("properties", {}).items() if key != "status"}
        found[name] = {key + "!" * (key in required): _word(value, left) for key, value in properties.items()} or _word(
            definition, left
        )
    return dict(sorted(found.items()))


def _word(value: dict[str, Any], left: list[str]) -> str:
    if "$ref" in value:
        left.append(value["$ref"].removeprefix("#/definitions/"))
        return str(left[-1].rpartition(".")[2])
    if "const" in value:
        return f"={value['const']}"
    if value.get("type") == "array":
        return f"[{_word(value['items'], left)}]"
    if value.get("type") == "object":
        return f"{{{_word(value.get('additionalProperties', {}), left)}}}"
    return str(value.get("type", "any"))


if __name__ == "__main__":
    made = _listed(json.loads(Path(sys.argv[1]).read_text())["definitions"])
    lines = [f"{json.dumps(name)}: {json.dumps(fields)}" for name, fields in made.items()]
    print("{\n" + ",\n".join(lines) + "\n}")
