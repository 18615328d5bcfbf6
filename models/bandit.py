"""Logs of bandits as the Open Bandit data publishes them: decisions with propensities, and the policies behind them.

    DIR/{random,bts}/{campaign}.csv[.gz]            one shown item per row, at one of the positions of a page
    DIR/{random,bts}/{campaign}_item_context.csv    the items that could be shown

A row is an action at a position; the items of one page are taken for separate decisions, as their publishers do. Two
policies ran side by side: `random`, uniform over items, and `bts`, a Bernoulli Thompson sampler that looks at no
context and changes as it learns.

Source:
    Saito, Aihara, Matsutani and Narita (2020), "Open Bandit Dataset and Pipeline", arXiv 2008.07146, sections 3 and 5.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy.optimize import minimize

from models.columns import ids, natural, numbers, times
from models.errors import Diverged, EmptyLog, InvalidPolicy, MissingData, UnreadableData
from models.intake import Batch, LoadReport, OnBadRow
from models.layouts.tables import named
from models.layouts.text import CSV, read_text
from models.off_policy import Values
from retrieval.errors import InvalidInput
from retrieval.sequences import IntArray

COLUMNS = ("timestamp", "item_id", "position", "click", "propensity_score")
USER_FEATURE, ITEM_FEATURE = "user_feature_", "item_feature_"
FOLDS = 5
# Of 0.3 to 1000 the one that predicts held-out clicks of the four Open Bandit samples best, taken together.
PENALTY = 100.0

Reading = Literal["shares", "mean", "harmonic"]
READINGS: tuple[Reading, ...] = get_args(Reading)

_SAME = 1e-9  # propensities are printed with 17 digits
_STEPS = 1000


@dataclass(frozen=True, eq=False)
class BanditLog:
    """What one policy showed in one campaign, and what was clicked.

    Attributes:
        policy, campaign: whose log it is.
        items: K item ids, in the order of the item context.
        actions: int64, shape (n,). Which of the items was shown.
        positions: int64, shape (n,). Where, from 1.
        clicks: float64, shape (n,). 0 or 1.
        propensities: float64, shape (n,). In (0, 1].
        times_s: float64, shape (n,). Seconds since 1970.
        users: float64, shape (n, U). User features, one-hot.
        features: float64, shape (K, F). Item features: one-hot, numbers standardised.
        digest: SHA-256 of the two files.
        report: what was read.
    """

    policy: str
    campaign: str
    items: tuple[str, ...]
    actions: IntArray
    positions: IntArray
    clicks: Values
    propensities: Values
    times_s: Values
    users: Values
    features: Values
    digest: str
    report: LoadReport

    def __len__(self) -> int:
        return len(self.actions)

    def only(self, rows: npt.NDArray[np.bool_]) -> "BanditLog":
        """The log of some rows; bool, shape (n,)."""
        columns = ("actions", "positions", "clicks", "propensities", "times_s", "users")
        return replace(self, **{name: getattr(self, name)[rows] for name in columns})


def read_bandit(directory: Path, policy: str, campaign: str, *, on_bad_row: OnBadRow = "fail") -> BanditLog:
    """The log of one policy in one campaign.

    Raises:
        MissingData: a file is not there.
        MissingColumn, UnreadableData: a file is not in this form.
        BadRow: a row breaks a rule, and `on_bad_row` is `fail`.
        EmptyLog: no row is left.
    """
    rows_file = _file(directory / policy / f"{campaign}.csv")
    items_file = _file(directory / policy / f"{campaign}_item_context.csv")
    report = LoadReport("open-bandit", [rows_file, items_file])
    items, features = _read_items(items_file, report)
    frames = []
    for batch in named(read_text(rows_file, CSV), COLUMNS):
        judged = _judged(batch, items)
        report.settle(judged, on_bad_row, report.rows_read)
        report.rows_read += batch.rows_read
        report.rows_kept += judged.frame.height
        frames.append(judged.frame)
    if not report.rows_kept:
        raise EmptyLog(f"{rows_file} holds no decision of {policy} in campaign {campaign}")
    rows = pl.concat(frames)
    at = {item: index for index, item in enumerate(items)}
    return BanditLog(
        policy=policy,
        campaign=campaign,
        items=items,
        actions=np.array([at[item] for item in rows["item_id"]], np.int64),
        positions=rows["position"].cast(pl.Int64).to_numpy(),
        clicks=rows["click"].to_numpy(),
        propensities=rows["propensity_score"].to_numpy(),
        times_s=rows["timestamp"].to_numpy(),
        users=_encoded([rows[name] for name in rows.columns if name.startswith(USER_FEATURE)], len(rows)),
        features=features,
        digest=hashlib.sha256(rows_file.read_bytes() + items_file.read_bytes()).hexdigest(),
        report=report,
    )


def uniform(log: BanditLog) -> Values:
    """float64, shape (n, K): the policy that shows every item equally often."""
    return np.full((len(log), len(log.items)), 1 / len(log.items))


def refuse_uneven(log: BanditLog) -> None:
    """Raises `InvalidPolicy` where the log was not written by the policy that shows every item equally often."""
    wrong = np.abs(log.propensities * len(log.items) - 1) > _SAME
    if wrong.any():
        row = int(wrong.argmax())
        raise InvalidPolicy(
            f"{log.report.files[0]}: propensity {log.propensities[row]} in row {row}, which is not 1 of "
            f"{len(log.items)} items; the log of `{log.policy}` must have been written by uniform chance"
        )


@dataclass(frozen=True, eq=False)
class PositionPolicy:
    """Probabilities of items by position, the same for every visitor, possibly changing with time.

    Attributes:
        positions: int64, shape (P,), rising.
        slices: int64, shape (S,), rising: which multiples of `slice_s` seconds the log covers.
        table: float64, shape (S + 1, P, K). The last is for all other times.
        slice_s: None where the policy does not change.
    """

    positions: IntArray
    slices: IntArray
    table: Values
    slice_s: float | None

    def rows(self, log: BanditLog) -> Values:
        """float64, shape (n, K): what this policy does in the place of each row.

        Raises:
            InvalidInput: the log shows a position that the policy does not know.
        """
        unknown = np.setdiff1d(log.positions, self.positions)
        if unknown.size:
            raise InvalidInput(
                f"position {unknown[0]} is not among {self.positions.tolist()}, for which the policy is known; leave "
                "out its rows, or learn the policy from a log that has it"
            )
        sliced = _sliced(log, self.slice_s)
        found = np.searchsorted(self.slices, sliced)
        is_known = self.slices[np.minimum(found, len(self.slices) - 1)] == sliced
        return self.table[np.where(is_known, found, len(self.slices)), np.searchsorted(self.positions, log.positions)]


def learn_policy(log: BanditLog, reading: Reading = "shares", slice_s: float | None = None) -> PositionPolicy:
    """The policy that wrote a log, as far as the log shows it.

    A propensity is seen only where its item was shown, that is more often while it is high. Three readings, each
    divided by its sum over the items:

    * `shares`: how often an item was shown. Weighting every seen propensity by its inverse, the Horvitz-Thompson
      estimate of the mean probability, gives sum (1 / p) p / n: this very share. So it is the unbiased one.
    * `mean`: of the seen propensities. Estimates E p^2 / E p: too high for whatever fluctuates.
    * `harmonic` mean of them, n_a / sum (1 / p): the self-normalised form of the same weighting. Exact from a single
      row where the policy stands still, too high for items whose probability was small unseen, and at the mercy of a
      propensity that was logged as nearly 0.

    Each is taken as if one more row had been seen: of uniform chance over the whole log, of the whole log in a slice.

    Args:
        reading: one of the three.
        slice_s: length of the stretches of time that are read apart; None reads all of it as one.

    Source:
        Horvitz and Thompson (1952), "A Generalization of Sampling Without Replacement from a Finite Universe".
    """
    positions, where = np.unique(log.positions, return_inverse=True)
    shape = (len(positions), len(log.items))
    whole = _read(log, reading, np.zeros(len(log), np.int64), where, np.full((1, *shape), 1 / len(log.items)))
    slices, when = np.unique(_sliced(log, slice_s), return_inverse=True)
    apart = np.broadcast_to(whole, (len(slices), *shape))
    table = apart if slice_s is None else _read(log, reading, when, where, apart)
    return PositionPolicy(positions, slices, np.concatenate([table, whole]), slice_s)


@dataclass(frozen=True)
class Likeness:
    """How nearly a learnt policy describes rows of its log that it was not learnt from.

    Attributes:
        reading, slice_s: how it was learnt.
        log_loss: mean -ln of the probability of the item that was shown, in nats.
        distance: total variation between the shares it predicts and the shares of those rows, mean over positions.
    """

    reading: Reading
    slice_s: float | None
    log_loss: float
    distance: float


def likeness(log: BanditLog, reading: Reading, slice_s: float | None) -> Likeness:
    """Learns from every other row and looks at the rest, and the other way round.

    The shares of a log describe that log perfectly, which says nothing; rows held out make the choice fair.
    """
    is_even = np.arange(len(log)) % 2 == 0
    losses, distances = [], []
    for learnt in (is_even, ~is_even):
        rest = log.only(~learnt)
        policy = learn_policy(log.only(learnt), reading, slice_s).rows(rest)
        losses.append(-np.log(policy[np.arange(len(rest)), rest.actions]))
        for position in np.unique(rest.positions):
            here = rest.positions == position
            shares = np.bincount(rest.actions[here], minlength=len(log.items)) / here.sum()
            distances.append(np.abs(policy[here].mean(axis=0) - shares).sum() / 2)
    return Likeness(reading, slice_s, float(np.concatenate(losses).mean()), float(np.mean(distances)))


def predict_rewards(log: BanditLog, *, folds: int = FOLDS, penalty: float = PENALTY, seed: int = 0) -> Values:
    """float64, shape (n, K): click probability of every item in each row's place, by a model that never saw that row.

    Logistic regression on item, item features, position and user features, without interactions: ln(q / (1 - q)) =
    intercept + context + item. The squared weights, not the intercept, are held down by `penalty` / 2.

    Args:
        folds: parts that rows are dealt into; each part is predicted by a model of the others.
        penalty: with some fifty clicks to learn from it must be strong, or the model takes chance for taste.
        seed: of the deal.

    Raises:
        InvalidInput: fewer than two folds, or fewer rows than folds.
        Diverged: the fit does not end.

    Source:
        Chernozhukov et al. (2018), "Double/debiased machine learning", section 3, for cross-fitting.
    """
    if not 2 <= folds <= len(log):
        raise InvalidInput(f"{folds} folds of {len(log)} rows; deal them into at least 2, and no more than there are")
    part = np.random.default_rng(seed).permutation(len(log)) % folds
    contexts = np.concatenate([log.users, _one_hot(np.unique(log.positions, return_inverse=True)[1])], axis=1)
    items = np.concatenate([np.eye(len(log.items)), log.features], axis=1)
    found = np.empty((len(log), len(log.items)))
    for fold in range(folds):
        learnt, asked = part != fold, part == fold
        intercept, by_context, by_item = _fit(contexts[learnt], items, log.actions[learnt], log.clicks[learnt], penalty)
        found[asked] = _sigmoid(intercept + (contexts[asked] @ by_context)[:, None] + items @ by_item)
    return found


def _fit(
    contexts: Values, items: Values, actions: IntArray, clicks: Values, penalty: float
) -> tuple[float, Values, Values]:
    """Intercept and weights of context and item features that make the penalised likelihood largest."""
    width = contexts.shape[1]

    def loss(weights: Values) -> tuple[float, Values]:
        scores = weights[0] + contexts @ weights[1 : 1 + width] + (items @ weights[1 + width :])[actions]
        errors = _sigmoid(scores) - clicks
        by_item = items.T @ np.bincount(actions, weights=errors, minlength=len(items))
        slope = np.concatenate([[errors.sum()], contexts.T @ errors, by_item])
        slope[1:] += penalty * weights[1:]
        value = np.logaddexp(0, scores).sum() - scores @ clicks + penalty / 2 * (weights[1:] ** 2).sum()
        return float(value), slope

    start = np.zeros(1 + width + items.shape[1])
    done = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": _STEPS})
    if not done.success:
        raise Diverged(f"the reward model found no end after {done.nit} steps ({done.message}); raise the penalty")
    return float(done.x[0]), done.x[1 : 1 + width], done.x[1 + width :]


def _read(log: BanditLog, reading: Reading, when: IntArray, where: IntArray, prior: Values) -> Values:
    """float64, shape of `prior`, (S, P, K): a reading by slice and position, with one row more as `prior` has it."""
    cells = np.ravel_multi_index((when, where, log.actions), prior.shape)

    def summed(values: Values) -> Values:
        return np.asarray(np.bincount(cells, weights=values, minlength=prior.size).reshape(prior.shape), np.float64)

    counts = summed(np.ones(len(log)))
    if reading == "shares":
        found = counts + prior
    elif reading == "mean":
        found = (summed(log.propensities) + prior) / (counts + 1)
    else:
        found = (counts + 1) / (summed(1 / log.propensities) + 1 / prior)
    return np.asarray(found / found.sum(axis=2, keepdims=True))


def _sliced(log: BanditLog, slice_s: float | None) -> IntArray:
    return np.zeros(len(log), np.int64) if slice_s is None else (log.times_s // slice_s).astype(np.int64)


def _file(path: Path) -> Path:
    for candidate in (path, path.with_name(path.name + ".gz")):
        if candidate.is_file():
            return candidate
    raise MissingData(f"{path}, plain or with .gz, does not exist; give the directory that holds random/ and bts/")


def _read_items(path: Path, report: LoadReport) -> tuple[tuple[str, ...], Values]:
    frames = []
    for batch in named(read_text(path, CSV), ("item_id",)):
        judged = ids(batch, "item_id")
        report.settle(judged, "fail", 0)
        frames.append(judged.frame)
    table = pl.concat(frames)
    items = tuple(table["item_id"])
    if not items or len(set(items)) < len(items):
        raise UnreadableData(f"{path} lists {len(items)} items, {len(set(items))} of them distinct; list each one once")
    return items, _encoded([table[name] for name in table.columns if name.startswith(ITEM_FEATURE)], len(items))


def _judged(batch: Batch, items: Sequence[str]) -> Batch:
    """A batch in which every value is what its column says."""
    batch = times(ids(batch, "item_id"), "timestamp")
    raw = batch.frame["item_id"]
    batch = batch.reject(~raw.is_in(list(items)), "unlisted item", "every shown item stands in the item context", raw)
    for name, rule, check in (
        ("position", "a position is a whole number from 1", lambda column: (column >= 1) & (column == column.floor())),
        ("click", "a click is 0 or 1", lambda column: (column == 0) | (column == 1)),
        (
            "propensity_score",
            "a propensity is above 0 and at most 1, since what was shown was possible",
            lambda column: (column > 0) & (column <= 1),
        ),
    ):
        batch = numbers(batch, name)
        column = batch.frame[name]
        batch = batch.reject(~check(column).fill_null(False), f"{name} out of range", rule, column)
    return batch


def _encoded(columns: Sequence[pl.Series], rows: int) -> Values:
    """float64, shape (rows, width): numbers standardised, everything else one-hot; nothing given is a value too."""
    parts = [np.zeros((rows, 0))]
    for column in columns:
        numeric = natural(column)
        if numeric.dtype == pl.Float64 and not numeric.null_count():
            values = numeric.to_numpy()
            parts.append(((values - values.mean()) / (values.std() or 1.0))[:, None])
        else:
            parts.append(_one_hot(np.unique(column.fill_null("").to_numpy(), return_inverse=True)[1]))
    return np.concatenate(parts, axis=1)


def _one_hot(codes: IntArray) -> Values:
    return np.eye(int(codes.max()) + 1)[codes]


def _sigmoid(scores: Values) -> Values:
    return np.asarray(0.5 * (1 + np.tanh(scores / 2)))  # never overflows
