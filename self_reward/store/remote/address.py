"""Where a remote data repository is, and the token that opens it."""

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from self_reward.errors import UserError

SCHEMES = {"oxen": "https", "oxen+http": "http"}
EXPECTED = "expected oxen://HOST/NAMESPACE/NAME (https) or oxen+http://HOST:PORT/NAMESPACE/NAME"


@dataclass(frozen=True)
class Address:
    """A data repository on a server."""

    scheme: str
    """http or https"""
    host: str
    """with its port where one is given"""
    namespace: str
    name: str

    def __str__(self) -> str:
        scheme = next(oxen for oxen, http in SCHEMES.items() if http == self.scheme)
        return f"{scheme}://{self.host}/{self.namespace}/{self.name}"

    @property
    def server(self) -> str:
        return f"{self.scheme}://{self.host}"


def parse(text: str) -> Address:
    """The address that `text` is. Raises UserError; what may be a password is not shown."""
    scheme, _, rest = text.partition("://")
    if "@" in rest:
        raise UserError(
            "data_repo: an address with a user or a password in it, which would be shown in logs; leave out what "
            f"stands before the @, and give a token in OXEN_TOKEN or OXEN_TOKEN_FILE; {EXPECTED}"
        )
    if "?" in rest or "#" in rest:
        raise UserError(f"data_repo: an address with a ? or a # in it; {EXPECTED}")
    match = re.fullmatch(r"(\[[0-9A-Fa-f:]+\]|[A-Za-z0-9._-]+)(:\d{1,5})?/([\w.-]+)/([\w.-]+)/?", rest, re.ASCII)
    port = int(match[2][1:]) if match and match[2] else 1
    if scheme in SCHEMES and match and 0 < port < 65536 and not {match[3], match[4]} & {".", ".."}:
        return Address(SCHEMES[scheme], match[1].lower() + (match[2] or ""), match[3], match[4])
    meant = ""
    if scheme in ("http", "https") and match:
        meant = f"; did you mean {'oxen' if scheme == 'https' else 'oxen+http'}://{rest}?"
    raise UserError(f"data_repo {text}: {EXPECTED}{meant}")


def token(address: Address, variable: str = "OXEN_TOKEN", environment: Mapping[str, str] = os.environ) -> str | None:
    """The token for a server: from the environment variable `variable`, the file that {variable}_FILE names, or what
    `oxen config --auth HOST TOKEN` has saved for this host. None: there is no token; some servers need none."""
    found = environment.get(variable, "")
    if file := environment.get(f"{variable}_FILE"):
        try:
            from_file = Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{variable}_FILE = {file} cannot be read: {error}") from None
        if found and found.strip() != from_file.strip():
            raise UserError(f"{variable} and {variable}_FILE hold different tokens; set one of them")
        found = from_file
        if not found.strip():
            raise UserError(f"{variable}_FILE = {file} is empty; expected a token")
    is_closed = address.scheme == "https" or ":" in address.host  # a token saved for a public host is not sent in clear
    found = found.strip() or (_saved(address.host, environment) if is_closed else None) or ""
    if not found.isascii() or not found.isprintable() or " " in found:
        raise UserError(f"{variable} holds characters that no token has (a space, a line break, an accent?)")
    return found or None


def _saved(host: str, environment: Mapping[str, str]) -> str | None:
    folder = environment.get("OXEN_CONFIG_DIR") or Path(environment.get("HOME", "/")) / ".config" / "oxen"
    try:
        config = tomllib.loads(Path(folder, "auth_config.toml").read_text(encoding="utf-8"))
        return next(entry["auth_token"] for entry in config["host_configs"] if entry["host"] == host)
    except (OSError, ValueError, KeyError, TypeError, StopIteration):
        return None
