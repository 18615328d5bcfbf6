"""What a bundle has to pass, one by one."""

import time
from dataclasses import replace

import pytest

from retrieval.errors import BundleError, BundleForeign
from service.aside import Aside
from service.errors import ConfigurationError
from service.placements import Placements
from service.schemas import Placement
from service.trial import Trial

pytestmark = pytest.mark.anyio


@pytest.fixture
async def trial(client):
    """The trial of a process that serves the toy."""
    return client.app.state.shell.bundles._trial


async def test_a_bundle_that_answers_is_served(trial, served):
    await trial(served)


async def test_a_model_that_fails_its_warm_up_is_refused(trial, with_recommender, recommending):
    def broken(*_):
        raise RuntimeError("no")

    recommending.act = broken
    with pytest.raises(BundleError, match="failed 2 of 2 warm-up requests"):
        await trial(with_recommender)


async def test_an_unsound_model_is_refused(trial, with_recommender, recommending):
    real = recommending.act
    recommending.act = lambda queries, stage: [
        replace(answer, scores=answer.scores * len(queries)) for answer in real(queries, stage)
    ]
    with pytest.raises(BundleForeign, match="who else is in the batch"):
        await trial(with_recommender)


async def test_a_placement_that_means_nothing_for_it_is_named(client, served):
    aside = Aside(time.perf_counter)
    placements = Placements({"home": Placement(goals={"click": 1.0})})
    own = Trial(client.app.state.shell.bundles._trial._rehearse, placements=placements, aside=aside, clock=time.time)
    with pytest.raises(ConfigurationError, match="'home'"):
        await own(served)
    aside.close()
