"""What constrained beam search costs beside the model, and how often its lists are the exact ones.

The decoder here hands out log-probabilities that were drawn before, so that every microsecond belongs to the search:
setting up, masking, choosing, looking up items. A trie of nested dictionaries, which is what most published code has,
takes the same steps beside it and has to find the same items; it is spared the walk from the root, for every beam keeps
its node. `mask` rows compare the masks alone, where it does walk, as a processor of logits must that is given tokens.

The last part asks how good a list is: random autoregressive log-probabilities over a small catalogue, random
exclusions, and every item scored for comparison. Noise is the hardest case, for nothing in a prefix tells of what
follows; `peak` is the standard deviation of the logits, and trained models are peaked. Searches narrower than k are
as wide as k, so M=5 and M=10 give the same lists of ten.
"""

import argparse
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import numpy.typing as npt

from loadtests import objectives, report
from loadtests.report import Report, spread
from loadtests.target import LoadError
from retrieval import beam
from retrieval.beam import Search, search, search_all
from retrieval.codes import CodeTable
from retrieval.sequences import FloatArray, IntArray
from retrieval.trie import ConstraintTrie

LEVELS, CODEWORDS = 3, 256
K = 10
EXCLUDED = 50
ALLOWED = 0.1  # of the catalogue, where there is a filter
WIDTHS = (5, 10, 20, 50, 100)
PEAKS = (1.0, 2.0, 4.0)
STUDIED = {"items": 600, "codewords": 64}
Figures = dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Nothing:
    """The memory of a decoder that remembers nothing."""

    def take(self, _indices: IntArray) -> "Nothing":
        """The same."""
        return self


class DrawnDecoder:
    """Log-probabilities that cost nothing: a few draws, handed out in turn."""

    def __init__(self, rng: np.random.Generator, *, requests: int, beams: int, codewords: int, draws: int = 3) -> None:
        self._drawn = [log_softmax(noise(rng, requests, beams, codewords)) for _ in range(draws)]
        self._turn = 0

    def step(self, _memory: Any, prefix: npt.NDArray[np.int64]) -> FloatArray:
        """float32, shape (R, M, V)."""
        self._turn = (self._turn + 1) % len(self._drawn)
        return self._drawn[self._turn][:, : prefix.shape[1]]

    def rewind(self) -> None:
        """Starts over, so that somebody else is given the same."""
        self._turn = 0


class DictionaryTrie:
    """The rival: nested dictionaries, a loop over beams, a mask of -inf, and a partition of everything."""

    def __init__(self, table: CodeTable, rows: IntArray) -> None:
        self._root: dict[int, Any] = {}
        for row, codes in zip(rows.tolist(), table.codes[rows].tolist(), strict=True):
            node = self._root
            for code in codes[:-1]:
                node = node.setdefault(code, {})
            node.setdefault(codes[-1], []).append(row)
        self._levels, self._vocabulary = table.levels, table.vocabulary

    def mask(self, prefixes: npt.NDArray[np.int64], v: int) -> FloatArray:
        """float32, shape (rows, v): 0 where a code may follow, else -inf."""
        mask = np.full((len(prefixes), v), -np.inf, dtype=np.float32)
        for at, prefix in enumerate(prefixes.tolist()):
            node = self._root
            for code in prefix:
                node = node[code]
            mask[at, list(node)] = 0
        return mask

    def search(self, decoder: DrawnDecoder, *, requests: int, beams: int, k: int) -> list[list[int]]:
        """The rows that each request is given."""
        nodes: list[list[Any]] = [[self._root] for _ in range(requests)]
        scores = [np.zeros(1, dtype=np.float32) for _ in range(requests)]
        for level in range(self._levels):
            widest = max(len(own) for own in nodes)
            log_probs = decoder.step(None, np.zeros((requests, widest, level), dtype=np.int64))
            for r, own in enumerate(nodes):
                mask = np.full((len(own), self._vocabulary[level]), -np.inf, dtype=np.float32)
                for at, node in enumerate(own):
                    mask[at, list(node)] = 0
                total = ((log_probs[r, : len(own)] + scores[r][:, None]) + mask).ravel()
                best = np.argpartition(-total, min(beams, len(total) - 1))[:beams]
                best = np.sort(best[total[best] > -np.inf])  # ours keeps beams in this order, and beams are told apart
                beam, code = np.divmod(best, self._vocabulary[level])
                nodes[r] = [own[b][c] for b, c in zip(beam.tolist(), code.tolist(), strict=True)]
                scores[r] = total[best]
        found = []
        for own, score in zip(nodes, scores, strict=True):
            order = np.argsort(-score, kind="stable").tolist()
            found.append([row for at in order for row in own[at]][:k])
        return found


def noise(rng: np.random.Generator, *shape: int) -> FloatArray:
    """float32, standard normal."""
    return rng.standard_normal(shape, dtype=np.float32)


def log_softmax(logits: FloatArray) -> FloatArray:
    """float32 of the same shape, normalised over its last dimension."""
    logits = logits - logits.max(axis=-1, keepdims=True)
    normalised: FloatArray = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    return normalised


def drawn_table(n: int, codewords: int) -> CodeTable:
    """n items with random tuples."""
    codes = np.random.default_rng(n).integers(0, codewords, (n + 1, LEVELS), dtype=np.int32)
    codes[0] = -1
    return CodeTable(codes, (codewords,) * LEVELS)


class Catalogue:
    """One size, and the calls to be timed on it."""

    def __init__(self, n: int, codewords: int = CODEWORDS) -> None:
        self.n, self.codewords = n, codewords
        self.table = drawn_table(n, codewords)
        started = time.perf_counter()
        self.trie = ConstraintTrie.build(self.table)
        self.build_s = time.perf_counter() - started
        self._rng = np.random.default_rng(n + 1)
        everything = np.ones(n + 1, dtype=np.bool_)
        self._masks = {"all": everything, "filter": self._rng.random(n + 1) < ALLOWED}
        started = time.perf_counter()
        self._live = {name: self.trie.live(mask) for name, mask in self._masks.items()}
        self.live_s = (time.perf_counter() - started) / len(self._live)

    @cached_property
    def dictionaries(self) -> DictionaryTrie:
        """The same items in the rival's form."""
        return DictionaryTrie(self.table, self.trie.rows)

    def about(self) -> dict[str, Any]:
        """What it takes to hold and to filter."""
        return {
            "build_s": round(self.build_s, 4),
            "live_ms": round(1000 * self.live_s, 3),
            "trie_mib": round(self.trie.nbytes / 2**20, 2),
            "live_mib": round(self._live["all"].nbytes / 2**20, 2),
        }

    def ours(self, decoder: DrawnDecoder, *, requests: int, beams: int, mask: str, excluded: int) -> Callable[[], Any]:
        """A search to be timed."""
        searches = [
            Search(K, beams, self._live[mask], self._rng.integers(1, self.n + 1, excluded)) for _ in range(requests)
        ]
        memory = Nothing()
        return lambda: search(decoder, memory, self.trie, searches)

    def masks(self, level: int, rows: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
        """Both ways to learn what may follow some prefixes, after they were seen to agree."""
        trie, live, v = self.trie, self._live["all"], self.codewords
        nodes = np.sort(self._rng.integers(0, len(trie.first[level]) - 1, rows))
        prefixes = trie.prefixes(level, nodes)

        def table() -> FloatArray:
            return live.shut[level].take(nodes, axis=0)

        def ranges() -> tuple[IntArray, IntArray]:
            row, children = beam.spread(trie.first[level][nodes], trie.first[level][nodes + 1])
            is_open = live.open[level - len(trie.child)][children]
            return row[is_open], trie.labels[level][children[is_open]].astype(np.int64)

        ours: Callable[[], Any] = table if level < len(trie.child) else ranges
        open_to_us = (table() == 0).nonzero() if level < len(trie.child) else ranges()
        open_to_them = (self.dictionaries.mask(prefixes, v) == 0).nonzero()
        if not all(np.array_equal(one, other) for one, other in zip(open_to_us, open_to_them, strict=True)):
            raise LoadError("the dictionary trie masks other codes, so one of the two is wrong; nothing was measured")
        return ours, partial(self.dictionaries.mask, prefixes, v)

    def rival(self, decoder: DrawnDecoder, *, requests: int, beams: int) -> Callable[[], Any]:
        """The same search by dictionaries, after it was seen to find the same."""
        theirs = self.dictionaries
        decoder.rewind()
        found = self.ours(decoder, requests=requests, beams=beams, mask="all", excluded=0)()
        decoder.rewind()
        if theirs.search(decoder, requests=requests, beams=beams, k=K) != [own.rows.tolist() for own in found]:
            raise LoadError("the dictionary trie finds other items, so one of the two is wrong; nothing was measured")
        return lambda: theirs.search(decoder, requests=requests, beams=beams, k=K)


def in_turns(calls: dict[str, Callable[[], Any]], *, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Each call's median milliseconds, round by round, all calls in turn within each."""
    counts = {}
    for name, call in calls.items():
        call()
        started = time.perf_counter()
        call()
        counts[name] = max(3, int(seconds / max(time.perf_counter() - started, 1e-6)))
    medians: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            taken = []
            for _ in range(counts[name]):
                started = time.perf_counter()
                call()
                taken.append(time.perf_counter() - started)
            medians[name].append(float(np.median(taken)) * 1000)
    return medians


def speed(sizes: Sequence[int], *, rounds: int, seconds: float, rival_to: int) -> Figures:
    """Milliseconds per step by catalogue size, filter, width and wave; with the dictionary trie beside some."""
    catalogues = [Catalogue(n) for n in sizes]
    figures: Figures = {f"trie, N={one.n}": one.about() for one in catalogues}
    calls: dict[str, Callable[[], Any]] = {}
    beside: dict[str, str] = {}
    steps: dict[str, int] = {}

    def add(one: Catalogue, requests: int, beams: int, mask: str, excluded: int, *, is_rivalled: bool) -> None:
        decoder = DrawnDecoder(one._rng, requests=requests, beams=beams, codewords=one.codewords)
        name = f"N={one.n}, V={one.codewords}, R={requests}, M={beams}, {mask}, excluded={excluded}"
        steps[name] = LEVELS
        calls[name] = one.ours(decoder, requests=requests, beams=beams, mask=mask, excluded=excluded)
        if is_rivalled and one.n <= rival_to:
            beside[name] = f"{name} by dictionaries"
            calls[beside[name]] = one.rival(decoder, requests=requests, beams=beams)

    for one in catalogues:
        for beams in (20, 50):
            for mask in ("all", "filter"):
                for excluded in (0, EXCLUDED):
                    add(one, 1, beams, mask, excluded, is_rivalled=mask == "all" and not excluded)
        add(one, 2, 50, "all", 0, is_rivalled=True)
        add(one, 2, 70, "all", 0, is_rivalled=True)
        add(one, 32, 50, "all", EXCLUDED, is_rivalled=False)
        for level, rows in itertools.product(range(1, LEVELS), (20, 100, 1600)):
            if one.n <= rival_to:
                name = f"N={one.n}, V={one.codewords}, mask of level {level}, {rows} rows"
                steps[name], beside[name] = 1, f"{name} by dictionaries"
                calls[name], calls[beside[name]] = one.masks(level, rows)
    wide = Catalogue(max(n for n in sizes if n <= rival_to), codewords=2048)
    add(wide, 2, 70, "all", 0, is_rivalled=True)
    figures[f"trie, N={wide.n}, V=2048"] = wide.about()
    medians = in_turns(calls, rounds=rounds, seconds=seconds)
    for name, per in steps.items():
        figures[name] = {"ms_per_step": spread([ms / per for ms in medians[name]])}
        if name in beside:
            theirs = medians[beside[name]]
            figures[name]["dictionary_ms_per_step"] = spread([ms / per for ms in theirs])
            figures[name]["times_faster"] = spread([b / a for a, b in zip(medians[name], theirs, strict=True)])
    return figures


class NoiseModel:
    """A table of log-probabilities for every prefix there can be: what a small model would say to one request."""

    def __init__(self, rng: np.random.Generator, *, codewords: int, peak: float) -> None:
        self.levels = [log_softmax(np.float32(peak) * noise(rng, *(codewords,) * (t + 1))) for t in range(LEVELS)]

    def step(self, _memory: Any, prefix: npt.NDArray[np.int64]) -> FloatArray:
        """float32, shape (1, M, V)."""
        return self.levels[prefix.shape[2]][tuple(prefix[0].T)].reshape(1, prefix.shape[1], -1)

    def score(self, codes: npt.NDArray[np.int32]) -> FloatArray:
        """float32, shape (n,): all items, added in the order in which a search adds."""
        scores = np.zeros(len(codes), dtype=np.float32)
        for t, table in enumerate(self.levels):
            scores += table[tuple(codes[:, : t + 1].T)]
        return scores


def exactness(requests: int) -> Figures:
    """By peak and width: share of certified and of exact lists, recall of the true top k, and what widening gains."""
    items, codewords = STUDIED["items"], STUDIED["codewords"]
    rng = np.random.default_rng(17)
    drawn = rng.choice(codewords**LEVELS, items, replace=False)  # no tuple twice, so that the order is that of scores
    codes = np.stack(np.unravel_index(drawn, (codewords,) * LEVELS), axis=1)
    table = CodeTable(np.concatenate([np.full((1, LEVELS), -1), codes]), (codewords,) * LEVELS)
    trie = ConstraintTrie.build(table)
    figures: Figures = {}
    for peak in PEAKS:
        seen = {f"peak={peak:g}, M={width}": np.zeros((requests, 3)) for width in WIDTHS}
        seen[f"peak={peak:g}, M=20, widened 3 times"] = np.zeros((requests, 3))
        lies = dict.fromkeys(seen, 0)
        for at in range(requests):
            model = NoiseModel(rng, codewords=codewords, peak=peak)
            mask = rng.random(items + 1) < rng.random()
            live, exclude = trie.live(mask), rng.integers(1, items + 1, 20)
            mask[exclude] = False
            rows = trie.rows[mask[trie.rows]]
            true = rows[np.argsort(-model.score(table.codes[rows]), kind="stable")[:K]].tolist()
            for name, kept in seen.items():
                width = int(name.split("M=")[1].split(",")[0])
                widen = 3 if "widened" in name else 0
                (found,) = search(model, Nothing(), trie, [Search(K, width, live, exclude)], widen=widen)
                is_true = found.rows.tolist() == true
                lies[name] += found.exact and not is_true
                hits = len(set(true) & set(found.rows.tolist()))
                kept[at] = found.exact, is_true, hits / len(true) if true else 1.0
        for name, kept in seen.items():
            shares = dict(zip(("certified", "exact", "recall"), kept.mean(axis=0).round(4).tolist(), strict=True))
            figures[name] = {**shares, "false_certificates": int(lies[name])}
    return figures


def parallel(sizes: Sequence[int], *, rounds: int, seconds: float) -> Figures:
    """Milliseconds of an exact answer where the levels' distributions are known at once."""
    calls: dict[str, Callable[[], Any]] = {}
    for n in sizes:
        trie = ConstraintTrie.build(drawn_table(n, CODEWORDS))
        live = trie.live(np.ones(n + 1, dtype=np.bool_))
        searches = [Search(K, 50, live, np.zeros(0, dtype=np.int64))]
        rng = np.random.default_rng(n)
        for peak in PEAKS[:2]:
            given = log_softmax(np.float32(peak) * noise(rng, 1, LEVELS, CODEWORDS))
            calls[f"parallel codes, N={n}, peak={peak:g}"] = partial(search_all, given, trie, searches)
    return {name: {"ms": spread(ms)} for name, ms in in_turns(calls, rounds=rounds, seconds=seconds).items()}


def table(figures: Figures) -> list[list[str]]:
    """The results for people."""
    rows = [["search", "ms per step [low high]", "dictionaries", "times faster", "certified", "exact", "recall"]]
    for name, values in figures.items():
        if "build_s" in values:
            continue
        timed, theirs, times = (values.get(key) for key in ("ms_per_step", "dictionary_ms_per_step", "times_faster"))
        timed = timed or values.get("ms")
        shares = [f"{values[key]:.3f}" if key in values else "" for key in ("certified", "exact", "recall")]
        cells = [
            report.shown(value, digits) if value else "" for value, digits in ((timed, 4), (theirs, 3), (times, 1))
        ]
        rows.append([name, *cells, *shares])
    return rows


def main(arguments: Sequence[str]) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests beams", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9, help="repetitions of every timing, in turns")
    parser.add_argument("--requests", type=int, default=1500, help="lists to judge, for each peak and width")
    parser.add_argument("--quick", action="store_true", help="a small catalogue and few calls: shows that it works")
    parser.add_argument("--huge", action="store_true", help="ten million items as well: 2 GiB, and minutes")
    objectives.add_requirements(parser)
    report.add_record(parser)
    given = parser.parse_args(arguments)
    if given.record:
        report.refuse_dirty()
    machine = report.Machine.here()
    sizes = [1_000] if given.quick else [10_000, 100_000, 1_000_000]
    rivalled = max(sizes)
    sizes += [10_000_000] if given.huge else []
    seconds = 0.002 if given.quick else 0.03
    figures = speed(sizes, rounds=given.rounds, seconds=seconds, rival_to=rivalled)
    figures |= parallel(sizes, rounds=given.rounds, seconds=seconds)
    figures |= exactness(given.requests)
    conditions = {name: getattr(given, name) for name in ("rounds", "requests", "quick", "huge")}
    notes = [f"{one}: {values}" for one, values in figures.items() if "build_s" in values]
    about = {"name": f"random tuples, {LEVELS} levels", "digest": "0"}
    report.emit(Report("beams", conditions, about, figures, table(figures), machine, notes), record=given.record)
    return objectives.judge(figures, given.require)
