"""self-reward data: what a person sees of a data repository in a folder and on a server."""

import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from self_reward.cli import __main__ as cli
from self_reward.cli import compare, data
from self_reward.cli.text import human, plain
from self_reward.errors import UserError
from self_reward.repository import jsonl
from self_reward.store import Commit, open_store
from self_reward.store.content import hash_file
from self_reward.store.errors import Conflict, Corrupt, NotFound
from self_reward.store.local import index
from tests.support.fake_oxen import FakeOxen
from tests.support.running import address, running
from tests.support.talk import Talk

ROOT = Path(__file__).parents[2]
PROMPTS = "M{}/generated/prompts.jsonl"
DPO = "M{}/models/dpo/final_checkpoint"


def prompts(*numbers: int, **more) -> list[dict]:
    return [{"prompt_id": f"p{i}", "prompt": f"write {i}", "source": "generated", **more} for i in numbers]


class Made:
    """A data repository as two iterations of a run leave it, and all its commits, oldest first."""

    def __init__(self, address: str, folder: Path):
        self.address, self.folder, self.commits = address, folder, []
        self.fake: FakeOxen | None = None
        self.store = open_store(address, branch="main", lock_timeout=30, store_timeout=60, cache_dir=folder / "cache")

    def put(self, files: dict[str, str], message: str) -> None:
        for path, text in files.items():
            (self.folder / "user" / path).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / "user" / path).write_text(text)
        self.commits.append(self.store.put({path: self.folder / "user" / path for path in files}, message=message))

    def stage(self, k: int, name: str, output: str, files: dict[str, bytes], counts: dict, **manifest) -> None:
        """A stage's commit: `files` of the output and its manifest."""
        key = f"{len(self.commits):02}ab" * 16
        out = self.folder / f"out{len(self.commits)}"
        outputs = {}
        for path, content in files.items():
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            (out / path).write_bytes(content)
            entry = hash_file(out / path)
            outputs[path] = {"sha256": entry.sha256, "size": entry.size, "xxh3": entry.blob}
        path = f"M{k}/{name}.manifest.json"
        seconds = float(len(self.commits))
        content = {"stage": name, "iteration": k, "key": key, "outputs": outputs, "counts": counts, "seconds": seconds}
        (out / path).write_text(json.dumps(content | manifest))
        words = ", ".join(f"{value} {name}" for name, value in counts.items())
        self.commits.append(
            self.store.push(
                {output: out / output, path: out / path},
                key=key,
                message=f"M{k} {name}: {words}",
                expected_head=self.store.resolve().head,
            )
        )

    def run(self) -> "Made":
        self.put({"M0/train/ift.jsonl": '{"prompt": "a", "response": "b"}\n', "rubric.txt": "judge\n"}, "my data")
        for k, rows in ((0, prompts(1, 2, 3)), (1, prompts(3, 4))):
            text = "".join(json.dumps(row) + "\n" for row in rows).encode()
            parameters = {"iteration": k, "prompt_top_p": 0.9, "prompt_temperature": 0.6 + k / 10}
            path = PROMPTS.format(k)
            self.stage(k, "01_gen_prompts", path, {path: text}, {"prompts": len(rows)}, parameters=parameters)
            files = {
                f"{DPO.format(k)}/{name}": bytes(100 + k) for name in ("adapter_config.json", "weights", "vocabulary")
            }
            self.stage(k, "05_dpo", DPO.format(k), files, {"pairs": 5 + k}, parameters={"iteration": k, "beta": 0.1})
            path = f"M{k}/eval/dpo.json"
            measured = {"checkpoint": f"M{k}/dpo", "verifier": {"reward": {"mean": 2.5 + k, "se": 0.1, "n": 9}}}
            counts = {f"reward_M{k}/dpo": 2.5 + k}
            self.stage(k, "06_evaluate", path, {path: json.dumps(measured).encode()}, counts)
        return self


@pytest.fixture(scope="module", params=["folder", "fake", "real"])
def made(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "folder":
        (folder / "data/M0").mkdir(parents=True)
        yield Made(str(folder / "data"), folder).run()
        return
    with running(request.param, folder / "server") as server:
        repository = Made(address(server.url, "data"), folder)
        repository.store.create()
        repository.fake = server.fake
        yield repository.run()


@pytest.fixture
def run(made, capsys, monkeypatch, tmp_path):
    """Call `self-reward data ...` on the repository; what it printed, by lines."""
    parameters = [{"name": "data_repo", "value": made.address}, {"name": "cache_dir", "value": str(tmp_path / "cache")}]
    monkeypatch.setenv("SELF_REWARD_PARAMETERS", json.dumps(parameters))
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> list[str]:
        cli.run(["data", *words])
        return capsys.readouterr().out.splitlines()

    return call


def test_ls_shows_who_wrote_what_and_a_model_as_one_line(made, run):
    lines = run("ls")
    assert lines[0].startswith(f"commit {made.commits[-1][:12]}, 20") and lines[0].endswith(
        "06_evaluate: 3.5 reward_M1/dpo"
    )
    assert lines[1].split() == ["size", "files", "written", "by", "when", "path"]
    assert [line.split() for line in lines[2:4]] == [
        ["6", "B", "1", "you", "rubric.txt"],
        ["33", "B", "1", "you", "M0/train/ift.jsonl"],
    ]
    assert [line[line.index("M") :].split("  ")[0] for line in lines[4:-1]] == [
        f"M{k} {stage}" for k in (0, 1) for stage in ("01_gen_prompts", "05_dpo", "06_evaluate")
    ]
    assert lines[5].startswith("300 B      3  M0 05_dpo") and lines[5].endswith(f"{DPO.format(0)}/  (5 pairs)")
    assert lines[4].endswith("M0/generated/prompts.jsonl  (3 prompts)") and "20" in lines[4].split()[5]
    assert lines[-1].endswith("; 6 manifests are not shown (--all shows every file)")
    assert not [line for line in lines if ".self_reward" in line]

    every = run("ls", "--all")
    assert len([line for line in every if line.endswith(".manifest.json") or "/final_checkpoint/" in line]) == 12
    assert not [line for line in every if ".self_reward" in line or "not shown" in line]
    inside = run("ls", DPO.format(1) + "/")
    assert len(inside) == 6 and [line.split("/")[-1] for line in inside[2:5]] == [
        "adapter_config.json  (6 pairs)",
        "vocabulary",
        "weights",
    ]


def test_ls_of_an_older_commit_and_of_a_missing_path(made, run):
    lines = run("ls", "--revision", made.commits[1][:8])
    assert not [line for line in lines if "dpo" in line] and "prompts.jsonl" in lines[-2]
    with pytest.raises(NotFound, match="did you mean M0/generated/prompts.jsonl"):
        run("ls", "M0/generated/prompt.jsonl")
    with pytest.raises(NotFound, match=r"M7/x is not in commit \w+; it has M0, M1, rubric.txt"):
        run("ls", "M7/x")
    with pytest.raises(NotFound, match=f"revision abcdef is not a commit.*newest are {made.commits[-1][:12]}"):
        run("ls", "--revision", "abcdef")


def test_get_copies_a_file_or_folder_and_overwrites_nothing(made, run, tmp_path):
    path, folder = PROMPTS.format(0), DPO.format(0)
    wanted = (made.folder / "out1" / path).read_bytes()
    assert run("get", path) == [f"prompts.jsonl: 1 file, {len(wanted)} B, of commit {made.commits[-1]}"]
    assert (tmp_path / "prompts.jsonl").read_bytes() == wanted
    assert run("get", path, "--to", "sub/mine.jsonl")[0].startswith("sub/mine.jsonl: 1 file")
    assert run("get", folder, "--to", "model")[0].startswith("model: 3 files, 300 B")
    assert sorted(file.name for file in (tmp_path / "model").iterdir()) == [
        "adapter_config.json",
        "vocabulary",
        "weights",
    ]
    assert run("get", folder)[0].startswith("final_checkpoint: 3 files")

    (tmp_path / "model/weights").unlink()
    assert run("get", folder, "--to", "model/../model/")[0].startswith("model/../model/final_checkpoint: 3 files")
    (tmp_path / "final_checkpoint/weights").unlink()
    assert run("get", folder)[0].endswith(", 2 of them existed already")
    (tmp_path / "final_checkpoint/weights").write_text("mine")
    (tmp_path / "final_checkpoint/vocabulary").unlink()
    with pytest.raises(UserError, match="final_checkpoint/weights exists and is not"):
        run("get", folder)
    assert (tmp_path / "final_checkpoint/weights").read_text() == "mine"
    assert not (tmp_path / "final_checkpoint/vocabulary").exists()
    assert not [file for file in tmp_path.rglob("*") if file.name[0] == "."]

    (tmp_path / "final_checkpoint/weights").write_bytes(bytes(100))
    assert run("get", folder)[0].endswith(", 2 of them existed already")
    assert run("get", ".", "--to", "all")[0].startswith("all: 18 files")
    assert (tmp_path / "all" / path).read_bytes() == wanted
    with pytest.raises(UserError, match="is a folder of 3 files; --to - is for one file"):
        run("get", folder, "--to", "-")
    command = [sys.executable, "-m", "self_reward.cli", "data", "get", path, "--to", "-"]
    shown = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True)
    assert shown.stdout == wanted, shown.stderr


def test_get_resumes_and_refuses_damaged_content(made, run, tmp_path):
    path = f"{DPO.format(1)}/weights"
    part = tmp_path / ".mine.part" / path
    part.parent.mkdir(parents=True)
    part.write_bytes(bytes(101))
    if made.fake:
        made.fake.fail("GET", "/weights$", "garbage", times=None)
    assert run("get", path, "--to", "mine")[0].startswith("mine: 1 file, 101 B")  # not asked for again
    assert (tmp_path / "mine").read_bytes() == bytes(101) and not (tmp_path / ".mine.part").exists()
    if made.fake:
        with pytest.raises(Corrupt, match=f"{path} of commit {made.commits[-1]} is damaged"):
            run("get", path, "--to", "other")
        made.fake.release()
    elif "://" not in made.address:
        blob = index.blob_path(Path(made.address), made.store.resolve().blobs[path])
        blob.write_bytes(b"x" + bytes(100))
        with pytest.raises(Corrupt, match=f"{path} of commit {made.commits[-1]} is damaged"):
            run("get", path, "--to", "other")
        blob.write_bytes(bytes(101))
    assert not (tmp_path / "other").exists()


def test_log_is_one_line_per_commit_newest_first(made, run):
    lines = run("log")
    assert [line.split()[0] for line in lines if "my data" in line or "M" in line] == [
        one[:12] for one in reversed(made.commits)
    ]
    assert lines[0].endswith("  M1 06_evaluate: 3.5 reward_M1/dpo")
    with pytest.raises(UserError, match="-n 0"):
        run("log", "-n", "0")
    short = run("log", "-n", "2")
    assert short[:2] == lines[:2] and short[2] == f"and {len(lines) - 2} older commits (-n {len(lines)})"


def test_log_names_other_authors():
    time = "2026-11-24T01:02:03.5Z"
    ours = Commit("a" * 32, "M0 00_sft: 3 ift\nmore", "k", "self-reward <self-reward@host>", time)
    theirs = Commit("b" * 32, "by hand", None, "Ann <a@b.c>", time)
    assert data.history([theirs, ours], 5) == [
        "bbbbbbbbbbbb  2026-11-24 01:02  by hand  (Ann <a@b.c>)",
        "aaaaaaaaaaaa  2026-11-24 01:02  M0 00_sft: 3 ift",
    ]


def test_diff_of_two_iterations_is_side_by_side(made, run):
    lines = run("diff", "M0", "M1")
    cells = [line.split() for line in lines]
    assert cells[0] == ["M0", "M1"]
    start = lines.index("01_gen_prompts")
    assert cells[start + 1 : start + 4] == [
        ["prompts", "3", "2"],
        ["seconds", "1", "4"],
        ["parameters.prompt_temperature", "0.6", "0.7"],
    ]
    assert ["reward_dpo", "2.5", "3.5"] in cells and ["verifier.reward.mean", "2.5", "3.5"] in cells
    assert not [line for line in lines if "top_p" in line or "iteration" in line or "key" in line or "sha" in line]
    assert "prompts in both: 1 of 3 and 2" in lines
    assert lines[-1] == "only in M0: train/ift.jsonl"
    names = [line.split()[0] for line in run("diff", "M0", "M1", "eval")]
    assert names == ["M0", "eval/dpo.json", "verifier.reward.mean", "verifier.reward.se"]
    with pytest.raises(NotFound, match="M2 is not in commit"):
        run("diff", "M0", "M2")
    with pytest.raises(UserError, match="expected two commits, or two iterations"):
        run("diff", "M0", made.commits[0])


def test_diff_of_two_commits(made, run):
    lines = run("diff", made.commits[1][:10], made.commits[2])
    assert lines[0].startswith(f"from {made.commits[1][:12]}  20") and lines[0].endswith("01_gen_prompts: 3 prompts")
    assert lines[2][:32] == "+ M0/05_dpo.manifest.json  " + lines[2][27:32] and len(lines) == 4
    assert lines[3] == f"+ {DPO.format(0)}/  300 B, 3 files"
    assert run("diff", made.commits[2], made.commits[1])[3] == f"- {DPO.format(0)}/  300 B, 3 files"
    assert run("diff", made.commits[0], "main", "M0/train")[2:] == ["nothing differs below M0/train"]
    with pytest.raises(NotFound, match="nowhere is not in commit"):
        run("diff", made.commits[0], "main", "nowhere")


def test_put_commits_files_and_diff_counts_their_changed_rows(made, run, tmp_path):
    rows = prompts(*range(10))
    jsonl.write(tmp_path / "rows.jsonl", rows)
    jsonl.write(tmp_path / "more/sub/lines.jsonl", [{"prompt_id": "p", "a": 1}, {"prompt_id": "p", "a": 2}])
    (tmp_path / "more/settings.json").write_text('{"a": {"b": 1, "c": [1]}, "d": "x"}')
    (tmp_path / "more/.hidden").write_text("x")
    said = run("put", "rows.jsonl", "--to", "M1/train/ift.jsonl", "--message", "rows of mine")
    first = said[1].removeprefix("commit ")
    assert said[0] == "M1/train/ift.jsonl" and run("log", "-n", "1")[0].endswith("  rows of mine")
    assert run("put", "rows.jsonl", "--to", "M1/train/ift.jsonl")[1] == "nothing to commit: already in the repository"
    said = run("put", "rows.jsonl", "more", "--to", "M1/train")
    assert said[:3] == ["M1/train/rows.jsonl", "M1/train/settings.json", "M1/train/sub/lines.jsonl"]
    second = said[3].removeprefix("commit ")
    assert run("diff", first, second)[2:] == [
        f"+ M1/train/rows.jsonl  {(tmp_path / 'rows.jsonl').stat().st_size} B",
        "+ M1/train/settings.json  35 B",
        "+ M1/train/sub/lines.jsonl  48 B",
    ]

    jsonl.write(tmp_path / "rows.jsonl", [*rows[2:5], {**rows[5], "prompt": "new"}, *rows[6:], *prompts(20, 21, 22)])
    lines = [{"prompt_id": "p", "a": a} for a in (2, 3, 2)]  # an id that is no row's own
    jsonl.write(tmp_path / "more/sub/lines.jsonl", lines)
    (tmp_path / "more/settings.json").write_text('{"a": {"b": 2, "c": [1]}, "e": null}')
    third = run("put", "rows.jsonl", "more", "--to", "M1/train/")[3].removeprefix("commit ")
    lines = run("diff", second, third)[2:]
    assert lines[0].startswith("~ M1/train/rows.jsonl  ")
    assert lines[0].endswith("; rows: 10 -> 11, 3 added, 2 removed, 1 changed")
    assert lines[1] == "~ M1/train/settings.json  35 B -> 36 B"
    assert lines[2:5] == ["    a.b: 1 -> 2", '    d: "x" -> -', "    e: - -> null"]
    assert lines[5] == "~ M1/train/sub/lines.jsonl  48 B -> 72 B; rows: 2 -> 3, 2 added, 1 removed"


def test_put_refuses_a_stages_files_and_reports_all_problems(made, run, tmp_path):
    (tmp_path / "prompts.jsonl").write_text("x\n")
    (tmp_path / "a").mkdir()
    (tmp_path / "a/prompts.jsonl").write_text("y\n")
    head = made.store.resolve().head
    with pytest.raises(UserError, match="M0/generated/prompts.jsonl .*written by a stage"):
        run("put", "prompts.jsonl", "--to", "M0/generated")
    with pytest.raises(UserError) as caught:
        run("put", "prompts.jsonl", "a", "missing", "--to", "M0/train")
    assert [problem.split(" ")[-1] for problem in caught.value.problems] == ["folders", "folder"]
    assert made.store.resolve().head == head
    assert "changed" not in run("ls")[0]


def test_a_missing_repository_is_created_only_on_request(made, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SELF_REWARD_PARAMETERS", "")
    (tmp_path / "ift.jsonl").write_text("{}\n")
    where = f"{made.address}-new"
    words = ["put", str(tmp_path / "ift.jsonl"), "--to", "M0/train", "--data_repo", where]
    with pytest.raises(NotFound, match="does not exist"):
        cli.run(["data", *words])
    cli.run(["data", *words, "--create_repo"])
    assert "M0/train/ift.jsonl" in capsys.readouterr().out
    cli.run(["data", "ls", "--data_repo", where])
    assert "you" in capsys.readouterr().out


def test_put_keeps_another_programs_files(tmp_path):
    (tmp_path / "data/M0/train").mkdir(parents=True)
    (tmp_path / "data/M0/train/ift.jsonl").write_text("first\n")
    store = open_store(str(tmp_path / "data"), branch="main", lock_timeout=30, store_timeout=60)
    store.resolve()
    (tmp_path / "data/M0/train/ift.jsonl").write_text("edited\n")
    (tmp_path / "new").write_text("new\n")
    with pytest.raises(Conflict, match="was changed and is not committed yet"):
        store.put({"M0/train/ift.jsonl": tmp_path / "new"}, message="m")
    assert (tmp_path / "data/M0/train/ift.jsonl").read_text() == "edited\n"
    with pytest.raises(UserError, match="is a folder in the data repository"):
        store.put({"M0/train": tmp_path / "new"}, message="m")
    with pytest.raises(UserError, match="M0/train/ift.jsonl is a file in the data repository"):
        store.put({"M0/train/ift.jsonl/x": tmp_path / "new"}, message="m")
    with pytest.raises(UserError, match="no part of it empty or beginning with a dot"):
        store.put({".oxen/x": tmp_path / "new", "../y": tmp_path / "new"}, message="m")
    commit = store.put({"M0/train/new.jsonl": tmp_path / "new"}, message="m")
    assert (tmp_path / "data/M0/train/new.jsonl").read_text() == "new\n" and store.resolve(commit).commit == commit
    (tmp_path / "new").write_text("changed in place\n")  # the repository has a copy, and no link
    assert (tmp_path / "data/M0/train/new.jsonl").read_text() == "new\n"


def test_rows_are_compared_without_holding_them_in_memory(tmp_path):
    rows = ({"prompt_id": f"p{i}", "prompt": "x" * 500} for i in range(60_000))
    jsonl.write(tmp_path / "a.jsonl", rows)
    (tmp_path / "b.jsonl").write_bytes((tmp_path / "a.jsonl").read_bytes() + b'{"prompt_id": "new"}\n')
    tracemalloc.start()
    said = compare.rows_changed(tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert said == "60000 -> 60001, 1 added"
    assert peak < (tmp_path / "a.jsonl").stat().st_size


def test_control_characters_are_escaped():
    assert plain("é \x1b[31mred\u202e\x07") == "é \\x1b[31mred\\u202e\\x07"


def test_sizes():
    sizes = (0, 999, 1000, 99_940, 123_456, 999_600, 5_300_000_000)
    assert [human(size) for size in sizes] == ["0 B", "999 B", "1.0 kB", "99.9 kB", "123 kB", "1.0 MB", "5.3 GB"]


def test_log_shows_the_author_of_another_programs_commit(tmp_path, capsys):
    with FakeOxen() as fake:
        talk = Talk(fake.url, "data")
        talk.create()
        talk.push({"M0/train/ift.jsonl": b"{}\n"}, message="by hand")
        cli.run(["data", "log", "--data_repo", address(fake.url, "data"), "--cache_dir", str(tmp_path)])
        assert "by hand  (A <a@b.c>)" in capsys.readouterr().out
