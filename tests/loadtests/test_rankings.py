"""The benchmark of the ranking stage: its requests are like real ones, its parts are the whole, and it judges."""

import json
import os

import numpy as np
import pytest
import toy
import toy_ranker

from loadtests import rankings, report
from loadtests.rankings import PARTS, Subject
from loadtests.target import LoadError
from retrieval.bundle import Bundle
from retrieval.calibration import Platt
from retrieval.catalog import Catalog
from retrieval.features import Category, FeatureSet, Number
from retrieval.ranking import OnnxRanker
from retrieval.tasks import Task

QUICK = ["--quick", "--rounds", "2", "--k", "5"]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Twenty items: histories of ten leave nine or ten."""
    return toy_ranker.write(tmp_path_factory.mktemp("rankings") / "small", model="small")


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """As many items as it takes to find 400 for everybody."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toy, "N", 520)
        patch.setattr(toy, "ITEM_IDS", [f"i{n:02d}" for n in range(1, 521)])
        settings = {"calibration": {"like": Platt(2.0)}}
        return toy_ranker.write(tmp_path_factory.mktemp("rankings") / "large", model="large", ranking=settings)


def features(**fields):
    """A declaration with contexts, to be read and not to be run."""
    return FeatureSet(tasks=(Task("like", op=">=", value=4.0), Task("click", event_type=2)), **fields)


def test_a_quick_run_measures_all_rankers(small, large, capsys):
    cores = os.sched_getaffinity(0)
    assert rankings.main(["--bundle", str(small), "--bundle", str(large), *QUICK, "--clock", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    document = json.loads(lines[-1])
    results, notes = document["results"], document["notes"]
    assert list(results) == ["small", "large"]
    batches = [f"B={b}, C=200" for b in (1, 2, 8, 16, 64)]
    others = [f"B={b}, C={c}" for b in (1, 16) for c in (10, 25, 50, 100, 400)]
    assert list(results["large"]) == [*batches, *others, "line, B=1", "line, B=16"]
    for name in (*batches, *others):
        values = results["large"][name]
        assert all(values[f"{part}_ms"]["low"] > 0 for part in PARTS)
        assert values["split"]["low"] > 0
        assert values["floor_ms"]["median"] < values["whole_ms"]["median"]
    fitted = results["large"]["line, B=16"]
    assert fitted["us_per_candidate"]["median"] > 0, "candidates cost something"
    assert fitted["r2"]["high"] <= 1
    assert sum("large: rank stage, 200 candidates" in note and "met" in note for note in notes) == 5
    assert any(note.startswith("small") and "not judged" in note for note in notes)
    assert sum(line.startswith("large, B=") for line in lines) == len(batches + others)
    assert document["bundle"]["digest"] == f"{Bundle.open(small).digest}, {Bundle.open(large).digest}"
    assert os.sched_getaffinity(0) == cores, "whoever called it has its cores back"


def test_a_small_catalog_is_measured_as_far_as_it_goes(small, capsys):
    assert rankings.main(["--bundle", str(small), *QUICK, "--clock", "cpu"]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    results = document["results"]["small"]
    assert document["conditions"]["clock"] == "cpu", "two clocks do not compare"
    assert list(results)[:5] == [f"B={b}, C=9" for b in (1, 2, 8, 16, 64)]
    assert results["line, B=1"]["us_per_candidate"]["median"] is None, "there is no line through one point"


def test_an_objective_that_is_missed_is_an_exit_status(small, capsys):
    assert rankings.main(["--bundle", str(small), *QUICK, "--require", "rank_ms<=0"]) == 1
    assert "missed" in capsys.readouterr().err


def test_objectives_are_judged_by_the_worst_round(large):
    subject = Subject(Bundle.open(large), k=5, history=100)
    took = {1: 3.1, 2: 1.5, 8: 1.6, 16: 0.1, 64: 0.1}
    cases = {rankings.case(b, 200): {"rank_ms": report.spread([0.05, 0.05, ms])} for b, ms in took.items()}
    said = rankings.judged("large", subject, cases)
    assert ["missed" in line for line in said] == [True, False, True, False, False]
    assert "alone <= 3 ms" in said[0]
    assert "in batches of 2 <= 1.5 ms" in said[1]


def test_a_bundle_without_a_ranker_is_told_how_to_get_one(toy_bundle):
    with pytest.raises(LoadError, match="--retriever toy"):
        rankings.main(["--bundle", str(toy_bundle), *QUICK])


def test_a_missing_bundle_is_refused(tmp_path):
    with pytest.raises(LoadError, match="absent"):
        rankings.main(["--bundle", str(tmp_path / "absent")])


def test_an_empty_list_is_refused(tmp_path, monkeypatch):
    hidden = Catalog.build(toy.ITEM_IDS, available=[False] * toy.N, attributes={"price": [1.0] * toy.N})
    monkeypatch.setattr(toy, "catalog", lambda: hidden)
    with pytest.raises(LoadError, match="available"):
        Subject(Bundle.open(toy_ranker.write(tmp_path / "empty")), k=5, history=5)


@pytest.mark.parametrize("name", ["--k", "--history", "--rounds"])
def test_nothing_to_measure_is_refused(small, name):
    with pytest.raises(LoadError, match=f"{name} 0"):
        rankings.main(["--bundle", str(small), name, "0"])


def test_a_result_of_no_commit_is_not_recorded(small, monkeypatch):
    monkeypatch.setattr(report, "commit", lambda: "0123-dirty")
    with pytest.raises(LoadError, match="commit first"):
        rankings.main(["--bundle", str(small), "--record"])


def test_bundles_of_one_model_are_told_apart_and_none_stands_twice(small, tmp_path):
    again = toy_ranker.write(tmp_path / "again", model="small", seed=1)
    assert list(rankings.opened([small, again])) == [
        f"small small@{Bundle.open(small).digest[:12]}",
        f"small again@{Bundle.open(again).digest[:12]}",
    ]
    with pytest.raises(LoadError, match="given twice"):
        rankings.opened([small, again, small])


def test_rankers_have_their_turns_side_by_side(large, monkeypatch):
    order = []

    def in_turns(walks, **_more):
        order.extend(walks)
        return {(one, part): [1.0] for one, _ in walks for part in PARTS}

    monkeypatch.setattr(rankings, "in_turns", in_turns)
    subjects = {name: Subject(Bundle.open(large), k=5, history=100) for name in ("a", "b")}
    figures = rankings.measure(subjects, rounds=1, seconds=0.0)
    first = [(f"{name}/B=1, C=200", walk) for name in ("a", "b") for walk in ("split", "whole", "floor")]
    assert order[: len(first)] == first
    assert figures["a"]["B=8, C=200"]["rank_ms"]["median"] == 0.125, "of one request, not of the batch"


class TestRequests:
    """What is asked."""

    def test_they_end_in_the_warmup_and_are_lengthened(self, small):
        bundle = Bundle.open(small)
        made = rankings.requests(bundle, features(), length=8)
        assert len(made) == 64
        assert all(len(one.history) == len(set(one.history.rows.tolist())) == 8 for one in made)
        assert made[0].history.rows[-1] == 1
        assert made[1].history.rows[-2:].tolist() == [2, 3]
        assert all((one.history.rows >= 1).all() for one in made)
        assert all(one.time > one.history.timestamps.max() for one in made)

    def test_what_is_popular_stands_in_most(self, large):
        made = rankings.requests(Bundle.open(large), features(), length=100)
        rows = np.concatenate([one.history.rows for one in made[2:]])
        assert (rows <= 260).sum() > 2 * (rows > 260).sum()

    def test_events_fulfil_the_tasks_now_and_then(self, small):
        wanted = features()
        for one in rankings.requests(Bundle.open(small), wanted, length=10)[:3]:
            for task in wanted.tasks:
                assert 0 < task.holds(one.history).sum() < 10

    def test_values_are_absent_where_no_task_asks_for_them(self, small):
        wanted = FeatureSet(tasks=(Task("click", event_type=2),))
        assert np.isnan(rankings.requests(Bundle.open(small), wanted, length=5)[0].history.values).all()

    def test_contexts_have_words_of_the_vocabulary_and_numbers(self, small):
        wanted = features(
            request_codes=(Category("context:age", known=2, words=("18", "25")), Category("context:town", known=0)),
            request_numbers=(Number("context:age_years", shift=30.0, scale=0.5), Number("hour")),
        )
        made = rankings.requests(Bundle.open(small), wanted, length=5)
        assert {one.words["age"] for one in made} == {"18", "25"}
        assert {one.words["town"] for one in made} == {"unlisted"}
        assert all(set(one.context) == {"age_years"} for one in made)
        assert np.mean([one.context["age_years"] for one in made]) == pytest.approx(30, abs=0.5)


class TestParts:
    """What is timed."""

    def test_every_walk_takes_the_next_batch_and_its_parts_are_laps(self):
        turns = []

        def walk(name):
            return tuple((part, lambda n=n: turns.extend([name] * n)) for part, n in (("short", 1), ("long", 3)))

        walks = {("case", "whole"): [walk("a"), walk("b")], ("case", "floor"): [walk("c")]}
        medians = rankings.in_turns(walks, rounds=2, seconds=0.0, clock=lambda: len(turns))
        for part, ms in (("short", 1000), ("long", 3000), ("whole", 4000), ("floor", 4000)):
            assert set(medians["case", part]) == {ms}
        assert [len(values) for values in medians.values()] == [4, 4, 2, 2], "short and long are parts of both"
        assert "".join(turns[12::4]) == "aba" + "ccc" + "bab" + "ccc"

    def test_they_do_what_the_whole_does(self, large):
        walks = Subject(Bundle.open(large), k=5, history=100).walks(16, 50)
        assert all(len(every) == 4 for every in walks.values()), "64 requests by 16"
        calls = dict(walks["split"][3] + walks["whole"][3] + walks["floor"][3])
        ordered, again = calls["order"](), calls["rank"]()
        assert [one.rows.tolist() for one in ordered] == [one.rows.tolist() for one in again]
        assert all(one.ranked == len(one) == 50 for one in again)
        assert calls["features"]()["candidate_numbers"].shape == (16, 50, 3)
        assert calls["graph"]()[0].shape == (16, 50, 2)
        arranged = calls["rules"]()
        assert any("promoted" in one.reasons for one in arranged)
        assert not any(one.unmet for one in arranged), "rules that cannot be kept would cost something else"
        floor = calls["cut"]()
        assert [len(one) for one in arranged] == [len(one) for one in floor] == [5] * 16
        assert floor[0].ranked is None

    def test_a_ranker_that_fails_stops_the_run(self, small, monkeypatch):
        subject = Subject(Bundle.open(small), k=5, history=5)
        monkeypatch.setattr(OnnxRanker, "rank", lambda *_: 1 / 0)
        with pytest.raises(LoadError, match="division by zero"):
            subject.walks(1, 5)

    def test_parts_that_make_other_lists_stop_the_run(self, small, monkeypatch):
        real = rankings.Spoken.rank
        monkeypatch.setattr(rankings.Spoken, "rank", lambda self, asked: [1 - own for own in real(self, asked)])
        with pytest.raises(LoadError, match="other lists"):
            Subject(Bundle.open(small), k=5, history=5).walks(1, 5)

    def test_rules_cap_what_many_items_share(self, small):
        rules = rankings.placement(Bundle.open(small).catalog, 20)
        (cap,) = rules.caps
        assert (cap.attribute, cap.most, cap.values) == ("categories", 5, ("red",)), "most items are blue"
        assert rules.promotion is not None
        assert "i20" not in rules.promotion.item_ids, "what may not be shown is not promoted"
        assert rankings.placement(Catalog.build(["a", "b"]), 20).caps == (), "there are no words to cap"


class TestLine:
    """Cost against candidates."""

    def test_a_straight_one_is_found(self):
        found = rankings.line([10, 50, 200], [0.03, 0.07, 0.22])
        assert found == pytest.approx({"us_per_candidate": 1.0, "fixed_ms": 0.02, "r2": 1.0})

    def test_a_bent_one_is_told(self):
        assert rankings.line([10, 100, 200, 400], [0.1, 0.1, 0.1, 9.0])["r2"] < 0.9

    def test_two_points_say_nothing_of_linearity(self):
        found = rankings.line([10, 20], [1.0, 2.0])
        assert found["us_per_candidate"] == pytest.approx(100)
        assert np.isnan(found["r2"])
        assert all(np.isnan(value) for value in rankings.line([10], [1.0]).values())
