"""One Oxen server over HTTP: single requests with time limits, retries of what may pass, typed errors.

The endpoints are those that oxenai 0.65.1 uses with oxen-server 0.65.1. Its own client is not used with servers: it has
no time limits, holds the GIL for the whole of a transfer (no signal handler runs), tells errors apart only by their
text, sends a commit again after a 502 although it may have landed, and takes its token from a file only.
"""

import contextlib
import json
import logging
import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn, TypeVar
from urllib.parse import quote, unquote

import urllib3
from tenacity import RetryCallState, Retrying, retry_if_exception, wait_random_exponential

from self_reward import disk
from self_reward.errors import UserError
from self_reward.store.errors import Auth, Conflict, Network, NoChanges, NotFound, ServerError
from self_reward.store.remote.address import Address
from self_reward.types import Json

CONNECT_SECONDS = 20.0  # to connect; also for each BLOCK that is sent
STALL_SECONDS = 60.0  # without a byte of an answer
COMMIT_SECONDS = 300.0  # the same for a commit or the end of a large file, when the server reads it all once more
LONGEST_WAIT = 30.0  # between two tries
BLOCK = 1 << 18
MOST = 256 << 20  # bytes of an answer in JSON: a million files
PASSING = (408, 425, 429, 500, 502, 503, 504)

log = logging.getLogger("self_reward")

T = TypeVar("T")


class Server:
    """The repository at `address`, for one operation (a pull, a push ...) that may take `seconds` in all.

    Every method raises NotFound, Auth, Conflict, NoChanges or UserError at once. What may pass (Network, ServerError)
    is tried again, with growing random pauses, until `seconds` are over.
    """

    def __init__(self, address: Address, token: str | None, *, seconds: float):
        self.address, self._token, self.seconds = address, token, seconds
        self.deadline = time.monotonic() + seconds
        self._headers = {"User-Agent": "self-reward"} | ({"Authorization": f"Bearer {token}"} if token else {})
        self._sockets: list[socket.socket] = []
        self._stopped = threading.Event()
        self._pool = _pool(address, self._sockets, self._stopped)
        self._timer = threading.Timer(max(seconds, 0) + 0.5, self.stop)  # a read that is just over says more
        self._timer.daemon = True
        self._timer.start()

    def another(self, seconds: float) -> "Server":
        """The same repository, for another operation."""
        return Server(self.address, self._token, seconds=seconds)

    def close(self) -> None:
        self._timer.cancel()
        self._pool.clear()

    def stop(self) -> None:
        """End the operation: nothing is tried or sent any more, and whoever waits for an answer gets none. Called from
        another thread, at the latest by the timer (the time limits of single reads begin anew with each byte)."""
        self.deadline = min(self.deadline, time.monotonic())
        self._stopped.set()
        for sock in self._sockets:
            with contextlib.suppress(OSError):  # it is closed already
                socket.socket.shutdown(sock, socket.SHUT_RDWR)  # ssl's own drops what another thread still reads with

    def url(self, path: str) -> str:
        """`path` below the repository's own; the characters that a path in a repository may have are escaped."""
        return f"{self.address.server}/api/repos/{self.address.namespace}/{self.address.name}{quote(path)}"

    def ask(self, method: str, path: str, body: object = None, **parameters: Any) -> Json:
        """The JSON answer to a request that does no harm when it is sent twice."""
        return self.again(lambda: self.once(method, path, body, **parameters))

    def once(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        url: str | None = None,
        stall: float = STALL_SECONDS,
        **parameters: int,
    ) -> Json:
        """The JSON answer to a request that is sent one time. `body`: bytes as they are, a tuple (bytes, content type),
        or anything else as JSON; `stall`: seconds without a byte after which the server counts as hung."""
        content, kind = _content(body)
        with self._sent(
            method, url or self.url(path), content, {"Content-Type": kind} if kind else {}, stall, parameters
        ) as answer:
            return self._json(answer, b"".join(self._blocks(answer, method, most=MOST)))

    def blocks(self, path: str, **parameters: int) -> Iterator[bytes]:
        """The bytes of an answer as they come. Sent once: the caller resumes where it broke."""
        with self._sent("GET", self.url(path), None, {}, STALL_SECONDS, parameters) as answer:
            yield from self._blocks(answer, path)

    def again(self, attempt: Callable[[], T]) -> T:
        """Call `attempt` until it raises nothing that may pass, or the operation's time is over."""
        before: list[BaseException] = []  # how the tries before the last one ended

        def say(state: RetryCallState) -> None:
            if state.outcome and (found := state.outcome.exception()):
                before.append(found)
            self._say(state)

        attempts = Retrying(
            retry=retry_if_exception(_may_pass),
            wait=_wait,
            stop=lambda state: time.monotonic() + state.upcoming_sleep >= self.deadline,
            before_sleep=say,
            sleep=self._pause,
            reraise=True,
        )
        try:
            return attempts(attempt)
        except (Network, ServerError) as error:
            if not error.passes:
                raise
            if "store_timeout" in str(error) and before and isinstance(before[-1], Network | ServerError):
                error = before[-1]  # the last try came too late to say anything about the server
            text = str(error)
            if "store_timeout" not in text:
                text += f". Given up: store_timeout = {self.seconds:g} s is over, or would be with the next pause"
            raise type(error)(text, passes=False) from error

    def left(self) -> float:
        """Seconds that the operation may still take. Raises Network when there are none."""
        if (left := self.deadline - time.monotonic()) > 0:
            return left
        raise Network(f"{self.address}: the operation took longer than store_timeout = {self.seconds:g} s")

    def _pause(self, seconds: float) -> None:
        self._stopped.wait(seconds)

    def _say(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        log.warning("%s; trying again in %.1f s", error, state.upcoming_sleep)

    def _sent(
        self,
        method: str,
        url: str,
        content: bytes | None,
        headers: dict[str, str],
        stall: float,
        parameters: Mapping[str, int],
    ) -> "_Answer":
        left = self.left()
        if content is not None:
            headers = {**headers, "Content-Length": str(len(content))}
        if parameters:
            url += "?" + "&".join(f"{name}={quote(str(value), safe='')}" for name, value in parameters.items())
        try:
            response = self._pool.urlopen(
                method,
                url,
                body=self._pieces(content) if content else content,
                headers={**self._headers, **headers},
                timeout=urllib3.Timeout(connect=min(CONNECT_SECONDS, left), read=min(stall, left)),
                retries=False,
                redirect=False,
                preload_content=False,
                decode_content=False,
            )
        except (urllib3.exceptions.HTTPError, OSError) as error:
            reason = error.args[0] if isinstance(error, urllib3.exceptions.SSLError) else error
            if isinstance(reason, ssl.SSLCertVerificationError):
                raise UserError(
                    f"{self.address}: the server's certificate is not trusted: {reason.verify_message}. Is the host "
                    "right? For your own certificate authority, set SSL_CERT_FILE"
                ) from error
            raise self._network(error, method) from error
        answer = _Answer(response)
        if response.status >= 300:
            with answer:
                body = b"".join(self._blocks(answer, method, most=MOST))
                self._refused(method, url, response, body)
        return answer

    def _pieces(self, content: bytes) -> Iterator[memoryview]:
        """In small pieces, since the time limit of a send covers everything that is given to it."""
        for start in range(0, len(content), BLOCK):
            self.left()
            yield memoryview(content)[start : start + BLOCK]

    def _blocks(self, answer: "_Answer", what: str, most: int | None = None) -> Iterator[bytes]:
        expected, read = answer.length, 0
        while True:
            self.left()
            try:
                block = answer.response.read1(1 << 20)
            except (urllib3.exceptions.HTTPError, OSError) as error:
                raise self._network(error, what) from error
            if not block:
                break
            read += len(block)
            yield block
            if most is not None and read >= most:
                raise ServerError(f"{self.address}: an answer of more than {most} bytes", passes=False)
        if expected is not None and read < expected:
            raise Network(f"{self.address}: the connection broke after {read} of {expected} bytes")
        answer.whole = True

    def _json(self, answer: "_Answer", body: bytes) -> Json:
        content = _parsed(body)
        if content is None:
            raise ServerError(
                f"{self.address}: expected an Oxen server's JSON, got {_short(body)}. Is this the address of an Oxen "
                "server?"
            )
        if content.get("status") == "error":  # some answers begin before their work ends, and report errors only here
            raise ServerError(f"{self.address}: {_reason(content, body)}")
        return content

    def _network(self, error: Exception, what: str) -> Network:
        left = self.deadline - time.monotonic()
        if isinstance(error, urllib3.exceptions.TimeoutError | TimeoutError) and left <= 0.05:
            return Network(f"{self.address} did not answer within store_timeout = {self.seconds:g} s")
        reason = getattr(error, "reason", None) or error
        text = str(reason).partition(": ")[2] if isinstance(reason, urllib3.exceptions.HTTPError) else str(reason)
        return Network(f"{self.address} cannot be reached or broke off: {text or str(reason) or type(reason).__name__}")

    def _refused(self, method: str, url: str, response: urllib3.BaseHTTPResponse, body: bytes) -> NoReturn:
        """Raise what an answer above 299 means."""
        status, content = response.status, _parsed(body) or {}
        is_oxen = "status" in content
        reason = _reason(content, body) if is_oxen else f"HTTP {status}, {_short(body)}"
        if status in (401, 403):
            token = "the token of OXEN_TOKEN, OXEN_TOKEN_FILE or `oxen config` may not do this"
            if self._token is None:
                token = "it requires a token; set OXEN_TOKEN or OXEN_TOKEN_FILE"
            raise Auth(f"{self.address} refuses access (HTTP {status}): {token}")
        if 300 <= status < 400:
            target = response.headers.get("Location", "another place")
            raise UserError(f"{self.address}: the server redirects to {target}; use that address (oxen:// is https)")
        if status == 404 and is_oxen:
            raise NotFound(f"{self.address}: {reason}")
        if status in (404, 405, 501):
            raise UserError(
                f"{self.address}: {method} {url.partition('?')[0]} is unknown there ({reason}). Is it an Oxen server, "
                f"0.65 or newer (this one says {response.headers.get('oxen-version', 'no version')})?"
            )
        if status == 413:
            raise UserError(
                f"{self.address}: the proxy in front of the server rejects requests of this size (HTTP 413); make it "
                "accept parts of 64 MB (nginx: client_max_body_size 0)"
            )
        if status == 409:
            raise Conflict(f"{self.address}: {reason}")
        if status == 422 and "NoChanges" in reason:
            raise NoChanges(f"{self.address}: nothing to commit")
        if status == 507 or any(words in reason for words in disk.WORDS):
            text = f"{self.address}: the disk of the server is full ({reason}); make room there"
            raise ServerError(text, passes=False)
        if status in PASSING or status >= 500:
            after = response.headers.get("Retry-After", "")
            seconds = float(after) if after.isdecimal() else 0.0
            raise ServerError(f"{self.address}: the server reports an error: {reason}", after=seconds)
        raise UserError(f"{self.address} rejects {method} {url.partition('?')[0]}: HTTP {status}: {reason}")


class _Answer:
    """A response whose connection is kept for the next request only when it was read to its end."""

    def __init__(self, response: urllib3.BaseHTTPResponse):
        self.response, self.whole = response, False
        length = response.headers.get("Content-Length")
        self.length = int(length) if length and length.isdecimal() else None

    def __enter__(self) -> "_Answer":
        return self

    def __exit__(self, *_: object) -> None:
        if self.whole:
            self.response.release_conn()
        else:
            self.response.close()


def _pool(address: Address, sockets: list[socket.socket], stopped: threading.Event) -> urllib3.PoolManager:
    """`sockets`: where each connection is noted; one made after the operation was `stopped` is not used."""

    def note(sock: socket.socket) -> None:
        sockets.append(sock)
        if stopped.is_set():
            raise OSError("the operation is over")

    class Http(urllib3.connection.HTTPConnection):
        def connect(self) -> None:
            super().connect()
            note(self.sock)

    class Https(urllib3.connection.HTTPSConnection):
        def connect(self) -> None:
            super().connect()
            note(self.sock)

    class HttpPool(urllib3.HTTPConnectionPool):
        ConnectionCls = Http

    class HttpsPool(urllib3.HTTPSConnectionPool):
        ConnectionCls = Https

    options: Json = {"maxsize": 8, "block": False}
    if address.scheme == "https":
        options["ssl_context"] = ssl.create_default_context()  # reads SSL_CERT_FILE too
    host = address.host.rpartition(":")[0] if address.host.rpartition(":")[2].isdecimal() else address.host
    proxy = urllib.request.getproxies().get(address.scheme)
    if proxy and not urllib.request.proxy_bypass(host):
        where = urllib3.util.Url()
        with contextlib.suppress(urllib3.exceptions.LocationParseError):  # its text may hold a password
            where = urllib3.util.parse_url(proxy if "://" in proxy else f"http://{proxy}")
        if where.scheme not in ("http", "https") or not where.host:
            raise UserError(f"the proxy for {address.server} in the environment is not an http:// or https:// address")
        login = urllib3.make_headers(proxy_basic_auth=unquote(where.auth)) if where.auth else None
        pool: urllib3.PoolManager = urllib3.ProxyManager(where._replace(auth=None).url, proxy_headers=login, **options)
    else:
        pool = urllib3.PoolManager(**options)
    pool.pool_classes_by_scheme = {"http": HttpPool, "https": HttpsPool}
    return pool


def _content(body: object) -> tuple[bytes | None, str | None]:
    if body is None:
        return None, None
    if isinstance(body, tuple):
        return body
    if isinstance(body, bytes):
        return body, "application/octet-stream"
    return json.dumps(body).encode(), "application/json"


def _may_pass(error: BaseException) -> bool:
    """A full disk may pass too, but not within seconds: whoever runs the stage again decides when."""
    return isinstance(error, Network | ServerError) and error.passes


def _wait(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    drawn = wait_random_exponential(multiplier=0.5, max=LONGEST_WAIT)(state)
    return max(drawn, min(error.after, 10 * LONGEST_WAIT)) if isinstance(error, ServerError) else drawn


def _parsed(body: bytes) -> Json | None:
    """The JSON object that `body` is; None where it is something else."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _reason(answer: Json, body: bytes) -> str:
    """The reason that an Oxen server gives in its answer. Its errors come in two shapes."""
    error = answer.get("error")
    if isinstance(error, dict):
        parts = [error.get("title"), error.get("detail")]
    else:
        parts = [answer.get("status_description"), answer.get("status_message")]
    return ": ".join(str(part) for part in parts if part) or _short(body)


def _short(body: bytes) -> str:
    text = " ".join(body[:300].decode(errors="replace").split())
    return repr(text[:150]) if text else "an empty answer"
