"""Wrong input, as a user meets it: the real programs are started on it, and must say what is wrong, end with the right
exit code, commit nothing and leave nothing half-written.

Functions have the finer cases in the tests of their modules; here each kind of input is seen once from outside.
"""

import http.server
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from self_reward import texts
from self_reward.method import judge
from self_reward.repository import jsonl
from self_reward.store.content import hash_file, walk

ROOT = Path(__file__).parents[2]
RUBRIC = texts.builtin("rubric", "additive")
IFT = [{"prompt": f"write the list a{i} b{i}", "response": "ant bat"} for i in range(30)]
EFT = [
    {"prompt": judge.judge_prompt(RUBRIC, f"write {i}", "ant"), "response": f"fine. Score: {i % 6}", "source": "eft"}
    for i in range(20)
]
SCORES = [
    {"prompt_id": f"p{i}", "response_id": f"p{i}-{j}", "prompt": f"prompt {i}", "completion": f"answer {j}", "score": j}
    for i in range(3)
    for j in range(2)
]


def write_model(folder: Path) -> None:
    """A folder that looks like a model to everything that does not load it."""
    folder.mkdir()
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.json").write_text("{}")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A committed data repository with the user's data and generated scores, pairs and a checkpoint."""
    where = tmp_path_factory.mktemp("made")
    data = where / "data"
    jsonl.write(data / "M0/train/ift.jsonl", IFT)
    jsonl.write(data / "M0/train/ift+eft.jsonl", [*IFT, *EFT])
    jsonl.write(data / "M0/generated/scores.jsonl", SCORES)
    write_model(where / "model")
    shutil.copytree(where / "model", data / "M0/models/sft/final_checkpoint")
    metadata = {"finetune": "full", "parent": None, "base_model": "org/base@1"}
    (data / "M0/models/sft/final_checkpoint/self_reward.json").write_text(json.dumps(metadata))
    outputs = {
        path.relative_to(data).as_posix(): {"sha256": hash_file(path).sha256, "size": path.stat().st_size}
        for path in sorted((data / "M0/models/sft/final_checkpoint").iterdir())
    }
    (data / "M0/00_sft.manifest.json").write_text(json.dumps({"key": "0" * 64, "outputs": outputs}))
    ended = start("04_gen_preferences", where)
    assert ended.returncode == 0, ended.stderr
    return where


@pytest.fixture
def here(made, tmp_path) -> Path:
    shutil.copytree(made, tmp_path / "here", symlinks=True)
    return tmp_path / "here"


def start(program: str, here: Path, *flags: str, **environment: str | None) -> subprocess.CompletedProcess[str]:
    """Run plan or a stage on here/data with here/model."""
    words = {"data_repo": here / "data", "cache_dir": here / "cache"}
    if program != "04_gen_preferences":
        words["base_model"] = here / "model"
    given = [word for name, value in words.items() if f"--{name}" not in flags for word in (f"--{name}", str(value))]
    variables = {**os.environ, "TERMINATION_LOG": str(here / "last"), "CUDA_VISIBLE_DEVICES": "", **environment}
    return subprocess.run(
        [sys.executable, str(ROOT / f"stages/{program}.py"), *given, *flags],
        cwd=here, capture_output=True, text=True, timeout=120,
        env={name: value for name, value in variables.items() if value is not None} | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def files(here: Path) -> dict[str, str]:
    """What lies in the repository's folder, by content."""
    data = here / "data"
    paths = walk(data, skip_hidden=False) if data.is_dir() else []
    return {path: hash_file(data / path).sha256 for path in paths if not path.startswith(".oxen")}


def commits(here: Path) -> dict[str, dict[str, str]]:
    """The files of every commit, by content."""
    trees = (here / "data/.oxen/self_reward/trees").glob("*.json")
    return {
        tree.name: {path: entry[1] for path, entry in json.loads(tree.read_text()).items()} for tree in sorted(trees)
    }


def fails(here: Path, program: str, *flags: str, code: int = 2, said: tuple[str, ...] = (), **environment) -> str:
    """The program ends with `code` and says all of `said`, and nothing of a stage's is written."""
    before, old = files(here), commits(here)
    ended = start(program, here, *flags, **environment)
    assert ended.returncode == code, (ended.returncode, ended.stdout, ended.stderr)
    assert ended.stdout == ""
    assert "Traceback" not in ended.stderr, ended.stderr
    for words in said:
        assert words in ended.stderr, (words, ended.stderr)
    assert files(here) == before
    new = [tree for commit, tree in commits(here).items() if commit not in old]
    assert all(tree == before for tree in new), "a commit that holds more than the user's files"
    assert str(here / "cache") not in ended.stderr, "a path in a copy of ours tells the user nothing"
    assert not [path for path in (here / "cache").rglob("*.part")]
    last = ended.stderr.splitlines()[-1]
    assert (here / "last").read_text().splitlines()[-1] == last
    return ended.stderr


def user_file(name: str, content: bytes | None) -> Callable[[Path], None]:
    def change(here: Path) -> None:
        path = here / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content)

    return change


ROW = b'{"prompt": "a", "response": "b"}\n'
TRAIN, SEEDS = "M0/train/ift+eft.jsonl", "M0/train/ift.jsonl"
USERS_DATA = {
    "missing": (user_file(TRAIN, None), [f"{TRAIN} is not in the data repository (M0/train has {SEEDS})"]),
    "empty": (user_file(TRAIN, b""), [f"{TRAIN} has no rows"]),
    "not JSON": (user_file(TRAIN, ROW + b"prompt,response\n"), [f"{TRAIN}:2: not JSON"]),
    "missing column": (
        user_file(TRAIN, b'{"instruction": "a", "output": "b"}\n'),
        [f"{TRAIN}:1: missing column prompt, response (or completion); found instruction, output"],
    ),
    "no answer": (
        user_file(TRAIN, b'{"prompt": "a", "output": "b"}\n'),
        [f"{TRAIN}:1: missing column response (or completion); found prompt, output"],
    ),
    "not UTF-8": (user_file(TRAIN, ROW + '{"prompt": "é"}'.encode("latin-1")), [f"{TRAIN}:2: not UTF-8 at byte 12"]),
    "wrong type": (user_file(TRAIN, b'{"prompt": ["a"], "response": "b"}'), ["prompt is list, expected str"]),
    "empty prompt": (user_file(TRAIN, ROW + b'{"prompt": " ", "response": "b"}'), [f"{TRAIN}:2: the prompt is empty"]),
    "a row of 10 MB": (
        user_file(TRAIN, ROW + b'{"prompt": "a", "response": "' + b"x" * 10_000_000 + b'"}\n'),
        [f"{TRAIN}:2: a row of 10000031 bytes; the longest allowed is 10000000"],
    ),
    "another rubric": (
        user_file(TRAIN, ROW + json.dumps(EFT[0]).replace("5-point", "9-point").encode()),
        [f"{TRAIN}:2: source is eft", "rubric has '5-point", "prompt has '9-point", "--rubric"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", USERS_DATA)
def test_the_users_data(here, name):
    """plan finds it before anything runs."""
    change, said = USERS_DATA[name]
    change(here)
    fails(here, "plan", said=said)


def test_judging_examples_without_replay_pairs_are_reported(here):
    """Else 05 would say so, after hours of generating."""
    same = [{**row, "response": "Score: 3"} for row in EFT]
    jsonl.write(here / "data" / TRAIN, [*IFT, *same])
    few = "eft_replay needs judgements with at least two scores; found 3 in "
    fails(here, "plan", "--eft_replay", "0.1", said=[few])
    jsonl.write(here / "data" / TRAIN, [*IFT, *EFT])
    # the results that `here` has in the way of later stages are all that is left to say
    fails(here, "plan", "--eft_replay", "0.1", said=["scores.jsonl exists and was not written by a stage"])
    assert "eft_replay" not in start("plan", here, "--eft_replay", "0.1").stderr


def test_stage_reports_the_same_without_plan(here):
    user_file(TRAIN, ROW + b"x\n")(here)
    fails(here, "00_sft", "--force", said=[f"error: {TRAIN}:2: not JSON"])
    user_file(TRAIN, None)(here)
    fails(here, "00_sft", "--sft", "always", said=["sft is always, but neither M0/train/ift+eft.jsonl nor"])
    user_file(SEEDS, None)(here)
    fails(here, "01_gen_prompts", "--sft", "never", said=[f"{SEEDS} is not in the data repository"])


def test_problems_of_all_files_come_at_once(here):
    user_file(TRAIN, b"x\n" + ROW + b"{}\n")(here)
    user_file(SEEDS, b"")(here)
    user_file("M0/eval/prompts.jsonl", b"[]\n")(here)
    user_file("M0/eval/eft.jsonl", b'{"prompt": "a", "responses": []}\n')(here)
    shutil.copytree(here / "data/M0/models/sft", here / "data/M0/models/dpo")
    user_file("texts/rubric.txt", b"no places")(here)
    user_file("texts/template.txt", b"\xff")(here)
    texts = ("--rubric", "texts/rubric.txt", "--prompt_template", "texts/template.txt")
    problems = (
        f"{TRAIN}:1: not JSON",
        f"{TRAIN}:3: missing column prompt, response (or completion); found no column", f"{SEEDS} has no rows",
        "M0/eval/prompts.jsonl:1: a JSON list", "M0/eval/eft.jsonl:1: 0 responses",
        "rubric texts/rubric.txt: the rubric has {prompt} 0 times",
        "prompt_template texts/template.txt: not UTF-8 at byte 0",
    )  # fmt: skip
    err = fails(here, "plan", *texts, "--base_model", str(here), "--verifier", "no.such:thing", said=problems)
    assert f"{here}: no config.json" in err and f"{here}: no tokenizer" in err and "verifier = no.such:thing" in err
    assert len(err.splitlines()) == len(set(err.splitlines()))  # each once
    fails(here, "00_sft", *texts[:2], "--force", said=(*problems[:2], *problems[3:6]))
    fails(here, "01_gen_prompts", *texts[2:], said=(*problems[2:5], problems[6]))
    fails(here, "06_evaluate", *texts[:2], said=problems[5:6])


# ---- models


def change_model(change: Callable[[Path], object]) -> Callable[[Path], None]:
    return lambda here: change(here / "model") and None


def rename(old: str, new: str) -> Callable[[Path], None]:
    return change_model(lambda model: (model / old).rename(model / new))


INDEX = "model.safetensors.index.json"
MODELS = {
    "no weights": (
        change_model(lambda m: (m / "model.safetensors").unlink()), ["no weights; expected model.safetensors, or"],
    ),
    "weights of another name": (rename("model.safetensors", "consolidated.safetensors"), ["found consolidated.safet"]),
    "no tokenizer": (change_model(lambda m: (m / "tokenizer.json").unlink()), ["no tokenizer; expected one of"]),
    "no config": (change_model(lambda m: (m / "config.json").unlink()), ["no config.json; found model.safetensors"]),
    "pickles, .bin": (rename("model.safetensors", "pytorch_model.bin"), ["only as pickles (pytorch_model.bin)"]),
    "code of its own": (
        change_model(lambda m: (m / "config.json").write_text('{"auto_map": {"AutoModel": "mine.Model"}}')),
        ["comes with its own code (auto_map)", "trust_remote_code: true"],
    ),
    "cut short": (
        change_model(lambda m: os.truncate(m / "model.safetensors", 70)), ["model.safetensors: ", "bytes", "again"],
    ),
    "a missing shard": (
        change_model(lambda m: (m / INDEX).write_text('{"weight_map": {"w": "model-00002.safetensors"}}')),
        [f"{INDEX} are missing: model-00002.safetensors"],
    ),
    "a config of nonsense": (change_model(lambda m: (m / "config.json").write_text("{")), ["config.json: not JSON"]),
    "a file": (change_model(lambda m: (shutil.rmtree(m), m.write_text("x"))), ["a file; expected the folder"]),
    "nothing": (change_model(lambda m: shutil.rmtree(m)), ["no such folder"]),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_the_base_model(here, name):
    change, said = MODELS[name]
    change(here)
    fails(here, "plan", said=[str(here / "model"), *said])


def test_stage_checks_the_base_model_before_loading_it(here):
    (here / "model/model.safetensors").rename(here / "model/pytorch_model.bin")
    (here / "model/tokenizer.json").unlink()
    fails(here, "00_sft", said=["weights only as pickles", "no tokenizer; expected one of"])


def test_a_base_model_in_the_data_repository(here):
    shutil.copytree(here / "model", here / "data/models/base")
    os.truncate(here / "data/models/base/model.safetensors", 70)
    (here / "data/models/base/tokenizer.json").unlink()
    for program in ("plan", "00_sft"):
        fails(
            here, program, "--base_model", "oxen:models/base", said=["models/base: no tokenizer", "models/base/model.s"]
        )
        fails(here, program, "--base_model", "oxen:models/bse", said=["no folder 'models/bse' in", "models/base"])
        fails(here, program, "--base_model", "oxen:", said=["oxen:<path"])


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers with the status that the model's name is."""

    def do_GET(self):
        status = int(re.search(r"/me/(\d+)", self.path)[1])
        self.send_response(status)
        if status == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def hub():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (401, 2, "the hub refuses it (401)"),
        (404, 2, "the hub refuses it (404)"),
        (429, 75, "the hub answers 429"),
        (503, 75, "the hub answers 503"),
        (None, 75, "the hub cannot be reached"),
    ],
)
def test_the_hub(here, hub, status, code, said):
    environment = {"HF_ENDPOINT": hub if status else "http://127.0.0.1:9", "HF_HOME": str(here / "hf")}
    environment |= {"HF_HUB_OFFLINE": None, "HF_TOKEN": None}
    fails(
        here,
        "plan",
        "--base_model",
        f"me/{status or 1}",
        code=code,
        said=[f"me/{status or 1}@main: {said}"],
        **environment,
    )
    if status in (404, None):
        fails(here, "00_sft", "--base_model", f"me/{status or 1}", code=code, said=[said], **environment)


# ---- parameters


def test_all_wrong_parameters_are_reported_at_once(here):
    (here / "p.yaml").write_text("judge_vots: 3\nseed: x\nseed: 2\n")
    said = (
        "unknown parameter judge_vots (from ", "did you mean judge_votes?",
        "unknown parameter --bta; did you mean beta?",
        "responses_per_prompt = '1' (from --responses_per_prompt): must be greater than or equal to 2",
        "seed more than once",
        "judge_temperature = '-1'",
        "score_min = 6 is above score_max = 5",
        "SELF_REWARD_PARAMETERS must be a JSON list",
    )  # fmt: skip
    flags = ("--bta", "1", "--responses_per_prompt", "1", "--judge_temperature", "-1", "--score_min", "6")
    fails(here, "plan", "--parameter_file", "p.yaml", *flags, said=said, SELF_REWARD_PARAMETERS="{")


@pytest.mark.parametrize("content", [None, b"a: [", b"- 1", b"\xff"])
def test_a_parameter_file_that_cannot_be_read(here, content):
    if content is not None:
        (here / "p.yaml").write_bytes(content)
    for program in ("plan", "04_gen_preferences") if content is None else ("plan",):
        fails(here, program, "--parameter_file", "p.yaml", said=["parameter file p.yaml"])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--responses_per_prompt", "1"], "responses_per_prompt = '1'"),
        (["--max_pairs", "3"], "max_pairs = 3 needs 6 responses"),
        (["--min_margin", "5"], "scores differ by at most 5"),
        (["--iteration", "1"], "iteration is for one stage"),
        (["--iterations", "0"], "iterations = '0'"),
        (["--data_repo"], "expected one argument"),
        (["M0"], "unexpected word 'M0'"),
    ],
)
def test_contradictions(here, flags, said):
    fails(here, "plan", *flags, said=[said])


# ---- the data repository


def test_path_that_is_not_a_data_repository(here, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for name, said in (
        ("none", "does not exist. Make one: mkdir -p"),
        ("file", "is a file; expected a folder"),
        ("file/below", ""),
        ("empty", "has no folder M0"),
    ):
        fails(here, "plan", "--data_repo", str(tmp_path / name), said=[str(tmp_path / name), said])
    fails(here, "04_gen_preferences", "--data_repo", str(tmp_path / "none"), said=["does not exist. Make one"])
    assert not list((tmp_path / "empty").iterdir())


@pytest.mark.parametrize("broken", ["file", "folder", "no head", "no history"])
def test_broken_data_repository(here, broken):
    oxen = here / "data/.oxen"
    if broken == "no head":
        (oxen / "HEAD").write_text("nonsense")
    elif broken == "no history":
        shutil.rmtree(oxen / "history")
    else:
        shutil.rmtree(oxen)
        oxen.write_text("x") if broken == "file" else oxen.mkdir()
    before = files(here)
    ended = start("04_gen_preferences", here, "--force")
    assert ended.returncode == 2 and ended.stdout == "" and "Traceback" not in ended.stderr, ended.stderr
    assert str(here / "data") in ended.stderr
    assert files(here) == before


def test_iteration_without_its_start_model(here):
    for program, flags in (("plan", ["--start_iteration", "2"]), ("02_gen_responses", ["--iteration", "2"])):
        said = [
            "checkpoint M1/dpo does not exist; the data repository has M0/sft",
            f"Make it with ./self-reward.sh stages {here}/model M0 --iterations 2 --data_repo {here}/data",
        ]
        fails(here, program, *flags, said=said)
    fails(here, "04_gen_preferences", "--iteration", "2", said=["M2/generated/scores.jsonl", "stages/03_gen_scores.py"])


def test_unknown_revision(here):
    said = ["revision nosuch is not a commit of branch main; its newest are ", "M0 04_gen_preferences"]
    fails(here, "04_gen_preferences", "--revision", "nosuch", said=said)


def test_another_process_holds_the_repository(here):
    import fcntl

    with open(here / "data/.oxen/self_reward/lock", "a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(
            json.dumps({"pid": 4711, "host": "h", "command": "stages/05_dpo.py", "since": "2026-01-02 03:04:05"})
        )
        file.flush()
        held = "held by process 4711 on h (stages/05_dpo.py) since 2026-01-02 03:04:05; waited lock_timeout = 1 s"
        fails(here, "04_gen_preferences", "--force", "--lock_timeout", "1", code=75, said=[f"{here}/data is {held}"])


@pytest.mark.parametrize(
    "path",
    [
        "M0/generated/preferences.jsonl",
        "M0/04_gen_preferences.manifest.json",
        "M0/models/sft/final_checkpoint/model.safetensors",
        "M0/models/sft/final_checkpoint/self_reward.json",
    ],
)
def test_file_changed_after_its_stage_is_reported(here, path):
    recorded = hash_file(here / "data" / path).sha256
    with open(here / "data" / path, "ab") as file:
        file.write(b"\n")
    said = [f"{path} was changed after the stage that wrote it", recorded, hash_file(here / "data" / path).sha256]
    fails(here, "04_gen_preferences", said=said)


def test_deleted_generated_file_is_restored(here):
    path = here / "data/M0/models/sft/final_checkpoint/model.safetensors"
    before = path.read_bytes()
    path.unlink()
    ended = start("04_gen_preferences", here)
    assert ended.returncode == 0 and "was missing and was restored" in ended.stderr, ended.stderr
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", ["{", "[]", '{"outputs": 3}', '{"outputs": {"M0/train/ift.jsonl": 1}}'])
def test_invalid_manifest_in_the_data_is_reported(here, content):
    """It is the user's: no stage wrote it."""
    (here / "data/M0/02_gen_responses.manifest.json").write_text(content)
    fails(here, "02_gen_responses", "--sft", "never", said=["M0/02_gen_responses.manifest.json"])


@pytest.mark.parametrize("content", ["{", "[]"])
def test_invalid_checkpoint_metadata_is_reported(here, content):
    shutil.copytree(here / "model", here / "data/M0/models/dpo/final_checkpoint")
    (here / "data/M0/models/dpo/final_checkpoint/self_reward.json").write_text(content)
    fails(here, "07_export", said=["M0/models/dpo/final_checkpoint/self_reward.json"])


# ---- generated files


def change_scores(here: Path, rows: bytes) -> None:
    with open(here / "data/M0/generated/scores.jsonl", "ab") as file:
        file.write(rows)


BAD_ROWS = b'\xff\nx\n{"prompt_id": "p9"}\n' + b"".join(
    json.dumps({**SCORES[0], "prompt_id": "q", **changed}).encode() + b"\n"
    for changed in ({"score": 12}, {"score": "5"}, {"prompt": " "}, {"prompt_id": ""}, {"votes": 3})
) + b'{"prompt_id": "r", "prompt": "p", "completion": "c", "score": NaN}\n'  # fmt: skip


def test_too_many_bad_rows_of_a_generated_file_stop_the_stage(here):
    change_scores(here, BAD_ROWS)
    said = [
        "M0/generated/scores.jsonl: 9 of 15 rows are bad (",
        "wrong_value 3", "not_json 2", "wrong_type 2", "not_utf8 1", "missing_column 1",
        "M0/generated/scores.jsonl:7: not UTF-8", "M0/generated/scores.jsonl:8: not JSON",
        "M0/generated/scores.jsonl:9: missing column prompt, completion, score; found prompt_id",
        "0.01 (max_bad_rows)",
    ]  # fmt: skip
    fails(here, "04_gen_preferences", said=said)


def test_bad_rows_below_the_bound_are_left_out_and_shown(here):
    change_scores(here, BAD_ROWS)
    ended = start("04_gen_preferences", here, "--max_bad_rows", "0.7")
    assert ended.returncode == 0, ended.stderr
    assert "M0/generated/scores.jsonl: 9 of 15 rows are bad" in ended.stderr and "bad_rows=9" in ended.stdout
    manifest = json.loads((here / "data/M0/04_gen_preferences.manifest.json").read_text())
    assert manifest["counts"]["bad_rows"] == 9 and manifest["counts"]["pairs"] == 3
    shown = manifest["details"]["bad_rows"]["M0/generated/scores.jsonl"]
    assert shown["rows"] == 15 and shown["reasons"]["wrong_value"] == 3
    assert shown["first"][0].startswith("M0/generated/scores.jsonl:7: not UTF-8")


@pytest.mark.parametrize(
    ("program", "path"),
    [
        ("02_gen_responses", "M1/generated/prompts.jsonl"),
        ("03_gen_scores", "M1/generated/responses.jsonl"),
        ("05_dpo", "M1/generated/preferences.jsonl"),
        ("01_gen_prompts", "M0/generated/prompts.jsonl"),
    ],
)
def test_rows_are_checked_before_a_model_is_loaded(here, program, path):
    shutil.copytree(here / "data/M0/models/sft", here / "data/M0/models/dpo")
    user_file(path, ROW)(here)
    fails(here, program, "--iteration", "1", said=[f"{path}: 1 of 1 rows are bad (missing_column 1)"])


def test_scattered_rows_of_a_prompt_are_reported(here):
    change_scores(here, json.dumps(SCORES[0]).encode() + b"\n")
    fails(here, "04_gen_preferences", said=["M0/generated/scores.jsonl: prompt_id p0 comes back after other prompts"])


def test_no_pairs_left(here):
    rows = [{**row, "score": 3} for row in SCORES]
    jsonl.write(here / "data/M0/generated/scores.jsonl", rows)
    said = ["0 pairs from 3 prompts", "tie 3", "Scores: 3 x 6", "Expected at least one"]
    fails(here, "04_gen_preferences", said=said)


# ---- while a model runs


@pytest.fixture(scope="module")
def random_model(tmp_path_factory) -> Path:
    """It can neither judge nor write prompts."""
    from tests.support import tiny

    words = ["ant", "bat", "cat", "dog"]  # no digit, so no score
    return tiny.make_tiny_model(tmp_path_factory.mktemp("random") / "model", hidden=8, layers=1, words=words)


def test_unreadable_judge_stops_the_run(here, random_model):
    rows = [{"prompt_id": f"p{i}", "prompt": f"list {i}", "completion": "ant"} for i in range(4)]
    jsonl.write(here / "data/M1/generated/responses.jsonl", rows)
    shutil.copytree(random_model, here / "data/M0/models/dpo/final_checkpoint")
    user_file("texts/rubric.txt", b"judge {prompt} and {response}")(here)
    flags = ("--rubric", "texts/rubric.txt", "--judge_votes", "2", "--judge_max_tokens", "3")
    err = fails(
        here, "03_gen_scores", "--iteration", "1", "--sampler", "transformers", *flags,
        said=["none of 8 judgements holds a score that can be read (parse rate 0, expected at least 0.5)", "Samples: "],
    )  # fmt: skip
    assert len(err.split("Samples: ")[1].split("; ")) == 3


def test_judge_below_min_parse_rate_is_reported(here, tmp_path):
    from tests.support import tiny

    rows = [{"prompt_id": f"p{i}", "prompt": f"list {i}", "completion": "ant"} for i in range(2)]
    jsonl.write(here / "data/M1/generated/responses.jsonl", rows)
    tiny.make_tiny_model(here / "data/M0/models/dpo/final_checkpoint", hidden=8, layers=1, words=["ant", "3"])
    user_file("texts/rubric.txt", b"judge {prompt} and {response}")(here)
    flags = ("--rubric", "texts/rubric.txt", "--judge_votes", "16", "--judge_max_tokens", "1", "--min_parse_rate", "1")
    ended = start("03_gen_scores", here, "--iteration", "1", "--sampler", "transformers", *flags, "--stop_file", "stop")
    assert ended.returncode == 0 and "unscored_responses=0" in ended.stdout, ended
    assert re.search(r"parse rate 0\.\d+ \(\d+ of 32 judgements\).*Samples: '", (here / "stop").read_text())


def test_a_model_that_writes_no_usable_prompts(here, random_model):
    flags = ("--sft", "never", "--base_model", str(random_model), "--sampler", "transformers", "--num_prompts", "4")
    err = fails(
        here, "01_gen_prompts", *flags, "--prompt_max_tokens", "8", "--prompt_pattern", "^x+$",
        said=["the model cannot write prompts: 0 of ", "are usable (", "Samples: ", "Set prompt_model to a model"],
    )  # fmt: skip
    counts = re.search(r"0 of (\d+) are usable \((.*?)\)\. Samples: (.*)\. Set prompt_model", err)
    assert sum(int(n) for n in re.findall(r"\d+", counts[2])) == int(counts[1]) > 0
    assert len(re.findall(r"(?:^|; )(\w+): '", counts[3])) == 3
