import hashlib

import pytest

from service.errors import ConfigurationError, Forbidden, Unauthenticated
from service.keys import Anybody, KeyRing, needed_scope, open_keys, read_keys
from service.settings import Settings


def line(name: str, scopes: str, key: str) -> str:
    return f"{name}:{scopes}:{hashlib.sha256(key.encode()).hexdigest()}\n"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "keys"
    path.write_text("# callers\n\n" + line("shop", "read,write", "s3cret") + line("prometheus", "metrics", "scrape"))
    return path


def test_a_key_opens_what_its_scopes_say(file):
    ring = KeyRing(file)
    assert ring.allow("s3cret", "read", client="10.0.0.1") == "shop"
    assert ring.allow("scrape", "metrics", client="10.0.0.1") == "prometheus"
    with pytest.raises(Forbidden, match="'prometheus' has no scope 'read'; it has metrics"):
        ring.allow("scrape", "read", client="10.0.0.1")


@pytest.mark.parametrize("presented", [None, "", "wrong", "s3cret ", "ключ", "\udcff"])
def test_an_unknown_key_opens_nothing(file, presented):
    with pytest.raises(Unauthenticated):
        KeyRing(file).allow(presented, "read", client="127.0.0.1")


def test_keys_rotate_without_a_restart(file):
    ring = KeyRing(file)
    file.write_text(file.read_text() + line("shop2", "read", "newer"))
    assert ring.allow("newer", "read", client="x") == "shop2"
    assert ring.allow("s3cret", "read", client="x") == "shop"
    file.write_text(line("shop2", "read", "newer"))
    with pytest.raises(Unauthenticated):
        ring.allow("s3cret", "read", client="x")


def test_torn_or_gone_file_leaves_the_old_keys_and_says_so(file, caplog):
    ring = KeyRing(file)
    file.write_text("half a li")
    assert ring.allow("s3cret", "read", client="x") == "shop"
    file.unlink()
    assert ring.allow("s3cret", "read", client="x") == "shop"
    assert caplog.text.count("the old ones stay") == 2
    assert "half a li" not in caplog.text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "holds no API key"),
        ("shop:read\n", "line 1 is not"),
        ("shop:read:s3cret\n", "line 1 is not"),
        (line("", "read", "x"), "line 1 is not"),
        (line("a", "read", "x") + line("b", "all", "y"), "line 2: scope 'all' is unknown"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused_without_showing_it(tmp_path, text, reason):
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=reason) as refused:
        read_keys(path)
    assert "s3cret" not in str(refused.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="cannot be read"):
        open_keys(Settings(api_keys_file=tmp_path / "none"))


def test_without_keys_only_loopback_is_listened_on():
    assert isinstance(open_keys(Settings()), Anybody)
    with pytest.raises(ConfigurationError, match=r"0\.0\.0\.0 can be reached .* SEQUITUR_ALLOW_ANONYMOUS=true"):
        open_keys(Settings(host="0.0.0.0"))
    assert open_keys(Settings(host="0.0.0.0", allow_anonymous=True)).allow(None, "write", client="10.0.0.1")


def test_without_keys_a_caller_from_elsewhere_is_refused_whatever_was_listened_on():
    assert open_keys(Settings()).allow(None, "write", client="::1") == "anonymous"
    for client in ("10.0.0.1", "an unknown address"):
        with pytest.raises(Unauthenticated, match="only this machine"):
            open_keys(Settings()).allow(None, "read", client=client)


@pytest.mark.parametrize(
    ("method", "path", "scope"),
    [
        ("GET", "/livez", None),
        ("GET", "/readyz", None),
        ("GET", "/", None),
        ("GET", "/static/app.js", None),
        ("GET", "/docs", None),
        ("GET", "/metrics", "metrics"),
        ("POST", "/v1/recommendations", "read"),
        ("GET", "/v1/users/a/history", "read"),
        ("POST", "/v1/events", "write"),
        ("DELETE", "/v1/users/a", "write"),
        ("GET", "/static", "read"),
        ("GET", "/whatever", "read"),
    ],
)
def test_everything_but_probes_and_pages_needs_a_key(method, path, scope):
    assert needed_scope(method, path) == scope
