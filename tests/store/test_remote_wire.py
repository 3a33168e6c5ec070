"""Servers that are none, too slow ones and endless ones, and proxies: what only shows on the wire."""

import base64
import contextlib
import logging
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest
import urllib3

from self_reward.errors import TryAgain, UserError
from self_reward.store import open_store
from self_reward.store.errors import Network, ServerError
from self_reward.store.remote import server
from tests.support.fake_oxen import FakeOxen
from tests.support.talk import Talk

TIMEOUT = 1.0  # seconds of store_timeout
PASSWORD = "p@ss:w%rd"


@pytest.fixture(autouse=True)
def no_proxy(no_token, monkeypatch):
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def store(address: str, folder, timeout: float = TIMEOUT):
    return open_store(address, branch="main", lock_timeout=1, store_timeout=timeout, cache_dir=folder / "cache")


@contextlib.contextmanager
def listening(begin: bytes, piece: bytes, pause: float):
    """A server that answers each request with `begin` and then `piece` for ever; yields its address and how many bytes
    each connection took."""
    sent: list[int] = []

    def answer(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            connection.recv(1 << 16)
            connection.sendall(begin)
            sent.append(0)
            place = len(sent) - 1
            while not over.wait(pause):
                connection.sendall(piece)
                sent[place] += len(piece)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()

    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield f"oxen+http://127.0.0.1:{listener.getsockname()[1]}/ns/name", sent
        over.set()
        listener.shutdown(socket.SHUT_RDWR)


OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("begin", "piece"),
    [
        (OK + b"X-A: ", b"a"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (OK + b"Content-Length: 1000\r\n\r\n", b" "),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n1", b";"),
        (b"HTTP/1.1 500 No\r\nContent-Length: 1000\r\n\r\n", b" "),
    ],
    ids=["header", "100-continue", "body", "chunk", "error"],
)
def test_a_server_that_drips_for_ever_is_given_up_within_store_timeout(tmp_path, begin, piece):
    """The time limit of a read begins anew with each byte."""
    with listening(begin, piece, 0.1) as (address, sent):
        started = time.monotonic()
        with pytest.raises(TryAgain):
            store(address, tmp_path).resolve()
        assert time.monotonic() - started < TIMEOUT + 20 and sum(sent) > 2


@pytest.mark.parametrize("status", ["200 OK", "500 No"])
def test_an_endless_answer_is_an_error_before_it_fills_the_memory(tmp_path, monkeypatch, status):
    monkeypatch.setattr(server, "MOST", 1 << 20)
    begin = f"HTTP/1.1 {status}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    with listening(begin, b"10000\r\n" + b" " * (1 << 16) + b"\r\n", 0) as (address, sent):
        started = time.monotonic()
        with pytest.raises(ServerError, match="more than 1048576 bytes"):
            store(address, tmp_path, 100).resolve()
        assert time.monotonic() - started < 20
    assert len(sent) == 1 and sent[0] < 30 << 20  # it is not asked again; the rest is in buffers of the system


def test_a_program_that_is_no_server_of_http_is_told(tmp_path):
    with listening(b"SSH-2.0-OpenSSH_9.2\r\n", b"", 0.01) as (address, _), pytest.raises(Network, match="127.0.0.1"):
        store(address, tmp_path).resolve()


class Proxy(BaseHTTPRequestHandler):
    """Passes on to `server.behind` what has the right user and password, and tunnels nothing."""

    protocol_version = "HTTP/1.1"

    def do(self) -> None:
        self.server.asked.append((self.command, self.path))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        wanted = "Basic " + base64.b64encode(f"me:{PASSWORD}".encode()).decode()
        status, content = 407, b""
        if self.headers["Proxy-Authorization"] == wanted:
            status, content = 503, b"no tunnel here"
            if self.command != "CONNECT":
                where = urlsplit(self.path)
                url = self.server.behind + where.path + (f"?{where.query}" if where.query else "")
                headers = {name: value for name, value in self.headers.items() if name == "Content-Type"}
                answer = urllib3.request(self.command, url, body=body, headers=headers, retries=False)
                status, content = answer.status, answer.data
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_DELETE = do_CONNECT = do

    def log_message(self, format, *args) -> None:
        pass


@pytest.fixture
def proxy():
    with FakeOxen() as fake, ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as http:
        http.behind, http.asked, http.fake = fake.url, [], fake
        threading.Thread(target=lambda: http.serve_forever(poll_interval=0.02), daemon=True).start()
        http.password_in_url = "me:p%40ss%3Aw%25rd"
        yield http
        http.shutdown()


@pytest.mark.parametrize("scheme", ["http://", ""])
def test_a_proxy_of_the_environment_with_a_user_and_a_password(proxy, tmp_path, monkeypatch, scheme):
    """urllib3 leaves out what stands before the @."""
    monkeypatch.setenv("http_proxy", f"{scheme}{proxy.password_in_url}@127.0.0.1:{proxy.server_port}")
    Talk(proxy.behind, "name").create()
    far = store("oxen+http://data.example.org/ns/name", tmp_path, 10)
    (tmp_path / "a").write_text("a")
    commit = far.put({"a": tmp_path / "a"}, message="by a proxy")
    assert far.resolve().commit == commit and not proxy.fake.seen("GET", "example")
    assert {path.partition("/api")[0] for _, path in proxy.asked} == {"http://data.example.org"}
    proxy.asked.clear()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    near = store(f"oxen+http://127.0.0.1:{proxy.fake.port}/ns/name", tmp_path)
    assert near.resolve().commit == commit and proxy.asked == []


def test_a_proxy_that_refuses_and_its_password_in_no_error_and_no_log(proxy, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, f"http://me:WRONG-PW@127.0.0.1:{proxy.server_port}")
    said = ""
    for scheme in ("oxen", "oxen+http"):
        with pytest.raises(
            (UserError, TryAgain), match=f"{scheme.replace('+', '.')}://data.example.org.*407"
        ) as raised:
            store(f"{scheme}://data.example.org/ns/name", tmp_path).resolve()
        error = raised.value
        while error:
            said, error = said + repr(error) + str(error), error.__cause__ or error.__context__
    assert "WRONG-PW" not in said + caplog.text
    assert {method for method, _ in proxy.asked} == {"CONNECT", "GET"}


@pytest.mark.parametrize(
    "proxy",
    [
        *("socks5://me:WRONG-PW@localhost:1080", "no address:://me:WRONG-PW@x", "http://me:WRONG-PW@x:port", "http://"),
        *("http://me:WRONG-PW@[::1", "http://me:WRONG-PW@x:99999"),
    ],
)
def test_a_proxy_that_is_none_is_told_without_its_password(tmp_path, monkeypatch, proxy):
    monkeypatch.setenv("https_proxy", proxy)
    with pytest.raises(UserError, match="the proxy for https://hub.oxen.ai in the environment") as raised:
        store("oxen://hub.oxen.ai/ns/name", tmp_path).resolve()
    assert "WRONG-PW" not in str(raised.value)
