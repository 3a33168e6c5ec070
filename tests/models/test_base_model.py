import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from self_reward.errors import TryAgain, UserError
from self_reward.models import base_model
from tests.support import tiny

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def model(tmp_path) -> Path:
    return tiny.make_tiny_model(tmp_path / "model", hidden=8, layers=1)


def resolve(name, **changes):
    return base_model.resolve(str(name), **{"trust_remote_code": False} | changes)


def test_imports_without_torch():
    code = "import sys, self_reward.models.base_model, self_reward.models.checkpoints; print('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    out = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


def test_id_of_a_folder_depends_on_its_content(model, tmp_path):
    first = resolve(model, cache_dir=tmp_path / "cache")
    assert first.id.startswith("path:") and len(first.id) == 5 + 64
    assert resolve(model, cache_dir=tmp_path / "cache").id == first.id == resolve(model).id
    moved = model.rename(tmp_path / "moved")
    assert resolve(moved, cache_dir=tmp_path / "cache").id == first.id
    config = moved / "config.json"
    config.write_text(config.read_text() + "\n")
    assert resolve(moved, cache_dir=tmp_path / "cache").id != first.id
    assert base_model.fetch(resolve(moved), trust_remote_code=False, cache_dir=tmp_path) == moved


def test_all_problems_of_a_folder_are_reported(model):
    for path in model.glob("tokenizer*"):
        path.unlink()
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "mine.Model"}}))
    with pytest.raises(UserError) as caught:
        resolve(model)
    assert len(caught.value.problems) == 3
    for word in ("safetensors", "tokenizer", "trust_remote_code"):
        assert word in str(caught.value)
    assert len(base_model.folder_problems(model, trust_remote_code=True)) == 2


def test_missing_folder_and_adapter_folder(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        resolve(tmp_path / "nothing")
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="an adapter, not a model"):
        resolve(tmp_path)


@pytest.mark.parametrize(
    ("content", "word"), [(b"version https://git-lfs.github.com/spec/v1\n", "LFS"), (None, "header says")]
)
def test_truncated_weights_are_reported(model, content, word):
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8] if content is None else content)
    with pytest.raises(UserError, match=word):
        resolve(model)


def test_missing_weight_file_is_reported(model):
    (model / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00002.safetensors"}}')
    with pytest.raises(UserError, match="model-00002"):
        resolve(model)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.json", "[]", "config.json: a JSON list, expected an object"),
        ("tokenizer_config.json", "{", "tokenizer_config.json: not JSON"),
        (base_model.INDEX, "[]", "a JSON list"),
        (base_model.INDEX, "{}", "no weight_map"),
        (base_model.INDEX, '{"weight_map": {"a": null}}', "are missing: None"),
    ],
)
def test_invalid_json_files_are_reported(model, name, content, said):
    (model / name).write_text(content)
    assert any(said in problem for problem in base_model.folder_problems(model, trust_remote_code=False))


@pytest.mark.parametrize("header", [b"[1]", b"{}[", b'{"a": 1}', b'{"a": {"data_offsets": [1]}}', b"\xff", b"1"])
def test_invalid_safetensors_header_is_reported(model, header):
    (model / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(UserError, match="its header cannot be read"):
        resolve(model)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_hidden_layers": 2}, r"9 weights that config.json asks for are not in the files: model.layers.1.input_"),
        ({"hidden_size": 16, "head_dim": 2}, "weights have other shapes than config.json says"),
        ({"model_type": "nonsense"}, "this model cannot be loaded .ValueError: .*nonsense"),
    ],
)
def test_missing_weights_are_not_initialised_randomly(model, change, said):
    """transformers fills them with random numbers and goes on."""
    base_model.load(model, trust_remote_code=False)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=said):
        base_model.load(model, trust_remote_code=False)


def test_broken_repository_model_is_reported_and_not_cached(model, tmp_path):
    (model / "tokenizer.json").unlink()
    resolved = resolve("oxen:models/base", read_repository=lambda path: "hash")

    def pull(path, to):
        for file in model.iterdir():
            (to / file.name).write_bytes(file.read_bytes())

    with pytest.raises(UserError, match="^models/base: no tokenizer"):
        base_model.fetch(resolved, trust_remote_code=False, cache_dir=tmp_path / "cache", pull=pull)
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_model_of_the_data_repository_is_copied_once(model, tmp_path):
    resolved = resolve("oxen:models/base", read_repository=lambda path: f"hash-of-{path}")
    assert resolved.id == "oxen:models/base:hash-of-models/base"
    pulled = []

    def pull(path, to):
        pulled.append(path)
        for file in model.iterdir():
            (to / file.name).write_bytes(file.read_bytes())

    for _ in range(2):
        folder = base_model.fetch(resolved, trust_remote_code=False, cache_dir=tmp_path / "cache", pull=pull)
    assert pulled == ["models/base"]
    assert (folder / "model.safetensors").is_file()
    with pytest.raises(UserError):
        resolve("oxen:models/base")


def test_oxen_copy_interrupted_by_a_kill_is_replaced(model, tmp_path):
    resolved = resolve("oxen:models/base", read_repository=lambda path: f"hash-of-{path}")
    program = f"""
import os
from pathlib import Path
from self_reward.models import base_model

def pull(path, to):
    (to / "half").touch()
    os.kill(os.getpid(), 9)

base_model.fetch(base_model.{resolved!r}, trust_remote_code=False, cache_dir=Path({str(tmp_path)!r}), pull=pull)
"""
    assert subprocess.run([sys.executable, "-c", program]).returncode == -9
    (half,) = tmp_path.rglob("half")
    shutil.copytree(half.parent, half.parent.with_name(half.parent.name.lstrip(".")))  # as older versions named it
    folder = base_model.fetch(
        resolved,
        trust_remote_code=False,
        cache_dir=tmp_path,
        pull=lambda path, to: shutil.copytree(model, to, dirs_exist_ok=True),
    )
    assert [path for path in (tmp_path / "base_models").iterdir() if path.is_dir()] == [folder]
    assert not list(tmp_path.rglob("half"))


def test_invalid_model_name_is_refused():
    with pytest.raises(UserError, match="neither"):
        resolve("no such model!")


class Hub(http.server.BaseHTTPRequestHandler):
    """The hub's answer about a model: one that is there, one that is not, one that has pickles, one that is ill."""

    def do_GET(self):
        name = self.path.split("/")[4]
        files = ["config.json", "tokenizer.json", "model.safetensors" if name == "good" else "pytorch_model.bin"]
        status = {"good": 200, "pickled": 200, "ill": 503}.get(name, 404)
        body = json.dumps({"id": f"me/{name}", "sha": COMMIT, "siblings": [{"rfilename": f} for f in files]}).encode()
        self.send_response(status)
        if status == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch, tmp_path):
    from huggingface_hub import constants

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield tmp_path / "hub"
    server.shutdown()
    server.server_close()


def test_hub_name_becomes_a_commit(hub):
    assert resolve("me/good").id == f"me/good@{COMMIT}"
    assert resolve("me/good@main").kind == "hub"


def test_hub_refusal_is_a_user_error(hub):
    with pytest.raises(UserError, match=r"refuses it \(404\), and me/absent is not a local folder"):
        resolve("me/absent")
    with pytest.raises(UserError, match="safetensors"):
        resolve("me/pickled")


def test_hub_failures_are_retried(hub, monkeypatch):
    with pytest.raises(TryAgain, match="503"):
        resolve("me/ill")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(TryAgain, match="cannot be reached.* me/good is not a local folder"):
        resolve("me/good")


def test_unreachable_hub_uses_the_local_cache(hub, monkeypatch, model):
    cache = hub / "models--me--good"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs/main").write_text(COMMIT)
    (cache / "snapshots").mkdir()
    model.rename(cache / "snapshots" / COMMIT)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    resolved = resolve("me/good")
    assert resolved.id == f"me/good@{COMMIT}" == resolve(f"me/good@{COMMIT}").id
    assert base_model.fetch(resolved, trust_remote_code=False, cache_dir=hub) == cache / "snapshots" / COMMIT
