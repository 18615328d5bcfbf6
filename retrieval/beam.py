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
from retrieval.queries import NO_STAGES, Stage, always
from retrieval.sequences import FloatArray, IntArray
from retrieval.trie import ConstraintTrie, Live, Nodes

IMPOSSIBLE = -1e30  # what a model's own -inf becomes: an allowed item stays reachable, after everything else
SLACK = 1e-3  # by how much rounding may lift a log-probability above zero
BLOCKS_FROM = 2048  # candidates; fewer are cut at once


class Takes(Protocol):
    """What a decoder knows of the requests of a wave."""

    def take(self, indices: IntArray, /) -> "Takes":
        """Some of them, in this order."""
        ...


class Steps(Protocol):
    """What a search needs of a decoder."""

    def step(self, memory: Any, prefix: npt.NDArray[np.int64], /) -> FloatArray:
        """Log-probabilities of level T, float32 (R, M, V), for prefixes int64 (R, M, T); (R, 1, V) where all share."""
        ...


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
        ahead: so many items behind the k are given too where the same beams lead to them.
    """

    k: int
    beams: int
    live: Live
    exclude: IntArray
    in_time: Callable[[], bool] = always
    ahead: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """What a search gave: min(k, allowed and not excluded) items and up to `ahead` more, unless it did not finish.

    Attributes:
        rows: int64, shape (K,), distinct.
        scores: float32, shape (K,): falling, equal ones in the order of the trie.
        steps: float32, shape (K, L): each code's part of the score.
        exact: whether the first k are proven to be those that scoring every item gives.
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
    memory: Takes,
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
    found: list[Found | None] = [None] * len(paths)
    pending = [r for r, path in enumerate(paths) if path.feasible]
    for doubled in range(widen + 1):
        if doubled:
            pending = [r for r in pending if _may_gain(found[r]) and searches[r].in_time()]
            for r in pending:
                paths[r].widen()
        # Wide searches apart from narrow ones: a wave is as wide as its widest.
        waves: dict[int, list[int]] = {}
        for r in pending:
            waves.setdefault(paths[r].width.bit_length(), []).append(r)
        for members in waves.values():
            part = memory if len(members) == len(paths) else memory.take(np.array(members, dtype=np.int64))
            for r, result in zip(members, _wave(decoder, part, trie, [paths[r] for r in members], stage), strict=True):
                # What a narrower search has found is not given up for a wider one that did not finish.
                found[r] = result or found[r]
    return [given or path.nothing(trie.levels) for given, path in zip(found, paths, strict=True)]


def _may_gain(found: Found | None) -> bool:
    """Whether a wider search could give another list."""
    return found is not None and not found.exact


class _Path:
    """One search on its way down the trie."""

    def __init__(self, search: Search, *, width: int, k: int, denied: Nodes, dead: list[IntArray | None]) -> None:
        self.search, self.live = search, search.live
        self.feasible = self.live.count - len(denied)
        self.width, self.k = width, k
        self.reach = min(search.k + search.ahead, self.feasible)
        self.denied, self.dead = denied, dead  # positions in the trie, and by level the children that hold no others
        self.ahead: Sequence[np.float32] = ()  # by level: the most that a step can add, where that is known
        self.restart()

    def restart(self, floor: float = -np.inf) -> None:
        """Back to the root, to look for items that score at least `floor`."""
        self.floor = floor
        self.nodes = np.zeros(1, dtype=np.int64)  # ascending
        self.scores = np.zeros(1, dtype=np.float32)
        self.pruned = -np.inf  # no item that was left out for want of width scores above this
        self.trail: list[tuple[IntArray, FloatArray]] = []  # by level: the beam each came from, and its step

    @classmethod
    def of(cls, trie: ConstraintTrie, search: Search, exact_below: int) -> "_Path":
        """A search at the root."""
        if search.k < 1 or search.beams < 1:
            raise InvalidInput(f"k is {search.k} and beams is {search.beams}; both must be at least 1")
        if len(search.live.before) != len(trie) + 1:
            raise InvalidInput(f"the filter was made for {len(search.live.before) - 1} items, the trie has {len(trie)}")
        denied, dead = _denied(trie, search.live.before, search.exclude)
        feasible = search.live.count - len(denied)
        width = feasible if feasible <= exact_below else min(max(search.beams, search.k), feasible)
        return cls(search, width=width, k=min(search.k, feasible), denied=denied, dead=dead)

    def widen(self) -> None:
        """Back to the root, twice as wide."""
        self.width = min(2 * self.width, self.feasible)
        self.restart()

    def advance(self, trie: ConstraintTrie, level: int, own: FloatArray) -> None:
        """Takes the best children of all beams.

        Args:
            trie: what exists.
            level: of the codes to choose.
            own: float32, shape (m, V) with m at least the number of beams, or (1, V): finite, none above zero.
        """
        # The last level needs no more leaves than items, and what is pruned there is known to be worse.
        is_last = level == trie.levels - 1
        width = self.reach if is_last else self.width if self.floor == -np.inf else self.feasible
        choose = self._from_table if level < len(trie.child) else self._from_ranges
        beam, code, children, values, pruned = choose(trie, level, own, width)
        if not is_last:
            self.pruned = max(self.pruned, self._bound(level, pruned))
            if self.floor > -np.inf:
                keep = self._bound(level, values) >= self.floor
                beam, code, children, values = beam[keep], code[keep], children[keep], values[keep]
        self.trail.append((beam, own[beam if len(own) > 1 else 0, code]))
        self.nodes, self.scores = children, values

    def descend(self, trie: ConstraintTrie, levels: Sequence[FloatArray]) -> Found:
        """Its items, where every level's log-probabilities, float32 (1, V), are known beforehand."""
        for level, own in enumerate(levels):
            self.advance(trie, level, own)
        return self.items(trie)

    def _bound(self, level: int, score: Any) -> Any:
        """What an item behind a prefix scores at most: added up as its score would be, so that rounding cannot lie."""
        for most in self.ahead[level + 1 :]:
            score = score + most
        return score

    def _from_table(self, trie: ConstraintTrie, level: int, own: FloatArray, width: int) -> "_Chosen":
        total = self.live.shut[level].take(self.nodes, axis=0)
        total += own[: len(self.nodes)]
        total += self.scores[:, None]
        dead = self.dead[level]
        if dead is not None:
            parents = trie.first[level].searchsorted(dead.astype(np.int32), side="right") - 1
            at, among = _places(self.nodes, parents)
            total[at, trie.labels[level][dead[among]]] = -np.inf
        flat = total.ravel()
        best, pruned = _best(flat, width)
        beam, code = np.divmod(best, total.shape[1])
        return beam, code, trie.child[level][self.nodes[beam], code].astype(np.int64), flat[best], pruned

    def _from_ranges(self, trie: ConstraintTrie, level: int, own: FloatArray, width: int) -> "_Chosen":
        first = trie.first[level]
        beam, children = spread(first[self.nodes], first[self.nodes + 1])
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
        beam = (-self.scores).argsort(kind="stable")
        leaves, starts = self.nodes[beam], trie.starts[-1]
        positions: npt.NDArray[Any] = starts[leaves]
        if len(starts) <= len(trie):
            beam, positions = self._spread_leaves(beam, positions, starts[leaves + 1])
        beam, positions = beam[: self.reach], positions[: self.reach]
        scores = self.scores[beam]
        steps = np.empty((len(beam), trie.levels), dtype=np.float32)
        for level in range(trie.levels - 1, -1, -1):
            parents, values = self.trail[level]
            steps[:, level] = values[beam]
            beam = parents[beam]
        exact = bool(self.pruned < scores[: self.k][-1])
        return Found(trie.rows[positions], scores, steps, exact, self.width)

    def _spread_leaves(self, beam: IntArray, lo: Nodes, hi: Nodes) -> tuple[IntArray, IntArray]:
        """Beams and positions of the items that leaves, best first, hold: several where tuples collide."""
        before = self.live.before
        # No more leaves than can be needed, were every denied item in them.
        enough = int((before[hi] - before[lo]).cumsum().searchsorted(self.reach + len(self.denied))) + 1
        leaf, positions = spread(lo[:enough], hi[:enough])
        allowed = before[positions + 1] > before[positions]
        if len(self.denied):
            allowed[_places(self.denied, positions)[1]] = False
        return beam[leaf[allowed]], positions[allowed]

    def nothing(self, levels: int) -> Found:
        """No items: none is left, or the search did not finish."""
        rows, scores = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)
        is_over = not self.feasible
        return Found(rows, scores, np.zeros((0, levels), np.float32), is_over, self.width, is_over)


_Chosen = tuple[IntArray, IntArray, IntArray, FloatArray, float]  # beam, code, child, score; and the best left out


def _wave(
    decoder: Steps, memory: Takes, trie: ConstraintTrie, paths: Sequence[_Path], stage: Stage
) -> list[Found | None]:
    """Leads searches from the root to the leaves in step; None for those that do not arrive."""
    active = list(paths)
    for level in range(trie.levels):
        active, memory = _kept(active, memory, [path.search.in_time() for path in active])
        if not active:
            break
        with stage("beam"):
            prefix = _prefixes(trie, level, [path.nodes for path in active])
        with stage("decode"):
            log_probs = decoder.step(memory, prefix)
        with stage("beam"):
            (r, m, _), v = prefix.shape, trie.vocabulary[level]
            if log_probs.shape not in ((r, m, v), (r, 1, v)):
                raise InvalidInput(f"the decoder gave numbers of shape {log_probs.shape}; {(r, m, v)} was expected")
            for path, own in zip(active, log_probs, strict=True):
                bounded = _bounded(own)
                if bounded is not None:
                    path.advance(trie, level, bounded)
            active, memory = _kept(active, memory, [len(path.trail) > level for path in active])
    with stage("beam"):
        return [path.items(trie) if len(path.trail) == trie.levels else None for path in paths]


def _kept(paths: list[_Path], memory: Takes, is_kept: Sequence[bool]) -> tuple[list[_Path], Takes]:
    """The searches that go on, and what the decoder knows of them."""
    if all(is_kept):
        return paths, memory
    left = [r for r, kept in enumerate(is_kept) if kept]
    return [paths[r] for r in left], memory.take(np.array(left, dtype=np.int64))


def _prefixes(trie: ConstraintTrie, depth: int, nodes: Sequence[IntArray]) -> npt.NDArray[np.int64]:
    """int64, shape (R, M, depth): the prefixes of R searches; those with fewer beams repeat their first."""
    padded = np.empty((len(nodes), max(len(own) for own in nodes)), dtype=np.int64)
    for line, own in zip(padded, nodes, strict=True):
        line[: len(own)] = own
        line[len(own) :] = own[0]
    return trie.prefixes(depth, padded)


def _bounded(given: FloatArray) -> FloatArray | None:
    """One request's log-probabilities as float32 between `IMPOSSIBLE` and 0; None where there is one that is none."""
    highest = given.max()
    if SLACK < highest < np.inf:
        raise InvalidInput(f"a model gave {highest} as a log-probability; its graph lacks a log_softmax")
    # A maximum passes NaN on, and NaN is below nothing.
    return np.asarray(given, dtype=np.float32).clip(IMPOSSIBLE, 0.0) if highest < np.inf else None


def _best(values: FloatArray, width: int) -> tuple[IntArray, float]:
    """Where the best values stand, ascending, and the best that is left out; -inf is no candidate.

    Of equal values the first are taken.
    """
    floor = -np.inf
    # The maxima of strided blocks: `width` + 1 of them reach the floor, so the values to be found do as well, and few
    # others do. An eighth of the cost of a partition of all values, a hundredth where most of them are masked.
    depth = len(values) // max(8 * (width + 1), len(values) // 16) if len(values) >= BLOCKS_FROM else 1
    if depth > 1:
        tops = np.maximum.reduce(values[: len(values) // depth * depth].reshape(depth, -1))
        floor = _largest(tops, width)
    near = (values >= floor if floor > -np.inf else values > floor).nonzero()[0]
    if len(near) <= width:
        return near, -np.inf
    close = values[near]
    left_out = _largest(close.copy(), width)
    taken = close > left_out
    missing = width - int(np.count_nonzero(taken))
    if missing:
        taken[(close == left_out).nonzero()[0][:missing]] = True
    return near[taken], left_out


def _largest(values: FloatArray, rank: int) -> float:
    """The value that `rank` others come before; the array is disordered by it."""
    at = len(values) - rank - 1
    values.partition(at)
    return float(values[at])


def spread(lo: npt.NDArray[Any], hi: npt.NDArray[Any]) -> tuple[IntArray, IntArray]:
    """The members of ranges: int64, which range each is of, and the number itself."""
    counts = hi - lo
    ends = counts.cumsum()
    source = np.arange(len(counts)).repeat(counts)
    return source, np.arange(len(source)) + (lo - (ends - counts))[source]


def _places(among: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> tuple[IntArray, IntArray]:
    """Where wanted numbers stand in an ascending array that is not empty, and which of them do."""
    at = among.searchsorted(wanted)
    at[at == len(among)] = 0
    is_there = among[at] == wanted
    return at[is_there], is_there.nonzero()[0]


def _denied(trie: ConstraintTrie, before: Nodes, exclude: IntArray) -> tuple[Nodes, list[IntArray | None]]:
    """Excluded items that the filter would allow, as positions; and by level the children that hold no others."""
    dead: list[IntArray | None] = [None] * trie.levels
    ranks = trie.rank.take(exclude, mode="clip")  # rows beyond the catalog find -1 at its ends
    denied = ranks[before[ranks + 1] > before[ranks]]  # never so for -1
    denied.sort()
    denied = denied[_edges(denied)[:-1]]
    left = denied
    for level in range(trie.levels - 1, -1, -1):
        if not len(left):
            break
        # Upwards, and only with what is gone below: a node is dead where all its allowed items are in dead children.
        starts = trie.starts[level + 1]
        nodes = starts.searchsorted(left, side="right") - 1
        edges = _edges(nodes)
        nodes, counts = nodes[edges[:-1]], edges[1:] - edges[:-1]
        is_dead = counts == before[starts[nodes + 1]] - before[starts[nodes]]
        left = left[is_dead.repeat(counts)]
        nodes = nodes[is_dead]
        dead[level] = nodes if len(nodes) else None
    return denied, dead


def _edges(ascending: npt.NDArray[Any]) -> IntArray:
    """Where another number begins, and the end; [0] of nothing."""
    is_new = np.ones(len(ascending) + 1, dtype=np.bool_)
    np.not_equal(ascending[1:], ascending[:-1], out=is_new[1:-1])
    return is_new.nonzero()[0]


def score_all(distributions: FloatArray, table: CodeTable) -> FloatArray:
    """What every item scores where no level's distribution depends on the codes before: L gathers per item.

    Source: RecGPT's four parallel codes, scored without a search.

    Args:
        distributions: float32, shape (R, L, V): log-probabilities; a level with fewer codewords uses the first ones.
        table: the items' codes.

    Returns:
        float32, shape (R, N + 1): scores as `search` gives them, -inf without a code, NaN where the model gave NaN.

    Raises:
        InvalidInput: another shape.
    """
    _fit(distributions, table.vocabulary)
    bounded = np.asarray(distributions, dtype=np.float32).clip(IMPOSSIBLE, 0.0)
    scores = np.zeros((len(bounded), len(table) + 1), dtype=np.float32)
    for level in range(table.levels):
        scores += bounded[:, level].take(table.codes[:, level], axis=1)
    scores[:, ~table.coded] = -np.inf
    return scores


def search_all(distributions: FloatArray, trie: ConstraintTrie, searches: Sequence[Search]) -> list[Found]:
    """The best items where no level's distribution depends on the codes before: as if every item were scored.

    A beam finds k items; no item below the last of them is wanted. So a second descent follows every prefix that could
    still reach it, the best of each later level granted, and nothing else: branch and bound, exact at any width.

    Args:
        distributions: float32, shape (R, L, V): log-probabilities; a level with fewer codewords uses the first ones.
        trie: what exists.
        searches: R searches; `beams` moves the speed, not the answer.

    Raises:
        InvalidInput: see `search`, and distributions of another shape.
    """
    _fit(distributions, trie.vocabulary)
    found = []
    for given, asked in zip(distributions, searches, strict=True):
        path, own = _Path.of(trie, asked, 0), _bounded(given)
        if not path.feasible or own is None or not asked.in_time():
            found.append(path.nothing(trie.levels))
            continue
        levels = [own[level : level + 1, :v] for level, v in enumerate(trie.vocabulary)]
        path.ahead = [level.max() for level in levels]
        best = path.descend(trie, levels)
        if not best.exact:
            path.restart(floor=float(best.scores[: path.k][-1]))
            best = path.descend(trie, levels)
        found.append(best)
    return found


def _fit(distributions: FloatArray, vocabulary: tuple[int, ...]) -> None:
    """Refuses distributions that lack a level or a codeword."""
    shape = distributions.shape
    if len(shape) != 3 or shape[1] != len(vocabulary) or shape[2] < max(vocabulary):
        raise InvalidInput(f"distributions have shape {shape}; (R, {len(vocabulary)}, {max(vocabulary)}) was expected")
