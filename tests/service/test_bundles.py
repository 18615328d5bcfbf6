"""Bundles come and go while requests are served."""

import asyncio
import gc
import json
import shutil
import threading
import weakref
from pathlib import Path

import pytest
import toy

from retrieval.bundle import Bundle
from retrieval.errors import BundleError
from retrieval.recommenders import load
from service import bundles as bundles_module
from service import metrics
from service.bundles import Word
from service.sessions import open_store

pytestmark = pytest.mark.anyio
URL = "/v1/recommendations"
ADMIN = "/v1/admin/bundles"


@pytest.fixture
def bundles(tmp_path: Path, toy_bundle: Path) -> Path:
    """A directory of two bundles, `one` and `two`, whose models have other names."""
    directory = tmp_path / "bundles"
    directory.mkdir()
    shutil.copytree(toy_bundle, directory / "one")
    toy.write(directory / "two", model="second")
    return directory


@pytest.fixture
def open_one(open_client, bundles):
    """Opens a client that serves `one` and may serve what lies beside it."""

    def opened(**changes):
        app = {"served": None, **changes.pop("app", {})}
        return open_client(app=app, bundle=bundles / "one", **changes)

    return opened


def swaps(outcome: str) -> float:
    return metrics.REGISTRY.get_sample_value("sequitur_swaps_total", {"outcome": outcome}) or 0.0


async def activate(client, name: str, **more):
    return await client.post(f"{ADMIN}/activate", json={"bundle": name, **more})


async def served_by(client) -> str:
    answer = (await client.post(URL, json={"history": ["i03"], "k": 3})).json()
    assert not answer["degraded"]
    return answer["model"]["bundle"].partition("@")[0]


async def test_another_bundle_is_served_and_the_first_one_again(open_one):
    before = swaps("ok"), swaps("rolled_back")
    async with open_one() as client:
        answer = await activate(client, "two")
        assert answer.status_code == 200
        assert answer.json()["bundle"].startswith("two@")
        assert answer.json()["before"].startswith("one@")
        assert await served_by(client) == "two"
        assert (await client.get("/v1/model")).json()["name"] == "second"
        assert (await client.get("/readyz")).json()["bundle"].startswith("two@")
        back = await client.post(f"{ADMIN}/rollback", json={})
        assert (back.status_code, back.json()["before"].partition("@")[0]) == (200, "two")
        assert await served_by(client) == "one"
    assert (swaps("ok"), swaps("rolled_back")) == (before[0] + 2, before[1] + 1)  # the start counts, too


async def test_what_lies_there_is_listed_and_what_is_none_says_why(open_one, bundles):
    (bundles / "torn").mkdir()
    (bundles / "torn" / "manifest.json").write_text("{")
    (bundles / "notes.txt").write_text("not a bundle")
    async with open_one() as client:
        body = (await client.get(ADMIN)).json()
    assert [one["name"] for one in body["bundles"]] == ["one", "torn", "two"]
    assert "not JSON" in body["bundles"][1]["refused"]
    assert body["bundles"][2]["model"] == "second"
    assert body["variants"] == [{"variant": "default", "bundle": body["bundles"][0]["bundle"], "before": None}]


def corrupt(path: Path) -> None:
    data = bytearray((path / "item_vectors.npy").read_bytes())
    data[-1] ^= 1
    (path / "item_vectors.npy").write_bytes(data)


def torn(path: Path) -> None:
    (path / "catalog.npz").unlink()


def foreign(path: Path) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, "layout": 99}))


def missing(path: Path) -> None:
    shutil.rmtree(path)


@pytest.mark.parametrize("harm", [corrupt, torn, foreign, missing])
async def test_bad_bundle_is_refused_with_the_reason_and_the_good_one_stays(open_one, bundles, harm):
    harm(bundles / "two")
    before = swaps("failed")
    async with open_one() as client:
        answer = await activate(client, "two")
        assert (answer.status_code, answer.json()["code"]) == (422, "bundle_refused")
        assert "still serves one@" in answer.json()["detail"]
        assert await served_by(client) == "one"
        assert (await client.get(ADMIN)).json()["variants"][0]["before"] is None
    assert swaps("failed") == before + 1


async def test_a_bundle_that_fails_its_trial_is_refused(open_one):
    async with open_one() as client:

        async def unfit(_served):
            raise BundleError("it fails its trial")

        client.app.state.shell.bundles._trial = unfit
        answer = await activate(client, "two")
        assert (answer.status_code, answer.json()["code"]) == (422, "bundle_refused")
        assert await served_by(client) == "one"


@pytest.mark.parametrize("name", ["../one", "/", "..", "one/../two", ".one.partial", "x" * 256])
async def test_a_name_that_leads_elsewhere_is_refused(open_one, name):
    async with open_one() as client:
        answer = await activate(client, name)
        assert (answer.status_code, answer.json()["code"]) == (422, "bundle_refused")


async def test_nothing_to_go_back_to_and_an_unknown_variant_are_said(open_one):
    async with open_one() as client:
        answer = await client.post(f"{ADMIN}/rollback", json={})
        assert (answer.status_code, answer.json()["code"]) == (409, "swap_conflict")
        answer = await activate(client, "two", variant="nobody")
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")


async def test_two_at_once_are_one_and_a_refusal(open_one):
    async with open_one() as client:
        codes = sorted(
            answer.status_code for answer in await asyncio.gather(*(activate(client, name) for name in ("two", "one")))
        )
        assert codes == [200, 409]


async def test_in_flight_request_ends_on_the_bundle_that_it_began_with(open_one):
    gate, begun = threading.Event(), threading.Event()
    async with open_one() as client:
        variant = client.app.state.shell.variants.default
        stage = variant.served.recommender.first
        real = stage.recommend

        def slow(*given):
            begun.set()
            gate.wait(10)
            return real(*given)

        stage.recommend = slow
        under_way = asyncio.create_task(client.post(URL, json={"history": ["i03"], "k": 3}))
        await asyncio.to_thread(begun.wait, 10)
        assert (await activate(client, "two")).status_code == 200
        gate.set()
        assert (await under_way).json()["model"]["bundle"].startswith("one@")
        assert await served_by(client) == "two"


async def test_a_caller_who_goes_does_not_stop_it(open_one):
    async with open_one() as client:
        shell = client.app.state.shell
        call = asyncio.create_task(shell.bundles.activate("two", "default"))
        await asyncio.sleep(0)
        call.cancel()
        await asyncio.wait([call])
        await asyncio.wait([shell.bundles._swap])
        assert await served_by(client) == "two"


async def test_what_was_said_of_items_holds_for_the_new_bundle_and_for_the_one_before(open_one):
    async def found(client) -> list[str]:
        answer = await client.post(URL, json={"history": ["i03"], "k": 50})
        return [item["item_id"] for item in answer.json()["items"]]

    async with open_one() as client:
        await client.delete("/v1/items/i04")
        await activate(client, "two")
        assert "i04" not in await found(client)
        await client.delete("/v1/items/i02")
        await client.post(f"{ADMIN}/rollback", json={})
        assert not {"i02", "i04"} & {*await found(client)}


async def test_gone_store_swaps_this_process_alone_and_keeps_what_was_said_of_items(open_one, away_store):
    store = open_store("memory://")
    store.durable = True
    async with open_one(app={"store": store}) as client:
        await client.delete("/v1/items/i04")
        store.item_changes, store.announce = away_store.item_changes, away_store.announce
        answer = await activate(client, "two")
        assert (answer.status_code, answer.json()["shared"]) == (200, False)
        listed = (await client.post(URL, json={"history": ["i03"], "k": 50})).json()
        assert "i04" not in [item["item_id"] for item in listed["items"]]


async def test_two_workers_follow_each_other_and_a_restart_does(open_one, open_client, bundles, tmp_path):
    url = f"sqlite:///{tmp_path}/s.sqlite"
    async with open_one(store=url) as first, open_one(store=url) as second:
        assert (await activate(first, "two")).json()["shared"] is True
        await second.app.state.shell.bundles.refresh()
        assert await served_by(second) == "two"
        await second.post(f"{ADMIN}/rollback", json={})
        await first.app.state.shell.bundles.refresh()
        assert await served_by(first) == "one"
        await activate(first, "two")
    async with open_one(store=url) as again:
        assert await served_by(again) == "two"
        assert (await again.get(ADMIN)).json()["variants"][0]["before"].startswith("one@")
    async with open_client(
        app={"served": load(Bundle.open(bundles / "two"))}, bundle=bundles / "two", store=url
    ) as other:
        assert await served_by(other) == "two"  # configured with another bundle: what was said over the old one is past


async def test_a_follower_that_cannot_load_it_stays_says_so_and_tries_again(open_one, bundles, tmp_path, caplog):
    store = open_store(f"sqlite:///{tmp_path}/s.sqlite")
    async with open_one(app={"store": store}) as client:
        shell = client.app.state.shell
        over = shell.variants.default.served.bundle.digest
        shutil.move(bundles / "two", tmp_path / "late")
        digest = Bundle.open(tmp_path / "late").digest
        await store.announce("bundle:default", Word("two", digest, over).encoded())
        before = swaps("failed")
        for _ in range(2):
            await shell.bundles.refresh()
        assert await served_by(client) == "one"
        assert swaps("failed") == before + 1
        assert "is refused" in caplog.text
        shutil.move(tmp_path / "late", bundles / "two")
        shell.bundles._clock = lambda: float("inf")
        await shell.bundles.refresh()
        assert await served_by(client) == "two"


async def test_another_bundle_under_the_announced_name_is_not_served(open_one, tmp_path):
    store = open_store(f"sqlite:///{tmp_path}/s.sqlite")
    async with open_one(app={"store": store}) as client:
        shell = client.app.state.shell
        over = shell.variants.default.served.bundle.digest
        await store.announce("bundle:default", Word("two", "0" * 64, over).encoded())
        await shell.bundles.refresh()
        assert await served_by(client) == "one"
        await store.announce("bundle:default", b"of a later version")
        await shell.bundles.refresh()
        assert await served_by(client) == "one"


async def test_without_the_scope_nobody_may_exchange_bundles(open_one, tmp_path):
    from hashlib import sha256

    keys = tmp_path / "keys"
    lines = [f"{name}:{name}:{sha256(name.encode()).hexdigest()}" for name in ("read", "write", "admin")]
    keys.write_text("\n".join(lines))
    async with open_one(api_keys_file=keys) as client:
        for key, code in (("read", 403), ("write", 403), ("admin", 200)):
            headers = {"x-api-key": key}
            assert (await client.get(ADMIN, headers=headers)).status_code == code
            body = {"bundle": "two"}
            assert (await client.post(f"{ADMIN}/activate", json=body, headers=headers)).status_code == code
        assert (await client.get(ADMIN)).status_code == 401


async def test_memory_and_metrics_are_flat_over_many_swaps(open_one):
    """What is let go is freed at once and by counting alone: a cycle would wait for a full collection of everything."""
    kept: list[weakref.ref] = []
    async with open_one() as client:
        variant = client.app.state.shell.variants.default
        gc.collect()
        gc.disable()
        try:
            for number in range(20):
                served = variant.served
                kept += map(
                    weakref.ref, (served.bundle, served.catalog, served.engine.encoder, served.recommender.first)
                )
                del served
                assert (await activate(client, ("two", "one")[number % 2])).status_code == 200
                await served_by(client)
            alive = sum(one() is not None for one in kept)
        finally:
            gc.enable()
        assert alive == 4, "one generation may live besides what is served"
        shown = metrics.exposition().decode()
        assert sum(line.startswith("sequitur_bundle_info{") for line in shown.splitlines()) == 1


async def test_memory_is_given_back_aside_when_what_was_let_go_is_gone(open_one, monkeypatch):
    """Earlier there would be nothing to give back; on the event loop somebody would wait for it."""
    kept: list[weakref.ref] = []
    given_back: list[tuple[bool, ...]] = []

    def give_back() -> None:
        assert threading.current_thread().name.startswith("aside")
        given_back.append(tuple(one() is None for one in kept))

    monkeypatch.setattr(bundles_module, "give_back", give_back)
    async with open_one() as client:
        shell = client.app.state.shell
        kept.append(weakref.ref(shell.variants.default.served.bundle))
        await activate(client, "two")
        await activate(client, "one")

        async def unfit(served):
            kept.append(weakref.ref(served.bundle))
            await asyncio.sleep(0.05)  # as long as a trial takes, the thread that loaded it has let go of it
            raise BundleError("it fails its trial")

        shell.bundles._trial = unfit
        assert (await activate(client, "two")).status_code == 422
    assert given_back == [(False,), (True,), (True, True)]


@pytest.mark.slow
async def test_resident_memory_is_flat_over_a_thousand_swaps(open_one):
    def resident_kb() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4

    sizes = []
    async with open_one() as client:
        for number in range(1000):
            assert (await activate(client, ("two", "one")[number % 2])).status_code == 200
            sizes.append(resident_kb())
    assert sizes[-1] < 1.03 * sizes[99]
