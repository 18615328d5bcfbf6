"""Lists with labels: by hand, against the serving path, and with the future shuffled."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import toy
import toy_ranker

from models.declaration import declare, standardised
from models.errors import ImpressionsInvalid, OrderOnly
from models.events import EventLog, read_log
from models.histories import Histories, catalog_from_log, with_popularity
from models.impressions import contexts, feedback, logged, replayed, with_positives
from models.lists import Arrays, Lists
from models.simulator import DAY_S, START_S, simulate
from models.splits import Cases, leave_one_out, temporal
from models.statistics import count
from models.tasks import parse
from retrieval.arrangement import Arranger
from retrieval.bundle import Bundle
from retrieval.catalog import Catalog
from retrieval.features import Candidates, FeatureTables
from retrieval.filters import NO_FILTER, Filters
from retrieval.inputs import Request
from retrieval.queries import NO_STAGES, Answer, Query, Recommender, Stage
from retrieval.recommenders import Served, load
from retrieval.tasks import Task
from retrieval.two_stage import TwoStage

TYPES = ("view", "click", "like", "purchase")
CLICK, LIKE = Task("click"), Task("like", op=">=", value=4.0)


# Contexts


def test_users_speak_in_words_and_numbers() -> None:
    users = pl.DataFrame({"user_id": ["a", "b"], "gender": ["F", None], "age": [25, 35], "tags": [["x"], []]})
    assert contexts(users) == {"a": ({"gender": "F"}, {"age": 25.0}), "b": ({}, {"age": 35.0})}
    assert contexts(None) == {}


# Replayed lists


@pytest.fixture(scope="module")
def served(toy_bundle: Path) -> Served:
    return load(Bundle.open(toy_bundle))


class Told:
    """A first stage whose answers are given."""

    name = "told"

    def __init__(self, rows: Sequence[int], sources: Sequence[str]) -> None:
        self._rows, self._sources = np.array(rows, dtype=np.int64), tuple(sources)
        self.asked: list[Query] = []

    def reads(self, _request: Request, /) -> bool:
        return True

    def recommend(self, queries: Sequence[Query], stage: Stage = NO_STAGES) -> list[Answer]:  # noqa: ARG002
        self.asked += queries
        scores = np.linspace(1, 0, len(self._rows), dtype=np.float32)
        return [Answer(self._rows, scores, self._sources) for _ in queries]


def rated() -> Histories:
    """Two users: rows 1, 2, 3, 4 with values 5, 3, none, 5, and 4, 2 with 4, 5."""
    made = Histories.from_rows([[1, 2, 3, 4], [4, 2]])
    return replace(made, values=np.array([5, 3, np.nan, 5, 4, 5], np.float32), user_ids=("a", "b"))


def told(cases: Cases, recommender: Recommender, **options: Any) -> Lists:
    return replayed(cases, recommender, (CLICK, LIKE), eligible=ELIGIBLE, **options)


ELIGIBLE = Filters(Catalog.build(["1", "2", "3", "4"])).eligible(NO_FILTER)


def at(*events: int) -> Cases:
    ends = np.array(events, dtype=np.int64)
    return Cases.at(rated(), ends, train_ends=ends, words="by hand")


def test_labels_are_what_the_next_event_did() -> None:
    lists = told(at(1, 2, 5), Told([4, 3, 2], ["retrieval"] * 3))
    assert len(lists) == 3
    assert lists.offsets.tolist() == [0, 3, 6, 9]
    assert lists.labels[:, 0].tolist() == [0, 0, 1, 0, 1, 0, 0, 0, 1]
    np.testing.assert_array_equal(lists.labels[:, 1], [0, 0, 0, 0, np.nan, 0, 0, 0, 1])
    assert lists.positions.tolist() == [0] * 9
    assert lists.users.tolist() == [0, 0, 1]
    assert lists.tasks == ("click", "like")


def test_the_horizon_ends_with_the_user() -> None:
    lists = told(at(2, 5), Told([4, 2], ["retrieval"] * 2), horizon=5)
    assert lists.labels[:, 0].tolist() == [1, 0, 0, 1]  # the other user's 4 is not this one's


def test_labels_come_only_from_events_that_may_be_looked_at() -> None:
    allowed = np.array([True, True, True, False, True, True])
    lists = told(at(2), Told([3, 4], ["retrieval"] * 2), horizon=2, labels_from=allowed)
    assert lists.labels[:, 0].tolist() == [1, 0]


def test_a_later_yes_beats_a_no_and_what_could_not_be_judged() -> None:
    source = replace(
        Histories.from_rows([[9, 1, 1, 1, 2, 2]]), values=np.array([1, 2, np.nan, 5, np.nan, 1], np.float32)
    )
    cases = Cases.at(source, np.array([1]), train_ends=np.array([1]), words="by hand")
    lists = told(cases, Told([1, 2], ["retrieval"] * 2), horizon=5)
    np.testing.assert_array_equal(lists.labels, [[1, 1], [1, np.nan]])


def test_a_list_without_the_item_that_came_is_kept() -> None:
    lists = told(at(1, 5), Told([3], ["retrieval"]))
    assert len(lists) == 2
    assert not lists.labels.any()
    assert with_positives(lists) == {"click": 0.0, "like": 0.0}
    assert with_positives(told(at(1, 3), Told([4], ["retrieval"]))) == {"click": 0.5, "like": 0.5}


def test_what_is_popular_and_was_not_retrieved_has_no_score() -> None:
    lists = told(at(1), Told([4, 3, 2], ["retrieval", "popular", "retrieval"]))
    assert np.isnan(lists.scores).tolist() == [False, True, False]


def test_requests_hold_the_moment_and_nothing_after_it() -> None:
    known = {"a": ({"gender": "F"}, {"age": 25.0})}
    lists = told(at(2, 5), Told([1], ["retrieval"]), contexts=known)
    first, second = lists.requests
    assert (first.history.rows.tolist(), first.time) == ([1, 2], 2.0)
    assert (first.words, first.context) == ({"gender": "F"}, {"age": 25.0})
    assert (second.history.rows.tolist(), second.time, second.words) == ([4], 1.0, {})


def test_seen_items_are_left_out_or_kept() -> None:
    for seen, excluded in (("filtered", [1, 2]), ("kept", [])):
        stage = Told([4], ["retrieval"])
        told(at(2), stage, seen=seen)
        assert stage.asked[0].exclude.tolist() == excluded


def test_empty() -> None:
    lists = told(at(), Told([4], ["retrieval"]))
    assert (len(lists), lists.labels.shape, lists.offsets.tolist()) == (0, (0, 2), [0])
    assert with_positives(lists) == {"click": 0.0, "like": 0.0}


class OneByOne:
    """A first stage that is asked one query at a time: what lies beside it in a batch tips the last bits of a score."""

    def __init__(self, first: Recommender) -> None:
        self.name, self._first = first.name, first

    def reads(self, request: Request, /) -> bool:
        return self._first.reads(request)

    def recommend(self, queries: Sequence[Query], stage: Stage = NO_STAGES) -> list[Answer]:
        return [self._first.recommend([query], stage)[0] for query in queries]


class Listener:
    """A ranker that remembers what it was given."""

    def __init__(self) -> None:
        self.settings = toy_ranker.ranking()
        self.given: list[Candidates] = []

    def rank(self, candidates: Sequence[Candidates], /) -> list[np.ndarray]:
        self.given += candidates
        return [np.zeros((len(one.rows), 2), np.float32) for one in candidates]


def test_a_ranker_learns_from_the_very_lists_that_it_is_given_in_serving(served: Served) -> None:
    rng = np.random.default_rng(0)
    histories = Histories.from_rows([rng.integers(1, toy.N + 1, 7).tolist() for _ in range(150)])
    cases, eligible = leave_one_out(histories).test, served.filters.eligible(NO_FILTER)
    done = []
    lists = replayed(
        cases,
        served.recommender.first,
        (CLICK,),
        eligible=eligible,
        candidates=toy_ranker.CANDIDATES,
        on_progress=lambda now, total: done.append((now, total)),
    )
    assert done == [(64, 150), (128, 150), (150, 150)]
    ranker = Listener()
    two_stage = TwoStage(served.recommender.first, ranker, Arranger(served.catalog, served.index.vectors))
    for case in range(len(cases)):
        request = Request(cases.history(case), float(cases.times[case]))
        two_stage.recommend([Query(request, 3, eligible, request.history.rows)])
    for mine, its in zip(lists.candidates(range(150)), ranker.given, strict=True):
        assert mine.rows.tolist() == its.rows.tolist()
        np.testing.assert_allclose(mine.scores, its.scores, atol=1e-6)  # a product's last bits hang on its neighbours
        assert (mine.request.time, mine.request.history.rows.tolist()) == (
            its.request.time,
            its.request.history.rows.tolist(),
        )


# Logged lists

HEAD = "user_id,item_id,timestamp,event_type,value,recommendation_id,position,score"
SHOWN = """
u,a,100,impression,,r1,2,0.5
u,b,100,impression,,r1,1,0.9
u,c,100,impression,,r1,3,
v,b,150,impression,,r1,1,
u,a,500,impression,,r2,1,"""
ITEMS = Catalog.build(["a", "b", "c", "d"])


def read(tmp_path: Path, rows: str, head: str = HEAD) -> EventLog:
    path = tmp_path / "log.csv"
    path.write_text("\n".join([head, *rows.split()]) + "\n")
    return read_log("csv", path)


def of(lists: Lists) -> list[tuple[int, float, list[int], list[int]]]:
    """User, time, positions and rows of each list."""
    spans = [lists.span(r) for r in range(len(lists))]
    return [
        (int(user), request.time, lists.positions[own].tolist(), lists.rows[own].tolist())
        for user, request, own in zip(lists.users, lists.requests, spans, strict=True)
    ]


def clicked(lists: Lists) -> list[tuple[float, int]]:
    """Time of the list and row of each candidate whose first label is 1."""
    which = np.repeat(np.arange(len(lists)), np.diff(lists.offsets))
    return [(lists.requests[which[n]].time, int(lists.rows[n])) for n in np.flatnonzero(lists.labels[:, 0] == 1)]


def test_a_list_is_what_one_user_was_shown_under_one_id(tmp_path: Path) -> None:
    lists, account = logged(read(tmp_path, SHOWN), ITEMS, TYPES, (CLICK,))
    assert of(lists) == [(0, 100.0, [1, 2, 3], [2, 1, 3]), (1, 150.0, [1], [2]), (0, 500.0, [1], [1])]
    np.testing.assert_array_equal(lists.scores, np.array([0.9, 0.5, np.nan, np.nan, np.nan], np.float32))
    assert not lists.labels.any()
    assert str(account).startswith("5 impressions (0 of unknown items and 0 repeats left out), 0 of 0 other events")


def test_the_order_of_a_list_is_that_of_its_scores_and_does_not_tell_the_position(tmp_path: Path) -> None:
    rows = [
        f"u,{item},1,impression,,r,{place},{score}"
        for place, (item, score) in enumerate([("a", 0.1), ("b", ""), ("c", 0.9), ("d", "")], start=1)
    ]
    lists, _ = logged(read(tmp_path, "\n".join(rows)), ITEMS, TYPES, (CLICK,))
    assert lists.rows.tolist() == [3, 1, 2, 4]
    assert lists.positions.tolist() == [3, 1, 2, 4]


def test_feedback_goes_to_the_impression_that_it_names(tmp_path: Path) -> None:
    more = "\nu,a,510,click,,r1,,\nu,b,120,click,,r2,,\nu,d,130,click,,r1,,\nv,b,149,click,,r1,,"
    lists, account = logged(read(tmp_path, SHOWN + more), ITEMS, TYPES, (Task("click", 2),))
    assert clicked(lists) == [(100.0, 1)]  # not the newest; nothing shown; nothing shown; before it was shown
    assert (account.feedback, account.attributed) == (4, 1)


def test_feedback_without_a_list_goes_to_the_newest_impression_in_time(tmp_path: Path) -> None:
    more = "\nu,a,499,click,,,,\nu,a,560,click,,,,\nu,b,161,click,,,,\nv,b,210,click,,,,\nu,c,99,click,,,,"
    lists, account = logged(read(tmp_path, SHOWN + more), ITEMS, TYPES, (CLICK,), attribution_s=60.0)
    assert clicked(lists) == [(150.0, 2), (500.0, 1)]
    assert (account.feedback, account.attributed) == (5, 2)
    later, _ = logged(read(tmp_path, SHOWN + more), ITEMS, TYPES, (CLICK,), attribution_s=400.0)
    assert clicked(later) == [(100.0, 2), (100.0, 1), (150.0, 2), (500.0, 1)]


def test_labels_judge_type_and_value(tmp_path: Path) -> None:
    more = "\nu,a,110,view,5,r1,,\nu,b,110,view,,r1,,\nu,c,110,click,,r1,,\nu,c,111,view,1,r1,,\nv,b,160,view,,r1,,"
    lists, _ = logged(read(tmp_path, SHOWN + more), ITEMS, TYPES, (CLICK, Task("long", 1, ">=", 4.0)))
    np.testing.assert_array_equal(lists.labels, [[1, np.nan], [1, 1], [1, 0], [1, np.nan], [0, 0]])


def test_history_is_what_was_done_before_the_second_of_the_list(tmp_path: Path) -> None:
    more = "\nu,d,99,click,,,,\nu,a,100,click,,,,\nu,b,101,click,3,r1,,\nu,c,500,click,,,,\nu,c,501,click,,,,"
    lists, _ = logged(read(tmp_path, SHOWN + more), ITEMS, TYPES, (CLICK,))
    assert [request.history.rows.tolist() for request in lists.requests] == [[4], [], [4, 1, 2]]
    assert lists.requests[2].history.timestamps.tolist() == [99, 100, 101]
    assert lists.requests[2].history.event_types.tolist() == [2, 2, 2]


def test_unknown_items_and_repeats_are_left_out_and_counted(tmp_path: Path) -> None:
    more = "\nu,zz,90,impression,,r1,4,\nu,b,100,impression,,r1,5,\nw,zz,90,impression,,r9,1,\nu,zz,95,click,,,,"
    lists, account = logged(read(tmp_path, SHOWN + more), ITEMS, TYPES, (CLICK,))
    # The list began when its first item was shown, though that one is not known here.
    assert of(lists)[0] == (0, 90.0, [1, 2, 3], [2, 1, 3])
    assert len(lists) == 3
    assert (account.impressions, account.unknown_items, account.repeats, account.feedback) == (8, 2, 1, 0)


def test_the_user_of_a_list_speaks_in_its_request(tmp_path: Path) -> None:
    lists, _ = logged(read(tmp_path, SHOWN), ITEMS, TYPES, (CLICK,), contexts={"v": ({"segment": "tea"}, {})})
    assert [request.words for request in lists.requests] == [{}, {"segment": "tea"}, {}]


@pytest.mark.parametrize(
    ("rows", "head", "says"),
    [
        ("u,a,1,click,,,,", HEAD, "no event of type 'impression'"),
        ("u,a,1,impression,,r1,1,\nu,b,1,impression,,r1,,", HEAD, "1 of 2 impressions have no position"),
        ("u,a,1,impression,,,1,\nu,b,1,click,,r1,,", HEAD, "1 of 1 impressions have no recommendation_id"),
        ("u,a,1,impression", "user_id,item_id,timestamp,event_type", "1 of 1 impressions have no recommendation_id"),
        ("u,a,1,impression,,r1,0,", HEAD, "position 0 of an impression"),
        ("u,a,1,impression,,r1,top,", HEAD, "position 'top' of an impression"),
        ("u,a,1,impression,,r1,1,high", HEAD, "score 'high' of an impression"),
        ("u,zz,1,impression,,r1,1,", HEAD, "no impression is of an item in the catalog"),
    ],
)
def test_a_log_that_does_not_say_what_was_shown_is_named(tmp_path: Path, rows: str, head: str, says: str) -> None:
    with pytest.raises(ImpressionsInvalid) as refused:
        logged(read(tmp_path, rows, head), ITEMS, TYPES, (CLICK,))
    assert says in str(refused.value)


def test_a_log_without_times_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pairs.txt"
    path.write_text("u a\nu b\n")
    with pytest.raises(OrderOnly, match="reading impressions needs times"):
        logged(read_log("sasrec-txt", path), ITEMS, TYPES, (CLICK,))


# The future, shuffled

CUT, MOMENT = START_S + 4 * DAY_S, START_S + 6 * DAY_S + 15_000
TASKS = "click; long: value >= q0.8; buy: event_type == purchase"
Feeds = dict[str, np.ndarray]


def shuffled(events: pl.DataFrame) -> pl.DataFrame:
    """The same log with all that happens from `MOMENT` on dealt out anew: items, values, times, and what happened."""
    rng = np.random.default_rng(5)
    past, future = events.filter(pl.col("timestamp") < MOMENT), events.filter(pl.col("timestamp") >= MOMENT)
    together = ["event_type", "position", "score", "recommendation_id", "session_id"]  # an impression needs a position
    for columns in (["item_id"], ["value"], ["timestamp"], together):
        order = rng.permutation(future.height)
        future = future.with_columns(future.select(columns)[order].get_columns())
    assert min(past.height, future.height) > 1000
    return pl.concat([past, future])


@pytest.fixture(scope="module")
def shops(tmp_path_factory: pytest.TempPathFactory) -> list[EventLog]:
    """A log as it was, and with its future shuffled. Its items have the ids of the toy bundle."""
    made = simulate(users=60, items=toy.N, lists=8)
    found = []
    for name, events in (("as it was", made.events), ("shuffled", shuffled(made.events))):
        folder = tmp_path_factory.mktemp("shop") / name
        replace(made, events=events).write(folder)
        found.append(read_log("csv", folder))
    assert found[0].digest != found[1].digest
    return found


def arrays(lists: Lists, catalog: Catalog, train: Histories, log: EventLog, vectors: np.ndarray) -> Feeds:
    """All features of the lists before the moment, from statistics, popularity and scales of the training part."""
    when = np.array([request.time for request in lists.requests])
    lists = lists.take(np.flatnonzero((when >= CUT) & (when < MOMENT)))
    assert len(lists) > 100
    catalog, tasks = with_popularity(catalog, train), parse(TASKS, TYPES, train)
    statistics = count(train, len(catalog), tasks)
    features = declare(catalog, train, tasks, log.users)
    features = standardised(features, statistics, catalog, vectors, lists.take(np.arange(50)))
    return Arrays.of(FeatureTables.of(features, statistics, catalog, vectors), lists).feeds


def of_logged(log: EventLog, served: Served, leak: str = "") -> Feeds:  # noqa: ARG001
    catalog = catalog_from_log(log)
    done = Histories.from_log(feedback(log), catalog, TYPES)
    train = done if leak == "statistics" else done.keep(done.timestamps < CUT)
    lists, _ = logged(log, catalog, TYPES, parse(TASKS, TYPES, train), contexts=contexts(log.users))
    if leak == "history":
        users = {user: u for u, user in enumerate(log.events["user_id"].unique(maintain_order=True))}
        whole = {users[user]: done[u] for u, user in enumerate(done.user_ids)}
        lists = replace(
            lists,
            requests=[
                replace(request, history=whole[u]) for u, request in zip(lists.users, lists.requests, strict=True)
            ],
        )
    return arrays(lists, catalog, train, log, np.random.default_rng(1).normal(size=(toy.N + 1, 4)).astype(np.float32))


def of_replayed(log: EventLog, served: Served, leak: str = "") -> Feeds:
    done = Histories.from_log(feedback(log), served.catalog, TYPES)
    split = temporal(done, valid_share=0.4, test_share=0.1, targets="all")
    cases = split.validation
    assert split.train.timestamps.max() < cases.times.min()
    train = done if leak == "statistics" else split.train
    lists = replayed(
        cases,
        OneByOne(served.recommender.first),
        parse(TASKS, TYPES, train),
        eligible=served.filters.eligible(NO_FILTER),
        candidates=6,
        contexts=contexts(log.users),
        seen="kept",
    )
    if leak == "history":
        requests = [replace(request, history=done[u]) for u, request in zip(lists.users, lists.requests, strict=True)]
        lists = replace(lists, requests=requests)
    return arrays(lists, served.catalog, train, log, served.index.vectors)


def changed(ours: Feeds, theirs: Feeds) -> list[str]:
    """The arrays that differ in any byte."""
    assert ours.keys() == theirs.keys()
    return [name for name in ours if ours[name].tobytes() != theirs[name].tobytes()]


@pytest.mark.parametrize("source", [of_logged, of_replayed])
def test_shuffling_the_future_changes_no_feature(
    shops: list[EventLog], served: Served, source: Callable[..., Feeds]
) -> None:
    as_it_was = source(shops[0], served)
    assert changed(as_it_was, source(shops[1], served)) == []
    assert all(feed.size and np.ptp(np.nan_to_num(feed)) > 0 for feed in as_it_was.values())  # and they say something


@pytest.mark.parametrize("source", [of_logged, of_replayed])
@pytest.mark.parametrize(("leak", "shows"), [("statistics", "candidate_numbers"), ("history", "event_codes")])
def test_shuffling_the_future_would_show_a_leak(
    shops: list[EventLog], served: Served, source: Callable[..., Feeds], leak: str, shows: str
) -> None:
    assert shows in changed(source(shops[0], served, leak), source(shops[1], served, leak))
