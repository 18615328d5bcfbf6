"""Every metric object: call sites import these, so a name cannot be mistyped.

Base units, histograms instead of summaries, and only bounded labels: a route is its template, never a path, and no
label ever holds a user or an item.

With one worker process the numbers live in this process. With several, `__main__` names a directory in
PROMETHEUS_MULTIPROC_DIR before this module is imported; every process then writes there and whichever answers the
scrape adds all of them up. The `multiprocess_mode` of each gauge says how.
"""

import os
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

disable_created_metrics()  # type: ignore[no-untyped-call]

Owner = TypeVar("Owner")
MULTIPROCESS_DIR = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
REGISTRY = CollectorRegistry()
CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4  # what `generate_latest` writes


def geometric(first: float, last: float, factor: float) -> tuple[float, ...]:
    """Bucket edges from `first` to at least `last`, each `factor` times the one before."""
    edges = [first]
    while edges[-1] < last:
        edges.append(edges[-1] * factor)
    return tuple(float(f"{edge:.3g}") for edge in edges)


# A factor of 1.4 puts an edge within 20 % of every latency from 0.5 to 500 ms: a p90 of 7 ms reads as 7, not 5 to 10.
# One edge is exactly the objective of 100 ms, which deploy/alerts.yml counts by.
REQUEST_BUCKETS = (*geometric(0.1 / 1.4**16, 0.5, 1.4), 1.0, 2.5, 5.0, 10.0)
STAGE_BUCKETS = (*geometric(0.00005, 0.5, 1.5), 1.0, 2.5)
COUNT_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

KEPT = 512  # observations that wait to be counted together; a scrape counts them first, and so does every second


class Kept:
    """One series of a histogram whose observations are counted many at a time.

    A request makes a dozen observations, and each takes locks, in a file where there are several workers. Keeping a
    number takes a twentieth of that. Only for the event loop, where nobody comes in between.

    Args:
        series: a histogram without labels, or with all of them given.
    """

    __slots__ = ("_kept", "_series")

    def __init__(self, series: Histogram) -> None:
        self._series = series
        self._kept: list[float] = []
        _every.append(self)

    def observe(self, amount: float) -> None:
        """Counts a number, a little later."""
        self._kept.append(amount)
        if len(self._kept) >= KEPT:
            self.count()

    def count(self) -> None:
        """Counts what was kept."""
        kept, self._kept = self._kept, []
        if not kept:
            return
        bounds = self._series._upper_bounds
        counts = [0] * len(bounds)
        for amount in kept:
            counts[bisect_left(bounds, amount)] += 1
        for bucket, more in zip(self._series._buckets, counts, strict=True):
            if more:
                bucket.inc(more)
        self._series._sum.inc(sum(kept))


class KeptCount:
    """One series of a counter whose increases are counted many at a time; as `Kept`, only for the event loop.

    Args:
        series: a counter without labels, or with all of them given.
    """

    __slots__ = ("_kept", "_series")

    def __init__(self, series: Counter) -> None:
        self._series = series
        self._kept = 0
        _every.append(self)

    def inc(self) -> None:
        """Counts one, a little later."""
        self._kept += 1

    def count(self) -> None:
        """Counts what was kept."""
        if self._kept:
            kept, self._kept = self._kept, 0
            self._series.inc(kept)


_every: list[Kept | KeptCount] = []
_watched: WeakKeyDictionary[Any, tuple[Gauge, Callable[[Any], float]]] = WeakKeyDictionary()


def watch(series: Gauge, owner: Owner, read: Callable[[Owner], float]) -> None:
    """Lets a gauge show what `read` says of its owner when it is looked at: nobody has to set it at each change."""
    _watched[owner] = series, read


def count_kept() -> None:
    """Counts what every series has kept and reads every gauge that is watched: before a scrape, and every second for
    the scrapes of other workers."""
    for series in _every:
        series.count()
    for owner, (gauge, read) in list(_watched.items()):
        gauge.set(read(owner))


def kept(histogram: Histogram, values: Iterable[str]) -> Mapping[str, Kept]:
    """The series of a histogram by the values of its one label."""
    return {value: Kept(histogram.labels(value)) for value in values}


STAGES = (
    "state",
    "queue",
    "prefill",
    "decode",
    "beam",
    "encode",
    "retrieve",
    "merge",
    "filter",
    "rank",
    "arrange",
    "respond",
)
DEGRADED_REASONS = (
    "store_unavailable",
    "no_history",
    "generator_late",
    "generator_failed",
    "deadline",
    "encoder_failed",
    "ranker_short",
    "ranker_late",
    "ranker_failed",
)
RANKINGS = ("full", "short", "late", "failed")
POOLS = ("generator", "encoder")
SHED_REASONS = ("in_flight", "queue_full", "queue_slow", "store_slow", "late", "abandoned", "shutdown")
DISPATCH_REASONS = ("idle", "full", "waited")
SWAP_OUTCOMES = ("ok", "rolled_back", "failed")
SHADOW_OUTCOMES = ("answered", "degraded", "dropped", "failed")
UNKNOWN = "unknown"  # a variant that is not configured, or no recommendation id of ours
EVENT_OUTCOMES = ("accepted", "duplicate", "too_old")
STORE_OPERATIONS = (
    "open",
    "append",
    "history",
    "erase",
    "ping",
    "change_item",
    "item_changes",
    "count_distinct",
    "keep_list",
    "advance_list",
    "merge",
)
FROZEN_LISTS_OUTCOMES = ("kept", "lost", "read", "gone")
JOURNAL_KINDS = ("event", "served", "erased", "merged")
JOURNAL_DROPS = ("full", "invalid", "trimmed", "closed")

REQUESTS = Counter("sequitur_requests", "Requests answered.", ["route", "method", "code"], registry=REGISTRY)
REQUEST_SECONDS = Histogram(
    "sequitur_request_seconds",
    "Seconds from the first byte of a request to the last of its answer.",
    ["route"],
    buckets=REQUEST_BUCKETS,
    registry=REGISTRY,
)
STAGE_SECONDS = Histogram(
    "sequitur_stage_seconds",
    "Seconds that a recommendation spent in each stage.",
    ["stage"],
    buckets=STAGE_BUCKETS,
    registry=REGISTRY,
)
BATCH_SIZE = Histogram(
    "sequitur_batch_size", "Requests that went through the model together.", buckets=COUNT_BUCKETS, registry=REGISTRY
)
DISPATCH = Counter("sequitur_dispatch", "Batches sent to the model, by what sent them.", ["reason"], registry=REGISTRY)
QUEUE_DEPTH = Gauge(
    "sequitur_queue_depth",
    "Requests waiting for the model.",
    ["pool"],
    multiprocess_mode="livesum",
    registry=REGISTRY,
)
SHED = Counter("sequitur_shed", "Requests dropped before the model worked on them.", ["reason"], registry=REGISTRY)
DEADLINE_EXCEEDED = Counter(
    "sequitur_deadline_exceeded", "Requests out of time, by the stage they were in.", ["stage"], registry=REGISTRY
)
DEGRADED = Counter("sequitur_degraded", "Recommendations answered by something simpler.", ["reason"], registry=REGISTRY)
SHORT_LISTS = Counter(
    "sequitur_short_lists", "Recommendations with fewer items than asked for: no more were eligible.", registry=REGISTRY
)
IN_FLIGHT = Gauge("sequitur_in_flight", "Requests at work now.", multiprocess_mode="livesum", registry=REGISTRY)
PERMITS = Gauge(
    "sequitur_permits",
    "Requests that may be at work at once, as far as this process can do it in time now.",
    multiprocess_mode="livesum",
    registry=REGISTRY,
)
BUNDLE_INFO = Gauge(
    "sequitur_bundle_info",
    "The bundle being served; always 1.",
    ["bundle", "model", "kind"],
    multiprocess_mode="livemax",
    registry=REGISTRY,
)
INDEX_ITEMS = Gauge(
    "sequitur_index_items", "Items in the index.", ["index"], multiprocess_mode="livemax", registry=REGISTRY
)
INDEX_BUILD_SECONDS = Gauge(
    "sequitur_index_build_seconds",
    "Seconds it took to open the bundle and build its index.",
    multiprocess_mode="livemax",
    registry=REGISTRY,
)
SWAPS = Counter(
    "sequitur_swaps", "Bundles brought into service, taken back, or refused.", ["outcome"], registry=REGISTRY
)
SHADOW = Counter("sequitur_shadow", "Requests offered to a shadow variant.", ["variant", "outcome"], registry=REGISTRY)
SHADOW_OVERLAP = Histogram(
    "sequitur_shadow_overlap",
    "Share of a list that the shadow variant would have shown, too.",
    ["variant"],
    buckets=tuple(n / 10 for n in range(11)),
    registry=REGISTRY,
)
STORE_ERRORS = Counter("sequitur_store_errors", "Session store failures.", ["operation"], registry=REGISTRY)
EVENTS = Counter("sequitur_events", "Events received.", ["outcome"], registry=REGISTRY)
ATTRIBUTED_CLICKS = Counter(
    "sequitur_attributed_clicks",
    "Events that name the recommendation they came from, by model variant.",
    ["variant"],
    registry=REGISTRY,
)
ERRORS = Counter("sequitur_errors", "Errors by their stable code, handled ones included.", ["code"], registry=REGISTRY)
# The names of keys are the operator's own words, as many as the file of keys has lines.
LIMITED = Counter(
    "sequitur_limited",
    "Requests refused to an API key, by the limit: rate or budget.",
    ["key", "limit"],
    registry=REGISTRY,
)
BUDGET_USED = Gauge(
    "sequitur_budget_used_ratio",
    "Share of its query budget of the day that an API key has used.",
    ["key"],
    multiprocess_mode="livemax",
    registry=REGISTRY,
)
HISTORY_LENGTH = Histogram(
    "sequitur_history_length",
    "Events of the history that a recommendation started from.",
    buckets=(0, *COUNT_BUCKETS),
    registry=REGISTRY,
)
CANDIDATES = Histogram(
    "sequitur_candidates",
    "Items that a recommendation could choose from after its filter.",
    buckets=(0, *geometric(1, 1e7, 4)),
    registry=REGISTRY,
)
GENERATED_LISTS = Counter(
    "sequitur_generated_lists",
    "Recommendations that a generator wrote, by whether they are proven to be the best of all.",
    ["exact"],
    registry=REGISTRY,
)
FROZEN_LISTS = Counter(
    "sequitur_frozen_lists",
    "Further pages: lists kept for them, not kept for want of the store, pages given, and asked for too late.",
    ["outcome"],
    registry=REGISTRY,
)
RANKED_LISTS = Counter(
    "sequitur_ranked_lists",
    "Lists that came to the ranker: ranked in full, in part for want of time, not at all for want of time, or failed.",
    ["outcome"],
    registry=REGISTRY,
)
EDITION = Gauge(
    "sequitur_edition",
    "How often the catalogue has changed since its bundle was loaded.",
    multiprocess_mode="livemin",
    registry=REGISTRY,
)
JOURNAL_RECORDS = Counter(
    "sequitur_journal_records", "Records written to the durable log.", ["kind"], registry=REGISTRY
)
JOURNAL_DROPPED = Counter(
    "sequitur_journal_dropped", "Records that the durable log had to do without.", ["reason"], registry=REGISTRY
)
JOURNAL_BUFFER = Gauge(
    "sequitur_journal_buffer",
    "Records waiting to be written to the durable log.",
    multiprocess_mode="livesum",
    registry=REGISTRY,
)
WORKERS = Gauge("sequitur_workers", "Processes that serve.", multiprocess_mode="livesum", registry=REGISTRY)
WORKERS_WANTED = Gauge(
    "sequitur_workers_wanted", "Processes that should serve.", multiprocess_mode="livemax", registry=REGISTRY
)
RESIDENT_BYTES = Gauge(
    "sequitur_resident_bytes",
    "Memory that the processes which serve hold together.",
    multiprocess_mode="livesum",
    registry=REGISTRY,
)
READY = Gauge("sequitur_ready", "1 when a bundle is loaded and warm.", multiprocess_mode="livemin", registry=REGISTRY)

# A series that appears only with its first increase hides that increase from rate(): start them all at nought.
for _metric, _values in (
    (STAGE_SECONDS, STAGES),
    (DEGRADED, DEGRADED_REASONS),
    (SHED, SHED_REASONS),
    (DISPATCH, DISPATCH_REASONS),
    (DEADLINE_EXCEEDED, ("state", "queue", "model", "respond")),
    (EVENTS, EVENT_OUTCOMES),
    (STORE_ERRORS, STORE_OPERATIONS),
    (SWAPS, SWAP_OUTCOMES),
    (ATTRIBUTED_CLICKS, ("default", UNKNOWN)),
    (RANKED_LISTS, RANKINGS),
    (GENERATED_LISTS, ("true", "false")),
    (FROZEN_LISTS, FROZEN_LISTS_OUTCOMES),
    (QUEUE_DEPTH, POOLS),
    (JOURNAL_RECORDS, JOURNAL_KINDS),
    (JOURNAL_DROPPED, JOURNAL_DROPS),
):
    for _value in _values:
        _metric.labels(_value)

# Looking a series up takes as long as counting three times.
LISTS = {outcome: FROZEN_LISTS.labels(outcome) for outcome in FROZEN_LISTS_OUTCOMES}
EVENT = {outcome: EVENTS.labels(outcome) for outcome in EVENT_OUTCOMES}
STAGE = kept(STAGE_SECONDS, STAGES)
HISTORY = Kept(HISTORY_LENGTH)
ELIGIBLE = Kept(CANDIDATES)
BATCH = Kept(BATCH_SIZE)


@lru_cache(maxsize=1024)
def answered(route: str, method: str, code: int) -> tuple[Counter, Kept]:
    """What counts a request, and what times it; all three are bounded, and looking them up costs more than counting."""
    return REQUESTS.labels(route, method, code), _timed(route)


@lru_cache(maxsize=64)
def turned_away(route: str, method: str, code: int) -> tuple[KeptCount, Kept]:
    """The same for who is turned away at the door, of whom there may be thousands a second."""
    return KeptCount(REQUESTS.labels(route, method, code)), _timed(route)


@lru_cache(maxsize=256)
def _timed(route: str) -> Kept:
    return Kept(REQUEST_SECONDS.labels(route))


def _resident_bytes(_registry: CollectorRegistry) -> float:
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # not on Linux
        return 0


watch(RESIDENT_BYTES, REGISTRY, _resident_bytes)
if MULTIPROCESS_DIR is None:
    ProcessCollector(registry=REGISTRY)


def exposition() -> bytes:
    """All numbers in Prometheus' text format, those of the other worker processes included."""
    count_kept()
    if MULTIPROCESS_DIR is None:
        return generate_latest(REGISTRY)
    for file in Path(MULTIPROCESS_DIR).glob("gauge_live*_*.db"):
        pid = file.stem.rpartition("_")[2]
        if not Path("/proc", pid).exists():  # a worker that was killed cannot take its gauges with it
            mark_process_dead(int(pid), MULTIPROCESS_DIR)  # type: ignore[no-untyped-call]
    registry = CollectorRegistry()
    MultiProcessCollector(registry, MULTIPROCESS_DIR)  # type: ignore[no-untyped-call]
    return generate_latest(registry)
