import orjson

from service.journal.records import (
    ServedList,
    erased_line,
    event_bytes,
    event_line,
    merged_line,
    served_bytes,
    served_line,
)
from service.schemas import PlacementRequest
from service.sessions import StoredEvent

ANSWER = {
    "recommendation_id": "r1",
    "items": [
        {"item_id": "a", "score": 0.5, "rank": 1, "source": "retrieval", "attributes": {"title": "A"}},
        {"item_id": "b", "score": 7.0, "rank": 2, "source": "popular"},
    ],
    "next": None,
    "model": {"name": "toy", "bundle": "toy-1", "variant": "default"},
    "degraded": True,
    "degraded_reasons": ["deadline"],
    "timings_ms": {"state": 0.2},
}


def test_an_event_says_what_it_was_sent_with_and_nothing_that_is_absent():
    whole = StoredEvent("a", "click", 2.5, 9.0, "e1", "r1", {"page": "home"})
    assert orjson.loads(event_line(10.0, "anna", whole)) == {
        "kind": "event",
        "time": 10.0,
        "user_id": "anna",
        "item_id": "a",
        "event_type": "click",
        "timestamp": 9.0,
        "value": 2.5,
        "event_id": "e1",
        "recommendation_id": "r1",
        "context": {"page": "home"},
    }
    bare = event_line(10.0, "anna", StoredEvent("a", "view", None, 9.0))
    assert set(orjson.loads(bare)) == {"kind", "time", "user_id", "item_id", "event_type", "timestamp"}


def test_a_list_says_how_it_came_about_without_what_the_catalogue_knows_anyway():
    served = ServedList.of(ANSWER, None, PlacementRequest(name="home"), k=5, is_ranked=False)
    assert orjson.loads(served_line(10.0, served)) == {
        "kind": "served",
        "time": 10.0,
        "user_id": None,
        "recommendation_id": "r1",
        "k": 5,
        "first": 1,
        "items": ["a", "b"],
        "scores": [0.5, 7.0],
        "sources": ["retrieval", "popular"],
        "ranked": False,
        "model": "toy",
        "bundle": "toy-1",
        "variant": "default",
        "placement": "home",
        "degraded": ["deadline"],
        "timings_ms": {"state": 0.2},
    }
    explored = served._replace(propensities=[0.9, 0.1], placement=None)
    assert orjson.loads(served_line(10.0, explored))["propensities"] == [0.9, 0.1]


def test_a_placement_goes_by_its_name():
    assert ServedList.of(ANSWER, "anna", "home", k=5, is_ranked=True).placement == "home"
    assert ServedList.of(ANSWER, "anna", None, k=5, is_ranked=True).placement is None


def test_kind_comes_first_and_every_record_is_one_line():
    lines = [
        event_line(1.0, "a\nb", StoredEvent("x", "view", None, 1.0)),
        served_line(1.0, ServedList.of(ANSWER, "a\nb", None, k=2, is_ranked=False)),
        erased_line(1.0, "a\nb"),
        merged_line(1.0, "a\nb", "c"),
    ]
    for line, kind in zip(lines, (b"event", b"served", b"erased", b"merged"), strict=True):
        assert line.startswith(b'{"kind":"' + kind + b'","time":1.0,')
        assert line.count(b"\n") == 1
        assert line.endswith(b"\n")


def test_sizes_grow_with_what_a_record_holds():
    small, large = StoredEvent("a", "view", None, 1.0), StoredEvent("a", "view", None, 1.0, context={"p": 1, "q": 2})
    assert event_bytes(small) < event_bytes(large)
    served = ServedList.of(ANSWER, "anna", None, k=2, is_ranked=False)
    assert served_bytes(served) > len(served_line(1.0, served)) / 2
