"""A shadow is asked in quiet moments, and nobody notices."""

import asyncio
import shutil

import pytest
import toy

from service import metrics

pytestmark = pytest.mark.anyio
URL = "/v1/recommendations"


def counted(name: str, **labels: str) -> float:
    return metrics.REGISTRY.get_sample_value(name, labels) or 0.0


def outcomes() -> dict[str, float]:
    return {
        outcome: counted("sequitur_shadow_total", variant="other", outcome=outcome)
        for outcome in metrics.SHADOW_OUTCOMES
    }


@pytest.fixture
def open_shadowed(open_client, toy_bundle, tmp_path):
    """Opens a client of an application where `other` shadows a share of what `default` answers."""
    shutil.copytree(toy_bundle, tmp_path / "bundles" / "toy")
    toy.write(tmp_path / "bundles" / "other", model="other-toy")

    def opened(share: float = 1.0, **more):
        file = tmp_path / "variants.toml"
        file.write_text(f'[variants.other]\nbundle = "other"\n[shadow.other]\nof = "default"\nshare = {share}\n')
        return open_client(bundles=tmp_path / "bundles", variants=file, **more)

    return opened


async def settled(client) -> None:
    while (task := client.app.state.shell.shadow._task) is not None:
        await asyncio.wait([task])
        await asyncio.sleep(0)


async def test_the_shadow_is_asked_the_same_and_counted_apart(open_shadowed):
    before = outcomes()
    overlaps = counted("sequitur_shadow_overlap_count", variant="other")
    async with open_shadowed() as client:
        await client.post("/v1/events", json={"events": [{"user_id": "u", "item_id": "i03"}]})
        metrics.count_kept()
        lists = counted("sequitur_history_length_count")
        answer = (await client.post(URL, json={"user_id": "u", "k": 5})).json()
        await settled(client)
        assert answer["model"]["variant"] == "default"
        assert outcomes()["answered"] == before["answered"] + 1
        assert counted("sequitur_shadow_overlap_count", variant="other") == overlaps + 1
        assert counted("sequitur_shadow_overlap_sum", variant="other") >= 1
        metrics.count_kept()
        assert counted("sequitur_history_length_count") == lists + 1
        await client.post(URL, json={"user_id": "u", "model": "other"})
        await settled(client)
        assert outcomes()["answered"] == before["answered"] + 1  # it is not its own shadow


async def test_only_the_share_is_asked(open_shadowed):
    before = outcomes()
    async with open_shadowed(0.25) as client:
        for _ in range(80):
            await client.post(URL, json={"history": ["i03"], "k": 2})
            await settled(client)
    asked = sum(outcomes().values()) - sum(before.values())
    assert 4 <= asked <= 40


async def test_busy_service_has_no_shadow(open_shadowed):
    before = outcomes()
    async with open_shadowed() as client:
        with client.app.state.shell.permits.hold():
            await client.post(URL, json={"history": ["i03"]})
            await settled(client)
        assert outcomes()["dropped"] == before["dropped"] + 1
        assert outcomes()["answered"] == before["answered"]


async def test_one_shadow_at_a_time(open_shadowed):
    before = outcomes()
    async with open_shadowed() as client:
        await asyncio.gather(*(client.post(URL, json={"history": ["i03"]}) for _ in range(10)))
        await settled(client)
    after = outcomes()
    assert sum(after.values()) == sum(before.values()) + 10
    assert after["dropped"] > before["dropped"]


async def test_a_shadow_that_fails_is_nobodys_error(open_shadowed):
    before, degraded = outcomes(), counted("sequitur_degraded_total", reason="encoder_failed")
    async with open_shadowed() as client:
        other = client.app.state.shell.variants.named("other")

        def broken(*_):
            raise RuntimeError("no")

        other.served.recommender.first.recommend = broken
        answer = await client.post(URL, json={"history": ["i03"]})
        await settled(client)
        assert (answer.status_code, answer.json()["degraded"]) == (200, False)
    assert outcomes()["degraded"] == before["degraded"] + 1
    assert counted("sequitur_degraded_total", reason="encoder_failed") == degraded
