"""Evaluation against rankings small enough to do by hand, and against a bundle whose answers are known."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy
from toy_generative import toy_generative

from models.evaluate import EncoderScorer, Report, Seen, evaluate, evaluate_lists, evaluate_served
from models.histories import Histories
from models.metrics import MISS
from models.splits import leave_one_out
from retrieval.bundle import Bundle
from retrieval.errors import InvalidInput
from retrieval.filters import Eligible
from retrieval.inputs import Request
from retrieval.queries import NO_STAGES, Answer, Query, Stage
from retrieval.sequences import FloatArray, History

N = 6


class Rising:
    """Scores equal to the row: the last item of the catalog is always the best."""

    name = "rising"

    def scores(self, histories: Sequence[History], times: Sequence[float]) -> FloatArray:
        assert len(histories) == len(times)
        return np.tile(np.arange(N + 1, dtype=np.float32), (len(histories), 1))


SPLIT = leave_one_out(Histories.from_rows([[1, 6, 5], [6, 2, 3], [1, 2, 6]]))


def test_seen_items_do_not_count_when_filtered() -> None:
    report = evaluate(Rising(), SPLIT.test, n_items=N, ks=(1, 2))
    # User 0 has seen 6, so 5 is first; user 1 has seen 6, so 5 and 4 stand before 3; user 2 gets 6 first.
    assert report.ranks.tolist() == [1, 3, 1]
    assert report.measures["recall@1"].value == pytest.approx(2 / 3)
    assert "seen items filtered" in report.protocol
    assert "6 items ranked whole" in report.protocol


def test_seen_items_stand_in_the_way_when_kept() -> None:
    report = evaluate(Rising(), SPLIT.test, n_items=N, ks=(1,), seen="kept")
    assert report.ranks.tolist() == [2, 4, 1]
    assert "seen items kept" in report.protocol


def test_coverage_is_of_what_was_shown() -> None:
    report = evaluate(Rising(), SPLIT.test, n_items=N, ks=(1, 2))
    assert report.coverage["coverage@1"] == pytest.approx(2 / 6)  # 5 and 6
    assert report.coverage["coverage@2"] == pytest.approx(3 / 6)  # and 4


def test_a_target_seen_before_is_a_miss_when_filtered_and_is_counted() -> None:
    again = leave_one_out(Histories.from_rows([[6, 1, 6], [1, 2, 3]])).test
    filtered = evaluate(Rising(), again, n_items=N, ks=(6,))
    assert filtered.ranks.tolist()[0] == MISS
    assert filtered.measures["recall@6"].value == 0.5
    assert filtered.seen_targets == 1
    assert "1 targets had been seen" in str(filtered)
    assert evaluate(Rising(), again, n_items=N, ks=(6,), seen="kept").ranks.tolist()[0] == 1


def test_sampled_negatives_avoid_the_users_training_events() -> None:
    # Users know 5 and 6 from training, which would beat 4; of what is left nothing does.
    cases = leave_one_out(Histories.from_rows([[5, 6, 1, 4]] * 40)).test
    report = evaluate(Rising(), cases, n_items=N, ks=(1,), negatives=50)
    assert report.measures["recall@1"].value == 1.0
    assert report.coverage == {}
    assert "50 uniform negatives" in report.protocol


def test_sampled_negatives_may_hold_the_validation_event() -> None:
    cases = leave_one_out(Histories.from_rows([[1, 2, 6, 5]] * 40)).test
    assert evaluate(Rising(), cases, n_items=N, ks=(1,), negatives=50).measures["recall@1"].value < 0.1


def test_sampled_negatives_are_seeded() -> None:
    cases = leave_one_out(Histories.from_rows([[1, 2, 3]] * 50)).test
    first, again, other = (
        evaluate(Rising(), cases, n_items=N, ks=(3,), negatives=4, seed=seed).ranks for seed in (1, 1, 2)
    )
    assert first.tolist() == again.tolist()
    assert first.tolist() != other.tolist()


def test_a_user_who_has_everything_leaves_no_negative() -> None:
    cases = leave_one_out(Histories.from_rows([[1, 2, 3, 4, 5, 6, 1, 2]])).test
    with pytest.raises(InvalidInput, match="no negative"):
        evaluate(Rising(), cases, n_items=N, negatives=3)


def test_the_scorers_array_is_not_written_to() -> None:
    class Keeping(Rising):
        kept = np.zeros((3, N + 1), np.float32)

        def scores(self, histories: Sequence[History], times: Sequence[float]) -> FloatArray:  # noqa: ARG002
            return self.kept

    evaluate(Keeping(), SPLIT.test, n_items=N)
    assert np.isfinite(Keeping.kept).all()


def test_progress_ends_at_the_number_of_cases() -> None:
    seen: list[tuple[int, int]] = []
    cases = leave_one_out(Histories.from_rows([[1, 2, 3]] * 100)).test
    evaluate(Rising(), cases, n_items=N, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(64, 100), (100, 100)]


def test_a_report_is_json_and_text() -> None:
    report = evaluate(Rising(), SPLIT.test, n_items=N, ks=(2,))
    stored = json.loads(json.dumps(report.to_json()))
    assert stored["metrics"]["recall@2"]["value"] == pytest.approx(2 / 3)
    assert stored["cases"] == 3
    assert "recall@2" in str(report)
    assert "0.6667" in str(report)


def test_events_of_unknown_items_are_left_out_aloud() -> None:
    cases = leave_one_out(replace(Histories.from_rows([[1, 2, 3]]), dropped=1234)).test
    assert "1,234 events of items outside the catalog" in evaluate(Rising(), cases, n_items=N).protocol


def test_wrong_shapes_and_lengths_are_refused() -> None:
    with pytest.raises(InvalidInput, match=r"\(3, 7\)"):
        evaluate(Rising(), SPLIT.test, n_items=N + 1)
    with pytest.raises(InvalidInput, match="list lengths"):
        evaluate(Rising(), SPLIT.test, n_items=N, ks=(0,))
    with pytest.raises(InvalidInput, match="no case"):
        evaluate(Rising(), SPLIT.test.sample(0, seed=0), n_items=N)


@pytest.fixture(scope="module")
def walks() -> Histories:
    """Sixty users who go round the toy's circle, in the rows of the toy's catalog, never onto the unavailable i20."""
    rng = np.random.default_rng(0)
    starts = rng.integers(0, 10, 60)
    return Histories.from_rows([(start + np.cumsum(rng.integers(1, 3, 5))).tolist() for start in starts])


@pytest.mark.parametrize("seen", ["filtered", "kept"])
def test_a_bundle_is_as_good_served_as_scored(toy_bundle: Path, walks: Histories, seen: Seen) -> None:
    bundle = Bundle.open(toy_bundle)
    cases = leave_one_out(walks).test
    scorer = EncoderScorer.of(bundle)

    class Available:
        """The service shows no unavailable item; the scorer alone would."""

        name = "available"

        def scores(self, histories: Sequence[History], times: Sequence[float]) -> FloatArray:
            return np.where(bundle.catalog.available, scorer.scores(histories, times), -np.inf)

    scored = evaluate(Available(), cases, n_items=toy.N, ks=(3, 10), seen=seen)
    served = evaluate_served(bundle, cases, ks=(3, 10), seen=seen)
    assert np.where(scored.ranks <= 10, scored.ranks, MISS).tolist() == served.ranks.tolist()
    assert served.measures == scored.measures
    assert served.coverage == scored.coverage
    assert served.measures["recall@10"].value > 0.5
    assert f"seen items {seen}" in served.protocol


def test_an_encoder_gives_no_history_no_preference(toy_bundle: Path) -> None:
    scorer = EncoderScorer.of(Bundle.open(toy_bundle))
    scores = scorer.scores([History.of_rows([]), History.of_rows([3])], [0.0, 0.0])
    assert not scores[0].any()
    assert scores[1].argmax() == 3


class Listing:
    """Lists eligible rows from the last one down, seen or not, at most three."""

    name = "listing"

    def reads(self, _request: Request, /) -> bool:
        return True

    def recommend(self, queries: Sequence[Query], stage: Stage = NO_STAGES) -> list[Answer]:
        with stage("retrieve"):
            answers = []
            for query in queries:
                rows = np.array([r for r in range(N, 0, -1) if query.eligible.mask[r] and r not in query.exclude][:3])
                answers.append(Answer.of(rows, -rows.astype(np.float32), "listing"))
            return answers


def listed(**changes: Any) -> Report:
    given: dict[str, Any] = {
        "cases": SPLIT.test,
        "ks": (1, 2),
        "eligible": Eligible.of(np.arange(N + 1) > 0),
        **changes,
    }
    return evaluate_lists(Listing(), given.pop("cases"), name="listing", how="as it comes", **given)


def test_lists_are_judged_by_where_the_target_stands() -> None:
    report = listed()
    # User 0 has seen 6, so 5 is first; user 1 has seen 6, so 5 and 4 stand before 3, third of three; user 2 gets 6.
    assert report.ranks.tolist() == [1, 3, 1]
    assert report.measures["recall@1"].value == pytest.approx(2 / 3)
    assert report.coverage == {"coverage@1": pytest.approx(2 / 6), "coverage@2": pytest.approx(3 / 6)}
    assert (report.name, report.n_items, report.n_cases) == ("listing", N, 3)
    assert report.protocol.endswith("lists of 2 as it comes, seen items filtered")
    scored = evaluate(Rising(), SPLIT.test, n_items=N, ks=(1, 2))
    assert report.measures == scored.measures


def test_what_is_not_in_a_list_is_a_miss_whatever_kept_it_out() -> None:
    assert listed(seen="kept").ranks.tolist() == [2, MISS, 1]
    without = listed(eligible=Eligible.of(np.isin(np.arange(N + 1), [1, 2, 3, 4])))
    assert without.ranks.tolist() == [MISS, 2, MISS]
    again = leave_one_out(Histories.from_rows([[6, 1, 6], [1, 2, 3]])).test
    assert (listed(cases=again).ranks.tolist()[0], listed(cases=again).seen_targets) == (MISS, 1)


def test_no_case_and_no_length_give_no_report_of_lists() -> None:
    with pytest.raises(InvalidInput, match="list lengths"):
        listed(ks=())
    with pytest.raises(InvalidInput, match="no case"):
        listed(cases=SPLIT.test.sample(0, seed=0))


def test_a_generating_bundle_is_judged_by_its_beams(tmp_path: Path, walks: Histories) -> None:
    bundle = Bundle.open(toy_generative(tmp_path / "b", dense=False))
    report = evaluate_served(bundle, leave_one_out(walks).test, ks=(3, 10))
    assert "as served by b@" in report.protocol
    assert "(8 beams)" in report.protocol
    assert (report.ranks == MISS).sum() < 60
    assert report.coverage["coverage@10"] <= 19 / 20  # one item is not available
