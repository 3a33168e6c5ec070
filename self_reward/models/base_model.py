"""The base model: a name on the hub, a local folder, or a folder of the data repository. No torch here: `plan` and
every stage resolve the base model before they import anything heavy."""

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from self_reward import disk, files
from self_reward.errors import TryAgain, UserError

log = logging.getLogger(__name__)

MODEL_SUFFIXES = {".safetensors", ".json", ".model", ".txt", ".jinja", ".tiktoken"}
TOKENIZERS = [["tokenizer.json"], ["tokenizer.model"], ["spiece.model"], ["vocab.json", "merges.txt"], ["vocab.txt"]]
HUB_NAME = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?(@[\w./-]+)?")
INDEX = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True)
class Resolved:
    """`id` names the exact content and goes into keys and manifests; `source` is where `fetch` gets it.

    kind hub: id and source `name@commit`; path: id `path:<sha256>`, source the folder;
    oxen: id `oxen:<path>:<hash>`, source the path in the data repository.
    """

    id: str
    kind: str
    source: str


def resolve(
    base_model: str,
    *,
    trust_remote_code: bool,
    read_repository: Callable[[str], str] | None = None,
    cache_dir: Path | None = None,
) -> Resolved:
    """Turn what the user wrote into an identifier that changes when, and only when, the model changes.

    `read_repository(path)` gives the hash of a folder of the data repository. `cache_dir` remembers the hashes of
    files by path, size and time, so that a folder of many gigabytes is read once.
    Raises UserError (with every problem of a folder), or TryAgain if the hub cannot be reached and has not been before.
    """
    if base_model.startswith("oxen:"):
        path = base_model.removeprefix("oxen:").strip("/")
        if read_repository is None or not path:
            raise UserError(f"base_model {base_model!r}: expected oxen:<path of a model folder in the data repository>")
        return Resolved(f"oxen:{path}:{read_repository(path)}", "oxen", path)
    if base_model.startswith(("/", ".", "~")) or Path(base_model).is_dir():
        folder = Path(base_model).expanduser().resolve()
        if problems := folder_problems(folder, trust_remote_code=trust_remote_code):
            raise UserError(problems)
        return Resolved(f"path:{folder_hash(folder, cache_dir=cache_dir)}", "path", str(folder))
    if not HUB_NAME.fullmatch(base_model):
        raise UserError(
            f"base_model {base_model!r} is neither a local folder nor a name on the hub; expected name, owner/name, "
            "owner/name@revision, a path, or oxen:<path in the data repository>"
        )
    name, _, revision = base_model.partition("@")
    resolved = f"{name}@{_hub_commit(name, revision or 'main')}"
    return Resolved(resolved, "hub", resolved)


def fetch(
    resolved: Resolved,
    *,
    trust_remote_code: bool,
    cache_dir: Path,
    pull: Callable[[str, Path], object] | None = None,
) -> Path:
    """The folder that holds the model, checked; downloaded if necessary, or copied from the data repository to
    cache_dir/base_models by `pull(path, to)`. Raises as `resolve`."""
    if resolved.kind == "path":
        folder = Path(resolved.source)
    elif resolved.kind == "hub":
        folder = _hub_folder(resolved.source, trust_remote_code=trust_remote_code)
    else:
        folder = cache_dir / "base_models" / hashlib.sha256(resolved.id.encode()).hexdigest()
        if not folder.is_dir():
            if pull is None:
                raise UserError(f"{resolved.id} is in the data repository, which is not available here")
            with files.lock(folder.with_suffix(".lock")):
                if not folder.is_dir():  # no other process was faster
                    _pull(resolved.source, folder, pull, trust_remote_code)
    if problems := folder_problems(folder, trust_remote_code=trust_remote_code):
        raise UserError(problems)
    return folder


def _pull(source: str, folder: Path, pull: Callable[[str, Path], object], trust_remote_code: bool) -> None:
    """Pull `folder`, checked, whole or not at all. The caller holds the lock."""
    shutil.rmtree(folder.with_suffix(".part"), ignore_errors=True)  # a killed process of an older version
    with files.whole_folder(folder) as part:
        pull(source, part)
        if problems := folder_problems(part, trust_remote_code=trust_remote_code):
            raise UserError([problem.replace(str(part), source) for problem in problems])


def folder_problems(folder: Path, *, trust_remote_code: bool, elsewhere: Collection[str] = ()) -> list[str]:
    """Everything that keeps `folder` from being a model that loads without running the model's own code. `elsewhere`:
    names of further files of the model, which are not in `folder` and are not checked."""
    if folder.exists() and not folder.is_dir():
        return [f"{folder}: a file; expected the folder of a model, with config.json, *.safetensors and a tokenizer"]
    if not folder.is_dir():
        return [f"{folder}: no such folder; expected a folder with config.json, *.safetensors and a tokenizer"]
    here = {path.name for path in folder.iterdir() if path.is_file()}
    names = here.union(elsewhere)
    problems = _missing_parts(str(folder), names)
    for name in ("config.json", "tokenizer_config.json", INDEX):
        if name not in here:
            continue
        try:
            content = json.loads((folder / name).read_bytes())
        except (ValueError, RecursionError) as error:
            problems.append(f"{folder / name}: not JSON ({error}); copy or download it again")
            continue
        if not isinstance(content, dict):
            problems.append(f"{folder / name}: a JSON {type(content).__name__}, expected an object")
        elif name == INDEX:
            shards = content.get("weight_map")
            if not isinstance(shards, dict):
                problems.append(f"{folder / name}: no weight_map in it; copy or download it again")
            elif missing := sorted({str(shard) for shard in shards.values()} - names):
                problems.append(f"{folder}: weights named in {INDEX} are missing: {', '.join(missing[:10])}")
        elif content.get("auto_map") and not trust_remote_code:
            problems.append(
                f"{folder / name}: the model comes with its own code (auto_map); read that code, then set "
                "trust_remote_code: true, or choose another model"
            )
    for name in sorted(here):
        if name.endswith(".safetensors") and (problem := _safetensors_problem(folder / name)):
            problems.append(problem)
    return problems


def load(folder: Path, *, trust_remote_code: bool, **options: Any) -> Any:
    """The model in `folder`; `options` are those of from_pretrained.

    Raises UserError for a model that transformers cannot load, and for weights that do not fit config.json:
    transformers would fill what is missing with random numbers and only log it.
    """
    from transformers import AutoModelForCausalLM

    with loadable(folder):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, trust_remote_code=trust_remote_code, use_safetensors=True, output_loading_info=True, **options
        )
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise UserError(
            f"{folder}: {len(missing)} weights that config.json asks for are not in the files: "
            f"{', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''}; copy or download the model again"
        )
    return model


@contextlib.contextmanager
def loadable(folder: Path) -> Iterator[None]:
    """Turn the errors of transformers about a folder that it cannot load into UserError."""
    try:
        yield
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise UserError(
            f"{folder}: weights have other shapes than config.json says; copy or download the model again"
        ) from error
    except (ValueError, KeyError, AttributeError, ImportError) as error:  # unknown type, bad values, missing packages
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"{folder}: this model cannot be loaded ({type(error).__name__}: {reason}); only causal language models of "
            "the installed transformers can"
        ) from error


def folder_hash(folder: Path, *, cache_dir: Path | None = None) -> str:
    """sha256 over the names and contents of weights, configuration and tokenizer files of `folder`."""
    remembered_file = cache_dir / "file_hashes.json" if cache_dir else None
    remembered: dict[str, list] = {}
    if remembered_file and remembered_file.is_file():
        try:
            remembered = json.loads(remembered_file.read_bytes())
        except ValueError:
            log.warning("%s is not JSON; it will be rewritten", remembered_file)
    total = hashlib.sha256()
    changed = False
    for path in sorted(folder.iterdir()):
        if not path.is_file() or path.suffix not in MODEL_SUFFIXES | {".py"}:
            continue
        stat = path.stat()
        known = remembered.get(str(path.resolve()))
        if known and known[:2] == [stat.st_size, stat.st_mtime_ns]:
            digest = known[2]
        else:
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            remembered[str(path.resolve())] = [stat.st_size, stat.st_mtime_ns, digest]
            changed = True
        total.update(f"{path.name}\0{digest}\n".encode())
    if remembered_file and changed:
        existing = {path: known for path, known in remembered.items() if os.path.exists(path)}
        files.write_whole(remembered_file, json.dumps(existing), durable=False)
    return total.hexdigest()


def _missing_parts(where: str, names: set[str]) -> list[str]:
    problems = []
    if "adapter_config.json" in names and "config.json" not in names:
        return [f"{where}: an adapter, not a model; expected the full weights (self-reward export makes such a folder)"]
    if "config.json" not in names:
        problems.append(f"{where}: no config.json; found {', '.join(sorted(names)[:10]) or 'nothing'}")
    if not names & {"model.safetensors", INDEX}:
        pickled = sorted(name for name in names if name.endswith(PICKLES))
        if pickled:
            problems.append(
                f"{where}: weights only as pickles ({', '.join(pickled[:5])}), which can run code when loaded; only "
                "safetensors are accepted. If you trust them, convert them once: AutoModelForCausalLM"
                ".from_pretrained(dir).save_pretrained(new_dir), and copy the tokenizer files"
            )
        else:
            others = ", ".join(sorted(name for name in names if name.endswith(".safetensors"))[:5])
            problems.append(
                f"{where}: no weights; expected model.safetensors, or {INDEX} and the files that it names"
                f"{f'; found {others}' if others else ''}"
            )
    if not any(all(name in names for name in tokenizer) for tokenizer in TOKENIZERS):
        expected = ", ".join(" + ".join(tokenizer) for tokenizer in TOKENIZERS)
        problems.append(f"{where}: no tokenizer; expected one of {expected}")
    return problems


def _safetensors_problem(path: Path) -> str | None:
    """What is wrong with a file that was cut short, or is a Git LFS pointer, as its header shows."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if start == b"version ":
            return f"{path}: a Git LFS pointer, not weights; run git lfs pull in that folder"
        if length + 8 > size:
            return f"{path}: not a whole safetensors file ({size} bytes); copy or download it again"
        try:
            header = json.loads(file.read(length))
            ends = [int(entry["data_offsets"][1]) for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
            return f"{path}: not a safetensors file; its header cannot be read"
    if (expected := 8 + length + max(ends, default=0)) != size:
        return f"{path}: {size} bytes, its header says {expected}; copy or download it again"
    return None


def weights_dtype(folder: Path) -> str:
    """The dtype of the weights on disk, as torch names it: the one that most of the parameters have."""
    names = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
    count: dict[str, int] = {}
    for path in folder.glob("*.safetensors"):
        with open(path, "rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        for name, entry in header.items():
            if name != "__metadata__" and entry["dtype"] in names:
                begin, end = entry["data_offsets"]
                count[entry["dtype"]] = count.get(entry["dtype"], 0) + end - begin
    return names[max(count, key=lambda dtype: count[dtype])] if count else "float32"


def _token() -> str | None:
    path = os.environ.get("HF_TOKEN_FILE")
    return Path(path).read_text().strip() if path else None  # huggingface_hub reads HF_TOKEN itself


def _hub_cache(name: str) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"


@contextlib.contextmanager
def _hub_errors(model: str) -> Iterator[None]:
    """Turn a refusal of the hub into UserError, and everything that may pass into TryAgain."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if 400 <= status < 500 and status != 429:
            raise UserError(
                f"base_model {model}: the hub refuses it ({status}), and {model.partition('@')[0]} is not a local "
                "folder; check the name and the revision, and for a private or gated model that HF_TOKEN or "
                "HF_TOKEN_FILE is set and has been given access"
            ) from error
        raise TryAgain(f"base_model {model}: the hub answers {status}") from error
    except Exception as error:  # the connection errors of several HTTP libraries; the hub's own "offline" among them
        if not isinstance(error, OSError) and not type(error).__module__.startswith(("httpx", "httpcore", "requests")):
            raise
        raise TryAgain(f"base_model {model}: the hub cannot be reached ({type(error).__name__})") from error


def _hub_commit(name: str, revision: str) -> str:
    """The commit of `revision`: from the hub, or from the local cache if the hub cannot be reached."""
    cache = _hub_cache(name)
    if re.fullmatch(r"[0-9a-f]{40}", revision) and (cache / "snapshots" / revision).is_dir():
        return revision
    from huggingface_hub import HfApi

    try:
        with _hub_errors(f"{name}@{revision}"):
            hub = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=_token())
            info = hub.model_info(name, revision=revision, timeout=30)
            if info.gated and not (cache / "snapshots" / str(info.sha)).is_dir():
                hub.auth_check(name)  # anyone may look at a gated model, but not download its files
    except TryAgain as error:
        cached = cache / "refs" / revision
        if not cached.is_file():
            raise TryAgain(
                f"{error}, it is not in the local cache {cache.parent}, and {name} is not a local folder"
            ) from error
        commit = cached.read_text().strip()
        log.warning("%s; using the commit in the local cache: %s", error, commit)
        return commit
    if info.siblings and (problems := _missing_parts(f"{name}@{revision}", {s.rfilename for s in info.siblings})):
        raise UserError(problems)
    return str(info.sha)


def _hub_folder(source: str, *, trust_remote_code: bool) -> Path:
    from huggingface_hub import snapshot_download

    name, _, commit = source.partition("@")
    cached = _hub_cache(name) / "snapshots" / commit
    if cached.is_dir() and not folder_problems(cached, trust_remote_code=trust_remote_code):
        return cached
    with _hub_errors(source), disk.explained(_hub_cache(name).parent):
        folder = snapshot_download(
            name,
            revision=commit,
            endpoint=os.environ.get("HF_ENDPOINT"),
            token=_token(),
            allow_patterns=[f"*{suffix}" for suffix in MODEL_SUFFIXES | ({".py"} if trust_remote_code else set())],
            ignore_patterns=["*/*"],  # original/ and onnx/ folders hold the same weights again
        )
    return Path(folder)
