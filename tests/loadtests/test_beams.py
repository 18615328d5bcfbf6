"""The benchmark of beam search: it times what it says, its rival finds the same, and no certificate is false."""

import json

import numpy as np
import pytest

from loadtests import beams
from loadtests.beams import Catalogue, DictionaryTrie, DrawnDecoder, NoiseModel, Nothing
from loadtests.target import LoadError
from retrieval.beam import Search, search


def test_a_quick_run_measures_everything(capsys):
    assert beams.main(["--quick", "--rounds", "2", "--requests", "20"]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    results = document["results"]
    assert document["conditions"]["requests"] == 20
    for mask in ("all", "filter"):
        for excluded in (0, 50):
            assert results[f"N=1000, V=256, R=1, M=50, {mask}, excluded={excluded}"]["ms_per_step"]["low"] > 0
    rivalled = [values for values in results.values() if "times_faster" in values]
    assert len(rivalled) == 5 + 6, "searches, and masks"
    assert all(values["dictionary_ms_per_step"]["low"] > 0 for values in rivalled)
    assert results["trie, N=1000"]["build_s"] >= 0
    assert results["parallel codes, N=1000, peak=1"]["ms"]["low"] > 0
    for peak in beams.PEAKS:
        by_width = [results[f"peak={peak:g}, M={width}"] for width in beams.WIDTHS]
        assert all(0 <= values["certified"] <= values["exact"] <= 1 for values in by_width)
        assert [values["recall"] for values in by_width] == sorted(values["recall"] for values in by_width)
        assert all(values["false_certificates"] == 0 for values in by_width)


def test_an_objective_that_is_missed_is_an_exit_status(capsys):
    assert beams.main(["--quick", "--rounds", "1", "--requests", "1", "--require", "ms_per_step<=0"]) == 1
    assert "missed" in capsys.readouterr().err


def test_the_rival_finds_the_same_items():
    one = Catalogue(500, codewords=16)
    for requests, width in ((1, 10), (3, 40)):
        decoder = DrawnDecoder(np.random.default_rng(0), requests=requests, beams=width, codewords=16)
        assert len(one.rival(decoder, requests=requests, beams=width)()) == requests


def test_a_rival_that_finds_other_items_stops_the_run(monkeypatch):
    one = Catalogue(500, codewords=16)
    decoder = DrawnDecoder(np.random.default_rng(0), requests=1, beams=10, codewords=16)
    monkeypatch.setattr(DictionaryTrie, "search", lambda *_args, **_more: [[1, 2, 3]])
    with pytest.raises(LoadError, match="one of the two is wrong"):
        one.rival(decoder, requests=1, beams=10)


def test_the_noise_is_a_model_and_scores_as_a_search_does():
    rng = np.random.default_rng(0)
    model, one = NoiseModel(rng, codewords=8, peak=2.0), Catalogue(100, codewords=8)
    for level in model.levels:
        assert np.exp(level).sum(axis=-1) == pytest.approx(1.0, abs=1e-5)
    live = one.trie.live(np.ones(101, np.bool_))
    (found,) = search(model, Nothing(), one.trie, [Search(100, 100, live, np.zeros(0, np.int64))])
    assert np.array_equal(found.scores, model.score(one.table.codes[found.rows]))


@pytest.mark.parametrize("level", [1, 2])
def test_a_rival_that_masks_other_codes_stops_the_run(level, monkeypatch):
    one = Catalogue(10_000)  # the last level of which is looked up by ranges
    ours, theirs = one.masks(level, 30)
    assert len(theirs()) == 30
    assert len(ours()) == (30 if level == 1 else 2)
    monkeypatch.setattr(DictionaryTrie, "mask", lambda _self, prefixes, v: np.zeros((len(prefixes), v), np.float32))
    with pytest.raises(LoadError, match="masks other codes"):
        one.masks(level, 30)


def test_every_call_has_its_turn_in_every_round():
    turns = []
    calls = {name: lambda name=name: turns.append(name) for name in ("a", "b")}
    medians = beams.in_turns(calls, rounds=4, seconds=0.0)
    assert [len(values) for values in medians.values()] == [4, 4]
    assert turns[4:] == ["a"] * 3 + ["b"] * 3 + (["a"] * 3 + ["b"] * 3) * 3
