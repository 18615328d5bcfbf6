"""What each stage of a request costs, above the floor. The one module here that knows the service from inside.

The floor is a whole request through the real application, in this process and without a socket, with an encoder and an
index that do nothing and the memory store. Swapping one part at a time for the real one gives the cost of that part
where it matters: inside a request. The parts alone come after, at the sizes where they begin to hurt.

Last, the service and a plain endpoint around the same model answer the same requests over HTTP, in turns.
"""

import argparse
import asyncio
import json
import logging
import os
import secrets
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from loadtests import objectives, report, rivals
from loadtests.bundles import plain_items
from loadtests.report import Report, spread
from loadtests.target import LoadError
from loadtests.traffic import PowerLaw
from retrieval.bundle import Bundle
from retrieval.catalog import Numbers, Tags
from retrieval.encoder import OnnxEncoder
from retrieval.errors import SequiturError
from retrieval.filters import AttributeRule, Eligible, Filter, Filters
from retrieval.index import CandidateIndex, ExactIndex, Found, choose_index
from retrieval.inputs import Request, Tables
from retrieval.recommenders import ITEM_TABLE, Answer, Composed, Dense, Query, Served, Stage, load
from retrieval.sequences import FloatArray, History, IntArray
from retrieval.two_stage import TwoStage
from service import settings
from service.app import create_app
from service.batching import MicroBatcher
from service.sessions import open_store

FLOOR = "request, floor"
WIDTH = 64
EXCLUDED = 100
BATCHES = (1, 8, 32, 64, 256)
Figures = dict[str, dict[str, Any]]
Call = Callable[[], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to look."""

    repeats: int
    calls: int  # per repetition of something that takes about a millisecond
    warmup: int
    catalogs: tuple[int, ...]

    @classmethod
    def of(cls, *, is_quick: bool, repeats: int) -> "Effort":
        """Enough to be believed, or just enough to see that it works."""
        if is_quick:
            return cls(repeats, 10, 3, (1_000,))
        return cls(repeats, 300, 50, (3_416, 12_101, 100_000))


class NoEncoder:
    """The same query embedding for everybody."""

    def __init__(self, width: int) -> None:
        self._query = np.ones((1, width), dtype=np.float32)

    def encode(self, requests: Sequence[Request]) -> FloatArray:
        """float32, shape (B, D)."""
        return np.repeat(self._query, len(requests), axis=0)


class NoIndex:
    """The first eligible rows, whatever is asked and excluded."""

    name = "none"

    def __init__(self, vectors: FloatArray) -> None:
        self.vectors = vectors

    def search(
        self,
        queries: FloatArray,
        k: IntArray,
        eligible: Eligible,
        exclude: Sequence[IntArray],
        ahead: IntArray | None = None,
    ) -> list[Found]:
        """As many rows as a real index would give."""
        wanted = k if ahead is None else k + ahead
        lengths = [min(int(wanted[b]), eligible.count - len(exclude[b])) for b in range(len(queries))]
        return [(eligible.rows[:n], np.zeros(n, dtype=np.float32)) for n in lengths]


class Whole:
    """Whole requests through applications that differ in one part, all in this process."""

    def __init__(self, bundle: Bundle, *, threads: int, k: int, history: int, device: str = "cpu") -> None:
        self._served = load(bundle, threads=threads, device=device)
        self._threads = threads
        self._user_id = f"stages-{secrets.token_hex(8)}"  # the store may be one that holds real users
        catalog = self._served.catalog
        rng = np.random.default_rng(0)
        # Popular items, as real histories hold them, and none twice, so that what is left can be counted.
        drawn = np.argsort(-catalog.popularity[1:], kind="stable")[: 4 * history] + 1
        self.history = [catalog.ids[row] for row in rng.permutation(drawn)[: min(history, len(catalog) // 2)]]
        self.k = min(k, max(1, int(catalog.available.sum()) - len(self.history)))
        graph = bundle.manifest.graphs["encoder"]
        # The CPU's is there for comparison where requests go to another device.
        self.encoders = {
            name: OnnxEncoder(
                bundle.path / graph.file,
                names=graph.inputs,
                length=bundle.manifest.window,
                tables=Tables({ITEM_TABLE: bundle.item_vectors}),
                threads=threads,
                device=name,
            )
            for name in dict.fromkeys(("cpu", device))
        }
        self.encoder = self.encoders[device]

    @property
    def ranks(self) -> bool:
        """Whether the bundle has a ranker."""
        return self._served.ranker is not None

    def served(self, *, encodes: bool, retrieves: bool, ranks: bool = False) -> Served:
        """The bundle with its own encoder and index, or with ones that do nothing; with its ranker, or without."""
        encoder = self.encoder if encodes else NoEncoder(self._served.bundle.item_vectors.shape[1])
        index: CandidateIndex = self._served.index if retrieves else NoIndex(self._served.index.vectors)
        found, real = Composed(Dense(encoder, index), self._served.popular), self._served.recommender
        recommender = TwoStage(found, real.ranker if ranks else None, real.arranger)
        return replace(self._served, recommender=recommender, index=index)

    @asynccontextmanager
    async def serving(self, store_url: str, served: Served) -> AsyncIterator[Call]:
        """A call that makes one request; the application lives as long as the block."""
        chosen = settings.read(
            {}, bundle=self._served.bundle.path, store=store_url, cores=self._threads, deadline_ms=60_000
        )
        store = open_store(store_url, timeout_s=10.0)
        app = create_app(chosen, served=served, store=store)
        async with app.router.lifespan_context(app):
            try:
                events = [{"user_id": self._user_id, "item_id": item_id} for item_id in self.history]
                for start in range(0, len(events), 500):
                    await request(app, "/v1/events", orjson.dumps({"events": events[start : start + 500]}))
                asked = orjson.dumps({"user_id": self._user_id, "k": self.k})
                answer = orjson.loads(await request(app, "/v1/recommendations", asked))
                if answer["degraded"] or len(answer["items"]) != self.k:
                    reasons = answer["degraded_reasons"]
                    raise LoadError(f"the request to measure is answered with {reasons}, not by the model")
                yield lambda: request(app, "/v1/recommendations", asked)
            finally:
                await store.erase(self._user_id)


async def request(app: Any, path: str, body: bytes) -> bytes:
    """One POST straight into an ASGI application, and the body of its answer.

    Raises:
        LoadError: the answer is not a success.
    """
    pending: list[dict[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        # The client stays connected: there is no second message, and whoever waits for one is cancelled.
        return pending.pop() if pending else await asyncio.get_running_loop().create_future()

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8000),
    }
    await app(scope, receive, send)
    answered = b"".join(message.get("body", b"") for message in sent[1:])
    if sent[0]["status"] >= 300:
        raise LoadError(f"{path} answered {sent[0]['status']}: {answered[:300]!r}")
    return answered


async def in_turns(calls: dict[str, Call], effort: Effort) -> Figures:
    """Each call's median milliseconds, repetition by repetition, all calls in turn within each: a machine that gets
    slower for a while then slows all of them."""
    medians: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        for _ in range(effort.warmup):
            await call()
    for _ in range(effort.repeats):
        for name, call in calls.items():
            taken = []
            for _ in range(effort.calls):
                started = time.perf_counter()
                await call()
                taken.append(time.perf_counter() - started)
            medians[name].append(float(np.median(taken)) * 1000)
    return {name: {"ms": spread(values)} for name, values in medians.items()}


def alone(run: Callable[[], object], effort: Effort, *, per: int = 1) -> dict[str, Any]:
    """Median milliseconds of a synchronous call, and of each of the `per` things that it does."""
    run()
    started = time.perf_counter()
    run()
    once = time.perf_counter() - started
    # Slow things are called less often, so that none takes the time of all the others together.
    calls = max(3, min(effort.calls, int(effort.calls * 0.002 / max(once, 1e-7))))
    for _ in range(min(effort.warmup, calls)):
        run()
    medians = []
    for _ in range(effort.repeats):
        taken = []
        for _ in range(calls):
            started = time.perf_counter()
            run()
            taken.append(time.perf_counter() - started)
        medians.append(float(np.median(taken)) * 1000)
    out: dict[str, Any] = {"ms": spread(medians)}
    return out if per == 1 else {**out, "each_ms": spread([value / per for value in medians])}


async def requests(whole: Whole, effort: Effort, *, redis: str | None, folder: Path) -> Figures:
    """Whole requests: the floor, one real part at a time, and everything real."""
    nothing = whole.served(encodes=False, retrieves=False)
    variants = {
        FLOOR: ("memory://", nothing),
        "request, + encode": ("memory://", whole.served(encodes=True, retrieves=False)),
        "request, + retrieve": ("memory://", whole.served(encodes=False, retrieves=True)),
        "request, + store sqlite": (f"sqlite:///{folder}/floor.sqlite", nothing),
        "request, all real, sqlite": (
            f"sqlite:///{folder}/real.sqlite",
            whole.served(encodes=True, retrieves=True, ranks=whole.ranks),
        ),
    }
    if whole.ranks:
        variants["request, + rank"] = ("memory://", whole.served(encodes=False, retrieves=False, ranks=True))
    if redis:
        variants["request, + store redis"] = (redis, nothing)
    async with AsyncExitStack() as up:
        calls = {
            name: await up.enter_async_context(whole.serving(url, served)) for name, (url, served) in variants.items()
        }
        figures = await in_turns(calls, effort)
    floor = figures[FLOOR]["ms"]["median"]
    for name, values in figures.items():
        if name != FLOOR:
            values["above_floor_ms"] = round(values["ms"]["median"] - floor, 4)
    return figures


def encoding(whole: Whole, effort: Effort) -> Figures:
    """The bundle's graph, for histories of the measured length: on the CPU, and on the device that was asked for."""
    rows = whole.served(encodes=False, retrieves=False).catalog.rows(whole.history)
    asked = Request(History.of_rows(rows))
    figures: Figures = {}
    for device, encoder in whole.encoders.items():
        stage = "encode" if device == "cpu" else f"encode on {device}"
        figures |= {f"{stage}, B={b}": alone(partial(encoder.encode, [asked] * b), effort, per=b) for b in BATCHES}
    return figures


def clustered(n: int) -> tuple[FloatArray, FloatArray]:
    """Made-up item vectors, float32 (n + 1, `WIDTH`), and 256 queries near some of them.

    They lie in clusters of uneven size, as trained vectors do; on formless noise no approximate index works.
    """
    rng = np.random.default_rng(n)
    centers = rng.standard_normal((max(2, n // 100), WIDTH), dtype=np.float32)
    vectors = centers[PowerLaw(len(centers), 0.5).draw(rng, n + 1)]
    vectors += np.float32(0.6) * rng.standard_normal((n + 1, WIDTH), dtype=np.float32)
    vectors[0] = 0
    queries = vectors[rng.integers(1, n + 1, 256)]
    return vectors, queries + np.float32(0.6) * rng.standard_normal((256, WIDTH), dtype=np.float32)


def retrieving(effort: Effort, *, k: int) -> Figures:
    """Search over clustered vectors, `EXCLUDED` popular rows excluded: exact, and approximate with its recall."""
    figures: Figures = {}
    for n in effort.catalogs:
        vectors, queries = clustered(n)
        mask = np.ones(n + 1, dtype=np.bool_)
        mask[0] = False
        everything = Eligible.of(mask)
        popular = PowerLaw(n, 1.0)
        exclude = [1 + popular.draw(np.random.default_rng(at), EXCLUDED) for at in range(len(queries))]
        indexes: dict[str, tuple[CandidateIndex, dict[str, Any]]] = {"exact": (ExactIndex(vectors), {"recall": 1.0})}
        if n == max(effort.catalogs):
            index, about = choose_index(vectors, sample_queries=queries, k=EXCLUDED, exact_below=0)
            measured = {"recall": about["measured_recall"], "recall_at": EXCLUDED, **about["parameters"]}
            indexes[f"faiss {about['kind']}"] = (index, measured)
        for name, (index, measured) in indexes.items():
            for b in (1, 32):
                wanted = np.full(b, k, dtype=np.int64)
                found = alone(partial(index.search, queries[:b], wanted, everything, exclude[:b]), effort, per=b)
                figures[f"retrieve {name}, N={n}, B={b}"] = {**found, **measured}
    return figures


def filtering(whole: Whole, effort: Effort) -> Figures:
    """A filter that the catalog understands: seen for the first time, and seen before."""
    catalog = whole.served(encodes=False, retrieves=False).catalog
    rules = []
    for name, column in catalog.columns.items():
        if isinstance(column, Numbers):
            rules.append(AttributeRule(name, "<=", float(np.nanmedian(column.values[1:]))))
        elif isinstance(column, Tags) and column.vocabulary:
            rules.append(AttributeRule(name, "contains", column.vocabulary[0]))
    asked = Filter(include_ids=catalog.ids[1:51]) if not rules else Filter(attributes=tuple(rules[:2]))
    forgetful, remembering = Filters(catalog, cache_size=0), Filters(catalog)
    about = {"rules": len(asked.attributes), "of_ids": len(asked.include_ids or ())}
    return {
        "filter, cold": {**alone(lambda: forgetful.eligible(asked), effort), **about},
        "filter, cached": {**alone(lambda: remembering.eligible(asked), effort), **about},
    }


async def batching(effort: Effort) -> Figures:
    """What the queue and the worker thread add to a recommender that takes no time."""
    rows = np.zeros(0, dtype=np.int64)
    nothing = Answer.of(rows, rows.astype(np.float32), "retrieval")
    everything = Eligible.of(np.zeros(1, dtype=np.bool_))
    query = Query(Request(History.of_rows([])), 1, everything, rows)

    def answer(queries: Sequence[Query], _stage: Stage) -> list[Answer]:
        return [nothing] * len(queries)

    batcher = MicroBatcher(max_batch=64, queue_limit=256, wait_s=0.0, clock=time.perf_counter)
    batcher.start()

    async def together(count: int) -> None:
        deadline = time.perf_counter() + 60
        await asyncio.gather(*(batcher.submit(query, answer, deadline=deadline) for _ in range(count)))

    try:
        figures = await in_turns({f"batcher, {n} at once": partial(together, n) for n in (1, 32)}, effort)
    finally:
        await batcher.close()
    return figures


async def responding(whole: Whole, effort: Effort) -> Figures:
    """An answer of the real application, as bytes again."""
    async with whole.serving("memory://", whole.served(encodes=False, retrieves=False)) as call:
        answer = orjson.loads(await call())
    figures = alone(partial(orjson.dumps, answer), effort)
    return {f"response, k={whole.k}": {**figures, "bytes": len(orjson.dumps(answer))}}


def table(figures: Figures) -> list[list[str]]:
    """The results for people."""
    rows = [["stage", "ms [low high]", "each ms", "above floor", "recall"]]
    for name, values in figures.items():
        if "ms" not in values:
            continue
        each, above, recall = values.get("each_ms"), values.get("above_floor_ms"), values.get("recall")
        rows.append(
            [
                name,
                report.shown(values["ms"], 4),
                f"{each['median']:.4f}" if each else "",
                f"{above:+.4f}" if above is not None else "",
                f"{recall:.3f}" if recall is not None else "",
            ]
        )
    return rows


def card() -> str:
    """The name of the GPU; `unknown` where its driver has no tool to say it."""
    asked = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=True, timeout=30).stdout.splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        return "unknown"


def measure(
    bundle: Bundle, whole: Whole, effort: Effort, *, threads: int, k: int, redis: str | None, is_http: bool
) -> tuple[Figures, list[str]]:
    """All figures, and notes for the reader."""
    with tempfile.TemporaryDirectory(prefix="sequitur-stages-") as name:
        folder = Path(name)
        figures = asyncio.run(requests(whole, effort, redis=redis, folder=folder))
        figures |= encoding(whole, effort) | retrieving(effort, k=k) | filtering(whole, effort)
        figures |= asyncio.run(batching(effort)) | asyncio.run(responding(whole, effort))
        notes = [f"floor: no-op encoder and index, memory store, {len(whole.history)} events of history, k={whole.k}"]
        if not redis:
            notes.append("no redis was given (--redis redis://127.0.0.1:6379/15), so its store was not measured")
        if not is_http:
            return figures, [*notes, "the comparison with a plain endpoint was left out (--no-http)"]
        if bundle.manifest.graphs["encoder"].inputs != ("item_rows",):
            return figures, [*notes, "no comparison: the graph reads more than item ids, which a plain endpoint lacks"]
        if whole.ranks:
            return figures, [*notes, "no comparison: the bundle ranks, which a plain endpoint does not"]
        items = folder / "items.json"
        catalog = bundle.catalog
        items.write_text(json.dumps(plain_items(catalog)))
        ask = {"history": whole.history, "k": whole.k}
        compared, said = rivals.compare(
            bundle.path,
            graph=bundle.manifest.graphs["encoder"].file,
            items=items,
            window=bundle.manifest.window,
            threads=threads,
            ask=ask,
            rounds=effort.repeats,
            calls=effort.calls,
        )
    return figures | compared, notes + said


def main(arguments: Sequence[str]) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests stages", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, required=True, help="bundle directory")
    parser.add_argument("--redis", help="a Redis that may be written to, for example redis://127.0.0.1:6379/15")
    parser.add_argument("--k", type=int, default=20, help="items per answer")
    parser.add_argument("--history", type=int, default=50, help="events of the user who asks")
    parser.add_argument("--threads", type=int, default=1, help="cores for the model and the index")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the model runs; cpu")
    parser.add_argument("--repeats", type=int, default=5, help="repetitions of everything")
    parser.add_argument("--quick", action="store_true", help="few calls, a small catalog: shows that it works")
    parser.add_argument("--encode-only", action="store_true", help="the model's graph alone, at each batch size")
    parser.add_argument("--no-http", action="store_true", help="leave the comparison with a plain endpoint out")
    objectives.add_requirements(parser)
    report.add_record(parser)
    given = parser.parse_args(arguments)
    if given.record:
        report.refuse_dirty()
    logging.getLogger().setLevel(logging.ERROR)  # a line per request is the service's to pay for, not the floor's
    machine = report.Machine.here()
    effort = Effort.of(is_quick=given.quick, repeats=given.repeats)
    try:
        bundle = Bundle.open(given.bundle)
        whole = Whole(bundle, threads=given.threads, k=given.k, history=given.history, device=given.device)
        if given.encode_only:
            figures, notes = encoding(whole, effort), ["the model's graph alone (--encode-only)"]
        else:
            figures, notes = measure(
                bundle,
                whole,
                effort,
                threads=given.threads,
                k=given.k,
                redis=given.redis,
                is_http=not given.no_http,
            )
    except SequiturError as error:
        raise LoadError(str(error)) from error
    names = ("k", "history", "threads", "repeats", "quick")
    # The exact index multiplies matrices with NumPy, whose own threads `--threads` does not reach.
    conditions = {
        "redis": given.redis is not None,
        "blas_threads": os.environ.get("OPENBLAS_NUM_THREADS", "all"),
        **{name: getattr(given, name) for name in names},
    }
    if given.device != "cpu":
        conditions |= {"device": given.device, "card": card()}
    about = {"name": bundle.manifest.model, "bundle": bundle.name, "digest": bundle.digest}
    result = Report("stages", conditions, about, figures, table(figures), machine, notes)
    report.emit(result, record=given.record)
    return objectives.judge(figures, given.require)
