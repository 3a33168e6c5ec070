"""A Kubernetes API server that only answers GET, in memory: what self_reward/cluster/api.py asks."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

LISTS = ("nodes", "limitranges", "resourcequotas", "storageclasses")


class FakeCluster:
    """Objects by path. `answers`: (pattern, status) of paths that are refused; `seen`: the paths asked for."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.answers: list[tuple[str, int]] = []
        self.seen: list[str] = []

    def put(self, path: str, **content: Any) -> None:
        self.objects[path] = content

    def answer(self, path: str, query: dict[str, list[str]]) -> tuple[int, dict[str, Any]]:
        self.seen.append(path)
        for pattern, status in self.answers:
            if re.search(pattern, path):
                return status, {"kind": "Status", "code": status}
        if path in self.objects:
            return 200, self.objects[path]
        if path.rpartition("/")[2] not in LISTS:
            return 404, {"kind": "Status", "code": 404}
        items = [content for name, content in self.objects.items() if name.rpartition("/")[0] == path]
        begin, size = int(query.get("continue", ["0"])[0]), int(query["limit"][0])
        more = {"continue": str(begin + size)} if begin + size < len(items) else {}
        return 200, {"items": items[begin : begin + size], "metadata": more}


@contextmanager
def serving(fake: FakeCluster) -> Iterator[str]:
    """The address at which `fake` answers."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            status, body = fake.answer(parts.path, parse_qs(parts.query))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, format: str, *words: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
