"""An Oxen server for a test: the double, a real one, or a real one behind a proxy that checks tokens."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import servers
from tests.support.fake_oxen import FakeOxen

TOKEN = "Zq7-private_token-4f1e"


@dataclass(frozen=True)
class Running:
    """`fake` is the double itself, `token` what a client must send."""

    url: str
    fake: FakeOxen | None = None
    token: str | None = None


@contextlib.contextmanager
def running(kind: str, folder: Path) -> Iterator[Running]:
    """A server of `kind`: fake; guarded, the double that wants TOKEN; real; or nginx, a real one behind a proxy that
    wants TOKEN. Its files are in `folder`. Skips the test where such a server is missing."""
    if reason := servers.missing(kind):
        pytest.skip(reason)
    if kind in ("fake", "guarded"):
        token = TOKEN if kind == "guarded" else None
        with FakeOxen(token=token) as fake:
            yield Running(fake.url, fake, token)
        return
    with servers.real_server(folder / "real") as real:
        if kind == "real":
            yield Running(real.url)
            return
        with servers.nginx_proxy(real.url, TOKEN, folder / "nginx") as proxy:
            yield Running(proxy.url, token=TOKEN)


def address(url: str, name: str) -> str:
    """The address of the data repository ns/`name` on the server at `url`."""
    return f"{url.replace('https:', 'oxen:').replace('http:', 'oxen+http:')}/ns/{name}"
