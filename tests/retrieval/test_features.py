"""`build`: shapes, padding, events by behaviour, and numbers that do not depend on what else is in the batch."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from oracles_features import FEATURES, TRAINED, World, candidates, code, events, fulfils, history, of_item, world

from retrieval import features as public
from retrieval.features import ALL, ARRAYS, REACH, Candidates, FeatureSet, build
from retrieval.inputs import Request
from retrieval.sequences import EMPTY, History

AGES = FEATURES.request_codes[1]


@pytest.fixture(scope="module")
def of() -> World:
    return world(np.random.default_rng(2), width=64)


def asked(request: Request, rows: list[int] | None = None) -> Candidates:
    rows = [1, 2] if rows is None else rows
    return Candidates(request, np.array(rows, np.int64), np.zeros(len(rows), np.float32))


def own_part(made: dict[str, np.ndarray], b: int, n: int, events: int) -> dict[str, bytes]:
    """The bytes of one request of a batch, without the padding."""
    parts = {}
    for name, array in made.items():
        own = array[b]
        if name.startswith("candidate"):
            assert np.isnan(own[n:]).all() if own.dtype == np.float32 else not own[n:].any()
            own = own[:n]
        if name.startswith("event"):
            assert not own[: own.shape[0] - events].any()
            own = own[own.shape[0] - events :]
        parts[name] = np.ascontiguousarray(own).tobytes()
    return parts


class TestBatches:
    """A request alone, among others, in another order: the same to the last bit."""

    @pytest.mark.parametrize("width", [3, 16, 50, 64, 100])
    @pytest.mark.parametrize("seed", range(3))
    def test_every_array_of_a_request_is_the_same_whatever_else_is_asked(self, seed: int, width: int) -> None:
        rng = np.random.default_rng(seed)
        tables = world(rng, width).tables()
        lists = [candidates(rng, most=int(rng.choice([1, 7, 44]))) for _ in range(64)]
        alone = [build(tables, [one]) for one in lists]
        lengths = [made["event_behaviours"].shape[1] for made in alone]
        expected = [
            own_part(made, 0, len(one.rows), length) for made, one, length in zip(alone, lists, lengths, strict=True)
        ]
        orders = [np.arange(64), np.arange(64)[::-1], rng.permutation(64), rng.permutation(64)[:17], np.array([5, 5])]
        for order in orders:
            made = build(tables, [lists[b] for b in order])
            for at, b in enumerate(order):
                got = own_part(made, at, len(lists[b].rows), lengths[b])
                assert got == expected[b], [name for name in got if got[name] != expected[b][name]]

    def test_a_long_list_among_short_ones(self, of: World) -> None:
        rng = np.random.default_rng(8)
        size = len(of.catalog)
        long = Candidates(
            Request(history(rng, 300), 1.7e9), rng.permutation(size) + 1, rng.normal(size=size).astype(np.float32)
        )
        whole = build(of.tables(), [long])
        other = build(of.tables(), [asked(Request(EMPTY)), long, asked(Request(EMPTY), [])])
        n = whole["event_behaviours"].shape[1]
        assert own_part(other, 1, size, n) == own_part(whole, 0, size, n)


class TestShapes:
    """What is made, and how it is padded."""

    def test_shapes_and_types(self, of: World) -> None:
        rng = np.random.default_rng(0)
        lists = [candidates(rng) for _ in range(5)]
        made = build(of.tables(), lists)
        c = max(len(one.rows) for one in lists)
        length = made["event_behaviours"].shape[1]
        assert {name: (array.dtype, array.shape) for name, array in made.items()} == {
            "candidate_codes": (np.int64, (5, c, 5)),
            "candidate_numbers": (np.float32, (5, c, len(FEATURES.candidate_numbers))),
            "request_codes": (np.int64, (5, 2)),
            "request_numbers": (np.float32, (5, len(FEATURES.request_numbers))),
            "event_codes": (np.int64, (5, length, 4)),
            "event_behaviours": (np.int64, (5, length)),
        }
        assert all(array.flags.c_contiguous for array in made.values())

    def test_only_what_is_wanted_is_made(self, of: World) -> None:
        for name in ARRAYS:
            assert list(build(of.tables(), [asked(Request(EMPTY))], [name])) == [name]

    @pytest.mark.parametrize("n", [0, 1])
    def test_empty(self, of: World, n: int) -> None:
        made = build(of.tables(), [asked(Request(EMPTY), [])] * n)
        assert made["candidate_numbers"].shape == (n, 0, len(FEATURES.candidate_numbers))
        assert made["request_codes"].shape == (n, 2)
        assert made["event_behaviours"].tolist() == [[0]] * n

    def test_nothing_declared(self, of: World) -> None:
        made = build(of.tables(FeatureSet(FEATURES.tasks)), [asked(Request(EMPTY))])
        assert made["candidate_codes"].shape == made["candidate_numbers"].shape == (1, 2, 0)
        assert made["request_codes"].shape == made["request_numbers"].shape == (1, 0)
        assert made["event_codes"].shape == (1, 1, 0)

    def test_an_unknown_item_has_neither_codes_nor_numbers(self, of: World) -> None:
        made = build(of.tables(), [asked(Request(history(np.random.default_rng(0), 9)), [3, 0, 4])])
        assert not made["candidate_codes"][0, 1].any()
        assert np.isnan(made["candidate_numbers"][0, 1]).all()
        assert (made["candidate_codes"][0, [0, 2], 0] > 0).all()

    def test_what_others_code_against_is_here(self) -> None:
        for name in ("FeatureSet", "Category", "Number", "Candidates", "FeatureTables", "build", "ARRAYS", "ALL",
                     "RECENT", "FOLLOWED", "DECAY"):  # fmt: skip
            assert name in public.__all__


class TestEvents:
    """Events by behaviour."""

    @pytest.mark.parametrize("seed", range(5))
    def test_each_behaviour_brings_its_newest_events(self, of: World, seed: int) -> None:
        rng = np.random.default_rng(seed)
        lists = [candidates(rng) for _ in range(12)]
        made = build(of.tables(), lists, ["event_codes", "event_behaviours"])
        for b, one in enumerate(lists):
            expected = []
            for at, (behaviour, length) in enumerate(zip(FEATURES.behaviours, FEATURES.windows, strict=True), start=1):
                task = FEATURES.task(behaviour)
                own = [event for event in events(one.request) if behaviour == ALL or fulfils(task, event)]
                expected += [(at, event[0]) for event in own[-length:]]
            n = made["event_behaviours"].shape[1] - len(expected)
            assert made["event_behaviours"][b].tolist() == [0] * n + [at for at, _ in expected]
            fields = FEATURES.candidate_codes[:2]
            codes = [[found for field in fields for found in of_item(of, field, row)] for _, row in expected]
            assert made["event_codes"][b].tolist() == [[0] * 4] * n + codes

    def test_fields_come_in_the_order_asked_for(self, of: World) -> None:
        tables = of.tables(replace(FEATURES, event_fields=(2, 0)))
        made = build(tables, [asked(Request(History.of_rows([4, 5])))], ["event_codes"])["event_codes"]
        np.testing.assert_array_equal(made[0], tables.codes[[4, 5]][:, [4, 0]])

    def test_no_more_is_seen_than_a_store_remembers(self, of: World) -> None:
        rng = np.random.default_rng(4)
        long = history(rng, REACH + 300, TRAINED)
        short = long.newest(REACH)
        features = replace(FEATURES, windows=(REACH, REACH, REACH))
        made, expected = (build(of.tables(features), [asked(Request(h, 1.8e9))]) for h in (long, short))
        for name in ARRAYS:
            assert made[name].tobytes() == expected[name].tobytes(), name
        older = build(of.tables(features), [asked(Request(long.newest(REACH - 1), 1.8e9))])
        assert older["request_numbers"][0, 0] < made["request_numbers"][0, 0]


class TestRequestCodes:
    """The caller's words."""

    def codes(self, of: World, **fields: Any) -> list[int]:
        return build(of.tables(), [asked(Request(EMPTY, **fields))], ["request_codes"])["request_codes"][0].tolist()

    def test_words_of_the_vocabulary_and_others(self, of: World) -> None:
        assert self.codes(of, words={"gender": "F", "age": "35"}) == [2, 5]
        assert self.codes(of, words={"gender": "M"}) == [3, 0]
        assert self.codes(of, words={"gender": "?", "age": "26"}) == [1, code(AGES, "26", AGES.words)]
        assert self.codes(of, words={"gender": ""}) == [1, 0]
        assert self.codes(of) == [0, 0]

    @pytest.mark.parametrize("number", [25, 25.0])
    def test_a_number_is_the_word_that_it_is_spelt_as(self, of: World, number: float) -> None:
        assert self.codes(of, context={"age": number}) == self.codes(of, words={"age": "25"}) == [0, 4]
        assert self.codes(of, context={"age": 1234567.0}) == [0, 6]
        assert self.codes(of, context={"age": 1.0}, words={"age": "25"}) == [0, 4]
