"""The images: rules over their Dockerfiles, what the data image's programs import, and the proxy's nginx for real.

Nothing here needs an image or an engine that builds one; images/README.md says how they are tried.
"""

import contextlib
import fnmatch
import http.client
import importlib.metadata
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from self_reward.repository import jsonl
from self_reward.store import open_store
from tests.support import servers
from tests.support.fake_oxen import FakeOxen
from tests.support.running import address
from tests.support.tiny import WORDS, make_tiny_model

ROOT = Path(__file__).parents[2]
IMAGES = sorted(path.parent for path in ROOT.glob("images/*/Dockerfile"))
NAMES = [folder.name for folder in IMAGES]
SHELL_SCRIPTS = sorted(ROOT.glob("images/*/*.sh"))


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / f"requirements/{name}.txt").read_text().split()
    return dict(line.split("==") for line in lines)


# ---- Dockerfiles


def instructions(text: str) -> list[tuple[str, str]]:
    """(INSTRUCTION, its words) of a Dockerfile, comments and line breaks gone."""
    text = re.sub(r"(?m)^\s*#.*\n", "", text).replace("\\\n", " ")
    return [(line.split(None, 1)[0].upper(), line.split(None, 1)[1].strip()) for line in text.splitlines() if line]


def environment_of(text: str) -> dict[str, str]:
    lines = [rest for word, rest in instructions(text) if word == "ENV"]
    return dict(pair.split("=", 1) for rest in lines for pair in re.findall(r'\w+=(?:"[^"]*"|\S+)', rest))


def problems(text: str) -> list[str]:
    """What in a Dockerfile breaks our rules."""
    found = []
    lines = instructions(text)
    last_stage = lines[max(i for i, (word, _) in enumerate(lines) if word == "FROM") :]
    users = [rest for word, rest in last_stage if word == "USER"]
    if not users or not re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[-1]):
        found.append(f"the last USER is {users[-1:]}, expected numbers other than 0: Kubernetes cannot check a name")
    arguments = dict(rest.partition("=")[::2] for word, rest in lines if word == "ARG")
    for rest in (rest for word, rest in lines if word == "FROM"):
        if not re.match(r"\$\{(\w+)\}\$\{\1_DIGEST\}( |$)", rest):
            found.append(f"FROM {rest}: expected ${{NAME}}${{NAME_DIGEST}}, build arguments")
    for name, value in arguments.items():
        if f"{name}_DIGEST" in arguments and not re.search(r":(?!latest$)[\w.-]+$", value):
            found.append(f"ARG {name}={value}: expected a tag other than latest")
    found += [f"ADD {rest}: COPY copies, and nothing is fetched unchecked" for word, rest in lines if word == "ADD"]
    commands = " ; ".join(rest for word, rest in lines if word == "RUN")
    for forbidden in (r"\bcurl\b", r"\bwget\b", r"\bsudo\b", r"<<", r"\bchmod\s+(-R\s+)?[0-7]*777"):
        if re.search(forbidden, commands):
            found.append(f"RUN: {forbidden} is not wanted")
    if "pip install" in commands and not re.search(r"pip install [^;&]*--no-deps [^;&]*--only-binary :all:", commands):
        found.append("pip installs what is pinned and nothing else, and builds nothing: --no-deps --only-binary :all:")
    for word, rest in last_stage:
        if word in ("ENV", "ARG") and re.search(r"(?i)(token|password|secret)\w*=\S", rest):
            found.append(f"{word} {rest}: a secret in an image")
    environment = environment_of(text)
    for name, value in environment.items():
        if re.search(r"(HOME|CACHE\w*|CONFIG_DIR|CONFIG_ROOT|CONFIGDIR|TMPDIR)$", name) and not value.startswith(
            "/tmp"
        ):
            found.append(f"ENV {name}={value}: expected a path below /tmp, since the root file system is read-only")
    if environment.get("TMPDIR") != "/tmp":
        found.append("ENV TMPDIR is not /tmp")
    if environment.get("SELF_REWARD_REVISION") != '"${REVISION}"' or "image.revision=" not in text:
        found.append("the revision is not baked in")
    if text.startswith("# syntax"):
        found.append("a syntax line makes a build fetch a program from the network")
    return found


def test_there_are_the_four_images_and_each_says_what_it_is():
    assert NAMES == ["data", "model", "oxen-server", "proxy"]
    assert [name for name in NAMES if not (ROOT / f"images/{name}/README.md").is_file()] == []


@pytest.mark.parametrize("name", NAMES)
def test_dockerfile_keeps_the_rules(name):
    assert problems((ROOT / f"images/{name}/Dockerfile").read_text()) == []


@pytest.mark.parametrize(
    "old, new, said",
    [
        ("USER 65532:65532", "USER app", "the last USER"),
        ("USER 65532:65532", "USER 0:0", "the last USER"),
        ("USER 65532:65532", "", "the last USER"),
        ("python:3.11-slim", "python:latest", "latest"),
        ("python:3.11-slim", "python", "latest"),
        ("FROM ${BASE}${BASE_DIGEST}", "FROM python:3.11", "FROM python:3.11"),
        ("COPY presets presets", "ADD https://example.org/x /app/", "ADD"),
        ("--no-deps ", "", "pip installs"),
        ("HF_HOME=/tmp/huggingface", "HF_HOME=/root/.cache", "HF_HOME"),
        ("TMPDIR=/tmp", "TMPDIR=/var/tmp", "TMPDIR"),
        ("RUN chmod", "RUN curl -o x example.org && chmod", "curl"),
        ("PYTHONPATH=/app", "OXEN_TOKEN=abc", "secret"),
        ('ENV SELF_REWARD_REVISION="${REVISION}"', "", "revision"),
    ],
)
def test_a_broken_rule_is_found(old, new, said):
    text = (ROOT / "images/data/Dockerfile").read_text()
    assert old in text
    assert said in " ".join(problems(text.replace(old, new)))


def tool(name: str) -> str:
    found = shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    if not found:
        pytest.skip(f"{name} is not installed (make setup installs it)")
    return found


def test_hadolint_finds_nothing():
    files = [str(folder / "Dockerfile") for folder in IMAGES]
    checked = subprocess.run([tool("hadolint"), *files], cwd=ROOT, capture_output=True, text=True)
    assert (checked.returncode, checked.stdout) == (0, "")


def test_shell_scripts_are_executable_posix_and_clean():
    assert SHELL_SCRIPTS and all(os.access(script, os.X_OK) for script in SHELL_SCRIPTS)
    for script in SHELL_SCRIPTS:  # Debian's sh is dash: no word of bash
        checked = subprocess.run([tool("shellcheck"), "-s", "sh", script], capture_output=True, text=True)
        assert (checked.returncode, checked.stdout) == (0, "")


def run_lines(name: str) -> str:
    return "\n".join(" ".join(line) for line in instructions((ROOT / f"images/{name}/Dockerfile").read_text()))


def test_the_images_hold_what_their_pods_run():
    for name in ("data", "model"):
        lines = run_lines(name).splitlines()
        assert {'ENTRYPOINT ["python"]', "WORKDIR /app"} <= set(lines)
        copied = {f"COPY {folder} {folder}" for folder in ("self_reward", "stages", "presets", "demo")}
        assert {*copied, "COPY images/self-reward /usr/local/bin/self-reward"} <= set(lines)
        assert any("PYTHONPATH=/app" in line for line in lines)
        compiles = [line for line in lines if "-m compileall" in line and "--invalidation-mode unchecked-hash" in line]
        of_packages, of_ours = compiles  # once what pip has brought, once what is copied last
        assert "/usr/local/lib/python3.11 " in of_packages and of_ours.endswith(" self_reward stages demo")
        place = [lines.index(of_packages), lines.index("COPY self_reward self_reward"), lines.index(of_ours)]
        assert place == sorted(place) and "pip install" in " ".join(lines[: place[0]])
    assert re.search(r'"\$DEVICE" = gpu .* gcc libc6-dev; *else .* libnuma1;', run_lines("model"))
    assert "STOPSIGNAL SIGQUIT" in run_lines("proxy")
    assert "BIND_ADDRESS=127.0.0.1" in run_lines("oxen-server")
    for script in SHELL_SCRIPTS:  # a shell in between would keep signals from the program
        assert script.read_text().splitlines()[-1].startswith("exec "), script


# The root file system is read-only: what a library writes to goes below /tmp (that it does is a rule of `problems`).
WRITTEN = {
    "data": "HOME TMPDIR XDG_CACHE_HOME HF_HOME OXEN_CONFIG_DIR",
    "model": "HOME TMPDIR XDG_CACHE_HOME HF_HOME OXEN_CONFIG_DIR TRITON_CACHE_DIR TORCHINDUCTOR_CACHE_DIR"
    " VLLM_CACHE_ROOT VLLM_CONFIG_ROOT MPLCONFIGDIR",
    "oxen-server": "HOME TMPDIR OXEN_CONFIG_DIR",
    "proxy": "TMPDIR",
}


@pytest.mark.parametrize("name", NAMES)
def test_what_is_written_has_a_place(name):
    environment = environment_of((ROOT / f"images/{name}/Dockerfile").read_text())
    assert [variable for variable in WRITTEN[name].split() if variable not in environment] == []
    if name in ("data", "model"):
        assert environment["PYTHONDONTWRITEBYTECODE"] == "1"


# ---- make


@pytest.fixture
def make(tmp_path) -> Callable[..., subprocess.CompletedProcess]:
    """Runs `make` in a repository that holds the Makefile alone, with programs that say how they were called."""
    programs, folder = tmp_path / "programs", tmp_path / "repository"
    programs.mkdir()
    (folder / "images/oxen-server").mkdir(parents=True)
    shutil.copy(ROOT / "Makefile", folder)
    subprocess.run(["git", "init", "--quiet", folder], check=True)
    commit = ["git", "-c", "user.name=x", "-c", "user.email=x", "commit", "--quiet", "--allow-empty", "--message=x"]
    subprocess.run(commit, cwd=folder, check=True)

    def program(name: str, first_line: str = "") -> None:
        (programs / name).write_text(f'#!/bin/sh\n{first_line}\necho {name} "$@"\n')
        (programs / name).chmod(0o755)

    def run(*words: str, engine: str = "", environment: dict[str, str] | None = None) -> subprocess.CompletedProcess:
        """`engine`: the one that answers here."""
        for name in ("docker", "podman", "buildah"):
            program(name, f'[ "$1" != info ] || exit {int(name != engine)}')
        program("kind")
        program("sudo")
        program("see", "cat images/oxen-server/oxen-server; echo")
        # without what a `make test` around this hands down
        alone = {"PATH": f"{programs}:{os.environ['PATH']}", "HOME": str(folder), **(environment or {})}
        command = ["make", "--silent", *words]
        return subprocess.run(command, cwd=folder, env=alone, capture_output=True, text=True)

    run.folder = folder
    return run


def lines(ended: subprocess.CompletedProcess) -> list[str]:
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines()


@pytest.mark.parametrize(
    "engine, place", [("docker", ""), ("podman", "localhost/"), ("buildah", "localhost/")], ids=str
)
def test_make_builds_pushes_and_loads_with_the_engine_that_answers(engine, place, make):
    built = lines(make("build-images", "TAG=v1", "DEVICE=gpu", engine=engine))
    revision = subprocess.run(["git", "rev-parse", "HEAD"], cwd=make.folder, capture_output=True, text=True).stdout
    assert built == [
        f"{engine} build {'--layers ' if engine == 'buildah' else ''}--build-arg REVISION={revision.strip()}-dirty "
        f"{'--build-arg DEVICE=gpu ' if name == 'model' else ''}--file images/{name}/Dockerfile "
        f"--tag {place}self-reward/{name}:v1 ."
        for name in NAMES
    ]
    pushed = lines(make("push-images", "TAG=v1", "IMAGES=data", "REGISTRY=example.org/me/", engine=engine))
    assert pushed == [
        f"{engine} tag {place}self-reward/data:v1 example.org/me/self-reward/data:v1",
        f"{engine} push example.org/me/self-reward/data:v1",
    ]
    loaded = lines(make("load-images", "TAG=v1", "IMAGES=data", "KIND_CLUSTER=mine", engine=engine))
    assert loaded == [f"kind load docker-image --name mine {place}self-reward/data:v1"]
    loaded = lines(make("load-images", "TAG=v1", "IMAGES=data", "LOAD=echo to the nodes", engine=engine))
    assert loaded == [f"to the nodes {place}self-reward/data:v1"]


def test_an_engine_may_be_several_words_and_the_images_names_are_ours(make):
    here = {"PREFIX": "/usr/local"}
    words = ["IMAGES=data", "TAG=v1", "ENGINE=sudo docker"]
    (built,) = lines(make("build-images", *words, environment=here))
    assert built.startswith("sudo docker build ") and built.endswith(" --tag self-reward/data:v1 .")
    pushed = lines(make("push-images", *words, "REGISTRY=example.org", environment=here))
    assert pushed[-1] == "sudo docker push example.org/self-reward/data:v1"


@pytest.mark.parametrize(
    "target, engine, said",
    [
        ("build-images", "", "no docker, podman or buildah answers here"),
        ("push-images", "docker", "where to? REGISTRY="),
        ("load-images", "docker", "which cluster? KIND_CLUSTER=name"),
    ],
)
def test_make_says_what_it_lacks(target, engine, said, make):
    ended = make(target, engine=engine)
    assert (ended.returncode, ended.stdout) == (2, "") and said in ended.stderr


def test_the_variables_of_the_cluster_tests_reach_them(make):
    """make hands an environment variable down with the value that its own variable of that name has."""
    (make.folder / "Makefile").open("a").write("\nshow:\n\tenv\n")
    names = re.findall(r"`([A-Z_]+)(?:=1)?`", (ROOT / "tests/real_cluster/README.md").read_text())
    assert {"KUBECONFIG", "TAG", "IMAGE_REGISTRY", "VALUES", "HOST_PATH", "KEEP"} <= set(names)
    shown = lines(make("show", environment=dict.fromkeys(names, "given")))
    assert [name for name in names if f"{name}=given" not in shown] == []


def test_a_server_that_is_there_goes_into_its_image_and_not_into_the_folder(make, tmp_path):
    given = make.folder / "images/oxen-server/oxen-server"
    (tmp_path / "program").write_text("a program")
    words = ["IMAGES=oxen-server", f"SERVER_BINARY={tmp_path}/program"]
    put, built = lines(make("build-images", "ENGINE=see", *words))
    assert put == "a program" and "--build-arg BUILDER=docker.io/library/debian:bookworm-slim" in built
    assert not given.exists() and (tmp_path / "program").read_text() == "a program"
    assert make("build-images", "IMAGES=oxen-server", "SERVER_BINARY=missing", engine="docker").returncode == 2
    assert not given.exists()


@pytest.mark.parametrize(
    "binary, said",
    [
        ("", None),
        ("images/oxen-server/oxen-server", None),
        ("missing", "oxen-server is there; remove it, or leave out SERVER_BINARY"),
        ("Makefile", "oxen-server is there; remove it, or leave out SERVER_BINARY"),
    ],
)
def test_a_server_that_was_put_there_by_hand_stays(binary, said, make):
    given = make.folder / "images/oxen-server/oxen-server"
    given.write_text("put there by hand")
    ended = make("build-images", "IMAGES=oxen-server", f"SERVER_BINARY={binary}", engine="docker")
    assert given.read_text() == "put there by hand"
    if said:
        assert (ended.returncode, ended.stdout) == (2, "") and said in ended.stderr
    else:
        assert len(lines(ended)) == 1 and ("BUILDER=" in ended.stdout) == bool(binary)


# ---- What is sent to a build, and what is installed


def test_the_build_context_holds_what_is_copied_and_nothing_else():
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]

    def is_sent(path: str) -> bool:
        sent = True
        parts = path.split("/")
        for line in lines:
            pattern = line.removeprefix("!").removeprefix("**/")
            candidates = parts if line.startswith("**/") else ["/".join(parts[: i + 1]) for i in range(len(parts))]
            if any(fnmatch.fnmatchcase(one, pattern) and one.count("/") == pattern.count("/") for one in candidates):
                sent = line.startswith("!")
        return sent

    kept_out = (
        "tests/deploy/test_images.py .git/config .venv/bin/python data/M0/train/ift.jsonl demo-data/demo.json results/x"
        " .fuzz/x helm/self-reward/values.yaml docs/server.md .ci/run requirements/cpu.in Makefile .env secrets/token"
        " self_reward/__pycache__/stage.cpython-311.pyc stages/__pycache__/plan.cpython-311.pyc"
    )
    assert [path for path in kept_out.split() if is_sent(path)] == []
    needed = [
        "self_reward/texts/rubric/additive.txt",
        "requirements/data.txt",
        "images/self-reward",
        "stages/00_sft.py",
    ]
    for folder in IMAGES:
        for word, rest in instructions((folder / "Dockerfile").read_text()):
            if word == "COPY" and "--from" not in rest:
                source = rest.split()[0].replace("${DEVICE}", "gpu").rstrip("/")
                needed.append(source)
                assert (ROOT / source).exists(), f"{folder.name}: COPY {source}"
    assert [path for path in needed if not is_sent(path)] == []


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_the_data_image_has_a_part_of_what_the_model_image_has(device):
    data = pins("data")
    assert data.items() <= pins(device).items()
    assert not {"torch", "transformers", "numpy", "pandas", "polars", "pytest", "maturin", "ruff"} & data.keys()
    assert {"kubernetes", "huggingface-hub", "oxenai"} <= data.keys()


@pytest.fixture(scope="module")
def data_python(tmp_path_factory) -> Path:
    """A Python with what requirements/data.txt pins and nothing else, made of what is installed here."""
    folder = tmp_path_factory.mktemp("data-image")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    site = next(folder.glob("lib/python3*/site-packages"))
    for name in pins("data"):
        distribution = importlib.metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            (site / top).symlink_to(Path(str(distribution.locate_file(top))))
    return folder / "bin/python"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Iterator[SimpleNamespace]:
    """A data repository on a server that holds all that the programs of the data image read."""
    folder = tmp_path_factory.mktemp("place")
    user = folder / "user"
    make_tiny_model(user / "models/base")
    seeds = [{"prompt": f"repeat {word}", "response": word} for word in WORDS[:30]]
    scores = [
        {"prompt_id": f"id-{i // 2}", "response_id": f"id-{i // 2}-{i % 2}", "prompt": f"p {i // 2}", "tokens": 1}
        | {"completion": f"c {i}", "finish_reason": "stop", "score": i % 2, "votes": [i % 2], "reasoning": [""]}
        for i in range(12)
    ]
    for path, rows in {"M0/train/ift": seeds, "M5/generated/scores": scores}.items():
        (user / path).parent.mkdir(parents=True, exist_ok=True)
        jsonl.write(user / f"{path}.jsonl", rows)
    with FakeOxen() as server:
        repository = address(server.url, "images")
        store = open_store(repository, branch="main", lock_timeout=1, store_timeout=20, cache_dir=folder / "cache")
        store.create()
        store.put({str(p.relative_to(user)): p for p in user.rglob("*") if p.is_file()}, message="user data")
        home = {"HOME": str(folder), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]}

        def run(python: str | Path, *words: str) -> str:
            """The program's words on its standard output and error; it must succeed."""
            command = [python, *words, "--data_repo", repository, "--cache_dir", folder / "cache"]
            ended = subprocess.run(command, cwd=ROOT, env=home, capture_output=True, text=True, timeout=300)
            assert ended.returncode == 0, ended.stderr
            return ended.stdout + ended.stderr

        yield SimpleNamespace(run=run, store=store)


def test_this_python_has_what_the_data_image_has_and_no_more(data_python):
    for name in ("torch", "transformers", "numpy", "pytest", "rapidfuzz"):
        ended = subprocess.run([data_python, "-c", f"import {name}"], capture_output=True, text=True)
        assert f"No module named '{name}'" in ended.stderr, name
    wanted = "import kubernetes, huggingface_hub, pydantic, yaml, msgspec, xxhash, urllib3, tenacity, tqdm"
    subprocess.run([data_python, "-c", wanted], check=True)


def test_the_programs_of_the_data_image_need_nothing_else(data_python, place, tmp_path):
    of_base = ["--base_model", "oxen:models/base", "--sft", "never"]
    assert "plan: M0: policy" in place.run(data_python, "stages/plan.py", *of_base)
    assert "is in" in place.run(data_python, "stages/fetch_model.py", *of_base)
    assert "pairs=6" in place.run(data_python, "stages/04_gen_preferences.py", "--iteration", "5")
    prompts = [{"prompt_id": f"id-{i}", "prompt": f"repeat {WORDS[i]}", "source": "generated"} for i in range(6)]
    jsonl.write(tmp_path / "prompts.jsonl", prompts)
    place.store.put({"M0/generated/prompts.jsonl": tmp_path / "prompts.jsonl"}, message="user data")
    settings = ["--iteration", "0", "--responses_per_prompt", "2", "--response_max_tokens", "4", *of_base]
    for shard in ("0/2", "1/2"):  # these need torch
        place.run(
            sys.executable, "stages/02_gen_responses.py", *settings, "--shard", shard, "--sampler", "transformers"
        )
    merge = ["stages/02_gen_responses.py", "--merge", *settings, "--shards", "2", "--sampler", "transformers"]
    assert "prompts=6" in place.run(data_python, *merge)
    assert "M0/generated/responses.jsonl" in place.store.resolve().files


def test_the_command_of_the_images_works_without_an_installed_package(data_python):
    command = [data_python, ROOT / "images/self-reward", "--help"]
    ended = subprocess.run(command, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert ended.returncode == 0 and "self-reward data" in ended.stdout, ended.stderr
    assert os.access(ROOT / "images/self-reward", os.X_OK)


# ---- The proxy


class Upstream:
    """Stands for oxen-server behind the proxy: remembers requests, and holds transfers half-way until told."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, str]]] = []
        self.half, self.go_on = threading.Event(), threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer.seen.append((self.path, dict(self.headers)))
                self.send_response(200)
                self.send_header("Content-Length", "10")
                self.end_headers()
                self.wfile.write(b"hello")
                if self.path == "/slow":
                    outer.half.set()
                    outer.go_on.wait(20)
                self.wfile.write(b"world")

            def do_POST(self) -> None:
                size = int(self.headers["Content-Length"])
                got = len(self.rfile.read(5))
                outer.half.set()
                while got < size:
                    got += len(self.rfile.read(min(size - got, 1 << 20)))
                outer.seen.append((self.path, dict(self.headers)))
                self.send_response(200)
                self.send_header("Content-Length", str(len(str(got))))
                self.end_headers()
                self.wfile.write(str(got).encode())

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.address = f"127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    one = Upstream()
    yield one
    one.go_on.set()
    one.http.shutdown()
    one.http.server_close()


def environment_of_proxy(folder: Path, **changed: str) -> dict[str, str]:
    """What the image sets, with files in `folder`; root's workers would change to nobody, who may not read there."""
    program = servers.nginx()
    if program is None:
        pytest.skip("nginx is not installed (Debian: apt-get install nginx-light), or NGINX does not name it")
    (folder / "tmp").mkdir(exist_ok=True)
    text = (ROOT / "images/proxy/nginx.conf").read_text()
    (folder / "nginx.conf").write_text(("user root;\n" if os.geteuid() == 0 else "") + text)
    path = f"{Path(program).parent}:{os.environ['PATH']}"
    return {"PATH": path, "CONFIG": str(folder / "nginx.conf"), "TMPDIR": str(folder / "tmp"), **changed}


@contextlib.contextmanager
def proxy(folder: Path, upstream: str, **token: str) -> Iterator[SimpleNamespace]:
    port = servers.free_port()
    environment = environment_of_proxy(folder, LISTEN=f"127.0.0.1:{port}", UPSTREAM=upstream, **token)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([ROOT / "images/proxy/entrypoint.sh"], env=environment, stdout=log, stderr=log)
    try:
        end = time.monotonic() + 20
        while not servers.answers(f"http://127.0.0.1:{port}"):
            assert process.poll() is None and time.monotonic() < end, (folder / "log").read_text()
            time.sleep(0.05)
        yield SimpleNamespace(port=port, process=process, log=folder / "log")
    finally:
        process.terminate()
        process.wait(10)


def ask(
    port: int, path: str, token: str | None = None, method: str = "GET", body: bytes | None = None
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    with contextlib.closing(connection):
        connection.request(method, path, body, {"Authorization": f"Bearer {token}"} if token else {})
        response = connection.getresponse()
        return response.status, response.read()


@pytest.mark.parametrize(
    "token", ["Zq7-plain_4f1e", "q\"uo'te\\n$host{}", ".*", "a|", "(?i)abc", "^a$", "#;=/+~%00", "x" * 1000]
)
def test_only_the_whole_token_opens(token, tmp_path, upstream):
    (tmp_path / "token").write_text(token + "\n")
    others = {
        token + "x",
        "x" + token,
        token[:-1],
        token.swapcase(),
        token.replace("$", "?"),
        "",
        ".*",
        "abc",
        "a",
        "$host",
    }
    with proxy(tmp_path, upstream.address, OXEN_TOKEN_FILE=str(tmp_path / "token")) as here:
        assert ask(here.port, "/api/x", token) == (200, b"helloworld")
        for other in sorted(others - {token}):
            assert ask(here.port, "/api/x", other)[0] == 401, other
        assert ask(here.port, "/api/x")[0] == 401
        connection = http.client.HTTPConnection("127.0.0.1", here.port, timeout=20)
        connection.request("GET", "/api/x", headers={"Authorization": f"Bearer {token} "[1:]})
        assert connection.getresponse().status == 401
        connection.close()
    assert [path for path, _ in upstream.seen if path == "/api/x"] == ["/api/x"]
    assert all("Authorization" not in headers and token not in str(headers) for _, headers in upstream.seen)
    assert token not in here.log.read_text()


@pytest.mark.parametrize(
    "token, said",
    [
        ({}, "no token"),
        ({"OXEN_TOKEN": ""}, "no token"),
        ({"OXEN_TOKEN_FILE": "empty"}, "no token"),
        ({"OXEN_TOKEN_FILE": "missing"}, "cannot be read"),
        ({"OXEN_TOKEN": "se cret"}, "holds a space"),
        ({"OXEN_TOKEN": "sé"}, "holds a space"),
        ({"OXEN_TOKEN": "se\ncret"}, "a line break"),
        ({"OXEN_TOKEN": "se\tcret"}, "holds a space"),
        ({"OXEN_TOKEN": "secret" * 167}, "1002 characters"),
    ],
)
def test_it_does_not_start_without_a_token_that_a_header_can_carry(token, said, tmp_path):
    (tmp_path / "empty").write_text("\n")
    if "OXEN_TOKEN_FILE" in token:
        token = {"OXEN_TOKEN_FILE": str(tmp_path / token["OXEN_TOKEN_FILE"])}
    environment = environment_of_proxy(tmp_path, LISTEN="127.0.0.1:1", UPSTREAM="127.0.0.1:1", **token)
    command = [ROOT / "images/proxy/entrypoint.sh"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=20)
    assert ended.returncode == 2 and said in ended.stderr
    assert "cret" not in ended.stderr and "sé" not in ended.stderr


def test_a_line_break_at_the_end_of_a_secret_is_no_part_of_the_token(tmp_path, upstream):
    """`kubectl create secret --from-file` keeps the one that editors write; our client takes it away, too."""
    with proxy(tmp_path, upstream.address, OXEN_TOKEN="secret\n") as here:
        assert ask(here.port, "/api/x", "secret")[0] == 200


def test_the_token_is_in_no_list_of_processes_and_in_a_file_of_the_user_alone(tmp_path, upstream):
    with proxy(tmp_path, upstream.address, OXEN_TOKEN="Zq7-secret") as here:
        processes = [here.process.pid, *(int(pid) for pid in children(here.process.pid))]
        assert len(processes) > 1
        for pid in processes:
            assert b"Zq7-secret" not in Path(f"/proc/{pid}/cmdline").read_bytes()
            assert b"Zq7-secret" not in Path(f"/proc/{pid}/environ").read_bytes()
        assert (tmp_path / "tmp/proxy/token.conf").stat().st_mode & 0o077 == 0


def children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def test_health_needs_no_token_and_nothing_else_is_open(tmp_path, upstream):
    with proxy(tmp_path, upstream.address, OXEN_TOKEN="secret") as here:
        assert ask(here.port, "/healthz") == (200, b"ok\n")
        assert ask(here.port, "/readyz")[0] == 200
        for path in ("/", "/healthz/x", "/readyz/x", "/healthz/../api/repos", "/readyz/..%2fapi/repos", "/api/version"):
            assert ask(here.port, path)[0] == 401, path
        assert ask(here.port, "/api/a%2Fb//c?d=%20e", "secret")[0] == 200
        assert upstream.seen[-1][0] == "/api/a%2Fb//c?d=%20e"
        assert upstream.seen[-1][1]["Host"] == f"127.0.0.1:{here.port}"


def test_without_the_server_the_proxy_is_alive_and_not_ready(tmp_path):
    with proxy(tmp_path, f"127.0.0.1:{servers.free_port()}", OXEN_TOKEN="secret") as here:
        assert ask(here.port, "/healthz")[0] == 200
        assert ask(here.port, "/readyz")[0] == 502
        assert ask(here.port, "/api/x", "secret")[0] == 502


def test_contents_go_through_as_they_come_both_ways(tmp_path, upstream):
    """The server has the first bytes before the last are sent, and the client likewise; 30 MB pass."""
    with proxy(tmp_path, upstream.address, OXEN_TOKEN="secret") as here:
        head = "Host: x\r\nAuthorization: Bearer secret\r\n"
        with socket.create_connection(("127.0.0.1", here.port), timeout=20) as client:
            client.sendall(f"POST /api/part HTTP/1.1\r\n{head}Content-Length: 10\r\n\r\nhello".encode())
            assert upstream.half.wait(10), "the proxy holds the body back"
            client.sendall(b"world")
            assert b"200" in client.recv(1000)
        upstream.half.clear()
        with socket.create_connection(("127.0.0.1", here.port), timeout=20) as client:
            client.sendall(f"GET /slow HTTP/1.1\r\n{head}\r\n".encode())
            got = b""
            while b"hello" not in got:
                got += client.recv(1000)
            assert b"world" not in got
            upstream.go_on.set()
            while b"world" not in got:
                got += client.recv(1000)
        size = 30 << 20
        assert ask(here.port, "/api/part", "secret", "POST", b"x" * size) == (200, str(size).encode())
        assert not [path for path in (tmp_path / "tmp").rglob("*") if path.is_file() and path.stat().st_size > 1 << 20]


def test_sigquit_lets_what_has_begun_end(tmp_path, upstream):
    with proxy(tmp_path, upstream.address, OXEN_TOKEN="secret") as here:
        answers: list[tuple[int, bytes]] = []
        asking = threading.Thread(target=lambda: answers.append(ask(here.port, "/slow", "secret")))
        asking.start()
        assert upstream.half.wait(10)
        here.process.send_signal(signal.SIGQUIT)
        time.sleep(0.3)
        upstream.go_on.set()
        asking.join(20)
        assert answers == [(200, b"helloworld")]
        assert here.process.wait(10) == 0


def test_our_client_pushes_and_pulls_through_it(tmp_path, monkeypatch):
    monkeypatch.setenv("OXEN_TOKEN", "Zq7-$ecret")
    (tmp_path / "big").write_bytes(os.urandom(5 << 20))
    with FakeOxen() as server, proxy(tmp_path, server.url.removeprefix("http://"), OXEN_TOKEN="Zq7-$ecret") as here:
        address = f"oxen+http://127.0.0.1:{here.port}/ns/proxied"
        store = open_store(address, branch="main", lock_timeout=1, store_timeout=20, cache_dir=tmp_path / "cache")
        store.create()
        store.put({"user/big": tmp_path / "big"}, message="user data")
        store.pull(store.resolve(), ["user/big"], tmp_path / "in")
    assert (tmp_path / "in/user/big").read_bytes() == (tmp_path / "big").read_bytes()
