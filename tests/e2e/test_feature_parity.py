"""One log, two ways, the same bytes: features as training makes them and as the service does.

Training: the log is read, put into histories and replayed through the retriever in batches of 64. Serving: the same
events come over HTTP, out of order and through a session store, and recommendations are asked for over HTTP, sixteen at
a time. What the service hands to its ranker is written down on the way and compared with what training would have
learnt from: candidates, their scores, and every array.

SEQUITUR_PROPERTY_ROWS says how many candidates in their requests are compared; `--log-cli-level=INFO` says how many
were, and how long it took.
"""

import asyncio
import logging
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import polars as pl
import pytest
import toy
from onnx import TensorProto, helper, numpy_helper

from models import declaration, impressions, statistics, tasks
from models.events import EventLog, read_log
from models.histories import Histories, catalog_from_log, event_type_vocabulary, with_popularity
from models.impressions import replayed
from models.lists import Arrays, Lists
from models.splits import Cases, leave_one_out
from retrieval import bundle, ranking
from retrieval.bundle import Bundle, Graph
from retrieval.features import ARRAYS, REACH, Candidates, FeatureSet, FeatureTables, Number, build
from retrieval.filters import NO_FILTER
from retrieval.ranking import Ranking
from retrieval.recommenders import load
from retrieval.statistics import Statistics
from service.app import create_app
from service.settings import Settings

ROWS = int(os.environ.get("SEQUITUR_PROPERTY_ROWS", "5000"))
_log = logging.getLogger(__name__)
AT_ONCE = 16
PER_POST = 400
NOW: ContextVar[float] = ContextVar("now")
Made = dict[str, np.ndarray]


@dataclass(frozen=True)
class Trained:
    """What a training run would have left behind.

    Attributes:
        path: of the bundle.
        features, statistics: as they were before they were written.
        log: all of it, with what happened after training.
        histories: the same in rows of the bundle's catalog.
        candidates: how many are retrieved.
    """

    path: Path
    features: FeatureSet
    statistics: Statistics
    log: EventLog
    histories: Histories
    candidates: int


@dataclass
class Recorder:
    """`build` as the service calls it, with a carbon copy of what it was given and gave, by number of the case."""

    asked: dict[int, Candidates] = field(default_factory=dict)
    made: dict[int, Made] = field(default_factory=dict)
    batches: list[int] = field(default_factory=list)

    def __call__(self, tables: FeatureTables, candidates: Sequence[Candidates], names: Sequence[str] = ARRAYS) -> Made:
        made = build(tables, candidates, names)
        for b, one in enumerate(candidates):
            if "case" in one.request.context:  # a service that starts asks itself something too
                case = int(one.request.context["case"])
                assert case not in self.asked
                self.asked[case], self.made[case] = one, own_part(made, b, len(one.rows))
        self.batches.append(len(candidates))
        return made


def own_part(made: Made, b: int, n: int) -> Made:
    """The arrays of one request of a batch, without the padding."""
    events = int((made["event_behaviours"][b] > 0).sum())
    parts = {}
    for name, array in made.items():
        own = array[b]
        own = own[:n] if name.startswith("candidate") else own[len(own) - events :] if name.startswith("event") else own
        parts[name] = own.copy()
    return parts


# --- what both ways start from ---------------------------------------------------------------------------


def ranker(path: Path, features: FeatureSet) -> None:
    """A graph that takes all arrays and makes something of the numbers."""
    n, t = len(features.candidate_numbers), len(features.tasks)
    shapes = {
        "candidate_codes": ["B", "C", len(features.code_columns)],
        "candidate_numbers": ["B", "C", n],
        "request_codes": ["B", len(features.request_codes)],
        "request_numbers": ["B", len(features.request_numbers)],
        "event_codes": ["B", "L", len(features.event_columns)],
        "event_behaviours": ["B", "L"],
    }
    assert tuple(shapes) == ARRAYS
    kinds = {name: TensorProto.FLOAT if name.endswith("numbers") else TensorProto.INT64 for name in ARRAYS}
    weights = np.random.default_rng(0).normal(0, 0.3, (n, t)).astype(np.float32)
    nodes = [
        helper.make_node("IsNaN", ["candidate_numbers"], ["absent"]),
        helper.make_node("Where", ["absent", "zero", "candidate_numbers"], ["numbers"]),
        helper.make_node("MatMul", ["numbers", "weights"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["probabilities"]),
    ]
    made = helper.make_graph(
        nodes,
        "parity",
        [helper.make_tensor_value_info(name, kinds[name], shape) for name, shape in shapes.items()],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["B", "C", t])],
        [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(np.zeros(1, np.float32), "zero")],
    )
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))


def trained(path: Path, earlier: EventLog, log: EventLog, wanted: str, *, types: int, candidates: int) -> Trained:
    """A bundle of an encoder that nobody trained and a ranker likewise; all else is as training makes it.

    Args:
        earlier: the catalog's items, and what is counted.
        log: what happens, in part to items that came later.
        types: how many event types the bundle knows.
    """
    vocabulary = event_type_vocabulary(earlier)[:types]
    catalog = catalog_from_log(earlier)
    train = leave_one_out(Histories.from_log(earlier, catalog, vocabulary)).train
    catalog = with_popularity(catalog, train)
    vectors = np.random.default_rng(1).normal(0, 1, (len(catalog) + 1, 16)).astype(np.float32)
    vectors[0] = 0
    parsed = tasks.parse(wanted, vocabulary, train)
    counted = statistics.count(train, len(catalog), parsed)
    declared = declaration.declare(catalog, train, parsed, log.users)
    declared = replace(declared, request_numbers=(*declared.request_numbers, Number("weekday")))
    with bundle.writing(path) as directory:
        catalog.save(directory / bundle.CATALOG)
        np.save(directory / bundle.ITEM_VECTORS, vectors, allow_pickle=False)
        toy.graph(directory / "encoder.onnx", vectors)
        bundle.seal(directory, toy.manifest(event_types=vocabulary))
    served = load(Bundle.open(path))
    cases = leave_one_out(Histories.from_log(earlier, catalog, vocabulary)).validation.sample(200, seed=0)
    sample = replayed(
        cases,
        served.recommender.first,
        parsed,
        eligible=served.filters.eligible(NO_FILTER),
        candidates=candidates,
        contexts=impressions.contexts(log.users),
    )
    features = declaration.standardised(declared, counted, catalog, vectors, sample)
    manifest = served.bundle.manifest
    ranker(path / "ranker.onnx", features)
    counted.save(path / bundle.STATISTICS)
    graphs = {**manifest.graphs, bundle.RANKER: Graph("ranker.onnx", ARRAYS, "probabilities (B, C, T)")}
    settings = Ranking(features, {parsed[0].name: 1.0}, candidates)
    (path / bundle.MANIFEST).unlink()
    bundle.seal(path, replace(manifest, graphs=graphs, ranking=settings.to_json()))
    return Trained(path, features, counted, log, Histories.from_log(log, catalog, vocabulary), candidates)


def shop(directory: Path, users: int, seed: int) -> tuple[EventLog, EventLog]:
    """A log of random events, its first nine tenths, and what is said of its items and users."""
    rng = random.Random(seed)
    items, start = [f"item-{n}" for n in range(260)], 1_600_000_000
    lines = []
    for user in range(users):
        when = start + rng.randrange(10**6)
        for _ in range(rng.choice([3, 8, 40, 120]) if user else REACH + 200):  # one has more than features see
            when += rng.choice([0, 0, 1, 30, 5000, 90_000])  # several events at one time keep their order
            kind = rng.choice(["view", "view", "view", "click", "click", "buy", "buy", "odd"])
            value = "" if rng.random() < 0.4 else rng.choice(["1", "4", "4.5", "0.1", "3.3333333333333335"])
            item = items[min(int(rng.expovariate(0.02)), 259)]
            lines.append((when + rng.choice([0, 0.25, 0.1]), f"u{user},{item}", f"{kind},{value}"))
    rng.shuffle(lines)
    lines.sort(key=lambda line: line[0] + rng.choice([0, 0, 10**5]))  # some come late
    table = "item_id,categories,year,maker\n" + "".join(
        f"{item},{'|'.join(rng.sample(['red', 'blue', 'green', 'old', 'new'], rng.randrange(4)))},"
        f"{'' if rng.random() < 0.1 else rng.randrange(1950, 2020)},{rng.choice(['', 'acme', 'zenith', 'volt'])}\n"
        for item in items[:250]
    )
    people = "user_id,gender,age,mood\n" + "".join(
        f"u{user},{rng.choice(['F', 'M', ''])},{rng.choice([18, 25, 35])},{rng.random()}\n" for user in range(users)
    )
    logs = []
    for name, count in (("earlier", len(lines) * 9 // 10), ("whole", len(lines))):
        (directory / name).mkdir()
        text = "user_id,item_id,event_type,value,timestamp\n"
        text += "".join(f"{who},{what},{when!r}\n" for when, who, what in lines[:count])
        (directory / name / "events.csv").write_text(text)
        (directory / name / "items.csv").write_text(table if name == "whole" else table.rsplit("item-24", 10)[0])
        (directory / name / "users.csv").write_text(people)
        logs.append(read_log("csv", directory / name))
    return logs[0], logs[1]


# --- the two ways ----------------------------------------------------------------------------------------


def learnt_from(of: Trained, cases: Cases) -> tuple[Lists, Iterator[Made]]:
    """The lists that training would replay for the cases, and the arrays of each."""
    opened = Bundle.open(of.path)
    served = load(opened)
    lists = replayed(
        cases,
        served.recommender.first,
        of.features.tasks,
        eligible=served.filters.eligible(NO_FILTER),
        candidates=of.candidates,
        contexts=impressions.contexts(of.log.users),
    )
    arrays = Arrays.of(FeatureTables.of(of.features, of.statistics, opened.catalog, opened.item_vectors), lists)

    def each() -> Iterator[Made]:
        for r in range(len(lists)):
            span = lists.span(r)
            yield own_part(arrays.batch(np.array([r])), 0, span.stop - span.start)

    return lists, each()


def posts(of: Trained, cases: Cases, since: Cases | None) -> Iterator[list[dict[str, Any]]]:
    """The events before each case (from that of the same user in `since` on) as callers send them: of all users at
    once, the older ones sometimes later, those of one time in their order."""
    rng, log = random.Random(3), of.log.events
    positions = log.with_row_index("at").filter(pl.col("item_id").is_in(Bundle.open(of.path).catalog.ids))["at"]
    at = positions.to_numpy()  # of each event of the histories in the log
    starts = log["user_id"].rle_id().to_numpy()
    first = np.searchsorted(starts, np.arange(starts[-1] + 1))
    chosen: list[tuple[float, int]] = []
    for c in range(len(cases)):
        end = int(at[cases.ends[c]])
        begin = int(first[starts[end]]) if since is None else int(at[since.ends[c]])
        moments: dict[float, float] = {}
        for row, moment in zip(range(begin, end), log["timestamp"][begin:end], strict=True):
            chosen.append((moments.setdefault(moment, rng.random()), row))
    chosen.sort(key=lambda one: one[0])
    frame = log[[row for _, row in chosen]].select("user_id", "item_id", "timestamp", "event_type", "value")
    for start in range(0, frame.height, PER_POST):
        yield [
            {name: value for name, value in event.items() if value is not None}
            for event in frame[start : start + PER_POST].with_columns(pl.col("event_type").cast(pl.String)).to_dicts()
        ]


async def serve(of: Trained, phases: Sequence[Cases], store: str, sends_history: bool) -> int:
    """Tells the service what happened before each phase's cases and asks it about them; how many events were posted."""
    latest = float(of.histories.timestamps.max())  # the time of whoever does not ask for one of the cases
    settings = Settings(store=store, history_cap=10_000, deadline_ms=60_000, batch_wait_ms=2)
    app = create_app(settings, served=load(Bundle.open(of.path)), now=lambda: NOW.get(latest))
    known, posted, before, number = impressions.contexts(of.log.users), 0, None, 0
    transport = httpx.ASGITransport(app)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://s") as http:

        async def ask(cases: Cases, c: int, case: int) -> None:
            NOW.set(float(cases.times[c]))  # of this task alone
            user = of.histories.user_ids[cases.users[c]]
            words, numbers = known.get(user, ({}, {}))
            body: dict[str, Any] = {"context": {**words, **numbers, "case": case}, "k": 7}
            if sends_history:
                body["history"] = sent[user]
            else:
                body["user_id"] = user
            answer = await http.post("/v1/recommendations", json=body)
            assert answer.status_code == 200, answer.text
            assert not answer.json()["degraded"], answer.text

        sent: dict[str, list[dict[str, Any]]] = {}
        for cases in phases:
            for events in posts(of, cases, before):
                posted += len(events)
                if sends_history:
                    for event in events:
                        sent.setdefault(event.pop("user_id"), []).append(event)
                    continue
                answer = await http.post("/v1/events", json={"events": events})
                assert answer.status_code == 202, answer.text
                assert {one["outcome"] for one in answer.json()["results"]} == {"accepted"}
            for events in sent.values():
                events.sort(key=lambda event: event["timestamp"])  # a caller's history is in order
            for start in range(0, len(cases), AT_ONCE):
                some = range(start, min(start + AT_ONCE, len(cases)))
                await asyncio.gather(*(ask(cases, c, number + c) for c in some))
            number, before = number + len(cases), cases
    return posted


def compare(
    of: Trained, phases: Sequence[Cases], store: str, monkeypatch: pytest.MonkeyPatch, *, sends_history: bool = False
) -> Recorder:
    """Goes both ways and holds them against each other."""
    seen, began = Recorder(), time.perf_counter()
    monkeypatch.setattr(ranking, "build", seen)
    posted = asyncio.run(serve(of, phases, store, sends_history))
    served_s, rows, number = time.perf_counter() - began, 0, 0
    for cases in phases:
        lists, arrays = learnt_from(of, cases)
        for r, learnt in enumerate(arrays):
            one, expected = seen.asked[number], lists.candidates([r])[0]
            assert one.request.time == expected.request.time
            assert one.rows.tolist() == expected.rows.tolist(), number
            assert one.scores.tobytes() == expected.scores.tobytes(), number
            got = seen.made[number]
            assert set(got) == set(learnt) == set(ARRAYS)
            for name in ARRAYS:
                same = (got[name].dtype, got[name].shape) == (learnt[name].dtype, learnt[name].shape)
                assert same, (number, name)
                assert got[name].tobytes() == learnt[name].tobytes(), (number, name, got[name], learnt[name])
            rows, number = rows + len(one.rows), number + 1
    _log.info(
        "%s rows of %s requests with %s numbers each are the same bytes; %s events posted; %s batches served in %.1f s",
        f"{rows:,}", f"{number:,}", len(of.features.candidate_numbers), f"{posted:,}", len(seen.batches), served_s,
    )  # fmt: skip
    assert len(seen.asked) == number
    assert rows >= ROWS
    return seen


# --- tests -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def random_shop(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trained, list[Cases]]:
    """A shop whose log is random, with enough users to ask about ROWS candidates."""
    directory = tmp_path_factory.mktemp("shop")
    candidates = 60
    earlier, whole = shop(directory, max(40, ROWS // (2 * candidates) + 10), seed=5)
    of = trained(
        directory / "bundle",
        earlier,
        whole,
        "taken; like: value >= 4; clicked: event_type == click; bought: event_type == buy",
        types=3,
        candidates=candidates,
    )
    split = leave_one_out(of.histories)
    return of, [split.validation, split.test]


@pytest.mark.parametrize("way", ["memory", "sqlite", "sent"])
def test_features_are_the_same_bytes_in_training_and_in_serving(
    way: str, random_shop: tuple[Trained, list[Cases]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of, phases = random_shop
    store = f"sqlite:///{tmp_path / 'histories'}" if way == "sqlite" else "memory://"
    seen = compare(of, phases, store, monkeypatch, sends_history=way == "sent")
    assert max(seen.batches) > 1  # or the batches of 64 were held against single requests alone
    numbers = np.concatenate([made["candidate_numbers"] for made in seen.made.values()])
    sources = [number.source for number in of.features.candidate_numbers]
    for kind in ("retrieval", "transition", "similarity", "affinity", "closeness", "attribute", "rate", "value"):
        assert any(source.startswith(kind) for source in sources)
    # What never varies or is always absent would be the same anyway.
    assert (np.nanstd(numbers.astype(np.float64), axis=0) > 0).all()
    assert np.isnan(numbers).any()
    assert {code for made in seen.made.values() for code in made["event_behaviours"].tolist()} == {1, 2, 3, 4}
    assert np.std([made["request_numbers"] for made in seen.made.values()], axis=0).all()


@pytest.mark.data
def test_features_of_movielens_are_the_same_bytes(
    shared_data: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = read_log("ml-1m", shared_data("ml-1m"))
    of = trained(tmp_path / "bundle", log, log, "watch; like: value >= 4", types=3, candidates=200)
    split = leave_one_out(of.histories)
    cases = -(-ROWS // 200)
    phases = [part.sample(-(-cases // 2), seed=7) for part in (split.validation, split.test)]
    compare(of, phases, "memory://", monkeypatch)
    assert {category.source for category in of.features.request_codes} >= {"context:gender", "context:age"}
    assert "affinity:categories" in [number.source for number in of.features.candidate_numbers]
