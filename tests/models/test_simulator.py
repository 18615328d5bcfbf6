"""The simulated shop against its own formulas, read back as any log is; and goals, judged by what is true there."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from models.events import EventLog, read_log
from models.histories import catalog_from_log
from models.impressions import IMPRESSION, contexts, feedback
from models.simulator import CATEGORIES, FADING, PLACES, TASKS, Simulation, main, simulate
from retrieval.arrangement import Arranger
from retrieval.errors import InvalidInput
from retrieval.features import Candidates, FeatureSet
from retrieval.filters import NO_FILTER, Filters
from retrieval.inputs import Request
from retrieval.queries import NO_STAGES, Answer, Query, Stage
from retrieval.ranking import Ranking
from retrieval.sequences import EMPTY
from retrieval.tasks import Task
from retrieval.two_stage import TwoStage


@pytest.fixture(scope="module")
def shop() -> Simulation:
    """Large enough that chance is small beside what is tested."""
    return simulate(users=500, items=120, lists=6)


@pytest.fixture(scope="module")
def log(shop: Simulation, tmp_path_factory: pytest.TempPathFactory) -> EventLog:
    """The same, as training reads it."""
    folder = tmp_path_factory.mktemp("shop")
    shop.write(folder)
    return read_log("csv", folder)


def shown(shop: Simulation) -> pl.DataFrame:
    """Every impression with what came of it (a column per task) and what was to be expected (`expected_TASK`)."""
    events = shop.events
    out = events.filter(pl.col("event_type") == IMPRESSION)
    key = ["recommendation_id", "item_id"]
    for task in TASKS:
        happened = events.filter(pl.col("event_type") == task).select(*key, pl.lit(1.0).alias(task))
        out = out.join(happened, on=key, how="left", maintain_order="left").with_columns(pl.col(task).fill_null(0.0))
    users = {user: at for at, user in enumerate(shop.users["user_id"])}
    rows = {item: row for row, item in enumerate(shop.items["item_id"], start=1)}
    at = [[ids[one] for one in out[name]] for ids, name in ((users, "user_id"), (rows, "item_id"))]
    truth = shop.probabilities[at[0], at[1]] * shop.propensities[out["position"].to_numpy()][:, None]
    return out.with_columns(pl.Series(f"expected_{task}", truth[:, t]) for t, task in enumerate(TASKS))


def close(observed: np.ndarray, expected: np.ndarray) -> bool:
    """Whether a count is within four deviations of its expectation."""
    deviation = np.sqrt((expected * (1 - expected)).sum())
    return bool(abs(observed.sum() - expected.sum()) < 4 * deviation)


@pytest.mark.parametrize("task", TASKS)
def test_feedback_comes_as_often_as_the_formulas_say(shop: Simulation, task: str) -> None:
    every = shown(shop)
    assert every.height == 500 * 6 * PLACES
    for part in (every, *(every.filter(pl.col("position") == place) for place in range(1, PLACES + 1))):
        assert close(part[task].to_numpy(), part[f"expected_{task}"].to_numpy())
    likely = every[f"expected_{task}"] > every[f"expected_{task}"].median()
    for part in (every.filter(likely), every.filter(~likely)):
        assert close(part[task].to_numpy(), part[f"expected_{task}"].to_numpy())


def test_the_check_of_marginals_would_see_a_wrong_place(shop: Simulation) -> None:
    wrong = shown(shop).filter(pl.col("position") == 5)
    assert not close(wrong["click"].to_numpy(), wrong["expected_click"].to_numpy() * (5 / 4) ** FADING)


def test_places_are_examined_less_the_further_down(shop: Simulation) -> None:
    np.testing.assert_allclose(shop.propensities[1:], np.arange(1, PLACES + 1) ** -FADING)
    every = shown(shop)
    assert every.group_by("position").len()["len"].to_list() == [3000] * PLACES
    assert every.group_by("recommendation_id").agg(pl.col("item_id").n_unique())["item_id"].to_list() == [10] * 3000


def test_only_clicked_items_are_liked_or_bought_and_clicks_last(shop: Simulation) -> None:
    every = shown(shop)
    for task in ("like", "purchase"):
        assert (every.filter(pl.col(task) == 1)["click"] == 1).all()
    assert shop.events.filter(pl.col("event_type") == "click")["value"].min() > 0  # type: ignore[operator]
    assert (
        shop.events.filter(pl.col("event_type") != "click")["value"].null_count()
        == shop.events.filter(pl.col("event_type") != "click").height
    )


def test_a_seed_makes_the_same_shop_and_another_one_another(shop: Simulation) -> None:
    again, other = simulate(users=500, items=120, lists=6), simulate(users=500, items=120, lists=6, seed=8)
    assert again.events.equals(shop.events)
    assert np.array_equal(again.probabilities, shop.probabilities)
    assert not other.events.equals(shop.events)


def test_truth_is_a_probability_and_nothing_happens_without_a_click(shop: Simulation) -> None:
    truth = shop.truth(3, np.arange(1, 121))
    assert truth.shape == (120, len(TASKS))
    assert ((truth > 0) & (truth < 1)).all()
    assert (truth[:, 1:] < truth[:, :1]).all()


def test_it_is_read_like_any_log(shop: Simulation, log: EventLog) -> None:
    assert log.events.height == shop.events.height
    assert log.report.rows_kept == log.report.rows_read
    assert {"recommendation_id", "position", "score"} <= {*log.events.columns}
    assert log.events["user_id"].unique(maintain_order=True).to_list() == shop.users["user_id"].to_list()
    catalog = catalog_from_log(log)
    assert catalog.ids[1:] == tuple(shop.items["item_id"])  # so rows are those of `truth`
    assert {*catalog.columns} == {"categories", "price"}
    words, numbers = contexts(log.users)["u003"]
    assert words["segment"] in CATEGORIES
    assert numbers == {}
    assert set(feedback(log).events["event_type"].cast(pl.String)) == {*TASKS}


@pytest.mark.parametrize("sizes", [{"users": 0}, {"lists": 0}, {"items": PLACES - 1}])
def test_empty(sizes: dict[str, int]) -> None:
    with pytest.raises(InvalidInput, match="are needed"):
        simulate(**sizes)


def test_the_command_writes_a_log_and_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(tmp_path / "shop"), "--users", "5", "--items", "12", "--lists", "2"]) == 0
    assert sorted(file.name for file in (tmp_path / "shop").iterdir()) == ["events.csv", "items.csv", "users.csv"]
    assert "5 users and 12 items" in capsys.readouterr().err
    assert main(["--out", str(tmp_path / "none"), "--users", "0"]) == 2
    assert "invalid_input" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


class Everything:
    """A first stage that finds all that is eligible."""

    name = "everything"

    def reads(self, _request: Request, /) -> bool:
        return True

    def recommend(self, queries: Sequence[Query], stage: Stage = NO_STAGES) -> list[Answer]:  # noqa: ARG002
        found = [query.eligible.rows[: query.k] for query in queries]
        return [Answer.of(rows, np.linspace(1, 0, len(rows), dtype=np.float32), "retrieval") for rows in found]


class Oracle:
    """A ranker that says what is true of the user whom the request names."""

    def __init__(self, shop: Simulation) -> None:
        features = FeatureSet(tasks=tuple(Task(name) for name in TASKS))
        self.settings = Ranking(features, {"click": 1.0}, candidates=120)
        self._shop = shop

    def rank(self, candidates: Sequence[Candidates], /) -> list[np.ndarray]:
        users = [int(one.request.context["user"]) for one in candidates]
        found = [self._shop.truth(user, one.rows) for user, one in zip(users, candidates, strict=True)]
        return [truth.astype(np.float32) for truth in found]


@pytest.mark.parametrize("task", TASKS)
def test_a_higher_goal_never_lowers_what_it_asks_for(shop: Simulation, log: EventLog, task: str) -> None:
    catalog = catalog_from_log(log)
    two_stage = TwoStage(Everything(), Oracle(shop), Arranger(catalog, np.zeros((121, 2), np.float32)))
    eligible, users, k = Filters(catalog).eligible(NO_FILTER), range(0, 500, 5), 10
    reached = []
    for weight in (0.0, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 16.0):
        goals = {**dict.fromkeys(TASKS, 1.0), task: weight}
        queries = [
            Query(Request(EMPTY, context={"user": float(u)}), k, eligible, np.zeros(0, np.int64), goals=goals)
            for u in users
        ]
        answers = two_stage.recommend(queries)
        assert [len(answer) for answer in answers] == [k] * len(answers)
        own = [shop.truth(u, answer.rows)[:, TASKS.index(task)].sum() for u, answer in zip(users, answers, strict=True)]
        reached.append(own)
    steps = np.diff(np.array(reached), axis=0)
    assert steps.min() > -1e-6  # float32 sums; each single user's list, not only the mean
    assert steps.sum(axis=0).max() > 0.1  # and it does something
