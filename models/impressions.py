"""Lists with labels, from two sources: what a retriever returns for past moments, and what a log says was shown.

Both keep to one rule: the request of a list holds nothing from the moment of the list or after it. What came after is
in the labels alone. A label is 1 where some event that followed fulfils the task, NaN where the only such event could
not be judged (the task compares values and the event has none), and 0 otherwise.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from models.errors import ImpressionsInvalid
from models.evaluate import BATCH, Contexts, OnProgress, Seen
from models.events import EventLog
from models.histories import Histories
from models.layouts.log import IMPRESSION
from models.lists import Lists
from models.splits import Cases
from models.tasks import outcomes
from retrieval.catalog import Catalog
from retrieval.filters import Eligible
from retrieval.inputs import Request
from retrieval.queries import Query, Recommender
from retrieval.ranking import CANDIDATES
from retrieval.sequences import EMPTY, PAD_ROW, BoolArray, FloatArray, History, IntArray
from retrieval.tasks import Task
from retrieval.two_stage import POPULAR

ATTRIBUTION_S = 3_600.0  # how long after an impression feedback without a list of its own still belongs to it
_UNJUDGED = 0.5  # between no and yes while labels are put together


def contexts(users: pl.DataFrame | None) -> Contexts:
    """By user id, the words and the numbers that a table of users holds, as a request carries them."""
    if users is None:
        return {}
    found: dict[str, tuple[Mapping[str, str], Mapping[str, float]]] = {}
    flat = [c.name for c in users.get_columns() if c.name != "user_id" and not c.dtype.is_nested()]
    for user in users.iter_rows(named=True):
        known = {name: user[name] for name in flat if user[name] is not None}
        numbers = {name: float(value) for name, value in known.items() if isinstance(value, int | float)}
        words = {name: str(value) for name, value in known.items() if name not in numbers}
        found[user["user_id"]] = words, numbers
    return found


def replayed(
    cases: Cases,
    recommender: Recommender,
    tasks: Sequence[Task],
    *,
    eligible: Eligible,
    candidates: int = CANDIDATES,
    contexts: Contexts | None = None,
    horizon: int = 1,
    labels_from: BoolArray | None = None,
    seen: Seen = "filtered",
    on_progress: OnProgress | None = None,
) -> Lists:
    """What a retriever returns at the moment of each case, one list per case in their order.

    Lists without any positive are kept: probabilities are to be right over all that is retrieved. As in serving, what
    is popular and was not retrieved has no score.

    Args:
        cases: from a part of the log that the recommender has not learnt from.
        recommender: the first stage alone.
        tasks: what labels say.
        eligible: the rows that may be returned.
        candidates: how many are asked for.
        contexts: of users; see `contexts`.
        horizon: how many of the user's next events count as what came of a list.
        labels_from: bool, shape (E,), of the cases' source: the events that may be among those. With a horizon above 1
            the next events of a case may be what a later part of the split asks about. None: all of them.
        seen: whether the items of a history are left out.
        on_progress: called with cases done and cases in all.
    """
    source, known = cases.source, contexts or {}
    nothing = np.zeros(0, np.int64)
    requests: list[Request] = []
    rows: list[IntArray] = []
    scores: list[FloatArray] = []
    labels: list[FloatArray] = []
    for start in range(0, len(cases), BATCH):
        which = range(start, min(start + BATCH, len(cases)))
        asked = [
            _request(known, source.user_ids[cases.users[c]], cases.history(c), float(cases.times[c])) for c in which
        ]
        queries = [
            Query(request, candidates, eligible, request.history.rows if seen == "filtered" else nothing)
            for request in asked
        ]
        for c, answer in zip(which, recommender.recommend(queries), strict=True):
            end = int(cases.ends[c])
            stop = min(end + horizon, int(source.offsets[cases.users[c] + 1]))
            following = source.span(end, stop)
            if labels_from is not None:
                following = following.where(labels_from[end:stop])
            popular = np.array([name == POPULAR for name in answer.sources], dtype=np.bool_)
            rows.append(answer.rows)
            scores.append(np.where(popular, np.float32(np.nan), answer.scores))
            labels.append(_labels(answer.rows, following.rows, outcomes(tasks, following)))
        requests += asked
        if on_progress is not None:
            on_progress(len(requests), len(cases))
    lengths = [len(own) for own in rows]
    return Lists(
        tasks=tuple(task.name for task in tasks),
        requests=requests,
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        rows=np.concatenate([nothing, *rows]),
        scores=np.concatenate([np.zeros(0, np.float32), *scores]),
        labels=np.concatenate([np.zeros((0, len(tasks)), np.float32), *labels]),
        positions=np.zeros(sum(lengths), dtype=np.int64),
        users=cases.users,
    )


def with_positives(lists: Lists) -> dict[str, float]:
    """By task, the share of the lists that hold a candidate that fulfilled it."""
    which = np.repeat(np.arange(len(lists)), np.diff(lists.offsets))
    return {
        name: len(np.unique(which[lists.labels[:, t] == 1])) / max(len(lists), 1) for t, name in enumerate(lists.tasks)
    }


@dataclass(frozen=True)
class Account:
    """What became of the rows of a log with impressions.

    Attributes:
        impressions: rows that say what was shown.
        unknown_items: those left out because the catalog does not hold the item.
        repeats: those left out because the same list shows the item further up.
        feedback: rows of other types, of items in the catalog.
        attributed: those that belong to an impression; the others are history and nothing more.
    """

    impressions: int
    unknown_items: int
    repeats: int
    feedback: int
    attributed: int

    def __str__(self) -> str:
        return (
            f"{self.impressions:,} impressions ({self.unknown_items:,} of unknown items and {self.repeats:,} repeats "
            f"left out), {self.attributed:,} of {self.feedback:,} other events belong to one of them"
        )


def feedback(log: EventLog) -> EventLog:
    """The log without its impressions: what users did, which is what histories and statistics are made from."""
    return replace(log, events=log.events.filter(pl.col("event_type").cast(pl.String) != IMPRESSION))


def logged(
    log: EventLog,
    catalog: Catalog,
    event_types: Sequence[str],
    tasks: Sequence[Task],
    *,
    contexts: Contexts | None = None,
    attribution_s: float = ATTRIBUTION_S,
) -> tuple[Lists, Account]:
    """The lists that a log says were shown, by time.

    Candidates stand by falling score, those without one behind them by position: that is the order in which a ranker
    meets them in serving, and an order by position would let it read the position from the rank.

    A list is the impressions of one user with one `recommendation_id`; its moment is that of the first of them. Its
    history is what the user did before that second: where an event stands in the same second, nobody can tell which
    came first, so it is not in the past. Other events belong to the impression of the same user, item and
    `recommendation_id`; those without such an id to the newest impression of the item for the user within
    `attribution_s` before them. Nothing that lies before its impression belongs to it.

    Args:
        log: with events of type `IMPRESSION` that have `recommendation_id`, `position` and, if known, `score`.
        catalog: whose rows are wanted.
        event_types: the vocabulary.
        tasks: what labels say. A task without a condition is fulfilled by any event that is no impression.
        contexts: of users; see `contexts`.
        attribution_s: in seconds.

    Returns:
        The lists, whose `users` count the users of the log in its order, and what was left out.

    Raises:
        ImpressionsInvalid: there is none, or one says not where or in which list it was shown.
        OrderOnly: the log has no times.
    """
    log.require_times("reading impressions")
    shown, account = _shown(log, catalog)
    done = feedback(log).events
    done = done.filter(pl.Series(catalog.rows(done["item_id"]) != PAD_ROW))
    labels = np.zeros((shown.height, len(tasks)), dtype=np.float32)
    source = None
    if not done.is_empty():
        source = Histories.from_log(replace(log, events=done), catalog, event_types)
        impression = _attributed(done, shown, attribution_s)
        _settle(labels, impression, outcomes(tasks, source.span(0, len(source.rows))))
        account = replace(account, feedback=done.height, attributed=int((impression >= 0).sum()))
    starts = np.flatnonzero(shown["first"].to_numpy())
    at = {} if source is None else {user: u for u, user in enumerate(source.user_ids)}
    requests = []
    for user, time in zip(shown["user_id"].gather(starts), shown["time"].gather(starts), strict=True):
        history = EMPTY
        if source is not None and user in at:
            begin, end = int(source.offsets[at[user]]), int(source.offsets[at[user] + 1])
            history = source.span(begin, begin + int(np.searchsorted(source.timestamps[begin:end], time, side="left")))
        requests.append(_request(contexts or {}, user, history, time))
    return (
        Lists(
            tasks=tuple(task.name for task in tasks),
            requests=requests,
            offsets=np.append(starts, shown.height).astype(np.int64),
            rows=catalog.rows(shown["item_id"]),
            scores=shown["score"].to_numpy().astype(np.float32),
            labels=np.where(labels == _UNJUDGED, np.float32(np.nan), labels),
            positions=shown["position"].to_numpy().astype(np.int64),
            users=shown["user"].to_numpy()[starts].astype(np.int64),
        ),
        account,
    )


def _request(known: Contexts, user_id: str, history: History, time: float) -> Request:
    words, numbers = known.get(user_id, ({}, {}))
    return Request(history, time, context=numbers, words=words)


def _labels(rows: IntArray, following: IntArray, found: FloatArray) -> FloatArray:
    """float32, shape (n, T): what came of candidates, from the outcomes of the events that followed."""
    labels = np.zeros((len(rows), found.shape[1]), dtype=np.float32)
    places = [np.flatnonzero(rows == row) for row in following.tolist()]
    _settle(labels, np.array([place[0] if len(place) else -1 for place in places], dtype=np.int64), found)
    return np.where(labels == _UNJUDGED, np.float32(np.nan), labels)


def _settle(labels: FloatArray, places: IntArray, found: FloatArray) -> None:
    """Raises the labels at some places to the outcomes of as many events, -1 being no place; yes beats unjudged."""
    at = places >= 0
    np.maximum.at(labels, places[at], np.where(np.isnan(found[at]), np.float32(_UNJUDGED), found[at]))


def _shown(log: EventLog, catalog: Catalog) -> tuple[pl.DataFrame, Account]:
    """The impressions of known items, list after list, and what was left out.

    Beside what the log says each has the number of its `user`, the `time` of its list, and whether it is the `first`.
    """
    users = log.events["user_id"].unique(maintain_order=True)
    every = log.events.filter(pl.col("event_type").cast(pl.String) == IMPRESSION)
    if every.is_empty():
        raise ImpressionsInvalid(
            f"the log has no event of type {IMPRESSION!r}, so it does not say what was shown; replay a retriever"
        )
    for name in ("recommendation_id", "position"):
        missing = every[name].null_count() if name in every.columns else every.height
        if missing:
            raise ImpressionsInvalid(
                f"{missing:,} of {every.height:,} impressions have no {name}; an impression says where (position, from "
                "1) and in which list (recommendation_id) it was shown"
            )
    if "score" not in every.columns:
        every = every.with_columns(pl.lit(None, dtype=pl.Float64).alias("score"))
    for name, least, rule in (("position", 1.0, "place from 1 on"), ("score", -math.inf, "number")):
        numbers = every[name].cast(pl.Float64, strict=False)
        wrong = every[name].filter((numbers.is_null() & every[name].is_not_null()) | (numbers < least))
        if len(wrong):
            raise ImpressionsInvalid(f"{name} {wrong[0]!r} of an impression is no {rule}; correct it")
    rows = catalog.rows(every["item_id"])
    of_list = ("user_id", "list")
    shown = (
        every.select(
            "user_id",
            "item_id",
            "timestamp",
            pl.col("recommendation_id").cast(pl.String).alias("list"),
            pl.col("position").cast(pl.Float64).cast(pl.Int64),
            pl.col("score").cast(pl.Float64).fill_nan(None),
        )
        .with_columns(pl.col("timestamp").min().over(of_list).alias("time"))
        .filter(pl.Series(rows != PAD_ROW))
        .join(pl.DataFrame({"user_id": users}).with_row_index("user"), on="user_id", maintain_order="left")
        .sort("time", "user", "list", "position", maintain_order=True)
        .unique([*of_list, "item_id"], keep="first", maintain_order=True)
        .sort("time", "user", "list", "score", descending=[False] * 3 + [True], nulls_last=True, maintain_order=True)
        .with_columns(pl.struct(of_list).is_first_distinct().alias("first"))
    )
    if shown.is_empty():
        raise ImpressionsInvalid("no impression is of an item in the catalog; is it the log of another shop?")
    unknown = int((rows == PAD_ROW).sum())
    return shown, Account(every.height, unknown, every.height - unknown - shown.height, 0, 0)


def _attributed(done: pl.DataFrame, shown: pl.DataFrame, attribution_s: float) -> IntArray:
    """int64, shape (E,): the place among `shown` of the impression that each event belongs to; -1 for none."""
    name = pl.col("recommendation_id") if "recommendation_id" in done.columns else pl.lit(None)
    done = done.select("user_id", "item_id", "timestamp", name.cast(pl.String).alias("list")).with_row_index("event")
    shown = shown.with_row_index("place").select("user_id", "item_id", "list", "timestamp", "place")
    named = done.join(shown.rename({"timestamp": "since"}), on=["user_id", "item_id", "list"])
    bare = done.filter(pl.col("list").is_null()).drop("list").sort("timestamp", maintain_order=True)
    met = bare.join_asof(
        shown.drop("list").sort("timestamp", maintain_order=True),
        on="timestamp",
        by=["user_id", "item_id"],
        tolerance=attribution_s,
        check_sortedness=False,  # both are sorted, and the check warns that it cannot look into groups
    )
    out = np.full(done.height, -1, dtype=np.int64)
    for found in (named.filter(pl.col("since") <= pl.col("timestamp")), met.drop_nulls("place")):
        out[found["event"].to_numpy()] = found["place"].to_numpy()
    return out
