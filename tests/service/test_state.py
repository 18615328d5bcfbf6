import logging
import shutil
import time
from dataclasses import replace

import pytest

from retrieval.errors import BundleError, BundleForeign, BundleMissing
from service import metrics
from service.placements import Placements
from service.sessions import open_store
from service.settings import Settings
from service.state import load_bundle, serving
from service.variants import Plan

pytestmark = pytest.mark.anyio


def gauge(name: str, **labels: str) -> float | None:
    return metrics.REGISTRY.get_sample_value(name, labels)


def life(served, *, store=None, settings=None, plan=None):
    return serving(
        settings or Settings(),
        store=store or open_store("memory://"),
        served=served,
        placements=Placements(),
        plan=plan or Plan(),
        clock=time.perf_counter,
        now=time.time,
    )


async def test_ready_only_after_the_warm_up_and_not_after_the_end(with_recommender, recommending):
    real = recommending.act
    ready_while_warming = []

    def watch(queries, stage):
        ready_while_warming.append(gauge("sequitur_ready"))
        return real(queries, stage)

    recommending.act = watch
    name = with_recommender.bundle.name
    async with life(with_recommender) as state:
        assert gauge("sequitur_ready") == 1
        assert gauge("sequitur_bundle_info", bundle=name, model="toy", kind="encoder") == 1
        assert gauge("sequitur_index_items", index="exact") == 20
        assert all(batcher.is_alive for batcher in state.pools.values())
    assert ready_while_warming
    assert not any(ready_while_warming)
    assert gauge("sequitur_ready") == 0
    assert not any(batcher.is_alive for batcher in state.pools.values())


async def test_the_warm_up_replays_what_the_bundle_brings_alone_and_together(with_recommender, recommending):
    async with life(with_recommender):
        assert sum(recommending.batches) == 4  # two histories, twice


async def test_the_warm_up_keeps_to_narrow_limits(with_recommender):
    async with life(with_recommender, settings=Settings(max_in_flight=1, queue_limit=1)):
        pass


async def test_a_bundle_whose_model_fails_its_warm_up_is_not_served(with_recommender, recommending):
    def broken(*_):
        raise RuntimeError("no")

    recommending.act = broken
    with pytest.raises(BundleError, match="failed 4 of 4 warm-up requests"):
        async with life(with_recommender):
            pytest.fail("it was served")
    assert gauge("sequitur_ready") == 0


async def test_gone_store_at_the_start_is_degraded_and_not_unready(served, away_store, caplog):
    async with life(served, store=away_store) as state:
        assert (await state.readiness())["store"] == "away"
    assert "starting without the session store" in caplog.text


async def test_the_bundle_of_the_settings_is_loaded_on_the_device_there_is(toy_bundle):
    async with life(None, settings=Settings(bundle=toy_bundle)) as state:
        assert state.about()["name"] == "toy"


async def test_a_device_that_was_asked_for_and_is_not_there_is_an_error(toy_bundle, monkeypatch, caplog):
    def load(_bundle, *, device, **_):
        if device == "cuda":
            raise BundleForeign("no such device")
        return device

    monkeypatch.setattr("service.state.load", load)
    with pytest.raises(BundleForeign):
        load_bundle(Settings(bundle=toy_bundle, device="cuda"))
    monkeypatch.setattr("service.state.best_device", lambda: "cuda")
    with caplog.at_level(logging.WARNING):
        assert load_bundle(Settings(bundle=toy_bundle)) == "cpu"
    assert "serving from the CPU" in caplog.text


async def test_a_missing_or_torn_bundle_is_named(tmp_path, toy_bundle):
    with pytest.raises(BundleMissing, match="there is no bundle directory"):
        load_bundle(Settings(bundle=tmp_path / "none"))
    torn = tmp_path / "torn"
    shutil.copytree(toy_bundle, torn)
    (torn / "encoder.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match=r"encoder\.onnx has 0 bytes"):
        load_bundle(Settings(bundle=torn))


async def test_a_bundle_without_warm_up_is_warmed_with_its_first_item(with_recommender, recommending):
    bare = replace(with_recommender.bundle)
    bare.__dict__["warmup"] = []
    async with life(replace(with_recommender, bundle=bare)):
        assert sum(recommending.batches) == 2
