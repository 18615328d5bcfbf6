"""What the rivals serve is made of the same bundle."""

import json

import pytest

from loadtests import bundles
from loadtests.target import LoadError
from retrieval.bundle import Bundle
from retrieval.filters import Eligible
from retrieval.inputs import Request
from retrieval.recommenders import Query, load
from retrieval.sequences import History


def test_the_plain_service_is_told_the_same_items(toy_bundle, tmp_path):
    bundle = bundles.opened(toy_bundle)
    command = bundles.plain_command(bundle, tmp_path, threads=2)
    known = json.loads((tmp_path / "items.json").read_text())
    assert known["ids"] == list(bundle.catalog.ids)
    assert known["available"] == [False, *[True] * 19, False]
    assert command[command.index("--window") + 1] == str(bundle.manifest.window)


def test_a_bundle_that_does_more_is_refused(tmp_path):
    with pytest.raises(LoadError):
        bundles.opened(tmp_path / "nothing")


def test_a_hollow_bundle_answers_the_same_to_everybody(toy_bundle, tmp_path):
    hollow = Bundle.open(bundles.hollow(bundles.opened(toy_bundle), tmp_path / "hollow"))
    served = load(hollow, threads=1)
    everything = Eligible.of(served.catalog.available)
    queries = [
        Query(Request(History.of_rows(served.catalog.rows(history))), 3, everything, served.catalog.rows(history))
        for history in (["i02"], ["i07", "i05"])
    ]
    first, second = served.recommender.recommend(queries)
    assert [served.catalog.ids[row] for row in first.rows] == ["i01", "i03", "i04"]
    assert [served.catalog.ids[row] for row in second.rows] == ["i01", "i02", "i03"]
