"""The texts that come with the package, one file each: rubric/, prompt_template/ and chat_template/."""

from pathlib import Path

from self_reward.errors import UserError

_FOLDER = Path(__file__).parent


def names(kind: str) -> list[str]:
    """The built-in texts of a kind (`rubric`, `prompt_template` or `chat_template`)."""
    return sorted(path.stem for path in (_FOLDER / kind).iterdir())


def builtin(kind: str, name: str) -> str:
    """The built-in text `name` of a kind. Raises UserError that lists the available names."""
    for path in (_FOLDER / kind).iterdir():
        if path.stem == name:
            return path.read_text(encoding="utf-8")
    raise UserError(
        f"{name!r} is not a built-in {kind.replace('_', ' ')}; expected {', '.join(names(kind))}, or the path of a "
        "file in the data repository"
    )
