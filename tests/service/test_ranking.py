"""The ranking stage over HTTP: goals, explanations, the caller's own candidates, and what comes of too little time."""

import asyncio
import threading

import numpy as np
import pytest
import toy
import toy_ranker
from toy_generative import toy_generative

from retrieval.bundle import Bundle
from retrieval.calibration import Isotonic, Platt
from retrieval.errors import BundleError
from retrieval.recommenders import load
from service import metrics
from tests.service.conftest import with_stages

pytestmark = pytest.mark.anyio
URL = "/v1/recommendations"
BODY = {"history": ["i03", "i05"], "k": 5}


def ids(answer) -> list[str]:
    return [item["item_id"] for item in answer.json()["items"]]


def counted(name: str, **labels: str) -> float:
    return metrics.REGISTRY.get_sample_value(name, labels) or 0.0


class Ranking:
    """A ranker whose behaviour a test may change while it serves; it begins as the real one."""

    def __init__(self, ranker) -> None:
        self.settings = ranker.settings
        self.act = ranker.rank

    def rank(self, candidates):
        return self.act(candidates)


@pytest.fixture
def ranking(ranked) -> Ranking:
    return Ranking(ranked.ranker)


@pytest.fixture
def opened(open_client, ranked):
    """Opens a client on the bundle that ranks, or on another one given as `served`."""

    def open_(served=ranked, app=None, **settings):
        return open_client(app={"served": served, **(app or {})}, **settings)

    return open_


async def found(open_client, served, k: int = toy_ranker.CANDIDATES) -> dict[str, float]:
    """What the bundle without its ranker finds for BODY, with its scores."""
    async with open_client(app={"served": served}) as client:
        answer = await client.post(URL, json={**BODY, "k": k})
    return {item["item_id"]: item["score"] for item in answer.json()["items"]}


def probabilities(scores: dict[str, float]) -> dict[str, np.ndarray]:
    rows = [int(item_id[1:]) for item_id in scores]
    return dict(zip(scores, toy_ranker.probabilities(rows, list(scores.values())), strict=True))


async def test_candidates_are_put_in_order_by_the_goals_and_scores_are_what_the_formula_says(
    opened, open_client, served
):
    expected = {
        item_id: float(said @ [1, 0.5]) for item_id, said in probabilities(await found(open_client, served)).items()
    }
    before = counted("sequitur_ranked_lists_total", outcome="full")
    async with opened() as client:
        answer = await client.post(URL, json=BODY)
        assert counted("sequitur_ranked_lists_total", outcome="full") > before
    assert ids(answer) == sorted(expected, key=expected.get, reverse=True)[:5]
    assert [item["score"] for item in answer.json()["items"]] == pytest.approx(
        [expected[item_id] for item_id in ids(answer)], abs=1e-6
    )
    assert {item["source"] for item in answer.json()["items"]} == {"retrieval"}
    assert (answer.json()["degraded"], "rank" in answer.json()["timings_ms"]) == (False, True)
    assert "ranking" not in answer.json()
    assert all("explanation" not in item for item in answer.json()["items"])


async def test_goals_move_the_order(opened, open_client, served):
    said = probabilities(await found(open_client, served))
    async with opened() as client:
        for goals in ({"click": 1}, {"like": 1}, {"click": 0.1, "like": 3.0}, {"click": -1}):
            weights = [goals.get(task, 0) for task in toy_ranker.TASKS]
            answer = await client.post(URL, json={**BODY, "k": 8, "placement": {"goals": goals}})
            assert ids(answer) == sorted(said, key=lambda item_id: -(said[item_id] @ weights)), goals


async def test_more_weight_on_a_goal_never_lowers_what_the_list_gets_of_it(opened):
    """The known truth: price makes likes. Its mean over the list rises with the weight of `like`."""
    async with opened() as client:
        means = []
        for weight in (0, 0.25, 0.5, 1, 2, 4, 1000):
            body = {**BODY, "k": 3, "placement": {"goals": {"click": 1, "like": weight}}}
            items = (await client.post(URL, json=body)).json()["items"]
            means.append(sum(item["attributes"]["price"] for item in items) / len(items))
    assert means == sorted(means)
    assert means[0] < means[-1]


async def test_explained_items_come_with_each_task_and_the_list_with_its_formula(opened, open_client, served):
    said = probabilities(await found(open_client, served))
    async with opened() as client:
        answer = await client.post(URL, json={**BODY, "explain": True})
        other = await client.post(URL, json={**BODY, "explain": True, "placement": {"goals": {"like": 2}}})
    assert answer.json()["ranking"] == {
        "formula": "1 * click + 0.5 * like",
        "goals": {"click": 1.0, "like": 0.5},
        "ranked": 8,
    }
    for item in answer.json()["items"]:
        tasks = item["explanation"]["tasks"]
        assert list(tasks) == ["click", "like"]
        assert list(tasks.values()) == pytest.approx(said[item["item_id"]], abs=1e-6)
        assert item["score"] == pytest.approx(tasks["click"] + 0.5 * tasks["like"], abs=1e-6)
    assert other.json()["ranking"]["formula"] == "2 * like"
    assert other.json()["ranking"]["goals"] == {"like": 2.0}


async def test_generated_items_are_ranked_and_explained_by_their_codes_and_by_tasks(tmp_path, opened):
    both = load(Bundle.open(toy_ranker.write(tmp_path / "both", base=toy_generative)))
    async with opened(both) as client:
        answer = await client.post(URL, json={**BODY, "explain": True})
    assert answer.json()["degraded_reasons"] == []
    assert {item["source"] for item in answer.json()["items"]} == {"generated"}
    assert {tuple(item["explanation"]) for item in answer.json()["items"]} == {("path", "tasks")}
    assert answer.json()["exact"] is True


async def test_a_bundle_without_a_ranker_answers_as_ever(client):
    answer = await client.post(URL, json={**BODY, "explain": True})
    assert set(answer.json()) == {
        "recommendation_id",
        "items",
        "next",
        "model",
        "degraded",
        "degraded_reasons",
        "timings_ms",
    }
    parts = ("item_id", "score", "rank", "source", "attributes", "reason")
    assert {tuple(item) for item in answer.json()["items"]} == {parts}
    assert set(answer.json()["timings_ms"]) == {"filter", "state", "queue", "encode", "retrieve", "respond"}
    ranked = await client.post("/v1/rankings", json={**BODY, "k": None, "candidates": ["i04"]})
    assert ranked.status_code == 422
    ranked = await client.post("/v1/rankings", json={"history": ["i05"], "candidates": ["i04"], "explain": True})
    assert set(ranked.json()) == {"items", "source", "model", "degraded", "degraded_reasons", "timings_ms"}
    assert set(ranked.json()["items"][0]) == {"item_id", "score", "rank", "known"}
    assert "ranking" not in (await client.get("/v1/model")).json()


async def test_empty_history_is_popular_and_nothing_came_too_late_to_be_ranked(opened):
    async with opened() as client:
        for body in ({"k": 3, "explain": True}, {"history": ["unheard of"], "k": 3, "explain": True}):
            answer = await client.post(URL, json=body)
            assert ids(answer) == ["i01", "i02", "i03"]
            assert answer.json()["degraded_reasons"] == ["no_history"]
            assert answer.json()["ranking"]["ranked"] == 0


class TestTooLittleTime:
    """A clock that only the ranker and the encoder move: a fifth of a second for each candidate, and as said below."""

    @pytest.fixture
    def ticks(self) -> list[float]:
        return [1000.0]

    @pytest.fixture
    def slow(self, ranked, ranking, ticks):
        """The bundle with such a ranker and an encoder that takes `slow.encode_s`."""
        real, first = ranking.act, ranked.recommender.first

        class Slow:
            name, encode_s = "slow", 0.0

            def recommend(self, queries, stage):
                ticks[0] += self.encode_s
                return first.recommend(queries, stage)

        def rank(candidates):
            ticks[0] += 0.2 * sum(len(one.rows) for one in candidates)
            return real(candidates)

        ranking.act = rank
        slow = Slow()
        slow.served = with_stages(ranked, first=slow, ranker=ranking)
        return slow

    async def test_late_fewer_candidates_are_ranked_then_none_and_each_is_said(self, opened, slow, ticks):
        async with opened(slow.served, app={"clock": lambda: ticks[0]}, deadline_ms=10_000) as client:
            plain = None
            for encode_s, outcome in ((5.5, "full"), (6.88, "short"), (7.95, "late")):
                before = counted("sequitur_ranked_lists_total", outcome=outcome)
                slow.encode_s = encode_s
                answer = await client.post(URL, json={**BODY, "explain": True})
                assert answer.json()["degraded_reasons"] == ([] if outcome == "full" else [f"ranker_{outcome}"])
                assert counted("sequitur_ranked_lists_total", outcome=outcome) == before + 1
                # Ten seconds less a fifth for the reserve; of what is left when ranking begins, four fifths.
                reach = {"full": 8, "short": 4, "late": 0}[outcome]
                assert answer.json()["ranking"]["ranked"] == reach
                explained = ["explanation" in item for item in answer.json()["items"]]
                assert explained == [place < reach for place in range(5)]
                assert [i["score"] for i in answer.json()["items"]] == sorted(
                    (i["score"] for i in answer.json()["items"]), reverse=True
                )
                plain = answer if outcome == "late" else plain
        assert ids(plain) == ["i04", "i06", "i02", "i07", "i01"]  # as the retriever found them

    async def test_late_rankings_keep_the_order_of_the_retriever(self, opened, slow, ticks):
        candidates = [f"i{n:02d}" for n in range(1, 21)]
        async with opened(slow.served, app={"clock": lambda: ticks[0]}) as client:
            body = {"history": ["i05"], "candidates": candidates}
            full = await client.post("/v1/rankings", json={**body, "deadline_ms": 10_000})
            short = await client.post("/v1/rankings", json={**body, "deadline_ms": 2_000, "explain": True})
            late = await client.post("/v1/rankings", json={**body, "deadline_ms": 240})
        assert (full.json()["source"], full.json()["degraded_reasons"]) == ("ranked", [])
        assert (short.json()["source"], short.json()["degraded_reasons"]) == ("ranked", ["ranker_short"])
        assert (late.json()["source"], late.json()["degraded_reasons"]) == ("retrieval", ["ranker_late"])
        assert ids(late)[0] == "i05"
        assert ["explanation" in item for item in short.json()["items"]] == [True] * 6 + [False] * 14
        assert sorted(ids(short)[:6]) == sorted(ids(late)[:6])
        assert ids(short)[6:] == ids(late)[6:]

    async def test_a_ranking_that_takes_longer_than_ever_leaves_the_popular_items(self, opened, ranked, ranking):
        gate, real = threading.Event(), ranking.act
        async with opened(with_stages(ranked, ranker=ranking)) as client:
            ranking.act = lambda candidates: gate.wait(10) and real(candidates)
            answer = await client.post(URL, json={**BODY, "k": 2, "deadline_ms": 200})
            gate.set()
        assert (ids(answer), answer.json()["degraded_reasons"]) == (["i01", "i02"], ["deadline"])


async def test_failed_ranker_leaves_the_order_in_which_items_were_found_and_says_so(
    opened, open_client, served, ranked, ranking, caplog
):
    def broken(_candidates):
        raise RuntimeError("the ranker is broken")

    before = counted("sequitur_errors_total", code="internal"), counted("sequitur_ranked_lists_total", outcome="failed")
    async with opened(with_stages(ranked, ranker=ranking)) as client:
        ranking.act = broken
        answer = await client.post(URL, json=BODY)
        given = await client.post("/v1/rankings", json={"history": ["i05"], "candidates": ["i15", "i06"]})
    assert ids(answer) == list(await found(open_client, served))[:5]
    assert answer.json()["degraded_reasons"] == ["ranker_failed"]
    assert {item["source"] for item in answer.json()["items"]} == {"retrieval"}
    assert (ids(given), given.json()["source"], given.json()["degraded_reasons"]) == (
        ["i06", "i15"],
        "retrieval",
        ["ranker_failed"],
    )
    assert "the ranker is broken" in caplog.text
    assert counted("sequitur_errors_total", code="internal") == before[0] + 2
    assert counted("sequitur_ranked_lists_total", outcome="failed") == before[1] + 2


async def test_a_ranker_whose_numbers_are_none_has_failed(opened, ranked, ranking):
    async with opened(with_stages(ranked, ranker=ranking)) as client:
        ranking.act = lambda candidates: [np.full((len(one.rows), 2), np.nan, np.float32) for one in candidates]
        answer = await client.post(URL, json=BODY)
    assert answer.json()["degraded_reasons"] == ["ranker_failed"]
    assert all(isinstance(item["score"], float) for item in answer.json()["items"])


async def test_a_bundle_whose_ranker_fails_its_warm_up_is_not_served(opened, ranked, ranking):
    def broken(_candidates):
        raise RuntimeError("no")

    ranking.act = broken
    with pytest.raises(BundleError, match="failed 4 of 4 warm-up requests"):
        async with opened(with_stages(ranked, ranker=ranking)):
            pytest.fail("it was served")


async def test_callers_at_the_same_time_are_ranked_in_one_run_and_each_gets_its_own(opened, ranked, ranking):
    runs, real = [], ranking.act

    def watch(candidates):
        runs.append(len(candidates))
        return real(candidates)

    ranking.act = watch
    bodies = [{"history": [f"i{n:02d}"], "k": n, "placement": {"goals": {"click": 1, "like": n}}} for n in range(2, 6)]
    async with opened(with_stages(ranked, ranker=ranking), batch_wait_ms=200, max_batch=4) as client:
        runs.clear()
        together = await asyncio.gather(*(client.post(URL, json=body) for body in bodies))
        assert runs == [4]
    async with opened() as client:
        alone = [await client.post(URL, json=body) for body in bodies]
    assert [ids(answer) for answer in together] == [ids(answer) for answer in alone]


async def test_cancelled_callers_leave_the_ranking_to_those_who_stay(opened, ranked, ranking):
    entered, gate, real = threading.Event(), threading.Event(), ranking.act
    async with opened(with_stages(ranked, ranker=ranking), batch_wait_ms=200, max_batch=2) as client:
        ranking.act = lambda candidates: (entered.set(), gate.wait(10)) and real(candidates)
        gone, stays = (asyncio.create_task(client.post(URL, json=BODY)) for _ in range(2))
        await asyncio.to_thread(entered.wait, 10)
        gone.cancel()
        await asyncio.wait([gone])
        gate.set()
        answer = await stays
    assert gone.cancelled()
    assert (answer.json()["degraded"], len(ids(answer))) == (False, 5)


async def test_full_house_refuses_rankings_before_any_work(opened, ranked, ranking):
    entered, gate, real = threading.Event(), threading.Event(), ranking.act
    body = {"history": ["i05"], "candidates": ["i06", "i15"]}
    async with opened(with_stages(ranked, ranker=ranking), max_in_flight=1) as client:
        ranking.act = lambda candidates: (entered.set(), gate.wait(10)) and real(candidates)
        first = asyncio.create_task(client.post("/v1/rankings", json=body))
        await asyncio.to_thread(entered.wait, 10)
        refused = await client.post("/v1/rankings", json=body)
        gate.set()
        assert (await first).json()["source"] == "ranked"
    assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")


@pytest.mark.parametrize(
    ("goals", "reason"),
    [
        ({"sale": 1}, "goal 'sale' is no task of this ranker, which predicts click, like"),
        ({"click": 0}, "no goal has a weight other than 0; weigh at least one of click, like"),
    ],
)
async def test_goals_that_cannot_be_meant_are_named(opened, goals, reason):
    async with opened() as client:
        for url, body in ((URL, BODY), ("/v1/rankings", {"history": ["i05"], "candidates": ["i01"]})):
            answer = await client.post(url, json={**body, "placement": {"goals": goals}})
            assert (answer.status_code, answer.json()["code"]) == (422, "invalid_rule")
            assert reason in answer.json()["detail"]


async def test_goals_without_a_ranker_are_refused(client):
    answer = await client.post(URL, json={**BODY, "placement": {"goals": {"click": 1}}})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_rule")
    assert "this bundle has none" in answer.json()["detail"]


async def test_the_model_page_says_how_lists_are_ranked(tmp_path, opened):
    calibration = {"click": Platt(0.5, 1.0), "like": Isotonic((0.0, 1.0), (0.1, 0.9))}
    calibrated = load(Bundle.open(toy_ranker.write(tmp_path / "toy", ranking={"calibration": calibration})))
    async with opened(calibrated) as client:
        about = (await client.get("/v1/model")).json()
    assert about["ranking"] == {
        "tasks": ["click", "like"],
        "goals": {"click": 1.0, "like": 0.5},
        "candidates": 8,
        "calibration": {"click": "platt", "like": "isotonic"},
    }


class TestRankings:
    """`POST /v1/rankings` with a ranker."""

    url = "/v1/rankings"
    candidates = ("zz", "i15", "i05", "i20", "aa", "i06")

    async def test_given_candidates_are_ranked_by_the_goals_and_explained(self, opened):
        rows = [15, 5, 20, 6]
        request = {"history": ["i05"], "candidates": list(self.candidates), "explain": True}
        async with opened() as client:
            answer = await client.post(self.url, json=request)
            liked = await client.post(self.url, json={**request, "placement": {"goals": {"like": 1}, "k": 1}})
        query = toy.vectors()[5]
        said = toy_ranker.probabilities(rows, toy.vectors()[rows] @ query)
        expected = dict(zip((f"i{row:02d}" for row in rows), said, strict=True))
        assert ids(answer) == [*sorted(expected, key=lambda i: -(expected[i] @ [1, 0.5])), "zz", "aa"]
        assert (answer.json()["source"], answer.json()["degraded"]) == ("ranked", False)
        assert [item["known"] for item in answer.json()["items"]] == [True] * 4 + [False] * 2
        assert [item["rank"] for item in answer.json()["items"]] == [1, 2, 3, 4, 5, 6]
        for item in answer.json()["items"][:4]:
            tasks = item["explanation"]["tasks"]
            assert list(tasks.values()) == pytest.approx(expected[item["item_id"]], abs=1e-5)
            assert item["score"] == pytest.approx(tasks["click"] + 0.5 * tasks["like"], abs=1e-6)
        assert "explanation" not in answer.json()["items"][5]
        assert answer.json()["ranking"]["ranked"] == 4
        assert ids(liked) == ["i20", "i15", "i06", "i05", "zz", "aa"]  # and all come back, whatever `k` says
        assert liked.json()["ranking"]["formula"] == "1 * like"

    async def test_scores_are_those_of_the_recommendations(self, opened):
        async with opened() as client:
            recommended = await client.post(URL, json={"history": ["i05"], "k": 8})
            scores = {item["item_id"]: item["score"] for item in recommended.json()["items"]}
            answer = await client.post(self.url, json={"history": ["i05"], "candidates": sorted(scores)})
        assert {item["item_id"]: item["score"] for item in answer.json()["items"]} == pytest.approx(scores, abs=1e-6)
        assert ids(answer) == list(scores)

    async def test_a_new_item_that_no_retriever_can_score_is_ranked(self, opened):
        async with opened() as client:
            await client.put("/v1/items/new", json={"attributes": {"price": 20}})
            body = {"history": ["i05"], "candidates": ["i15", "new", "zz"], "placement": {"goals": {"like": 1}}}
            answer = await client.post(self.url, json=body)
        assert ids(answer) == ["new", "i15", "zz"]
        assert [item["known"] for item in answer.json()["items"]] == [True, True, False]

    async def test_empty_history_is_ranked_by_popularity_and_said(self, opened):
        async with opened() as client:
            for body in ({}, {"history": ["unheard of"]}, {"user_id": "nobody"}):
                answer = await client.post(
                    self.url, json={**body, "candidates": ["i09", "zz", "i01", "i20"], "explain": True}
                )
                assert ids(answer) == ["i01", "i09", "i20", "zz"]
                assert (answer.json()["degraded_reasons"], answer.json()["source"]) == (["no_history"], "popular")
                assert answer.json()["ranking"]["ranked"] == 0

    async def test_gone_store_is_ranked_by_popularity_and_said(self, opened, away_store):
        async with opened(app={"store": away_store}) as client:
            answer = await client.post(self.url, json={"user_id": "anna", "candidates": ["i09", "i01"]})
        assert answer.json()["degraded_reasons"] == ["store_unavailable", "no_history"]
        assert ids(answer) == ["i01", "i09"]
