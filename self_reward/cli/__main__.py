"""self-reward: commands for the results and the data of a run (commands.py)."""

import sys

from self_reward import disk
from self_reward.cli.arguments import read_parameters
from self_reward.cli.commands import parser
from self_reward.cli.text import plain, to_a_reader_that_may_leave
from self_reward.run.checkout import disks
from self_reward.run.process import guard


def main() -> int:
    """Entry point of the `self-reward` command."""
    return guard(lambda: run(sys.argv[1:]), "self-reward")


def run(words: list[str]) -> None:
    """Run the command line `words`. Raises UserError for every unknown word and wrong parameter in it."""
    if words == ["export"]:
        words = ["export", "--help"]
    given, unknown = parser().parse_known_args(words)
    if not given.run:
        if unknown:
            given.parser.error(f"unknown word {unknown[0]!r}")
        return given.parser.print_help()
    p = read_parameters(given, unknown)
    with disk.explained(*disks(p)):
        lines = given.run(given, p)
    with to_a_reader_that_may_leave():
        for line in lines:
            print(plain(line))


if __name__ == "__main__":
    sys.exit(main())
