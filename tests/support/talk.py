"""Raw requests to an Oxen server, real or not: what other programs do to a repository, and what the servers answer."""

import gzip
import io
import json
import re
import tarfile
from urllib.parse import quote, urlencode

import urllib3
import xxhash

USED = (
    *("status", "error", "type", "is_empty", "commit_id", "branch", "branches", "commit", "commits", "id"),
    *("parent_ids", "message", "author", "email", "timestamp", "workspace", "workspaces", "file", "upload_id"),
    *("part_size", "num_parts", "part_window", "completed", "paths", "total_pages", "page_number", "total_entries"),
)


class Talk:
    """Requests to a repository of a server, and what of its answers the store uses."""

    def __init__(self, url: str, name: str, token: str | None = None):
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.pool, self.url, self.name = urllib3.PoolManager(retries=False, timeout=20, headers=headers), url, name
        self.heard: list = []

    def ask(self, method, path, body=None, *, repository=True, **parameters):
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        url = self.url + (f"/api/repos/ns/{self.name}" if repository else "/api") + quote(path)
        url += f"?{urlencode(parameters)}" if parameters else ""
        headers = {**self.pool.headers, "Content-Type": "application/json"}
        answer = self.pool.request(method, url, body=body, headers=headers)
        return self.hear(method, path, answer)

    def hear(self, method, path, answer):
        try:
            found = json.loads(answer.data)
        except ValueError:
            found = answer.data
        self.heard.append((method, path, answer.status, answer.headers.get("Retry-After"), used(found)))
        return found

    def create(self):
        wanted = {"namespace": "ns", "name": self.name, "is_public": False}
        return self.ask("POST", "/repos", wanted, repository=False)

    def workspace(self, name, branch="main"):
        return self.ask("PUT", "/workspaces", {"workspace_id": name, "branch_name": branch})

    def stage(self, workspace, path, content, **changed):
        wanted = {"hash": xxhash.xxh3_128(content).hexdigest(), "size": len(content)} | changed
        upload = self.ask(
            "POST", "/versions/uploads", wanted | {"destination": {"workspace_id": workspace, "path": path}}
        )
        for number in range(1, upload.get("num_parts", 0) + 1):
            piece = content[(number - 1) * upload["part_size"] : number * upload["part_size"]]
            self.part(upload, number, piece)
        return upload

    def part(self, upload, number, piece):
        return self.ask("PUT", f"/versions/uploads/{upload['upload_id']}/parts/{number}", piece)

    def stage_empty(self, workspace, folder, name):
        url = f"{self.url}/api/repos/ns/{self.name}/workspaces/{workspace}/files/{quote(folder)}"
        answer = self.pool.request("POST", url, fields={"file[]": (name, b"")})
        self.hear("POST", folder, answer)

    def remove(self, workspace, *paths):
        return self.ask("DELETE", f"/workspaces/{workspace}/files", list(paths))

    def commit(self, workspace, message="m", branch="main"):
        wanted = {"message": message, "author": "A", "email": "a@b.c"}
        return self.ask("POST", f"/workspaces/{workspace}/merge/{branch}", wanted)

    def push(self, files, branch="main", message="m"):
        self.workspace("one", branch)
        for path, content in files.items():
            self.stage("one", path, content)
        return self.commit("one", message, branch)["commit"]["id"]

    def query(self, *hashes):
        answer = self.pool.request(
            "QUERY",
            f"{self.url}/api/repos/ns/{self.name}/versions",
            body=gzip.compress("".join(f"{hash}\n" for hash in hashes).encode()),
        )
        if answer.status != 200:
            return self.hear("QUERY", "", answer)
        with tarfile.open(fileobj=io.BytesIO(answer.data), mode="r:gz") as archive:
            members = [(one.name, archive.extractfile(one).read()) for one in archive]
        self.heard.append(("QUERY", 200, sorted(members)))

    def transcript(self):
        """What was heard, with identifiers numbered in the order of their first appearance and times left out."""
        text = "\n".join(repr(one) for one in self.heard)
        text = re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", "TIME", text)
        ids = re.findall(r"'(?:id|commit_id|upload_id)': '([0-9a-f-]{20,})'", text)
        for number, id in enumerate(dict.fromkeys(ids)):
            text = text.replace(id, f"ID{number}").replace(id[:10], f"short ID{number}")
        return text.splitlines()


def used(found):
    if isinstance(found, list):
        return [used(one) for one in found]
    if isinstance(found, dict):
        kept = {name: used(found[name]) for name in USED if name in found}
        return kept | ({"files": sorted(files(found["entries"]))} if "entries" in found else {})
    return found


def files(entries):
    """(path, hash, size) of the files in a listing; folders are of no use to the store."""
    for one in entries:
        if one["is_dir"]:
            yield from files(one["children"])
        else:
            yield one["resource"]["path"], one["hash"], one["size"]
