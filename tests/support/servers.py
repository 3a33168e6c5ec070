"""Programs that tests talk to: a real oxen-server, and nginx that checks a bearer token in front of it.

    make test-server OXEN_SERVER=/path/to/oxen-server
    python -m tests.support.servers                             says what is missing for it

oxen-server 0.65.1 has no authentication of its own, so the token is checked where a user would have it checked. All
files of both programs stay in the folder given; both listen on free ports of 127.0.0.1.
"""

import contextlib
import http.client
import os
import pwd
import random
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

SECONDS_TO_START = 60.0

NGINX = """
daemon off;
{user}
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/nginx.log;
events {{ worker_connections 512; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    map $http_authorization $allowed {{
        default 0;
        "~^Bearer {token}$" 1;
    }}
    server {{
        listen 127.0.0.1:{port};
        client_max_body_size 0;
        location / {{
            if ($allowed = 0) {{ return 401; }}
            proxy_pass {upstream};
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $http_host;
            proxy_request_buffering off;
            proxy_read_timeout 3600s;
        }}
    }}
}}
"""


class Program:
    """A running server at `url`, http://127.0.0.1:port; it can be killed and started again on its data and port."""

    def __init__(self, command: list[str], environment: dict[str, str], port: int, log: Path):
        self.command, self.environment, self.port, self.log = command, environment, port, log
        self.url = f"http://127.0.0.1:{port}"
        self.start()

    @property
    def pid(self) -> int:
        return self.process.pid

    def start(self) -> None:
        """Start the program and wait until it answers; RuntimeError with the end of its log where it does not."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, env={**os.environ, **self.environment}, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        end = time.monotonic() + SECONDS_TO_START
        while not answers(self.url):
            if self.process.poll() is not None or time.monotonic() > end:
                self.kill()
                raise RuntimeError(f"{self.command[0]} did not start: {self.log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.05)

    def kill(self) -> None:
        """SIGKILL: what was not on disk is lost."""
        self.process.kill()
        self.process.wait()

    def restart(self) -> None:
        self.kill()
        self.start()

    def stop(self) -> None:
        """SIGTERM, and SIGKILL where that does not end it within five seconds."""
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        self.kill()


def missing(name: str) -> str | None:
    """What is not there for the server `name` (real, nginx; fake needs nothing) and how to get it; None: all is."""
    server = os.environ.get("OXEN_SERVER")
    if name in ("real", "nginx") and not server:
        return "OXEN_SERVER names no oxen-server 0.65.1 (docs/server.md says how to get one)"
    if name in ("real", "nginx") and not os.access(str(server), os.X_OK):
        return f"OXEN_SERVER names {server}, which is not a program (docs/server.md says how to get one)"
    if name == "nginx" and not nginx():
        return "nginx is not installed (Debian: apt-get install nginx-light), or NGINX does not name it"
    return None


def here() -> list[str]:
    """The kinds of servers that tests can be run against on this machine."""
    return [name for name in ("fake", "real", "nginx") if missing(name) is None]


def nginx() -> str | None:
    """The nginx program: what NGINX names, else the one on the PATH or where Debian puts it."""
    return shutil.which(os.environ.get("NGINX", "nginx"), path=f"{os.environ.get('PATH', '')}:/usr/sbin")


@contextlib.contextmanager
def real_server(folder: Path, port: int | None = None) -> Iterator[Program]:
    """The oxen-server that OXEN_SERVER names, with its data, configuration and caches in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    environment = {
        "SYNC_DIR": str(folder / "data"),
        "OXEN_CONFIG_DIR": str(folder / "config"),
        "HOME": str(folder),
        "TMPDIR": str(_made(folder / "tmp")),
    }
    command = [os.environ["OXEN_SERVER"], "start", "-i", "127.0.0.1", "-p", str(port)]
    server = Program(command, environment, port, folder / "server.log")
    try:
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def nginx_proxy(upstream: str, token: str, folder: Path) -> Iterator[Program]:
    """nginx in front of the server at `upstream`: 401 for a request without `Authorization: Bearer <token>`."""
    program = nginx()
    if program is None or not re.fullmatch(r"[\w-]+", token):
        raise ValueError("nginx is needed, and a token of letters, digits, _ and -")
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    user = f"user {pwd.getpwuid(0).pw_name};" if os.geteuid() == 0 else ""  # else root's workers change to nobody
    config = folder / "nginx.conf"
    config.touch(mode=0o600)
    config.write_text(NGINX.format(folder=folder, token=token, port=port, upstream=upstream, user=user))
    command = [program, "-p", str(folder), "-c", str(config), "-e", str(folder / "nginx.log")]
    proxy = Program(command, {}, port, folder / "nginx.log")
    try:
        yield proxy
    finally:
        proxy.stop()


def free_port() -> int:
    """A free port of 127.0.0.1, below those that the system gives to outgoing connections: none of these takes it
    before the server that it is meant for, or while that is started again."""
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.SystemRandom().randrange(10000, first) if first > 20000 else 0  # some tests seed `random`
        with contextlib.suppress(OSError), socket.socket() as sock:
            sock.bind(("127.0.0.1", port))
            found: int = sock.getsockname()[1]
            return found


def answers(url: str) -> bool:
    """Whether an HTTP server answers at `url`; a refusal is an answer, too."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=5)
    try:
        connection.request("GET", "/api/version")
        connection.getresponse()
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    return True


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


if __name__ == "__main__":
    if problem := missing("nginx"):
        sys.exit(f"make test-server: {problem}")
