"""Generators behind the service: widths by copies, shares that add up, and rates that are held or not."""

import asyncio
import json
import os

import pytest
from toy_generative import toy_generative

from loadtests import generators, target
from loadtests.client import connected
from loadtests.generators import Asked
from loadtests.target import Facts, LoadError
from retrieval.bundle import Bundle
from retrieval.recommenders import load

CORE = str(max(os.sched_getaffinity(0)))
QUICK = ["--rounds", "2", "--calls", "8", "--k", "5", "--seconds", "0.6", "--warmup", "0.2", "--repeats", "1"]


@pytest.fixture(scope="module")
def generative(tmp_path_factory):
    return toy_generative(tmp_path_factory.mktemp("generative") / "toy")


def test_a_quick_run_measures_the_generator_beside_the_encoder(generative, tmp_path, capsys):
    cases = tmp_path / "cases.jsonl"
    lines = [{"history": [f"i{n:02}", "i03"], "target": "i05"} for n in range(1, 9)]
    cases.write_text("\n".join(json.dumps(line) for line in lines))
    given = ["--bundle", str(generative), "--beams", "3", "--cases", str(cases), "--cores", CORE, CORE]
    given += ["--rate", "20", "--bound-ms", "20000", "--require", "generated>=0"]
    status = generators.main([*given, *QUICK])
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    results = document["results"]
    assert status == 0, document["notes"]
    assert list(results) == ["M=3", "dense", "M=3, 20/s", "dense, 20/s"]
    assert results["M=3"]["generated"]["low"] == 1.0
    assert results["dense"]["generated"]["high"] == 0.0
    assert {"prefill_ms", "decode_ms", "beam_ms", "queue_ms"} <= set(results["M=3"])
    assert {"encode_ms", "retrieve_ms"} <= set(results["dense"])
    for name in ("M=3", "dense"):
        assert results[name]["requests"] == 16
        assert results[name]["wrong"] == results[name]["errors"] == 0
        assert 0 < results[name]["model_share"]["low"] < 1
        assert 0 < results[name]["rest_share"]["low"] < 1
        loaded = results[f"{name}, 20/s"]  # whether a busy machine holds it is not to be known
        assert results[name]["held_per_s"] == loaded["held"] * loaded["achieved_per_s"]["median"]
    assert document["conditions"]["histories"] == "8 of cases"
    assert document["bundle"]["digest"] == Bundle.open(generative).digest, "of what was given, not of a copy"
    assert os.sched_getaffinity(0) >= {int(CORE)}


def test_a_width_is_written_into_a_copy_that_is_a_bundle(generative, tmp_path):
    before = Bundle.open(generative).digest
    made = generators.variants(generative, [2, 70], None, tmp_path)
    assert list(made) == ["M=2", "M=70", "dense"]
    for name, width in (("M=2", 2), ("M=70", 70)):
        served = load(Bundle.open(made[name]))
        assert served.generative is not None
        assert served.generative.settings.beams == width
    assert load(Bundle.open(made["dense"])).generative is None
    assert Bundle.open(generative).digest == before


def test_another_bundle_may_stand_beside_it(generative, toy_bundle, tmp_path):
    assert generators.variants(generative, [2], toy_bundle, tmp_path)["dense"] == toy_bundle


def test_a_bundle_without_encoder_stands_alone(tmp_path):
    alone = toy_generative(tmp_path / "alone", dense=False)
    assert list(generators.variants(alone, [2], None, tmp_path / "copies")) == ["M=2"]


def test_what_does_not_generate_is_refused(toy_bundle, tmp_path):
    with pytest.raises(LoadError, match="of kind 'encoder'"):
        generators.main(["--bundle", str(toy_bundle)])
    with pytest.raises(LoadError, match="no manifest"):
        generators.main(["--bundle", str(tmp_path / "absent")])


@pytest.mark.parametrize(
    ("option", "value", "why"),
    [
        ("--beams", "20,many", "positive numbers"),
        ("--beams", "2.5", "positive numbers"),
        ("--rate", "0,10", "positive numbers"),
        ("--rate", "", "positive numbers"),
        ("--rounds", "0", "at least 1"),
        ("--repeats", "-1", "at least 1"),
    ],
)
def test_what_measures_nothing_is_refused(generative, option, value, why):
    with pytest.raises(LoadError, match=why):
        generators.main(["--bundle", str(generative), option, value])


def test_a_core_that_is_not_there_is_refused():
    before = os.sched_getaffinity(0)
    with pytest.raises(LoadError, match="core 4095 is not ours"), generators.running_on(4095):
        pytest.fail("there is one")
    with generators.running_on(int(CORE)):
        assert os.sched_getaffinity(0) == {int(CORE)}
    assert os.sched_getaffinity(0) == before


def test_the_parts_of_a_block_by_hand():
    stages = {"prefill": 10.0, "decode": 20.0, "beam": 10.0, "queue": 1.0}
    asked = [
        Asked(0.1, "200", None, stages, generated=1.0, exact=True),
        Asked(0.3, "200", "seen", {**stages, "encode": 20.0}, generated=0.5, degraded=("generator_late",)),
        Asked(9.0, "503"),
    ]
    figures = generators.parts(asked, ["beam", "encode"])
    assert figures["per_s"] == pytest.approx(5.0)
    assert figures["p50_ms"] == pytest.approx(100.0)
    assert figures["model_share"] == pytest.approx(80 / 400)
    assert figures["mask_share"] == pytest.approx(20 / 400)
    assert figures["rest_share"] == pytest.approx(300 / 400)
    assert (figures["beam_ms"], figures["encode_ms"]) == (10.0, 10.0)
    assert (figures["generated"], figures["exact"]) == (0.75, 0.5)
    assert (figures["requests"], figures["errors"], figures["wrong"]) == (3, 1, 1)
    assert figures["degraded_by"] == {"generator_late": 1}
    with pytest.raises(LoadError, match=r"not one of 1 .*'503': 1"):
        generators.parts(asked[2:], [])


def figures(**changes):
    fine = {
        "sustained": True,
        "errors": 0,
        "wrong": 0,
        "requests": 200,
        "degraded_by": {},
        "p99_ms": {"median": 40.0, "low": 30.0, "high": 50.0},
        "achieved_per_s": {"median": 19.0, "low": 18.0, "high": 20.0},
    }
    return {**fine, **changes}


@pytest.mark.parametrize(
    ("changes", "held"),
    [
        ({}, True),
        ({"sustained": False}, False),
        ({"errors": 1}, False),
        ({"p99_ms": {"median": 40.0, "low": 30.0, "high": 50.1}}, False),
        ({"degraded_by": {"generator_late": 2, "no_history": 100}}, True),
        ({"degraded_by": {"generator_late": 3}}, False),
    ],
)
def test_a_rate_is_held_or_not(changes, held):
    assert generators.is_held(figures(**changes), 50.0) is held


def test_each_climbs_as_far_as_it_holds_and_all_in_turns(monkeypatch):
    turns = []

    async def offered(url, _facts, _histories, *, rate, seed):
        turns.append((rate, seed, url))
        held = rate <= {"slow": 10, "fast": 30}[url]
        return {**figures(sustained=held, achieved_per_s=float(rate)), "p99_ms": 40.0}

    monkeypatch.setattr(generators, "offered", offered)
    urls = {"M=50": "slow", "dense": "fast"}
    loaded = generators.climb(urls, None, [], rates=[10, 20, 30], repeats=2, bound_ms=50.0)
    assert turns[:4] == [(10, 0, "slow"), (10, 0, "fast"), (10, 1, "slow"), (10, 1, "fast")]
    assert turns[-2:] == [(30, 0, "fast"), (30, 1, "fast")], "who does not hold 20 is not asked for 30"
    assert [name for name, own in loaded.items() if not own["held"]] == ["M=50, 20/s"]
    assert (generators.most_held(loaded, "M=50"), generators.most_held(loaded, "dense")) == (10.0, 30.0)
    assert generators.most_held({}, "M=50") == 0.0


def test_histories_are_those_of_the_cases_or_of_readers(tmp_path):
    ids = tuple(f"f{n}" for n in range(50))
    facts = Facts({}, ids, frozenset(ids), True)
    cases = tmp_path / "cases.jsonl"
    cases.write_text("\n".join(json.dumps({"history": [f"f{n}"] * 1_500, "target": "f1"}) for n in range(9)))
    drawn = generators.drawn(facts, cases, seed=1)
    assert sorted(history[0] for history in drawn) == sorted(f"f{n}" for n in range(9))
    assert {len(history) for history in drawn} == {1_000}, "a request carries no more"
    assert drawn == generators.drawn(facts, cases, seed=1) != generators.drawn(facts, cases, seed=2)
    synthetic = generators.drawn(facts, None, seed=1)
    assert len(synthetic) == generators.SYNTHETIC
    assert all(synthetic), "who has no history is no matter for a model"


def test_an_answer_is_held_to_its_promise(fake_service):
    fake = fake_service(5)
    facts = target.learn(fake.url)
    answer = {"timings_ms": {"decode": 2.0}, "exact": True}
    items = [{"item_id": "f1", "source": "generated"}, {"item_id": "f2", "source": "popular"}]
    fake.recommend = lambda body: (200, {**fake.answer([]), **answer, "items": items}) if body["k"] == 2 else (503, {})

    async def asked():
        async with connected(fake.url, connections=1, timeout_s=5) as client:
            return [await generators.ask(client, facts, ("f1",), k=k) for k in (2, 3)]

    lied, failed = asyncio.run(asked())
    assert (lied.wrong, lied.generated, lied.exact, lied.stages) == ("seen", 0.5, True, {"decode": 2.0})
    assert (failed.code, failed.stages) == ("503", {})
    assert fake.asked[-1] == {"history": ["f1"], "k": 3, "consent": False}
