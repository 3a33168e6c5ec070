"""Between the groups of settings inside and the flat names outside."""

from functools import reduce

from pydantic.fields import FieldInfo

from self_reward.parameters.settings import Fields, Settings
from self_reward.types import Json

Place = tuple[str, ...]  # the names of the attributes that lead to a value, such as ("judging", "temperature")


def flat(kind: type[Fields], prefix: str = "", at: Place = ()) -> dict[str, tuple[Place, FieldInfo]]:
    """Every parameter of `kind` by its flat name: its place and its field."""
    parameters: dict[str, tuple[Place, FieldInfo]] = {}
    for name, field in kind.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, Settings):
            assert isinstance(field.json_schema_extra, dict), "made by group()"
            parameters |= flat(annotation, str(field.json_schema_extra["prefix"]), (*at, name))
        else:
            parameters[prefix + name] = (*at, name), field
    return parameters


def nested(kind: type[Fields], values: Json) -> Json:
    """`values` by flat name, as the constructor of `kind` takes them."""
    places = flat(kind)
    arguments: Json = {}
    for name, value in values.items():
        *groups, last = places[name][0]
        inner = arguments
        for group_name in groups:
            inner = inner.setdefault(group_name, {})
        inner[last] = value
    return arguments


def flattened(parameters: Fields) -> Json:
    """All values by flat name: what keys, manifests and SELF_REWARD_PARAMETERS hold."""
    return {name: reduce(getattr, place, parameters) for name, (place, _) in flat(type(parameters)).items()}


def given(parameters: Fields) -> set[str]:
    """The flat names of the parameters that were set, as opposed to left at their defaults."""
    return {
        name
        for name, (place, _) in flat(type(parameters)).items()
        if place[-1] in reduce(getattr, place[:-1], parameters).model_fields_set
    }


def key_parameters(parameters: Fields) -> Json:
    """The parameters that are part of a stage's key, by flat name: those that affect what the stage writes."""
    fields = flat(type(parameters))
    return {
        name: value
        for name, value in flattened(parameters).items()
        if affects_output(field := fields[name][1])
        and not (_extra(field).get("in_key") == "unless default" and value == field.default)
    }


def affects_output(field: FieldInfo) -> bool:
    """Whether a parameter changes what a stage writes."""
    return _extra(field).get("affects_output") is not False


def _extra(field: FieldInfo) -> Json:
    return field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
