"""A ranker's run, over a real retriever's bundle: what it may learn from, what is refused, what is left behind."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import markov
import numpy as np
import pytest

from models import ranker_runs
from models.__main__ import main
from models.errors import InvalidOption
from models.progress import Progress
from models.ranker_runs import RankerData, by_user, compare_rankers, replay, train_ranker
from models.runs import Source, read
from retrieval import bundle
from retrieval.bundle import RANKER, Bundle
from retrieval.errors import BundleError, InvalidInput
from retrieval.filters import NO_FILTER
from retrieval.inputs import Request
from retrieval.queries import Query
from retrieval.ranking import Ranking
from retrieval.recommenders import load
from retrieval.sequences import History

QUICK = {"epochs": "2", "candidates": "10", "threads": "1", "held_out": "0.3"}


@pytest.fixture(scope="module")
def log(chain: markov.Chain):
    return read(Source("csv", [chain.log]), Progress())


@pytest.fixture(scope="module")
def made(chain: markov.Chain, log, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Trains a logistic ranker over the shared retriever."""

    def run(name: str = "ranked", **options: str) -> Any:
        out = tmp_path_factory.mktemp("rankers") / name
        return train_ranker(
            "logistic", log, Bundle.open(chain.bundle), out, {**QUICK, **options}, split="loo", progress=Progress()
        )

    return run


@pytest.fixture(scope="module")
def ranked(made: Callable[..., Any]) -> Any:
    return made()


def test_the_bundle_of_both_stages_serves(chain: markov.Chain, ranked: Any):
    two, _ = ranked
    retriever = Bundle.open(chain.bundle)
    assert two.manifest.model == "sasrec+logistic"
    assert two.manifest.ranking["retriever"] == retriever.name
    assert {**retriever.manifest.files}.items() <= {**two.manifest.files}.items()
    served = load(two)
    history = History.of_rows([1, 2, 3])
    query = Query(Request(history, 10.0), 5, served.filters.eligible(NO_FILTER), history.rows)
    (answer,) = served.recommender.recommend([query])
    assert answer.ranked == 10
    assert answer.tasks is not None
    assert answer.tasks.shape == (5, 1)
    assert (np.diff(answer.scores) <= 0).all()


def test_what_is_measured_is_what_is_served(log: Any, ranked: Any):
    two, judged = ranked
    served = load(two)
    source = replay(two, log, split="loo", ask="first")
    cases = source.split.test
    hits = 0
    for case in range(len(cases)):
        history = cases.history(case)
        query = Query(Request(history, float(cases.times[case])), 10, served.filters.eligible(NO_FILTER), history.rows)
        hits += int(cases.targets[case] in served.recommender.recommend([query])[0].rows)
    assert judged.lines[1].report.measures["recall@10"].value == pytest.approx(hits / len(cases))
    assert judged.lines[0].report.name == "retrieval alone"


def test_a_ranker_learns_from_nothing_that_its_retriever_learnt(chain: markov.Chain, log: Any):
    source = replay(Bundle.open(chain.bundle), log, split="loo", ask="first")
    asked = source.split.validation
    for case in range(len(asked)):
        assert asked.ends[case] >= asked.train_ends[case]
    assert len(source.train.rows) + 2 * len(asked) == len(asked.source.rows)


def test_retrieval_alone_is_the_retriever_itself(chain: markov.Chain, ranked: Any):
    alone = ranked[1].lines[0].report.measures["recall@10"].value
    assert alone == pytest.approx(Bundle.open(chain.bundle).manifest.metrics["loo"]["recall@10"])


def test_rankers_of_one_retriever_stand_in_one_table(log: Any, ranked: Any, made: Callable[..., Any]):
    other, _ = made("plain", codes="false")
    judged = compare_rankers([ranked[0], other], log, split="loo", ks=(5, 10), progress=Progress())
    names = [line.report.name for line in judged.lines]
    assert names == ["retrieval alone", "ranked", "plain"]
    assert all(line.lost_in_retrieval == judged.lines[0].lost_in_retrieval for line in judged.lines)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"horizon": "0"}, "at least 1"),
        ({"held_out": "1"}, "between 0 and 1"),
        ({"ask": "some"}, "ask 'some' is none of all, first"),
        ({"source": "guessed"}, "source 'guessed' is none of replayed, logged"),
        ({"goals": "like=1"}, "'like' is no task; tasks are click"),
        ({"goals": "click"}, "not name=number"),
        ({"levels": "3"}, "--set levels: not an option of logistic"),
        ({"tasks": "buy: event_type == purchase"}, "event type 'purchase' is not in this log"),
    ],
)
def test_an_option_that_means_nothing_is_refused_by_name(made: Callable[..., Any], options: dict[str, str], said: str):
    with pytest.raises(InvalidOption, match=said):
        made("refused", **options)


def test_a_retriever_of_another_log_is_refused(chain: markov.Chain, log: Any):
    with pytest.raises(InvalidInput, match="was trained on other data than this log"):
        replay(Bundle.open(chain.bundle), replace(log, digest="another"), split="loo", ask="first")


def test_a_retriever_that_may_have_seen_the_answers_is_refused(chain: markov.Chain, log: Any):
    with pytest.raises(InvalidInput, match="was not trained with --split temporal"):
        replay(Bundle.open(chain.bundle), log, split="temporal", ask="first")


def test_a_place_that_is_taken_is_refused_before_training(chain: markov.Chain, log: Any, ranked: Any):
    with pytest.raises(BundleError, match="exists"):
        train_ranker(
            "logistic", log, Bundle.open(chain.bundle), ranked[0].path, QUICK, split="loo", progress=Progress()
        )


def test_only_rankers_of_the_same_lists_are_compared(chain: markov.Chain, log: Any, ranked: Any, made: Any):
    fewer, _ = made("fewer", candidates="5")
    with pytest.raises(InvalidInput, match="only orders of the same lists compare"):
        compare_rankers([ranked[0], fewer], log, split="loo", ks=(10,), progress=Progress())
    with pytest.raises(InvalidInput, match="has no ranker"):
        compare_rankers([Bundle.open(chain.bundle)], log, split="loo", ks=(10,), progress=Progress())


def test_rankers_of_other_tasks_are_not_compared(log: Any, ranked: Any, made: Any):
    again, _ = made("again", tasks="click: event_type == view")
    with pytest.raises(InvalidInput, match="calls something else 'click'"):
        compare_rankers([ranked[0], again], log, split="loo", ks=(10,), progress=Progress())


def test_bundles_of_one_name_keep_a_line_each(log: Any, ranked: Any, made: Any):
    namesake, _ = made("ranked", codes="false")
    judged = compare_rankers([ranked[0], namesake], log, split="loo", ks=(10,), progress=Progress())
    assert [line.report.name for line in judged.lines] == ["retrieval alone", "ranked", namesake.name]


def test_users_are_never_on_both_sides():
    users = np.repeat(np.arange(50), 3)
    learning, holding = by_user(users, 0.3, seed=1)
    assert not {*users[learning].tolist()} & {*users[holding].tolist()}
    assert len(learning) + len(holding) == len(users)
    with pytest.raises(InvalidInput, match="too few"):
        by_user(np.zeros(4, dtype=np.int64), 0.3, seed=1)


def test_goals_of_the_command_become_those_of_the_bundle():
    assert RankerData(goals="click=1,like=0.5").weights(["click", "like"]) == {"click": 1.0, "like": 0.5}
    assert RankerData().weights(["click", "like"]) == {"click": 1.0}


def test_by_command_line(chain: markov.Chain, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out, data = tmp_path / "ranked", ["--data", "csv", "--events", str(chain.log)]
    sets = [part for name, value in QUICK.items() for part in ("--set", f"{name}={value}")]
    asked = ["train", "--model", "logistic", *data, "--out", str(out), *sets]
    assert main([*asked]) == 2
    assert "--retriever" in capsys.readouterr().err
    assert main([*asked, "--retriever", str(chain.bundle)]) == 0
    assert "lost in ranking" in capsys.readouterr().out
    kept = ["--json", str(tmp_path / "chain.json"), "--results", str(tmp_path / "results.md")]
    assert main(["chain", *data, "--bundles", str(out), *kept]) == 0
    assert "| retrieval alone" in (tmp_path / "results.md").read_text()
    said = json.loads((tmp_path / "chain.json").read_text())
    assert [order["name"] for order in said["orders"]] == ["retrieval alone", "ranked"]
    assert main(["train", "--model", "sasrec", *data, "--out", str(tmp_path / "x"), "--retriever", str(out)]) == 2
    assert "--retriever goes with a ranker" in capsys.readouterr().err


def test_another_ranker_takes_the_place_of_the_first(log: Any, ranked: Any, tmp_path: Path):
    again, _ = train_ranker("logistic", log, ranked[0], tmp_path / "again", QUICK, split="loo", progress=Progress())
    assert again.manifest.model == "sasrec+logistic"
    assert [*again.manifest.graphs] == ["encoder", RANKER]
    assert Ranking.parse(again.manifest.ranking).tasks == ("click",)
    assert bundle.STATISTICS in again.manifest.files


def test_calibration_may_be_left_out(made: Callable[..., Any]):
    plain, _ = made("plain-probabilities", calibrate="false")
    assert plain.manifest.ranking["calibration"] == {}
    assert ranker_runs.opened(plain).settings.calibration == {}
