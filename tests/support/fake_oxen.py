"""A small Oxen server that fails on command, in memory: the endpoints that self_reward/store uses, and no others.

    python -m tests.support.fake_oxen --port 3001

Without a fault it answers as oxen-server 0.65.1 does; tests/store/test_fake_oxen.py compares both.

    with FakeOxen() as server:
        server.fail("PUT", r"/parts/2$", "503", times=2)

What a fault may be (`how`):
    a status   301 (to elsewhere.invalid), 403, 404, 409, 429 (with Retry-After), 500, 502 (with a proxy's HTML),
               507 ...: refused, nothing is done
    hang, hang_midway   takes all, or half of the body, and is silent until release()
    cut        the connection breaks in the middle of the request's body, or of the answer's where that has none
    lost       the work is done, but the connection breaks before the answer
    half       of a workspace only half is made, as by a server that is killed then
    done 502   the work is done, but the answer is this status
    slow       the answer comes at 20 bytes a second
    garbage    what should be JSON is a web page; what should be a file's content has a wrong byte
    disk_full  what the real server says when its disk is full
    a function that is called before the request is answered as ever
"""

import argparse
import contextlib
import email
import gzip
import io
import json
import re
import socket
import ssl
import tarfile
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

import xxhash

PART_SIZE = 10 << 20
PART_WINDOW = 102
VERSION = "0.65.1"
PAGE = "<html>\n<head><title>{0}</title></head>\n<body>\n<center><h1>{0}</h1></center>\n</body>\n</html>\n"
NO_SPACE = "No space left on device (os error 28)"


@dataclass
class Fault:
    method: str
    path: str
    how: str | Callable[[], object]
    times: int | None
    """None: until release()"""
    after: int
    """how many requests that match pass before"""
    hits: int = 0


@dataclass
class Request:
    """One request as it came, without its query and token; `size`: bytes of its body that were read; `status`: of the
    answer, 0 where there is none."""

    method: str
    path: str
    headers: dict[str, str]
    size: int = 0
    status: int = 0


@dataclass
class Workspace:
    base: str
    staged: dict[str, str | None] = field(default_factory=dict)
    """path -> content hash; None: removed"""
    created: str = ""


@dataclass
class Upload:
    hash: str
    size: int
    destination: dict[str, str]
    parts: dict[int, bytes] = field(default_factory=dict)


@dataclass
class Repository:
    is_public: bool
    commits: dict[str, dict[str, Any]] = field(default_factory=dict)
    trees: dict[str, dict[str, str]] = field(default_factory=dict)
    """commit id -> {path: content hash}"""
    branches: dict[str, str] = field(default_factory=dict)
    workspaces: dict[str, Workspace] = field(default_factory=dict)
    uploads: dict[str, Upload] = field(default_factory=dict)
    contents: dict[str, bytes] = field(default_factory=dict)
    half_made: set[str] = field(default_factory=set)
    is_coarse: bool = False
    """The server takes its disk's times for coarse: content of the old one's size that comes soon is left out."""


@dataclass
class Call:
    """What an endpoint is given beside its path."""

    query: dict[str, str]
    body: bytes
    headers: Any
    how: Any
    """the fault that this request is to have"""

    @property
    def wrong(self) -> bool:
        return self.how == "garbage"

    @property
    def json(self) -> Any:
        try:
            found = json.loads(self.body)
        except ValueError:
            found = None
        if not isinstance(found, dict | list):
            raise Refused(400, _status("error", "invalid JSON"))
        return found


class Refused(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, body: Any, headers: dict[str, str] | None = None):
        self.status, self.body, self.headers = status, body, headers or {}


class FakeOxen:
    """The server; `url` is http://127.0.0.1:port, or https where `certificate` (a file with its key) is given. `token`:
    what a request must carry, as a proxy in front would check. kill() and start() keep the data and the port, as
    Program of tests/support/servers.py does."""

    def __init__(self, *, token: str | None = None, port: int = 0, certificate: Path | None = None):
        self.token, self.certificate = token, certificate
        self.repositories: dict[str, Repository] = {}
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.lock = threading.RLock()
        self.released = threading.Event()
        self.connections: set[socket.socket] = set()
        self.port = port
        self.start()

    def __enter__(self) -> "FakeOxen":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def url(self) -> str:
        return f"http{'s' if self.certificate else ''}://127.0.0.1:{self.port}"

    def start(self) -> None:
        self._http = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._http.daemon_threads = True
        if self.certificate:
            tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            tls.load_cert_chain(self.certificate)
            self._http.socket = tls.wrap_socket(self._http.socket, server_side=True, do_handshake_on_connect=False)
        self._http.fake = self  # type: ignore[attr-defined]
        self.port = self._http.server_address[1]
        threading.Thread(target=lambda: self._http.serve_forever(poll_interval=0.02), daemon=True).start()

    def kill(self) -> None:
        """Stop listening and break all connections; what was under way is not answered."""
        self._http.shutdown()
        self._http.server_close()
        self.release()
        with self.lock:
            for connection in self.connections:
                _break(connection)

    def restart(self) -> None:
        self.kill()
        self.start()

    def fail(
        self, method: str, path: str, how: str | Callable[[], object], *, times: int | None = 1, after: int = 0
    ) -> Fault:
        """Fail `times` requests whose method and path fit these regular expressions, after the first `after` ones."""
        fault = Fault(method, path, how, times, after)
        with self.lock:
            self.faults.append(fault)
        return fault

    def release(self) -> None:
        """Drop all faults and end the silence of hanging requests (their connections break)."""
        with self.lock:
            self.faults.clear()
            self.released.set()
            self.released = threading.Event()

    def seen(self, method: str, path: str) -> list[Request]:
        """The requests so far whose method and path fit these regular expressions."""
        with self.lock:
            return [one for one in self.requests if re.fullmatch(method, one.method) and re.search(path, one.path)]

    def fault(self, method: str, path: str) -> str | Callable[[], object] | None:
        with self.lock:
            for fault in self.faults:
                if re.fullmatch(fault.method, method) and re.search(fault.path, path):
                    if fault.after > 0:
                        fault.after -= 1
                    elif fault.times is None or fault.hits < fault.times:
                        fault.hits += 1
                        return fault.how
            return None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    server: Any

    def setup(self) -> None:
        super().setup()
        self.fake: FakeOxen = self.server.fake
        with self.fake.lock:
            self.fake.connections.add(self.connection)

    def finish(self) -> None:
        with self.fake.lock:
            self.fake.connections.discard(self.connection)
        with contextlib.suppress(OSError):
            super().finish()

    def handle(self) -> None:
        with contextlib.suppress(OSError):  # the client, or kill(), broke the connection
            super().handle()

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do(self) -> None:
        path, _, query = self.path.partition("?")
        path = re.sub("%2F", "%252F", path, flags=re.IGNORECASE)  # the real server does not take it for a slash
        path = unquote(path)
        headers = {name: "" if name.lower() == "authorization" else value for name, value in self.headers.items()}
        request = Request(self.command, path, headers)
        how = self.fake.fault(self.command, path)
        with self.fake.lock:
            self.fake.requests.append(request)
            released = self.fake.released
        if callable(how):
            how()
            how = None
        length = int(self.headers.get("Content-Length") or 0)
        half = how == "hang_midway" or (how == "cut" and length > 0)
        body = self.rfile.read(length // 2 if half else length)
        request.size = len(body)
        if how in ("hang", "hang_midway"):
            released.wait()
        if half or how == "hang" or len(body) < length:
            return self.hang_up()

        status, answer, more = self.answer(how, request, query, body)
        if how and how.startswith("done "):
            status, answer, more = self.answer(how.removeprefix("done "), request, query, body)
        request.status = status
        if how in ("lost", "half"):
            request.status = 0
            return self.hang_up()
        if how == "garbage" and isinstance(answer, dict):
            answer = PAGE.format("Welcome").encode()
        kind = "text/html" if isinstance(answer, str) else "application/octet-stream"
        if isinstance(answer, dict):
            kind = "application/json"
        content = answer if isinstance(answer, bytes) else None
        if content is None:
            content = answer.encode() if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False).encode()
        self.send_response(status)
        for name, value in {"Content-Type": kind, "oxen-version": VERSION, **more}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if how == "cut":
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            return self.hang_up()
        if how == "slow":
            for byte in content:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                time.sleep(0.05)
        else:
            self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_DELETE = do_QUERY = do

    def answer(self, how: str | None, request: Request, query: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
        """(status, answer, headers); the answer is bytes, a page's text, or what is sent as JSON."""
        try:
            if how and how.isdecimal():
                _refuse(int(how))
            if self.fake.token and self.headers.get("Authorization") != f"Bearer {self.fake.token}":
                raise Refused(401, PAGE.format("401 Authorization Required"))
            if how == "disk_full":
                if "/merge/" in request.path:
                    raise Refused(422, _status("error", f"Basic(Failed to open staged db: IO error: {NO_SPACE})"))
                _fault(500, "internal_server_error", NO_SPACE)
            with self.fake.lock:
                given = {name: values[-1] for name, values in parse_qs(query).items()}
                answer = _route(self.fake, self.command, request.path, Call(given, body, self.headers, how))
        except Refused as error:
            return error.status, error.body, error.headers
        return (206 if isinstance(answer, dict) and answer.get("status") == "error" else 200), answer, {}

    def hang_up(self) -> None:
        self.close_connection = True
        _break(self.connection)


def _break(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _route(fake: FakeOxen, method: str, path: str, call: Call) -> Any:
    if (method, path) == ("GET", "/api/version"):
        return _status("success", "resource_found")
    if (method, path) == ("POST", "/api/repos"):
        return _create(fake, call.json)
    match = re.fullmatch(r"/api/repos/([^/]+/[^/]+)(/.*)?", path)
    if not match:
        raise Refused(404, _status("error", "resource_not_found"))
    if match[1] not in fake.repositories:
        raise Refused(404, _status("error", "resource_not_found", f"Repository '{match[1]}' not found"))
    repository, rest = fake.repositories[match[1]], match[2] or ""
    for verb, pattern, function in ROUTES:
        if verb == method and (found := re.fullmatch(pattern, rest)):
            return function(repository, call, *found.groups())
    raise Refused(404, _status("error", "resource_not_found"))


def _create(fake: FakeOxen, wanted: dict[str, Any]) -> dict[str, Any]:
    name = f"{wanted['namespace']}/{wanted['name']}"
    if not re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9_-]{1,49}/[a-zA-Z0-9][a-zA-Z0-9_.-]+", name):
        raise Refused(400, _status("error", f"Invalid repository name '{name}'"))
    if name in fake.repositories:
        raise Refused(409, _status("error", "Repo already exists."))
    fake.repositories[name] = Repository(is_public=wanted.get("is_public", True))
    return _status("success", "resource_found") | {
        "repository": {"namespace": wanted["namespace"], "name": wanted["name"]}
    }


def show(repository: Repository, call: Call) -> dict[str, Any]:
    return _status("success", "resource_found") | {"repository": {"is_empty": not repository.branches}}


def branches(repository: Repository, call: Call) -> dict[str, Any]:
    found = [{"name": name, "commit_id": commit} for name, commit in sorted(repository.branches.items())]
    return _status("success", "resource_found") | {"branches": found}


def branch(repository: Repository, call: Call, name: str) -> dict[str, Any]:
    if name not in repository.branches:
        _fault(404, "resource_not_found", "Branch does not exist", f"Could not find branch: Branch '{name}' not found")
    return _status("success", "resource_found") | {"branch": {"name": name, "commit_id": repository.branches[name]}}


def new_branch(repository: Repository, call: Call) -> dict[str, Any]:
    name, commit = call.json["new_name"], call.json["commit_id"]
    if commit not in repository.commits:
        _fault(500, "internal_server_error", f"Could not find commit: {commit}")
    if name in repository.branches:
        _fault(500, "internal_server_error", f"Branch already exists: {name}")
    if " " in name:
        _fault(500, "internal_server_error", f"'{name}' is not a valid branch name.")
    repository.branches[name] = commit
    return _status("success", "resource_created") | branch(repository, call, name)


def remove_branch(repository: Repository, call: Call, name: str) -> dict[str, Any]:
    gone = branch(repository, call, name)
    if name == "main":
        _fault(500, "internal_server_error", "Err: Cannot delete current checked out branch 'main'")
    del repository.branches[name]
    return gone


def history(repository: Repository, call: Call, revision: str) -> dict[str, Any]:
    found: list[dict[str, Any]] = []
    if repository.branches:
        commit, rest = _resource(repository, revision)
        if rest:
            _not_found(revision)
        while commit:
            found.append(repository.commits[commit])
            commit = next(iter(repository.commits[commit]["parent_ids"]), "")
    page, pages = _page(found, call.query)
    return _status("success", "resource_found") | {"commits": page} | pages | {"total_pages": pages["total_pages"] or 1}


def commit(repository: Repository, call: Call, id: str) -> dict[str, Any]:
    if id not in repository.commits:
        _fault(404, "resource_not_found", "Revision not found", f"Could not find branch or commit: {id}")
    return _status("success", "resource_found") | {"commit": repository.commits[id]}


def listing(repository: Repository, call: Call, resource: str) -> dict[str, Any]:
    commit, folder = _resource(repository, resource)
    tree = repository.trees[commit]
    initial = not repository.commits[commit]["parent_ids"]
    if initial or (folder and not any(path.startswith(folder + "/") for path in tree)):
        _fault(404, "resource_not_found", "Resource not found", f"Could not find path: {folder}")
    assert call.query.get("depth") == "-1", "the double knows recursive listings only"
    page, pages = _page(_entries(repository, tree, folder), call.query)
    return _status("success", "resource_found") | {"entries": page} | pages


def _entries(repository: Repository, tree: dict[str, str], folder: str) -> list[dict[str, Any]]:
    start = f"{folder}/" if folder else ""
    below = {path.removeprefix(start): path for path in tree if path.startswith(start)}
    entries = []
    for name in sorted({rest.partition("/")[0] for rest in below if "/" in rest}):
        inside = _entries(repository, tree, start + name)
        size = sum(entry["size"] for entry in inside)
        entries.append(_entry(start + name, "0", size) | {"is_dir": True})
        entries[-1]["children"] = inside
    for rest, path in sorted(below.items()):
        if "/" not in rest:
            entries.append(_entry(path, tree[path], len(repository.contents[tree[path]])))
    return entries


def _entry(path: str, hash: str, size: int) -> dict[str, Any]:
    name = path.rpartition("/")[2]
    return {"filename": name, "hash": hash, "size": size, "is_dir": False, "resource": {"path": path}}


def file(repository: Repository, call: Call, resource: str) -> bytes:
    commit, path = _resource(repository, resource)
    if path not in repository.trees[commit]:
        _not_found(path)
    return _wrong(repository.contents[repository.trees[commit][path]], call.wrong)


def chunk(repository: Repository, call: Call, resource: str) -> bytes:
    commit, path = _resource(repository, resource)
    if path not in repository.trees[commit]:
        raise Refused(404, _status("error", "resource_not_found"))
    content = repository.contents[repository.trees[commit][path]]
    start, size = int(call.query["chunk_start"]), int(call.query["chunk_size"])
    if start + size > len(content):
        _fault(500, "internal_server_error", "beyond end of file")
    return _wrong(content[start : start + size], call.wrong)


def versions(repository: Repository, call: Call) -> bytes:
    hashes = re.findall(r"^[0-9a-f]{1,32}$", gzip.decompress(call.body).decode(), re.MULTILINE)
    if missing := [hash for hash in hashes if hash not in repository.contents]:
        said = f"Server is missing {len(missing)} content blob(s) for this batch download."
        _fault(404, "version_blobs_missing", "Version blobs missing on server", said)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for hash in hashes:
            content = _wrong(repository.contents[hash], call.wrong)
            info = tarfile.TarInfo(hash)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def workspaces(repository: Repository, call: Call) -> dict[str, Any]:
    found = [_workspace(repository, name) for name in repository.workspaces]
    return _status("success", "resource_created") | {"workspaces": found}


def workspace(repository: Repository, call: Call) -> dict[str, Any]:
    name, on = call.json["workspace_id"], call.json["branch_name"]
    if call.how == "half":
        repository.half_made.add(name)
    if name in repository.half_made:
        _fault(500, "internal_server_error", f"Workspace {name} already exists")
    if not repository.branches:
        repository.branches[on] = _commit(repository, [], "Initialized Repo 🐂", "Oxen", "oxen@oxen.ai", {})
    if on not in repository.branches:
        said = f"Branch not found: {on}. For non-empty repositories, create the branch first."
        raise Refused(400, _status("error", said))
    there = name in repository.workspaces
    if not there:
        repository.workspaces[name] = Workspace(repository.branches[on], created=_now())
    answer = {"workspace": _workspace(repository, name)}
    return _status("success", "resource_found" if there else "resource_created") | answer


def remove_workspace(repository: Repository, call: Call, name: str) -> dict[str, Any]:
    gone = _workspace(repository, name)
    del repository.workspaces[name]
    return _status("success", "resource_created") | {"workspace": gone}


def _workspace(repository: Repository, name: str) -> dict[str, Any]:
    if name not in repository.workspaces:
        raise Refused(404, _status("error", "resource_not_found", f"Workspace not found: {name}"))
    found = repository.workspaces[name]
    return {"id": name, "name": None, "commit": repository.commits[found.base], "created_at": found.created}


def begin(repository: Repository, call: Call) -> dict[str, Any]:
    hash, size, destination = (call.json[name] for name in ("hash", "size", "destination"))
    if destination["workspace_id"] not in repository.workspaces:
        said = f"Could not find workspace: {destination['workspace_id']}"
        _fault(404, "resource_not_found", "Workspace does not exist", said)
    if ".." in destination["path"].split("/"):
        _fault(400, "bad_request", "Bad Request", f"Invalid destination path: {destination['path']}")
    if not re.fullmatch("[0-9a-f]{1,32}", hash):
        _upload_refused(f"'{hash}' is not a version file hash")
    if size == 0:
        _upload_refused("a file of zero bytes has no parts")
    hash = f"{int(hash, 16):x}"
    if hash in repository.contents:
        _stage(repository, destination["workspace_id"], destination["path"], hash)
        return _status("success", "resource_found") | {"file": "already_stored"}
    name = str(uuid.uuid4())
    repository.uploads[name] = Upload(hash, size, destination)
    window = {"part_size": PART_SIZE, "num_parts": -(-size // PART_SIZE), "part_window": PART_WINDOW}
    return _status("success", "resource_created") | {"file": "awaiting_parts", "upload_id": name} | window


def part(repository: Repository, call: Call, name: str, text: str) -> dict[str, Any]:
    if name not in repository.uploads:
        raise Refused(404, _status("error", "resource_not_found", f"Version upload {name} not found"))
    upload, number = repository.uploads[name], int(text)
    parts = -(-upload.size // PART_SIZE)
    if not 1 <= number <= parts:
        _upload_refused(f"part {number} is not between 1 and {parts}")
    if number not in upload.parts:
        if number - _first_missing(upload) >= PART_WINDOW:
            _fault(429, "upload_part_deferred", "Part cannot be stored yet")
        size = PART_SIZE if number < parts else upload.size - (parts - 1) * PART_SIZE
        if len(call.body) != size:
            _upload_refused(f"part {number} is {len(call.body)} bytes, not {size}")
        upload.parts[number] = call.body
    completed = len(upload.parts) == parts
    if completed:
        del repository.uploads[name]
        whole = b"".join(upload.parts[i + 1] for i in range(parts))
        if (hash := _hash(whole)) != upload.hash:
            _upload_refused(f"the file's {len(whole)} bytes hash to {hash}, not {upload.hash}")
        repository.contents[hash] = whole
        _stage(repository, upload.destination["workspace_id"], upload.destination["path"], hash)
    return _status("success", "resource_created") | {"completed": completed}


def _first_missing(upload: Upload) -> int:
    return next(number for number in range(1, len(upload.parts) + 2) if number not in upload.parts)


def multipart(repository: Repository, call: Call, name: str, folder: str) -> dict[str, Any]:
    _workspace(repository, name)
    files = _files(call)
    paths = [f"{folder}/{file}".strip("/") for file in files]
    for path, content in zip(paths, files.values(), strict=True):
        repository.contents[_hash(content)] = content
        _stage(repository, name, path, _hash(content))
    return _status("success", "resource_created") | {"paths": paths}


def _stage(repository: Repository, name: str, path: str, hash: str) -> None:
    _workspace(repository, name)
    found = repository.workspaces[name]
    found.staged.pop(path, None)
    old = repository.trees[found.base].get(path)
    has_old_size = old is not None and len(repository.contents[old]) == len(repository.contents[hash])
    if old != hash and not (repository.is_coarse and has_old_size):
        found.staged[path] = hash


def changes(repository: Repository, call: Call, name: str) -> dict[str, Any]:
    _workspace(repository, name)
    found = repository.workspaces[name]
    staged = {}
    for kind, is_old in (("added_files", False), ("modified_files", True)):
        paths = [
            path for path, hash in found.staged.items() if hash and (path in repository.trees[found.base]) is is_old
        ]
        page, pages = _page([{"filename": path} for path in sorted(paths)], call.query)
        staged[kind] = {"entries": page} | pages
    return _status("success", "resource_found") | {"staged": staged}


def remove(repository: Repository, call: Call, name: str) -> dict[str, Any]:
    _workspace(repository, name)
    found = repository.workspaces[name]
    unknown = []
    for path in call.json:
        inside = [one for one in repository.trees[found.base] if one == path or one.startswith(path + "/")]
        found.staged |= dict.fromkeys(inside)
        unknown += [] if inside else [path]
    if unknown:
        return _status("error", "resource_not_found") | {"paths": unknown}
    return _status("success", "resource_deleted") | {"paths": call.json}


def merge(repository: Repository, call: Call, name: str, on: str) -> dict[str, Any]:
    _workspace(repository, name)
    if on not in repository.branches:
        raise Refused(404, _status("error", "resource_not_found", on))
    found, head = repository.workspaces[name], repository.branches[on]
    base, tree = repository.trees[found.base], dict(repository.trees[head])
    for path, hash in found.staged.items():
        if base.get(path) != tree.get(path) != hash:
            said = f"This workspace '{name}' is behind on branch '{on}' commit {found.base} < {head}"
            _fault(409, "conflict", "Workspace is behind", said)
    if not found.staged:
        raise Refused(422, _status("error", "NoChanges"))
    for path, hash in found.staged.items():
        tree.pop(path, None)
        if hash is not None:
            tree[path] = hash
    new = _commit(repository, [head], call.json["message"], call.json["author"], call.json["email"], tree)
    repository.branches[on] = new
    del repository.workspaces[name]
    return _status("success", "resource_created") | {"commit": repository.commits[new]}


def _commit(
    repository: Repository, parents: list[str], message: str, author: str, mail: str, tree: dict[str, str]
) -> str:
    id = f"{uuid.uuid4().int:x}"  # not zero-padded, as with the real one
    told = {"message": message, "author": author, "email": mail, "timestamp": _now()}
    repository.commits[id] = {"id": id, "parent_ids": parents} | told
    repository.trees[id] = tree
    return id


def _resource(repository: Repository, text: str) -> tuple[str, str]:
    """The commit and the path that `<commit or branch>/<path>` means; a branch may have slashes in its name."""
    for revision in [*repository.commits, *sorted(repository.branches, key=len, reverse=True)]:
        if text == revision or text.startswith(revision + "/"):
            return repository.branches.get(revision, revision), text.removeprefix(revision).strip("/")
    _not_found(text.strip("/"))
    raise AssertionError


def _page(items: list[Any], query: dict[str, str]) -> tuple[list[Any], dict[str, int]]:
    number, size = int(query.get("page", 1)), int(query.get("page_size", 100))
    pages = {"page_number": number, "total_pages": -(-len(items) // size), "total_entries": len(items)}
    return items[(number - 1) * size : number * size], {"page_size": size} | pages


def _files(call: Call) -> dict[str, bytes]:
    kind = call.headers["Content-Type"].encode()
    message = email.message_from_bytes(b"Content-Type: " + kind + b"\r\n\r\n" + call.body)
    return {str(one.get_filename()): bytes(one.get_payload(decode=True) or b"") for one in message.get_payload()}  # type: ignore


def _hash(content: bytes) -> str:
    return f"{xxhash.xxh3_128_intdigest(content):x}"


def _now() -> str:
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


def _wrong(content: bytes, wrong: bool) -> bytes:
    return bytes([content[0] ^ 1]) + content[1:] if wrong and content else content


def _status(status: str, message: str, description: str | None = None) -> dict[str, Any]:
    answer = {"status": status, "status_message": message, "oxen_version": VERSION}
    return answer | ({"status_description": description} if description else {})


def _fault(status: int, kind: str, title: str, detail: str | None = None) -> None:
    error = {"type": kind, "title": title} | ({"detail": detail} if detail else {})
    headers = {"Retry-After": "1"} if status == 429 else {}
    raise Refused(status, {"error": error, "status": "error", "status_message": kind}, headers)


def _refuse(status: int) -> None:
    if status in (401, 502, 503, 504, 507):  # of a proxy in front
        raise Refused(status, PAGE.format(status))
    if status in (301, 302, 307, 308):
        raise Refused(status, PAGE.format(status), {"Location": "https://elsewhere.invalid/"})
    _fault(status, "conflict" if status == 409 else "on_command", f"told to answer {status}")


def _not_found(path: str) -> None:
    _fault(404, "resource_not_found", "Path does not exist", f"Could not find path: {path}")


def _upload_refused(said: str) -> None:
    raise Refused(400, _status("error", "bad_request", f"Version upload refused: {said}"))


ROUTES: list[tuple[str, str, Any]] = [
    ("GET", "", show),
    ("GET", "/branches", branches),
    ("POST", "/branches", new_branch),
    ("GET", "/branches/(.+)", branch),
    ("DELETE", "/branches/(.+)", remove_branch),
    ("GET", "/commits/history/(.+)", history),
    ("GET", "/commits/([^/]+)", commit),
    ("GET", "/dir/(.+)", listing),
    ("GET", "/file/(.+)", file),
    ("GET", "/chunk/(.+)", chunk),
    ("QUERY", "/versions", versions),
    ("POST", "/versions/uploads", begin),
    ("PUT", r"/versions/uploads/([^/]+)/parts/(\d+)", part),
    ("GET", "/workspaces", workspaces),
    ("PUT", "/workspaces", workspace),
    ("DELETE", "/workspaces/([^/]+)", remove_workspace),
    ("GET", "/workspaces/([^/]+)/changes", changes),
    ("POST", "/workspaces/([^/]+)/merge/(.+)", merge),
    ("POST", "/workspaces/([^/]+)/files/?(.*)", multipart),
    ("DELETE", "/workspaces/([^/]+)/files", remove),
]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=3001)
    with FakeOxen(port=parser.parse_args().port) as server, contextlib.suppress(KeyboardInterrupt):
        print(server.url, flush=True)
        threading.Event().wait()
