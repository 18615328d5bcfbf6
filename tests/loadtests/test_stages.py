"""The stages of the toy bundle, measured for a moment: every row is there, and the last line is the result."""

import asyncio
import json

import pytest
import redis
import toy_ranker
from redis_server import RedisServer

from loadtests import stages
from loadtests.stages import Effort
from loadtests.target import LoadError
from retrieval.bundle import Bundle
from retrieval.recommenders import load


@pytest.mark.filterwarnings("ignore:builtin type:DeprecationWarning")  # of faiss's own types, at its import
def test_a_quick_run_measures_every_stage(toy_bundle, capsys):
    assert stages.main(["--bundle", str(toy_bundle), "--quick", "--repeats", "3", "--k", "5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    document = json.loads(lines[-1])
    results = document["results"]
    assert lines[1].startswith("request, floor"), "the floor comes first"
    for name in ("encode", "retrieve", "store sqlite"):
        assert "above_floor_ms" in results[f"request, + {name}"]
    for name in ("encode, B=1", "encode, B=8", "encode, B=32", "filter, cold", "filter, cached", "response, k=5"):
        assert results[name]["ms"]["low"] > 0
    assert {"batcher, 1 at once", "batcher, 32 at once"} <= set(results)
    assert results["retrieve exact, N=1000, B=1"]["recall"] == 1.0
    (approximate,) = [name for name in results if "faiss" in name and "B=1" in name and "B=32" not in name]
    assert 0.9 <= results[approximate]["recall"] <= 1.0
    assert results["HTTP, service / plain endpoint"]["latency_ratio"]["median"] > 0
    assert len(document["bundle"]["digest"]) == 64
    assert any("redis" in note for note in document["notes"]), "what was not measured is said"


def test_the_graph_alone_is_measured_at_each_batch_size(toy_bundle, capsys):
    assert stages.main(["--bundle", str(toy_bundle), "--quick", "--repeats", "2", "--k", "5", "--encode-only"]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(document["results"]) == [f"encode, B={b}" for b in (1, 8, 32, 64, 256)]
    assert "device" not in document["conditions"], "results from before there was a choice still compare"


def test_a_device_is_measured_beside_the_cpu_and_named(toy_bundle, capsys, monkeypatch):
    real = stages.OnnxEncoder
    opened = []

    def encoder(*given, device, **named):
        opened.append(device)
        return real(*given, **named)

    monkeypatch.setattr(stages, "load", lambda bundle, *, threads, **_: load(bundle, threads=threads))
    monkeypatch.setattr(stages, "OnnxEncoder", encoder)
    monkeypatch.setattr(stages, "card", lambda: "a card")
    asked = ["--bundle", str(toy_bundle), "--quick", "--repeats", "2", "--k", "5", "--encode-only", "--device", "cuda"]
    assert stages.main(asked) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert opened == ["cpu", "cuda"]
    assert {"encode, B=256", "encode on cuda, B=256"} <= set(document["results"])
    assert (document["conditions"]["device"], document["conditions"]["card"]) == ("cuda", "a card")


def test_a_device_that_is_not_there_is_refused(toy_bundle, monkeypatch):
    monkeypatch.setattr("retrieval.encoder.ort.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(LoadError, match="needs CUDAExecutionProvider"):
        stages.main(["--bundle", str(toy_bundle), "--device", "cuda"])


def test_one_real_part_costs_more_than_none(toy_bundle):
    whole = stages.Whole(Bundle.open(toy_bundle), threads=1, k=5, history=10)
    nothing, real = whole.served(encodes=False, retrieves=False), whole.served(encodes=True, retrieves=True)
    assert nothing.index.name == "none"
    assert real.index.name == "exact"
    assert len(whole.history) == len(set(whole.history)) == 10


@pytest.mark.filterwarnings("ignore:builtin type:DeprecationWarning")  # of faiss's own types, at its import
def test_a_ranker_is_a_part_of_its_own_and_of_everything_real(tmp_path, capsys):
    path = toy_ranker.write(tmp_path / "ranked")
    assert stages.main(["--bundle", str(path), "--quick", "--repeats", "2", "--k", "5"]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert "above_floor_ms" in document["results"]["request, + rank"]
    assert any("the bundle ranks" in note for note in document["notes"]), "a plain endpoint does not"
    whole = stages.Whole(Bundle.open(path), threads=1, k=5, history=10)
    assert whole.served(encodes=False, retrieves=False).recommender.ranker is None, "the floor ranks nothing"
    assert whole.served(encodes=True, retrieves=True, ranks=True).recommender.ranker is not None


def test_a_slow_call_is_made_less_often():
    calls = 0

    def slow():
        nonlocal calls
        calls += 1
        sum(range(1_000_000))

    effort = Effort(repeats=2, calls=50, warmup=2, catalogs=())
    found = stages.alone(slow, effort, per=4)
    assert calls < 50
    assert found["each_ms"]["median"] == pytest.approx(found["ms"]["median"] / 4, rel=1e-3)


@pytest.mark.redis
def test_redis_stands_beside_the_other_stores_and_keeps_nothing(toy_bundle, tmp_path):
    whole = stages.Whole(Bundle.open(toy_bundle), threads=1, k=5, history=10)
    effort = Effort(repeats=3, calls=3, warmup=1, catalogs=())
    with RedisServer(tmp_path / "redis") as server:
        figures = asyncio.run(stages.requests(whole, effort, redis=server.url, folder=tmp_path))
        with redis.Redis.from_url(server.url) as client:
            assert client.dbsize() == 0
    assert figures["request, + store redis"]["ms"]["low"] > 0


def test_a_missing_bundle_is_refused(tmp_path):
    with pytest.raises(LoadError):
        stages.main(["--bundle", str(tmp_path / "absent")])
