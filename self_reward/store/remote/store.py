"""The data repository on an Oxen server."""

import contextlib
import copy
import json
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from self_reward.errors import UserError
from self_reward.store import Progress, Snapshot, find_revision, recorded_sha256, refuse_names
from self_reward.store.content import blob_of, expand_folders
from self_reward.store.errors import Auth, Conflict, NotFound
from self_reward.store.manifests import is_manifest, outputs
from self_reward.store.remote import address, downloading, pushing, reading, workspaces
from self_reward.store.remote.cache import Cache
from self_reward.store.remote.reading import Listing, Session
from self_reward.store.remote.server import Server


class RemoteStore:
    """Store at `url`, oxen://HOST/NAMESPACE/NAME. `store_timeout`: seconds that one resolve, pull or push may take,
    failed tries included; `cache_dir`: small contents are kept in its folder oxen, by their hash; `token`: the
    environment variable that holds the token."""

    def __init__(self, url: str, *, branch: str, store_timeout: float, cache_dir: Path, token: str = "OXEN_TOKEN"):
        self.address = address.parse(url)
        self.branch, self.store_timeout = branch, store_timeout
        self._token = address.token(self.address, token)
        self._cache = Cache(Path(cache_dir).expanduser() / "oxen")

    @contextlib.contextmanager
    def _session(self) -> Iterator[Session]:
        with contextlib.closing(Server(self.address, self._token, seconds=self.store_timeout)) as server:
            yield Session(server, self.branch, self._cache)

    # ---- the repository and its branches

    def exists(self) -> bool:
        with self._session() as session:
            return reading.exists(session.server)

    def create(self) -> None:
        """As Store says; the new repository is private."""
        new = {"namespace": self.address.namespace, "name": self.address.name, "is_public": False}
        url = f"{self.address.server}/api/repos"
        with self._session() as session, contextlib.suppress(Conflict):
            session.server.again(lambda: session.server.once("POST", "", new, url=url))

    def branches(self, prefix: str = "") -> dict[str, str]:
        with self._session() as session:
            all_branches = reading.branches(session.server)
        return {name: commit for name, commit in all_branches.items() if name.startswith(prefix)}

    def on(self, branch: str) -> "RemoteStore":
        other = copy.copy(self)
        other.branch = branch
        return other

    def make_branch(self, name: str, commit: str) -> None:
        with self._session() as session:
            reading.make_branch(session.server, name, commit)

    def remove_branch(self, name: str) -> None:
        with self._session() as session, contextlib.suppress(NotFound):
            session.server.ask("DELETE", f"/branches/{name}")

    def check_writable(self) -> None:
        """Raise Auth where the token may only read. Makes an empty workspace and removes it, so the repository must
        have a commit; a workspace that a kill leaves is removed by a later push, as others are."""
        with self._session() as session:
            try:
                workspace, _ = workspaces.new(session, f"{workspaces.prefix(self.branch)}check-{uuid.uuid4().hex[:8]}")
            except UserError as error:
                raise Auth(f"{self.address} can be read, but not written: {error}") from None
            workspaces.remove(session.server, workspace)

    # ---- reading

    def resolve(self, revision: str | None = None) -> Snapshot:
        notes: list[str] = []
        with self._session() as session:
            head = reading.head(session, notes)
            log = [reading.as_commit(reported) for reported in reading.history(session.server, head)]
            commit = head
            if revision not in (None, self.branch):
                commit = find_revision(str(revision), self.branch, {one.id: one.message for one in log})
            listing = reading.list_files(session.server, commit)
            contents = reading.read_contents(session, commit, listing)
        reading.check_manifests(contents, listing, commit)
        listing.pop(pushing.FENCE, None)  # not data

        def sha256_of(path: str) -> str:
            with self._session() as session:
                return reading.sha256_of(session, commit, path, listing[path][1])

        known = reading.known_inputs(contents, listing) | recorded_sha256(contents)
        return Snapshot(
            commit=commit,
            head=head,
            files={path: size for path, (size, _) in listing.items()},
            blobs={path: blob for path, (_, blob) in listing.items()},
            sha256=reading.Hashes(listing, known, sha256_of),
            log=log,
            contents=contents,
            notes=notes,
        )

    def pull(self, snapshot: Snapshot, paths: list[str], to: Path, progress: Progress | None = None) -> dict[str, str]:
        """As Store says; a download that was begun is resumed."""
        with self._session() as session:
            return downloading.pull(session, snapshot, paths, to, progress)

    # ---- committing

    def push(
        self,
        files: dict[str, Path],
        *,
        key: str,
        message: str,
        expected_head: str,
        progress: Progress | None = None,
    ) -> str:
        change = pushing.Change(files, f"{message}\n\nkey: {key}", expected_head, key, progress)
        with self._session() as session:
            return pushing.push(session, change)

    def put(self, files: dict[str, Path], *, message: str) -> str | None:
        with self._session() as session:
            server = session.server
            try:
                head = reading.head(session, [])
            except NotFound:
                if not reading.exists(server):
                    raise
                if reading.branches(server):  # another process made the first one just now, perhaps
                    head = reading.head(session, [])
                else:  # makes the branch, with a commit of nothing
                    workspace, head = workspaces.new(session, f"{workspaces.WORKSPACE}first-{uuid.uuid4().hex[:8]}")
                    workspaces.remove(server, workspace)
            listing = reading.list_files(server, head)
            written = recorded_sha256(reading.read_contents(session, head, listing))
            sources = expand_folders(files)
            _refuse_paths(sources, listing, written)
            if all(listing.get(path) == (src.stat().st_size, blob_of(src)) for path, src in sources.items()):
                return None
            return pushing.push(session, pushing.Change(sources, message, head))

    def accept(self, paths: list[str]) -> tuple[str, list[str]]:
        notes: list[str] = []
        with self._session() as session, tempfile.TemporaryDirectory() as folder:
            head = reading.head(session, notes)
            for path in paths:
                listing = reading.list_files(session.server, head)
                contents = reading.read_contents(session, head, listing)
                owner = next((n for n in contents if is_manifest(n) and path in outputs(n, contents[n])), None)
                if owner is None or path not in listing:
                    written = sorted(recorded_sha256(contents))
                    raise UserError(
                        f"{path} was not written by a stage; files that were: {', '.join(written) or 'none'}"
                    )
                size, blob = listing[path]
                sha256 = reading.sha256_of(session, head, path, blob)
                if outputs(owner, contents[owner])[path]["sha256"] == sha256:
                    notes.append(f"{path} is as its stage wrote it; there is nothing to accept")
                    continue
                manifest = json.loads(contents[owner])
                manifest["outputs"][path] = {"sha256": sha256, "size": size, "xxh3": blob, "changed_by_hand": True}
                new = Path(folder, "manifest.json")
                new.write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
                text = f"{path}: changed by hand and accepted\n\nkey: {manifest['key']}"
                head = pushing.push(session, pushing.Change({owner: new}, text, head))
        return head, notes


def _refuse_paths(sources: dict[str, Path], listing: Listing, written: dict[str, str]) -> None:
    """Raise UserError for paths at which the user cannot put a file."""
    refuse_names(sources)
    problems = [
        f"{path} was written by a stage, and is not the user's to replace; see `self-reward accept`"
        for path in sources
        if path in written or is_manifest(path)
    ]
    folders = {str(folder) for path in (*listing, *sources) for folder in PurePosixPath(path).parents}
    problems += [
        f"{path} is a folder of the data repository, or of what is put, and cannot be a file"
        for path in sorted(folders & {*sources})
    ]
    problems += [
        f"{folder} is a file of the data repository; {path} cannot be put below it"
        for path in sources
        for folder in map(str, PurePosixPath(path).parents)
        if folder in listing
    ]
    if problems:
        raise UserError(problems)
