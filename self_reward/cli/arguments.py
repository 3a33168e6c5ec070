"""Command lines of sub-commands, with parameters among the flags; flags and words may come in any order."""

import argparse
import re
from collections.abc import Callable
from typing import Any, NoReturn

from self_reward.errors import UserError
from self_reward.parameters.flat import flat
from self_reward.parameters.sources import flag_options, parse
from self_reward.parameters.stages import Repository
from self_reward.types import Json

Command = Callable[[argparse.Namespace, Any], list[str]]  # returns the lines to print


class Parser(argparse.ArgumentParser):
    """A command, whose mistakes are UserErrors. Its words and flags may be mixed, as in `put A --to X B`."""

    def __init__(self, **options: Any):
        options["formatter_class"] = argparse.RawDescriptionHelpFormatter
        super().__init__(allow_abbrev=False, **options)
        self._mixing = False

    def error(self, message: str) -> NoReturn:
        if wrong := re.fullmatch(r"argument COMMAND: invalid choice: '(.*)' \(choose from (.*)\)", message):
            message = f"unknown command {wrong[1]!r}; expected: {wrong[2].replace(chr(39), '')}"
        raise UserError(f"{self.prog}: {message}; see {self.prog} --help")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does it, but mixed; argparse itself has no sub-commands with mixed arguments."""
        if self._mixing or self._subparsers is not None:
            return super().parse_known_args(args, namespace)
        self._mixing = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._mixing = False


def add_command(
    commands: "argparse._SubParsersAction[Parser]", name: str, run: Command, kind: type[Repository], help: str
) -> Parser:
    """The command `name`, which calls `run`, with a flag for each parameter of `kind`."""
    command = commands.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}.")
    command.set_defaults(run=run, kind=kind)
    flags = command.add_argument_group("parameters", "These can also be set in SELF_REWARD_PARAMETERS.")
    options: Json = {"parameter_file": {"metavar": "FILE", "help": "YAML file"}}
    options |= {parameter: flag_options(field) for parameter, (_, field) in flat(kind).items()}
    for parameter, words in options.items():
        flags.add_argument(f"--{parameter}", dest=f"--{parameter}", default=argparse.SUPPRESS, **words)
    return command


def read_parameters(given: argparse.Namespace, unknown: list[str]) -> Repository:
    """The parameters of a command. Raises UserError for them and for the `unknown` words of the command line."""
    flags = [f"{flag}={value}" for flag, value in vars(given).items() if flag.startswith("--")]
    kind: type[Repository] = given.kind
    return parse(kind, "", [*flags, *unknown])
