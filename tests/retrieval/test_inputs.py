"""Every input that a graph may name, built from a batch of requests."""

import numpy as np
import pytest

from retrieval import inputs
from retrieval.codes import CodeTable
from retrieval.errors import BundleForeign, InvalidInput
from retrieval.inputs import BUILDERS, Request, Tables
from retrieval.sequences import EMPTY, History

LONG = History(
    np.array([7, 8, 9]),
    np.array([1, 0, 2]),
    np.array([0.5, np.nan, 3.0], np.float32),
    np.array([100.0, 200.0, 1_700_000_000.25]),
)
BATCH = [Request(LONG, time=1_700_000_001.5, context={"hour": 13.0}), Request(History.of_rows([4])), Request(EMPTY)]
VECTORS = np.arange(30, dtype=np.float32).reshape(10, 3)
CODES = CodeTable(np.array([[-1, -1], *([row, 9 - row] for row in range(1, 10))]), (10, 10))
TABLES = Tables({"text": VECTORS}, CODES)
EXPECTED = {
    "item_rows": (np.int64, [[8, 9], [0, 4], [0, 0]]),
    "event_types": (np.int64, [[0, 2], [0, 0], [0, 0]]),
    "values": (np.float32, [[np.nan, 3], [0, np.nan], [0, 0]]),
    "timestamps": (np.float64, [[200, 1_700_000_000.25], [0, 0], [0, 0]]),
    "request_time": (np.float64, [1_700_000_001.5, 0, 0]),
    "context:hour": (np.float32, [13, 0, 0]),
    "context:weekday": (np.float32, [0, 0, 0]),
    "item_codes": (np.int64, [[[8, 1], [9, 0]], [[-1, -1], [4, 5]], [[-1, -1], [-1, -1]]]),
    "item_vectors:text": (np.float32, VECTORS[[[8, 9], [0, 4], [0, 0]]]),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_an_input_has_its_values_and_its_dtype(name: str) -> None:
    feeds = inputs.build([name], BATCH, length=2, tables=TABLES)
    dtype, values = EXPECTED[name]
    (built,) = feeds.values()
    assert built.dtype == dtype
    np.testing.assert_array_equal(built, values)


def test_every_builder_is_tested_here() -> None:
    assert {name.partition(":")[0] for name in EXPECTED} == set(BUILDERS)


def test_a_colon_becomes_an_underscore_in_the_name_of_the_feed() -> None:
    feeds = inputs.build(["item_rows", "context:hour"], BATCH, length=2)
    assert list(feeds) == ["item_rows", "context_hour"]


def test_a_batch_of_one_is_the_row_of_a_batch_of_many() -> None:
    names = list(EXPECTED)
    together = inputs.build(names, BATCH, length=3, tables=TABLES)
    for b, request in enumerate(BATCH):
        for name, alone in inputs.build(names, [request], length=3, tables=TABLES).items():
            np.testing.assert_array_equal(alone[0], together[name][b])


def test_codes_that_the_bundle_does_not_hold_are_named() -> None:
    with pytest.raises(InvalidInput, match="wants item codes, and the bundle holds no code table"):
        inputs.build(["item_codes"], BATCH, length=2)


def test_vectors_that_the_bundle_does_not_hold_are_named() -> None:
    with pytest.raises(InvalidInput, match="wants item vectors 'image', the bundle holds: text"):
        inputs.build(["item_vectors:image"], BATCH, length=2, tables=Tables({"text": VECTORS}))
    with pytest.raises(InvalidInput, match="holds: none"):
        inputs.build(["item_vectors:image"], BATCH, length=2)


def test_an_input_of_a_later_version_is_refused() -> None:
    inputs.check(list(EXPECTED))
    with pytest.raises(BundleForeign, match="'dwell_times:x' is unknown to this version"):
        inputs.check(["item_rows", "dwell_times:x"])
