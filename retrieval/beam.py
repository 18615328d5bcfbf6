"""Beam search over the items that exist and may be shown: log-probabilities in, distinct rows out.

The score of an item is the sum of its codes' log-probabilities under the unconstrained model, added in float32 from the
first level to the last. Masking takes candidates away and never renormalises, so a score means the same under every
filter, and a prefix's score bounds all items behind it: rounding is monotone, and no term is above zero. From that
follows the certificate: where the k-th item scores above every prefix that was ever pruned, no other item can belong
into the list, and it is the exact one. (A prefix with one child wins nothing by it, as it would were the probabilities
renormalised over what is left.)

Ties go by trie order. Beams stand in that order, not by score, so it costs nothing: a child's number grows with its
parent's, and whatever is found by scanning is already sorted.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from retrieval.codes import CodeTable
from retrieval.errors import InvalidInput
from retrieval.queries import NO_STAGES, Stage
from retrieval.sequences import PAD_ROW, FloatArray, IntArray
from retrieval.trie import ConstraintTrie, Live, Nodes

IMPOSSIBLE = -1e30  # what a model's own -inf becomes: an allowed item stays reachable, after everything else
SLACK = 1e-3  # by how much rounding may lift a log-probability above zero
BLOCKS_FROM = 2048  # candidates; fewer are cut at once


class Memory(Protocol):
    """What a decoder knows of the requests of a wave."""

    def take(self, indices: IntArray, /) -> "Memory":
        """Some of them, in this order."""
        ...


class Steps(Protocol):
    """What a search needs of a decoder."""

    def step(self, memory: Any, prefix: npt.NDArray[np.int64], /) -> FloatArray:
        """Log-probabilities of level T, float32 (R, M, V), for prefixes int64 (R, M, T); (R, 1, V) where all share."""
        ...


def always() -> bool:
    """There is time."""
    return True


@dataclass(frozen=True, slots=True, eq=False)
class Search:
    """One request of a wave.

    Attributes:
        k: items wanted, at least 1.
        beams: width, at least 1; a narrower search than k is as wide as k.
        live: what the filter leaves, from the same trie.
        exclude: int64, shape (n,): rows that may not be returned beside that. Repeats, PAD_ROW and rows without a code
            do no harm.
        in_time: asked before every step of the decoder; the first no ends this search.
    """

    k: int
    beams: int
    live: Live
    exclude: IntArray
    in_time: Callable[[], bool] = always


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """What a search gave: min(k, allowed and not excluded) items, unless it did not finish.

    Attributes:
        rows: int64, shape (K,), distinct.
        scores: float32, shape (K,): falling, equal ones in the order of the trie.
        steps: float32, shape (K, L): each code's part of the score.
        exact: whether the list is proven to be that of scoring every item.
        beams: width of the search that gave it.
        finished: false where time ran out or the model's numbers were not numbers; then there are no items.
    """

    rows: IntArray
    scores: FloatArray
    steps: FloatArray
    exact: bool
    beams: int
    finished: bool = True


def search(
    decoder: Steps,
    memory: Memory,
    trie: ConstraintTrie,
    searches: Sequence[Search],
    *,
    widen: int = 0,
    exact_below: int = 0,
    stage: Stage = NO_STAGES,
) -> list[Found]:
    """The best items of each search, all of them in step.

    Args:
        decoder: gives log-probabilities.
        memory: what it knows of the R requests.
        trie: what exists.
        searches: R searches.
        widen: how often a list without a certificate is searched for again, each time twice as wide.
        exact_below: with no more items left than this, all of them are scored.
        stage: times `decode` and `beam`.

    Raises:
        InvalidInput: a width or k below 1, a filter of another trie, or numbers that are no log-probabilities.
    """
    with stage("beam"):
        paths = [_Path.of(trie, asked, exact_below) for asked in searches]
    found = [path.nothing(trie.levels, is_finished=True) for path in paths]
    pending = [r for r, path in enumerate(paths) if path.feasible]
    for doubled in range(widen + 1):
        if doubled:
            pending = [r for r in pending if found[r].finished and not found[r].exact and searches[r].in_time()]
            for r in pending:
                paths[r] = paths[r].wider()
        # Wide searches apart from narrow ones: a wave is as wide as its widest.
        waves: dict[int, list[int]] = {}
        for r in pending:
            waves.setdefault(paths[r].width.bit_length(), []).append(r)
        for members in waves.values():
            part = memory if len(members) == len(searches) else memory.take(np.array(members, dtype=np.int64))
            for r, result in zip(members, _wave(decoder, part, trie, [paths[r] for r in members], stage), strict=True):
                # What a narrower search has found is not given up for a wider one that did not finish.
                if result.finished or not doubled:
                    found[r] = result
    return found


class _Path:
    """One search on its way down the trie."""

    __slots__ = ("dead", "denied", "feasible", "k", "live", "nodes", "pruned", "scores", "search", "trail", "width")

    def __init__(self, search: Search, *, width: int, k: int, denied: Nodes, dead: list[IntArray | None]) -> None:
        self.search, self.live = search, search.live
        self.feasible = self.live.count - len(denied)
        self.width, self.k = width, k
        self.denied, self.dead = denied, dead  # positions in the trie, and by level the children that hold no others
        self.nodes = np.zeros(1, dtype=np.int64)  # ascending
        self.scores = np.zeros(1, dtype=np.float32)
        self.pruned = -np.inf
        self.trail: list[tuple[IntArray, FloatArray]] = []  # by level: the beam each came from, and its step

    @classmethod
    def of(cls, trie: ConstraintTrie, search: Search, exact_below: int) -> "_Path":
        """A search at the root."""
        if search.k < 1 or search.beams < 1:
            raise InvalidInput(f"k is {search.k} and beams is {search.beams}; both must be at least 1")
        if len(search.live.before) != len(trie) + 1:
            raise InvalidInput(f"the filter was made for {len(search.live.before) - 1} items, the trie has {len(trie)}")
        denied, dead = _denied(trie, search.live, search.exclude)
        feasible = search.live.count - len(denied)
        width = feasible if feasible <= exact_below else min(max(search.beams, search.k), feasible)
        return cls(search, width=width, k=min(search.k, feasible), denied=denied, dead=dead)

    def wider(self) -> "_Path":
        """The same search at the root again, twice as wide."""
        width = min(2 * self.width, self.feasible)
        return _Path(self.search, width=width, k=self.k, denied=self.denied, dead=self.dead)

    def advance(self, trie: ConstraintTrie, level: int, own: FloatArray) -> None:
        """Takes the best children of all beams.

        Args:
            trie: what exists.
            level: of the codes to choose.
            own: float32, shape (m, V) with m at least the number of beams, or (1, V): finite, none above zero.
        """
        # The last level needs no more leaves than items, and what is pruned there is known to be worse.
        is_last = level == trie.levels - 1
        width = self.k if is_last else self.width
        choose = self._from_table if level < len(trie.child) else self._from_ranges
        beam, code, children, values, pruned = choose(trie, level, own, width)
        if not is_last:
            self.pruned = max(self.pruned, pruned)
        self.trail.append((beam, own[beam if len(own) > 1 else 0, code]))
        self.nodes, self.scores = children, values

    def _from_table(self, trie: ConstraintTrie, level: int, own: FloatArray, width: int) -> "_Chosen":
        total = self.live.shut[level].take(self.nodes, axis=0)
        total += own[: len(self.nodes)]
        total += self.scores[:, None]
        dead = self.dead[level]
        if dead is not None:
            parents = np.searchsorted(trie.first[level], dead.astype(np.int32), side="right") - 1
            at, among = _places(self.nodes, parents)
            total[at, trie.labels[level][dead[among]]] = -np.inf
        flat = total.ravel()
        best, pruned = _best(flat, width)
        beam, code = np.divmod(best, total.shape[1])
        return beam, code, trie.child[level][self.nodes[beam], code].astype(np.int64), flat[best], pruned

    def _from_ranges(self, trie: ConstraintTrie, level: int, own: FloatArray, width: int) -> "_Chosen":
        first = trie.first[level]
        beam, children = _spread(first[self.nodes], first[self.nodes + 1])
        holds = self.live.open[level - len(trie.child)][children]
        dead = self.dead[level]
        if dead is not None:
            holds[_places(children, dead)[0]] = False
        beam, children = beam[holds], children[holds]
        code = trie.labels[level][children]
        values = own[beam if len(own) > 1 else 0, code] + self.scores[beam]
        best, pruned = _best(values, width)
        return beam[best], code[best], children[best], values[best], pruned

    def items(self, trie: ConstraintTrie) -> Found:
        """The items of the leaves that were reached."""
        order = np.argsort(-self.scores, kind="stable")
        leaves, starts = self.nodes[order], trie.starts[-1]
        lo, hi = starts[leaves], starts[leaves + 1]
        before = self.live.before
        # No more leaves than can be needed, were every denied item in them.
        enough = int(np.searchsorted(np.cumsum(before[hi] - before[lo]), self.k + len(self.denied))) + 1
        leaf, positions = _spread(lo[:enough], hi[:enough])
        allowed = before[positions + 1] > before[positions]
        if len(self.denied):
            at = np.minimum(np.searchsorted(self.denied, positions.astype(np.int32)), len(self.denied) - 1)
            allowed &= self.denied[at] != positions
        keep = np.flatnonzero(allowed)[: self.k]
        beam = order[leaf[keep]]
        scores = self.scores[beam]
        steps = np.empty((len(beam), trie.levels), dtype=np.float32)
        for level, (parents, values) in zip(reversed(range(trie.levels)), reversed(self.trail), strict=True):
            steps[:, level] = values[beam]
            beam = parents[beam]
        return Found(trie.rows[positions[keep]], scores, steps, bool(self.pruned < scores[-1]), self.width)

    def nothing(self, levels: int, *, is_finished: bool) -> Found:
        """No items: none is left, or the search did not finish."""
        rows, scores = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)
        return Found(rows, scores, np.zeros((0, levels), np.float32), is_finished, self.width, is_finished)


_Chosen = tuple[IntArray, IntArray, IntArray, FloatArray, float]  # beam, code, child, score; and the best left out


def _wave(decoder: Steps, memory: Memory, trie: ConstraintTrie, paths: Sequence[_Path], stage: Stage) -> list[Found]:
    """Leads searches from the root to the leaves in step."""
    found = [path.nothing(trie.levels, is_finished=False) for path in paths]
    active = list(range(len(paths)))

    def go_on(is_kept: Sequence[bool]) -> None:
        nonlocal memory, active
        if not all(is_kept):
            kept = [at for at, kept in enumerate(is_kept) if kept]
            active = [active[at] for at in kept]
            memory = memory.take(np.array(kept, dtype=np.int64))

    for level in range(trie.levels):
        go_on([paths[r].search.in_time() for r in active])
        if not active:
            break
        with stage("beam"):
            prefix = np.zeros((len(active), max(len(paths[r].nodes) for r in active), level), dtype=np.int64)
            for own, r in zip(prefix, active, strict=True):
                nodes = paths[r].nodes
                own[: len(nodes)] = trie.prefixes(level, nodes)
                own[len(nodes) :] = own[0]  # what a narrower search does not need repeats its first beam
        with stage("decode"):
            log_probs = np.asarray(decoder.step(memory, prefix), dtype=np.float32)
        with stage("beam"):
            log_probs, is_sound = _checked(log_probs, prefix, trie.vocabulary[level])
            for r, own, is_good in zip(active, log_probs, is_sound, strict=True):
                if is_good:
                    paths[r].advance(trie, level, own)
            go_on(is_sound)
    with stage("beam"):
        for r in active:
            found[r] = paths[r].items(trie)
    return found


def _checked(log_probs: FloatArray, prefix: npt.NDArray[np.int64], v: int) -> tuple[FloatArray, list[bool]]:
    """Log-probabilities between `IMPOSSIBLE` and 0, and for each request whether they were numbers."""
    r, m, _ = prefix.shape
    if log_probs.shape not in ((r, m, v), (r, 1, v)):
        raise InvalidInput(f"the decoder gave log-probabilities of shape {log_probs.shape}; {(r, m, v)} was expected")
    highest = log_probs.reshape(r, -1).max(axis=1)
    is_sound = highest < np.inf  # false for NaN, which a maximum passes on
    if (highest[is_sound] > SLACK).any():
        raise InvalidInput(
            f"the decoder gave {highest[is_sound].max()} as a log-probability; normalise it with log_softmax"
        )
    return np.clip(log_probs, IMPOSSIBLE, 0.0), is_sound.tolist()


def _best(values: FloatArray, width: int) -> tuple[IntArray, float]:
    """Where the best values stand, ascending, and the best that is left out; -inf is no candidate.

    Of equal values the first are taken.
    """
    floor = -np.inf
    if len(values) >= BLOCKS_FROM:
        # The maxima of strided blocks: `width` + 1 of them reach the floor, so the values to be found do as well, and
        # few others do. An eighth of the cost of a partition, a hundredth where most candidates are masked.
        rows = len(values) // max(8 * (width + 1), len(values) // 16)
        if rows > 1:
            tops = values[: len(values) // rows * rows].reshape(rows, -1).max(axis=0)
            floor = np.partition(tops, len(tops) - width - 1)[len(tops) - width - 1]
    near = np.flatnonzero(values >= floor if floor > -np.inf else values > floor)
    if len(near) <= width:
        return near, -np.inf
    close = values[near]
    left_out = np.partition(close, len(close) - width - 1)[len(close) - width - 1]
    taken = close > left_out
    missing = width - int(np.count_nonzero(taken))
    if missing:
        taken[np.flatnonzero(close == left_out)[:missing]] = True
    return near[taken], float(left_out)


def _spread(lo: npt.NDArray[Any], hi: npt.NDArray[Any]) -> tuple[IntArray, IntArray]:
    """The members of ranges: int64, which range each is of, and the number itself."""
    counts = (hi - lo).astype(np.int64)
    ends = np.cumsum(counts)
    source = np.repeat(np.arange(len(counts)), counts)
    return source, np.arange(len(source)) + (lo - (ends - counts))[source]


def _places(among: IntArray, wanted: IntArray) -> tuple[IntArray, IntArray]:
    """Where numbers stand in an ascending array, and which of them do."""
    at = np.minimum(np.searchsorted(among, wanted), len(among) - 1)
    is_there = among[at] == wanted
    return at[is_there], np.flatnonzero(is_there)


def _denied(trie: ConstraintTrie, live: Live, exclude: IntArray) -> tuple[Nodes, list[IntArray | None]]:
    """Excluded items that the filter would allow, as positions; and by level the children that hold no others."""
    dead: list[IntArray | None] = [None] * trie.levels
    known = exclude[(exclude > PAD_ROW) & (exclude < trie.size)]
    ranks = np.sort(trie.rank[known])
    denied = ranks[(ranks >= 0) & (live.before[ranks + 1] > live.before[ranks])]
    if len(denied) > 1:
        denied = denied[np.append(True, denied[1:] != denied[:-1])]
    left = denied
    for level in reversed(range(trie.levels)):
        if not len(left):
            break
        # Upwards, and only with what is gone below: a node is dead where all its allowed items are in dead children.
        starts = trie.starts[level + 1]
        nodes, counts = np.unique(np.searchsorted(starts, left, side="right") - 1, return_counts=True)
        is_dead = counts == live.before[starts[nodes + 1]] - live.before[starts[nodes]]
        left = left[np.repeat(is_dead, counts)]
        dead[level] = nodes[is_dead] if is_dead.any() else None
    return denied, dead


def score_all(distributions: FloatArray, table: CodeTable) -> FloatArray:
    """What every item scores where the levels' distributions do not depend on each other: L gathers per item.

    Args:
        distributions: float32, shape (R, L, V'): log-probabilities; a level with fewer codewords uses the first ones.
        table: the items' codes.

    Returns:
        float32, shape (R, N + 1): the sum of the items' log-probabilities, -inf without a code.

    Raises:
        InvalidInput: another shape.
    """
    if distributions.ndim != 3 or distributions.shape[1] != table.levels:
        raise InvalidInput(f"distributions have shape {distributions.shape}; (R, {table.levels}, V) was expected")
    bounded = np.clip(np.asarray(distributions, dtype=np.float32), IMPOSSIBLE, 0.0)
    scores = np.zeros((len(bounded), len(table) + 1), dtype=np.float32)
    for level in range(table.levels):
        scores += bounded[:, level].take(table.codes[:, level], axis=1)
    scores[:, ~table.coded] = -np.inf
    return scores
