"""Addresses of servers, and which token is for which of them."""

import pytest

from self_reward.errors import UserError
from self_reward.store import open_store
from self_reward.store.remote import address

TOKEN = "Zq7-private_token-4f1e"
PUBLIC = "oxen://hub.oxen.ai/ns/name"


@pytest.mark.parametrize(
    ("text", "server"),
    [
        (PUBLIC, "https://hub.oxen.ai"),
        ("oxen://HUB.oxen.ai:443/ns/name/", "https://hub.oxen.ai:443"),
        ("oxen+http://127.0.0.1:65535/ns/name", "http://127.0.0.1:65535"),
        ("oxen+http://[::1]:3000/ns/name", "http://[::1]:3000"),
    ],
)
def test_an_address(text, server):
    found = address.parse(text)
    assert (found.server, found.namespace, found.name) == (server, "ns", "name")
    assert address.parse(str(found)) == found


@pytest.mark.parametrize(
    "text",
    [
        *("oxen://hub.oxen.ai:99999/ns/name", "oxen://hub.oxen.ai:0/ns/name", "oxen://hub.oxen.ai:/ns/name"),
        *("oxen://hub.oxen.ai/ns", "oxen://hub.oxen.ai/ns/name/more", "oxen://hub.oxen.ai//name", "oxen:///ns/name"),
        *("oxen://hub.oxen.ai/../name", "oxen://hub.oxen.ai/ns/..", "oxen:/hub.oxen.ai/ns/name", " " + PUBLIC),
        *("OXEN://hub.oxen.ai/ns/name", "oxen+https://hub.oxen.ai/ns/name", "oxen://hub.oxen.ai/n s/name"),
    ],
)
def test_what_is_no_address_is_told_with_what_is(text):
    with pytest.raises(UserError, match="expected oxen://HOST/NAMESPACE/NAME") as raised:
        address.parse(text)
    assert text in str(raised.value)


@pytest.mark.parametrize("text", ["https://hub.oxen.ai/ns/name", "http://127.0.0.1:3000/ns/name"])
def test_a_browsers_address_is_told_with_the_one_that_is_meant(text):
    meant = text.replace("https:", "oxen:").replace("http:", "oxen+http:")
    with pytest.raises(UserError, match=f"did you mean {meant.replace('+', '.')}"):
        address.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        *(f"oxen://me:{TOKEN}@hub.oxen.ai/ns/name", f"oxen://{TOKEN}@hub.oxen.ai/ns/name"),
        *(f"{PUBLIC}?token={TOKEN}", f"{PUBLIC}#{TOKEN}", f"oxen://hub.oxen.ai/?token={TOKEN}"),
    ],
)
def test_what_may_be_a_password_in_an_address_is_not_shown(text, tmp_path):
    with pytest.raises(UserError, match="an address with a") as raised:
        open_store(text, branch="main", lock_timeout=1, store_timeout=1, cache_dir=tmp_path)
    assert TOKEN not in str(raised.value)


def token(text=PUBLIC, **environment):
    return address.token(address.parse(text), environment=environment)


def test_a_token_of_the_environment_or_of_a_file(tmp_path):
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    assert token() is None
    assert token(OXEN_TOKEN=f" {TOKEN}\n") == token(OXEN_TOKEN_FILE=str(file)) == TOKEN
    assert token(OXEN_TOKEN=TOKEN, OXEN_TOKEN_FILE=str(file)) == TOKEN  # the same in both
    assert address.token(address.parse(PUBLIC), "SEED_OXEN_TOKEN", {"OXEN_TOKEN": TOKEN}) is None


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "OXEN_TOKEN_FILE = .*token cannot be read"),
        (b"", "OXEN_TOKEN_FILE = .*token is empty"),
        (b" \n", "OXEN_TOKEN_FILE = .*token is empty"),
        (b"\xff\xfe", "OXEN_TOKEN_FILE = .*token cannot be read"),
        (f"{TOKEN}\n{TOKEN}".encode(), "characters that no token has"),
        (f"{TOKEN} x".encode(), "characters that no token has"),
        (f"{TOKEN}é".encode(), "characters that no token has"),
    ],
)
def test_a_file_that_holds_no_token_is_told_without_what_it_holds(tmp_path, content, said):
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=said) as raised:
        token(OXEN_TOKEN_FILE=str(file))
    assert TOKEN not in str(raised.value)


def test_two_different_tokens_are_refused_without_showing_them(tmp_path):
    (tmp_path / "token").write_text("other-token")
    with pytest.raises(UserError, match="different tokens") as raised:
        token(OXEN_TOKEN=TOKEN, OXEN_TOKEN_FILE=str(tmp_path / "token"))
    assert TOKEN not in str(raised.value) and "other-token" not in str(raised.value)


def test_a_token_that_the_oxen_command_saved_is_for_its_host_and_not_sent_in_clear_to_a_public_one(tmp_path):
    """The key is the host with its port, as oxen keeps it."""
    hosts = ("hub.oxen.ai", "10.0.0.7:3000")
    config = "".join(f'[[host_configs]]\nhost = "{host}"\nauth_token = "{TOKEN}"\n' for host in hosts)
    (tmp_path / "auth_config.toml").write_text(config)
    given = {"OXEN_CONFIG_DIR": str(tmp_path)}
    assert token(PUBLIC, **given) == token("oxen+http://10.0.0.7:3000/ns/name", **given) == TOKEN
    assert token("oxen+http://hub.oxen.ai/ns/name", **given) is None
    assert (
        token("oxen+http://hub.oxen.ai/ns/name", OXEN_TOKEN="named", **given) == "named"
    )  # whoever names one means it
    for other in ("oxen://oxen.example.org/ns/name", "oxen+http://10.0.0.7:3001/ns/name", "oxen://10.0.0.7/ns/name"):
        assert token(other, **given) is None
    (tmp_path / "home/.config/oxen").mkdir(parents=True)
    (tmp_path / "auth_config.toml").rename(tmp_path / "home/.config/oxen/auth_config.toml")
    assert token(PUBLIC, HOME=str(tmp_path / "home")) == TOKEN


@pytest.mark.parametrize("config", ["not toml [", "host_configs = 5", '[[host_configs]]\nhost = "hub.oxen.ai"', "\x00"])
def test_a_broken_configuration_of_oxen_is_none(tmp_path, config):
    (tmp_path / "auth_config.toml").write_text(config)
    assert token(PUBLIC, OXEN_CONFIG_DIR=str(tmp_path)) is None
