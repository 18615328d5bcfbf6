import hashlib
import hmac

import pytest

from service.errors import ConfigurationError, Forbidden, Unauthenticated
from service.keys import ANYBODY, LOOK_EVERY_S, Anybody, KeyRing, needed_scope, open_keys, read_keys
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
    assert ring.allow("s3cret", "read", client="10.0.0.1").name == "shop"
    assert ring.allow("scrape", "metrics", client="10.0.0.1").name == "prometheus"
    with pytest.raises(Forbidden, match="'prometheus' has no scope 'read'; it has metrics"):
        ring.allow("scrape", "read", client="10.0.0.1")


@pytest.mark.parametrize("presented", [None, "", "wrong", "s3cret ", "ключ", "\udcff"])
def test_an_unknown_key_opens_nothing(file, presented):
    with pytest.raises(Unauthenticated):
        KeyRing(file).allow(presented, "read", client="127.0.0.1")


class Clock:
    """Seconds that only a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def look(self) -> None:
        self.now += LOOK_EVERY_S


def test_a_wrong_key_and_a_made_up_one_take_the_same_way(file, monkeypatch):
    """One digest, one comparison, and the same words; a right one differs in nothing but the outcome."""
    compared: list[tuple[bytes, bytes]] = []
    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append((a, b)) or real(a, b))
    ring = KeyRing(file)
    words = set()
    for presented in ("s3creu", "nothing like it", "x" * 10_000):
        with pytest.raises(Unauthenticated) as refused:
            ring.allow(presented, "read", client="x")
        words.add(str(refused.value))
    ring.allow("s3cret", "read", client="x")
    assert len(words) == 1
    assert len(compared) == 4
    assert {len(part) for pair in compared for part in pair} == {32}


def test_keys_rotate_without_a_restart(file):
    clock = Clock()
    ring = KeyRing(file, clock=clock)
    file.write_text(file.read_text() + line("shop2", "read", "newer"))
    clock.look()
    assert ring.allow("newer", "read", client="x").name == "shop2"
    assert ring.allow("s3cret", "read", client="x").name == "shop"
    file.write_text(line("shop2", "read", "newer"))
    clock.look()
    with pytest.raises(Unauthenticated):
        ring.allow("s3cret", "read", client="x")


def test_the_file_is_looked_at_a_few_times_a_second_and_not_by_every_call(file, monkeypatch):
    clock = Clock()
    ring = KeyRing(file, clock=clock)
    looks: list[float] = []
    monkeypatch.setattr(ring, "_stamp", lambda: looks.append(clock.now))
    for _ in range(1_000):
        clock.now += 0.001
        ring.allow("s3cret", "read", client="x")
    assert len(looks) <= 1 / LOOK_EVERY_S


def test_torn_or_gone_file_leaves_the_old_keys_and_says_so(file, caplog):
    clock = Clock()
    ring = KeyRing(file, clock=clock)
    file.write_text("half a li")
    clock.look()
    assert ring.allow("s3cret", "read", client="x").name == "shop"
    file.unlink()
    clock.look()
    assert ring.allow("s3cret", "read", client="x").name == "shop"
    assert caplog.text.count("the old ones stay") == 2
    assert "half a li" not in caplog.text


def test_a_line_may_carry_limits_of_its_own(tmp_path):
    path = tmp_path / "keys"
    plain = line("a", "read", "x").strip()
    path.write_text(f"{plain}\n{plain}:\n{plain}:rate=0.5\n{plain}: rate=50, budget=0\n")
    assert [(key.rate, key.budget) for key in read_keys(path)] == [(None, None), (None, None), (0.5, None), (50.0, 0)]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "holds no API key"),
        ("shop:read\n", "line 1 is not"),
        ("shop:read:s3cret\n", "line 1 is not"),
        (line("", "read", "x"), "line 1 is not"),
        (line("a", "read", "x") + line("b", "all", "y"), "line 2: scope 'all' is unknown"),
        *(
            (line("a", "read", "x").strip() + f":{limits}", "line 1: limits are written")
            for limits in ("fast", "rate", "rate=-1", "rate=inf", "rate=nan", "budget=1.5", "rate=1=2", "pages=4")
        ),
        (line("a", "read", "x").strip() + ":rate=1:budget=2", "line 1 is not"),
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
    assert open_keys(Settings()).allow(None, "write", client="::1") is ANYBODY
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
        ("GET", "/v1/admin/bundles", "admin"),
        ("POST", "/v1/admin/bundles/activate", "admin"),
        ("GET", "/static", "read"),
        ("GET", "/whatever", "read"),
    ],
)
def test_everything_but_probes_and_pages_needs_a_key(method, path, scope):
    assert needed_scope(method, path) == scope
