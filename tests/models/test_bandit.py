"""Logs of bandits: read row by row, and the policies and rewards that are learnt from them."""

import gzip
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models import bandit
from models.bandit import (
    BanditLog,
    PositionPolicy,
    learn_policy,
    likeness,
    predict_rewards,
    read_bandit,
    refuse_uneven,
    uniform,
)
from models.errors import (
    BadRow,
    Diverged,
    EmptyLog,
    InvalidPolicy,
    MissingColumn,
    MissingData,
    UnreadableData,
)
from models.intake import LoadReport
from retrieval.errors import InvalidInput

HEADER = ",timestamp,item_id,position,click,propensity_score,user_feature_0,user_feature_1,user-item_affinity_0"
ROWS = (
    "0,2019-11-24 00:00:00.500000+00:00,7,1,0,0.5,aa,cc,0.0",
    "1,2019-11-24 00:00:01+00:00,9,2,1,0.25,bb,cc,2.0",
    "2,2019-11-24 01:00:00+00:00,9,3,0,1e-06,aa,,0.0",
)
ITEMS = ",item_id,item_feature_0,item_feature_1\n0,7,-1.0,x\n1,8,0.0,y\n2,9,1.0,x\n"
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes the two files of one log, and gives the directory above."""

    def put(*rows: str, header: str = HEADER, items: str = ITEMS, policy: str = "random") -> Path:
        (tmp_path / policy).mkdir(exist_ok=True)
        (tmp_path / policy / "men.csv").write_text("\n".join([header, *rows]) + "\n")
        (tmp_path / policy / "men_item_context.csv").write_text(items)
        return tmp_path

    return put


def made(
    actions: list[int], propensities: list[float] | float = 0.5, *, k: int = 2, times_s: list[float] | None = None
) -> BanditLog:
    """A log at one position, nothing clicked."""
    n = len(actions)
    return BanditLog(
        policy="bts",
        campaign="men",
        items=tuple("abcdefgh"[:k]),
        actions=np.array(actions),
        positions=np.ones(n, np.int64),
        clicks=np.zeros(n),
        propensities=np.broadcast_to(np.array(propensities, np.float64), n),
        times_s=np.zeros(n) if times_s is None else np.array(times_s),
        users=np.zeros((n, 0)),
        features=np.zeros((k, 0)),
        digest="",
        report=LoadReport("open-bandit", [Path("men.csv")]),
    )


class TestReading:
    def test_every_column_arrives(self, write: Write) -> None:
        log = read_bandit(write(*ROWS), "random", "men")
        assert (log.items, log.actions.tolist()) == (("7", "8", "9"), [0, 2, 2])
        assert log.positions.tolist() == [1, 2, 3]
        assert log.clicks.tolist() == [0, 1, 0]
        assert log.propensities.tolist() == [0.5, 0.25, 1e-6]
        np.testing.assert_allclose(log.times_s - 1574553600, [0.5, 1, 3600])
        # aa or bb, and then nothing or cc: nothing given is a value too.
        assert log.users.tolist() == [[1, 0, 0, 1], [0, 1, 0, 1], [1, 0, 1, 0]]
        # A number of mean 0 and variance 2/3, and then x or y.
        np.testing.assert_allclose(log.features, [[-(1.5**0.5), 1, 0], [0, 0, 1], [1.5**0.5, 1, 0]])

    def test_gzip_reads_the_same(self, write: Write) -> None:
        root = write(*ROWS)
        plain = read_bandit(root, "random", "men")
        file = root / "random" / "men.csv"
        (root / "random" / "men.csv.gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
        packed = read_bandit(root, "random", "men")
        assert packed.actions.tolist() == plain.actions.tolist()
        assert packed.report.files[0].name == "men.csv.gz"

    @pytest.mark.parametrize(
        ("old", "new", "reason"),
        [
            (",0.25,", ",0,", "propensity_score out of range"),
            (",0.25,", ",-0.5,", "propensity_score out of range"),
            (",0.25,", ",1.5,", "propensity_score out of range"),
            (",0.25,", ",nan,", "propensity_score is not a number"),
            (",0.25,", ",,", "propensity_score out of range"),
            (",9,2,1,", ",9,0,1,", "position out of range"),
            (",9,2,1,", ",9,1.5,1,", "position out of range"),
            (",9,2,1,", ",9,2,2,", "click out of range"),
            (",9,2,1,", ",5,2,1,", "unlisted item"),
            (",9,2,1,", ",,2,1,", "missing item_id"),
            ("2019-11-24", "24 November", "unparsable timestamp"),
            (",2.0", "", "wrong column count"),
        ],
    )
    def test_a_bad_row_is_named_by_its_line_or_left_out_and_counted(
        self, write: Write, old: str, new: str, reason: str
    ) -> None:
        root = write(ROWS[0], ROWS[1].replace(old, new), ROWS[2])
        with pytest.raises(BadRow, match=rf"men\.csv:3: {reason}"):
            read_bandit(root, "random", "men")
        log = read_bandit(root, "random", "men", on_bad_row="skip")
        assert log.actions.tolist() == [0, 2]
        assert log.times_s[1] - log.times_s[0] == 3599.5
        assert {name: skipped.count for name, skipped in log.report.skipped.items()} == {reason: 1}
        assert (log.report.rows_read, log.report.rows_kept) == (3, 2)

    def test_empty(self, write: Write) -> None:
        with pytest.raises(EmptyLog, match="no decision of random in campaign men"):
            read_bandit(write(), "random", "men")

    def test_gone(self, write: Write) -> None:
        root = write(*ROWS)
        with pytest.raises(MissingData, match=r"women\.csv, plain or with \.gz"):
            read_bandit(root, "random", "women")
        (root / "random" / "men_item_context.csv").unlink()
        with pytest.raises(MissingData, match=r"men_item_context\.csv"):
            read_bandit(root, "random", "men")

    def test_a_column_that_is_missing(self, write: Write) -> None:
        with pytest.raises(MissingColumn, match="propensity_score is required"):
            read_bandit(write(*ROWS, header=HEADER.replace("propensity_score", "pscore")), "random", "men")

    @pytest.mark.parametrize("items", [",item_id\n0,7\n1,7\n", ",item_id\n"])
    def test_an_item_context_that_is_none(self, write: Write, items: str) -> None:
        with pytest.raises(UnreadableData, match="list each one once"):
            read_bandit(write(*ROWS, items=items), "random", "men")

    def test_some_rows_of_a_log(self, write: Write) -> None:
        some = read_bandit(write(*ROWS), "random", "men").only(np.array([True, False, True]))
        assert (len(some), some.positions.tolist(), some.users.shape) == (2, [1, 3], (2, 4))


class TestTheUniformPolicy:
    def test_every_item_has_its_share(self) -> None:
        assert uniform(made([0, 1, 0], k=4)).tolist() == [[0.25] * 4] * 3

    def test_a_log_that_chance_did_not_write(self) -> None:
        refuse_uneven(made([0, 1]))
        with pytest.raises(InvalidPolicy, match=r"men\.csv: propensity 0\.4 in row 1, which is not 1 of 2 items"):
            refuse_uneven(made([0, 1], [0.5, 0.4]))


class TestTheLearntPolicy:
    # Shown a a a b, with the probabilities .5 .5 .25 and .5. One more row of chance has 1/2 for either.
    LOG = made([0, 0, 0, 1], [0.5, 0.5, 0.25, 0.5])

    def row(self, reading: bandit.Reading) -> list[float]:
        return list(learn_policy(self.LOG, reading).rows(self.LOG)[0])

    def test_shares(self) -> None:
        assert self.row("shares") == pytest.approx([3.5 / 5, 1.5 / 5])

    def test_the_mean(self) -> None:
        # (.5 + .5 + .25 + .5) / 4 = .4375 and (.5 + .5) / 2 = .5, which sum to .9375.
        assert self.row("mean") == pytest.approx([0.4375 / 0.9375, 0.5 / 0.9375])

    def test_the_harmonic_mean(self) -> None:
        # 4 / (2 + 2 + 4 + 2) = .4 and 2 / (2 + 2) = .5, which sum to .9.
        assert self.row("harmonic") == pytest.approx([0.4 / 0.9, 0.5 / 0.9])

    def test_only_shares_recover_a_policy_that_swings(self) -> None:
        # a has .9 in one half of the time and .1 in the other: 1/2 on average, of two items.
        rng = np.random.default_rng(3)
        of_a = np.repeat([0.9, 0.1], 20_000)
        actions = (rng.random(40_000) > of_a).astype(int)
        log = made(actions.tolist(), np.where(actions == 0, of_a, 1 - of_a).tolist())
        log = replace(log, items=("a", "b", "c"), features=np.zeros((3, 0)))  # c is never shown
        shares, mean = (learn_policy(log, reading).rows(log)[0] for reading in ("shares", "mean"))
        np.testing.assert_allclose(shares, [0.5, 0.5, 0], atol=0.01)
        # E p^2 / E p = (.81 + .01) / 1 for both, and the one row of chance for c: 1/3 of 1.97.
        np.testing.assert_allclose(mean, np.array([0.82, 0.82, 1 / 3]) / (1.64 + 1 / 3), atol=0.01)

    def test_slices_are_read_apart_and_other_times_as_the_whole(self) -> None:
        log = made([0, 0, 1, 1], times_s=[10, 20, 3610, 3620])
        policy = learn_policy(log, "shares", 3600.0)
        # The whole is even; in each slice two rows of one item, and one more of the whole's halves.
        later = replace(log, times_s=np.array([0.0, 3599, 3600, 1e6]))
        expected = [[2.5 / 3, 0.5 / 3], [2.5 / 3, 0.5 / 3], [0.5 / 3, 2.5 / 3], [0.5, 0.5]]
        np.testing.assert_allclose(policy.rows(later), expected)

    def test_positions_are_read_apart(self) -> None:
        log = replace(made([0, 0, 1, 1]), positions=np.array([1, 1, 3, 3]))
        np.testing.assert_allclose(learn_policy(log).rows(log)[[0, 3]], [[2.5 / 3, 0.5 / 3], [0.5 / 3, 2.5 / 3]])

    def test_a_position_that_it_never_saw(self) -> None:
        with pytest.raises(InvalidInput, match=r"position 4 is not among \[1\]"):
            learn_policy(self.LOG).rows(replace(self.LOG, positions=np.array([1, 4, 1, 1])))

    @pytest.mark.parametrize("reading", bandit.READINGS)
    @pytest.mark.parametrize("slice_s", [None, 1.0])
    def test_every_row_sums_to_one_and_nothing_is_impossible(
        self, reading: bandit.Reading, slice_s: float | None
    ) -> None:
        rows = learn_policy(self.LOG, reading, slice_s).rows(self.LOG)
        np.testing.assert_allclose(rows.sum(axis=1), 1)
        assert (rows > 0).all()

    def test_likeness_judges_rows_held_out(self) -> None:
        # Even rows are all a and odd rows all b, so either half is described as badly as it can be.
        found = likeness(made([0, 1] * 4), "shares", None)
        # Four rows of the other item and one of chance: .5 / 5 for what is shown.
        assert found.log_loss == pytest.approx(-np.log(0.1))
        assert found.distance == pytest.approx(0.9)

    def test_a_policy_may_be_given(self) -> None:
        table = np.array([[[0.9, 0.1]], [[0.5, 0.5]]])
        given = PositionPolicy(np.array([1]), np.array([0]), table, None)
        assert given.rows(self.LOG)[0].tolist() == [0.9, 0.1]


def clicked(n: int = 4000) -> BanditLog:
    """A log in which item b is clicked half the time and the others hardly, whoever looks."""
    rng = np.random.default_rng(5)
    log = made(rng.integers(0, 3, n).tolist(), 1 / 3, k=3)
    rates = np.array([0.05, 0.5, 0.05])
    return replace(
        log, clicks=(rng.random(n) < rates[log.actions]).astype(float), users=np.eye(2)[rng.integers(0, 2, n)]
    )


class TestTheRewardModel:
    def test_it_finds_which_item_is_clicked(self) -> None:
        log = clicked()
        found = predict_rewards(log, penalty=1.0)
        assert found.shape == (4000, 3)
        np.testing.assert_allclose(found.mean(axis=0), [0.05, 0.5, 0.05], atol=0.03)

    def test_a_strong_penalty_leaves_the_mean(self) -> None:
        log = clicked()
        np.testing.assert_allclose(predict_rewards(log, penalty=1e9), log.clicks.mean(), atol=0.01)

    def test_no_row_teaches_its_own_prediction(self) -> None:
        log = clicked(40)
        before = predict_rewards(log, folds=4, penalty=0.1)
        flipped = log.clicks.copy()
        flipped[7] = 1 - flipped[7]
        after = predict_rewards(replace(log, clicks=flipped), folds=4, penalty=0.1)
        np.testing.assert_array_equal(after[7], before[7])
        assert (after != before).any(axis=1).sum() == 30  # the other three folds

    def test_a_log_without_clicks_predicts_none(self) -> None:
        assert predict_rewards(made([0, 1] * 20)).max() < 1e-3

    @pytest.mark.parametrize("folds", [1, 5])
    def test_folds_that_cannot_be_dealt(self, folds: int) -> None:
        with pytest.raises(InvalidInput, match=f"{folds} folds of 4 rows"):
            predict_rewards(made([0, 1, 0, 1]), folds=folds)

    def test_a_fit_that_does_not_end_says_so(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(bandit, "_STEPS", 1)
        with pytest.raises(Diverged, match="raise the penalty"):
            predict_rewards(clicked(), penalty=0.1)


@pytest.mark.data
def test_the_real_logs_are_what_their_publishers_say(shared_data: Callable[[str], Path]) -> None:
    root = shared_data("obd-small")
    clicks = {("random", "men"): 46, ("random", "women"): 46, ("bts", "men"): 69, ("bts", "women"): 46}
    for (policy, campaign), expected in clicks.items():
        log = read_bandit(root, policy, campaign)
        assert (len(log), log.clicks.sum()) == (10_000, expected)
        assert len(log.items) == {"men": 34, "women": 46}[campaign]
        assert log.report.skipped == {}
        if policy == "random":
            refuse_uneven(log)
        else:
            with pytest.raises(InvalidPolicy):
                refuse_uneven(log)
