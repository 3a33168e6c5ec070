"""The words of the self-reward command: sub-commands, flags, help, exit codes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from self_reward.cli import __main__ as cli
from self_reward.cli.arguments import read_parameters
from self_reward.cli.commands import parser
from self_reward.errors import UserError
from tests.support.fake_oxen import FakeOxen

ROOT = Path(__file__).parents[2]
COMMANDS = [["export"], ["accept"], *(["data", name] for name in ("ls", "get", "log", "diff", "put"))]


def start(folder: Path, *words: str, prefix: str = "", suffix: str = "") -> subprocess.CompletedProcess:
    program = " ".join([prefix, sys.executable, "-m self_reward.cli", *words, suffix])
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(["bash", "-c", program], cwd=folder, env=environment, capture_output=True, text=True)


def read(*words: str):
    given, unknown = parser().parse_known_args(list(words))
    return given, read_parameters(given, unknown)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_of_each_command_lists_its_parameters(words, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.run([*words, "--help"])
    shown = capsys.readouterr().out
    assert not ended.value.code and shown.startswith(f"usage: self-reward {' '.join(words)} ")
    assert "--data_repo TEXT" in shown and "--parameter_file FILE" in shown
    assert ("--base_model" in shown) == (words == ["export"])


def test_help_without_a_command_lists_the_commands(capsys):
    for words in ([], ["--help"]):
        try:
            cli.run(words)
        except SystemExit as ended:
            assert not ended.code
        shown = capsys.readouterr().out
        assert shown.startswith("usage: self-reward [-h] COMMAND") and "self-reward data ls" in shown
        assert all(f"\n    {name}  " in shown for name in ("export", "accept", "data"))
    cli.run(["data"])
    shown = capsys.readouterr().out
    assert all(f"\n    {name}  " in shown for name in ("ls", "get", "log", "diff", "put"))
    assert "self-reward data diff" in shown
    with pytest.raises(SystemExit) as ended:
        cli.run(["export"])
    assert not ended.value.code and "--base_model" in capsys.readouterr().out


def test_help_imports_nothing_heavy():
    code = "import sys; from self_reward.cli import __main__ as cli; cli.run(['data']); "
    code += "print(sorted({'torch', 'oxen', 'oxen_py', 'transformers'} & set(sys.modules)))"
    heavy = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert heavy.stdout.endswith("[]\n"), heavy.stderr


@pytest.mark.parametrize(
    "words, problem",
    [
        (["exprt"], "self-reward: unknown command 'exprt'; expected: export, accept, data; see self-reward --help"),
        (
            ["data", "lss"],
            "self-reward data: unknown command 'lss'; expected: ls, get, log, diff, put",
        ),
        (["--data_repo"], "self-reward: unknown word '--data_repo'"),
        (["data", "--all"], "self-reward data: unknown word '--all'"),
        (["export", "M0/dpo"], "self-reward export: the following arguments are required: --to; see"),
        (["accept"], "self-reward accept: the following arguments are required: PATH"),
        (["data", "get"], "self-reward data get: the following arguments are required: path"),
        (["data", "log", "-n", "x"], "self-reward data log: argument -n: invalid int value: 'x'"),
        (["data", "log", "-n", "0"], "-n 0: expected how many commits to show, 1 or more"),
        (["data", "ls", "--data_repo"], "self-reward data ls: argument --data_repo: expected one argument"),
        (["data", "ls", "--dat", "x"], "unknown parameter --dat; docs/parameters.md lists all"),
        (["data", "ls", "M0", "M1"], "unexpected word 'M1' on the command line"),
        (["data", "ls", "--branc", "b"], "unknown parameter --branc; did you mean branch?"),
        (["data", "ls", "--branch", "-"], "branch = '-' (from --branch): "),
        (["export", "M0/dpo", "--to", "x", "--sede", "1"], "unknown parameter --sede; did you mean seed?"),
        (["export", "M0/dpo", "--to", "x", "--iterations", "1"], "--iterations is not a parameter of this stage, but"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_words_are_user_errors(words, problem):
    with pytest.raises(UserError) as caught:
        cli.run(words)
    assert caught.value.problems[0].startswith(problem)


def test_words_and_flags_may_be_mixed(tmp_path, monkeypatch):
    (tmp_path / "file.yaml").write_text("branch: of-file\nlock_timeout: 7\nstore_timeout: 7\n")
    monkeypatch.setenv(
        "SELF_REWARD_PARAMETERS", '[{"name": "branch", "value": "b"}, {"name": "data_repo", "value": "/x"}]'
    )
    flags = ["--parameter_file", str(tmp_path / "file.yaml"), "--lock_timeout", "8", "--lock_timeout=9"]
    given, p = read("data", "put", "a", "--to", "M0/train", "b", *flags, "c")
    assert (given.local, given.to, given.create_repo) == (["a", "b", "c"], "M0/train", False)
    assert (p.data_repo, p.branch, p.lock_timeout, p.store_timeout) == ("/x", "of-file", 9, 7)
    given, p = read("data", "diff", "M0", "--branch", "b", "M1", "--revision=abcdef", "eval")
    assert (given.old, given.new, given.path, p.branch, p.revision) == ("M0", "M1", "eval", "b", "abcdef")
    given, p = read("data", "ls", "--all", "--data_repo", "d", "M0")
    assert (given.path, given.all, p.data_repo) == ("M0", True, "d")
    given, p = read("export", "--data_repo", "d", "M1/dpo", "--trust_remote_code", "--to", "x", "--base_model", "m")
    assert (given.checkpoint, given.to, p.data_repo, p.base_model) == ("M1/dpo", "x", "d", "m")
    assert p.loading.trust_remote_code is True
    given, p = read("accept", "a", "b", "--data_repo", "d", "c")
    assert (given.paths, p.data_repo) == (["a", "b", "c"], "d")


def test_reader_that_closes_the_pipe_is_not_an_error(tmp_path):
    (tmp_path / "data/M0/train").mkdir(parents=True)
    (tmp_path / "data/M0/train/ift.jsonl").write_text("{}\n" * 100_000)
    start(tmp_path, "data ls")
    for words in ("data ls", "data get M0/train/ift.jsonl --to -"):
        ended = start(tmp_path, words, suffix="| true; echo ${PIPESTATUS[0]}")
        assert ended.stdout == "0\n" and "again" not in ended.stderr


def test_exit_codes(tmp_path):
    assert start(tmp_path, "data lss").returncode == 2
    missing = start(tmp_path, "data ls --data_repo nowhere")
    assert missing.returncode == 2 and "does not exist" in missing.stderr
    port = FakeOxen()
    port.kill()
    down = start(tmp_path, f"data ls --data_repo oxen+http://127.0.0.1:{port.port}/a/b --store_timeout 1")
    assert down.returncode == 75, down.stderr
