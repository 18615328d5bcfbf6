"""Where load may go, what is learnt there, and which answers are wrong."""

import pytest
from containers import free_port

from loadtests import target
from loadtests.target import Facts, LoadError, checked_url, learn


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8000", "http://localhost:1/", "http://[::1]:9", "http://service:8000"]
)
def test_this_machine_and_the_compose_service_may_be_loaded(url):
    assert checked_url(url) == url.rstrip("/")


@pytest.mark.parametrize("url", ["http://example.com", "http://127.0.0.1.example.com", "http://10.0.0.1:8000"])
def test_foreign_hosts_are_refused(url):
    with pytest.raises(LoadError, match="another machine"):
        checked_url(url)
    with pytest.raises(LoadError, match="another machine"):
        learn(url)


@pytest.mark.parametrize("url", ["", "127.0.0.1:8000", "file:///etc/passwd", "https://127.0.0.1"])
def test_what_is_no_address_is_refused(url):
    with pytest.raises(LoadError, match="not the address"):
        checked_url(url)


def test_the_whole_catalog_is_learnt_in_pages(fake_service):
    fake = fake_service(1_234)
    facts = learn(fake.url)
    assert facts.item_ids == tuple(fake.item_ids)
    assert facts.is_complete
    assert [len(body["filter"]["exclude_ids"]) for body in fake.asked] == [0, 500, 1000]
    assert facts.bundle["name"] == "fake"


def test_a_catalog_without_end_is_known_by_its_head(fake_service, monkeypatch):
    monkeypatch.setattr(target, "MOST_EXCLUDED", 700)
    facts = learn(fake_service(1_500).url)
    assert len(facts.item_ids) == 1_000
    assert not facts.is_complete


def test_a_real_service_is_learnt_without_what_is_unavailable(service):
    facts = learn(service)
    assert facts.item_ids[:3] == ("i01", "i02", "i03")
    assert len(facts.item_ids) == 19
    assert facts.model["catalog_items"] == 20


def test_an_empty_catalog_cannot_be_loaded(fake_service):
    with pytest.raises(LoadError, match="nothing at all"):
        learn(fake_service(0).url)


def test_nobody_there_is_said_with_the_remedy():
    with pytest.raises(LoadError, match="start `python -m service` first"):
        learn(f"http://127.0.0.1:{free_port()}")


def test_a_refusal_is_passed_on(fake_service):
    fake = fake_service()
    fake.recommend = lambda _body: (503, {"code": "not_ready"})
    with pytest.raises(LoadError, match=r"503.*not_ready"):
        learn(fake.url)


def test_the_key_of_the_environment_travels(monkeypatch):
    monkeypatch.delenv("LOADTEST_API_KEY", raising=False)
    assert target.headers() == {}
    monkeypatch.setenv("LOADTEST_API_KEY", "secret")
    assert target.headers() == {"authorization": "Bearer secret"}


def facts(*item_ids, is_complete=True):
    return Facts({}, item_ids, frozenset(item_ids), is_complete)


def answer(*item_ids, degraded=()):
    return {"items": [{"item_id": item_id} for item_id in item_ids], "degraded_reasons": list(degraded)}


@pytest.mark.parametrize(
    ("given", "hidden", "perhaps", "wrong"),
    [
        (answer("a", "b"), (), (), None),
        (answer("a", "a"), (), (), "repeated"),
        (answer("a", "b"), {"b"}, (), "seen"),
        (answer("a", "x"), (), (), "ineligible"),
        (answer("a", "b", "c"), (), (), "long"),
        (answer("a"), (), (), "short"),
        (answer(), (), (), "short"),
        (answer("d"), {"a", "b", "c"}, (), None),
        (answer("d"), {"a", "b"}, {"c"}, None),
        (answer("a"), {"b"}, {"c"}, "short"),
        (answer("c", "d"), {"a", "unknown"}, (), None),
    ],
)
def test_an_answer_that_breaks_the_promise_is_wrong(given, hidden, perhaps, wrong):
    assert facts("a", "b", "c", "d").wrong_with(given, k=2, hidden=hidden, perhaps=perhaps) == wrong


def test_items_beyond_the_known_head_are_not_ineligible():
    assert facts("a", is_complete=False).wrong_with(answer("x", "y"), k=2, hidden=()) is None


def test_a_service_that_says_its_store_is_away_may_show_what_was_seen():
    given = answer("a", "b", degraded=["store_unavailable"])
    assert facts("a", "b", "c").wrong_with(given, k=2, hidden={"a"}) is None
