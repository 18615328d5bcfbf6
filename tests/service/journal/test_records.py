import orjson

from service.journal.records import ServedList, erased_line, event_line, merged_line, served_line
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
    served = ServedList(ANSWER, None, PlacementRequest(name="home"), 5, False)
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
    explored = served._replace(propensities=[0.9, 0.1], since=3.0)
    told = orjson.loads(served_line(10.0, explored))
    assert (told["propensities"], told["since"]) == ([0.9, 0.1], 3.0)


def test_a_page_begins_where_its_first_item_stands():
    page = {**ANSWER, "items": [{**item, "rank": item["rank"] + 20} for item in ANSWER["items"]]}
    assert orjson.loads(served_line(1.0, ServedList(page, "u", None, 2, False)))["first"] == 21
    assert orjson.loads(served_line(1.0, ServedList({**ANSWER, "items": []}, "u", None, 2, False)))["first"] == 1


def test_a_placement_goes_by_its_name():
    for placement, name in (("home", "home"), (PlacementRequest(diversity=0.5), None), (None, None)):
        record = orjson.loads(served_line(1.0, ServedList(ANSWER, "anna", placement, 5, True)))
        assert record.get("placement") == name


def test_kind_comes_first_and_every_record_is_one_line():
    lines = [
        event_line(1.0, "a\nb", StoredEvent("x", "view", None, 1.0)),
        served_line(1.0, ServedList(ANSWER, "a\nb", None, 2, False)),
        erased_line(1.0, "a\nb"),
        merged_line(1.0, "a\nb", "c"),
    ]
    for line, kind in zip(lines, (b"event", b"served", b"erased", b"merged"), strict=True):
        assert line.startswith(b'{"kind":"' + kind + b'","time":1.0,')
        assert line.count(b"\n") == 1
        assert line.endswith(b"\n")
