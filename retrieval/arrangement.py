"""Arrangement: what the rules of a placement make of a request's candidates.

A request brings candidates, best first. Around them lies the reserve: every other item that is eligible and not
excluded, by falling popularity (equal ones by row). A list of n = min(k, eligible and not excluded) items is made from
both, one place after the other, the first place first. Never is an item shown twice, nor one that may not be shown.

**Scores.** Where candidates of several sources follow each other, a score above one further up counts only as much as
that one: sources have scales of their own, and what stands higher up was preferred. Answers carry the scores they came
with.

**Freshness** comes first: scores are multiplied by 1 - weight * (1 - 2^(-age / half_life_s)), where age is the time of
the request less that of the item, at least 0; an item of unknown age keeps its score. A factor below 1 would raise a
negative score, so a request that has one first gets all its scores shifted until the lowest is 0. Then the candidates
are sorted anew, equal scores in the order they had.

**Pins** are placed before anything else is chosen. A pinned item need not be a candidate; it must be known, eligible
and not excluded, and its position at most k. Where fewer items than its position can be shown, it moves up to the
nearest place that no pin behind it takes; that pin is met.

**Diversity** d: each place goes to the candidate with the largest (1 - d) * relevance - d * likeness, the earlier one
of equals. Relevance is the score, scaled to 0..1 over the candidates of the request; likeness is the largest cosine to
an item at a place further up, pinned ones included, and 0 for an item without a vector. The first place knows no
likeness: with d = 1 it gets the best score. The reserve keeps its order.

**Caps** count the items of a word in the whole list, pins from the start, wherever they stand. A place gets the best
candidate that breaks no cap, else the first of the reserve that breaks none (reason `filled`). Only when every item
left breaks one do caps give way: from then on the best candidate left, and after those the reserve, whatever they
carry. Pins stay even where they break a cap by themselves.

**Promotion**: among the first m places, for every m, there are at least floor(share * m) promoted items, pinned ones
included. A place that is needed for this goes to the best promoted candidate that breaks no cap, else to the first
such item of the reserve; its reason is `promoted`, unless the place would have been its own anyway. Where pins of other
items follow, promoted ones come early enough to make up for them. Where every promoted item left breaks a cap, or none
is left, the places go on without.

**Ahead** of the k places lies what would come next: the candidates that are left, in the order of their scores after
freshness, and in pages of k that each keep to the caps while a candidate is left that does. Pins, promotion and
diversity are of the first k alone: they cost as much for every further place, and hardly anybody goes there. The first
k are what they are without.

What could not be had stands in `unmet`: pins that are not shown, the longest beginning of the list with too few
promoted items, words beyond their cap.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache, partial

import numpy as np
import numpy.typing as npt

from retrieval.catalog import Catalog, Numbers
from retrieval.errors import InvalidFilter, InvalidInput, InvalidRule
from retrieval.filters import AttributeRule, Eligible, Filter, Filters
from retrieval.limits import Codes, Limits, refusal
from retrieval.queries import Answer, Query
from retrieval.rules import NO_RULES, Freshness, Promotion, Rules
from retrieval.sequences import PAD_ROW, BoolArray, FloatArray, IntArray

CACHED_RULES = 16  # of each kind; callers may bring rules of their own, and at a million items one takes megabytes
RESERVE_HEAD = 256  # items of the reserve that are looked at first; four times as many each time that was not enough
OUTSIDE = -1  # the column of an item that is no candidate
REASONS = ("", "pinned", "promoted", "filled")
PLAIN, PINNED, PROMOTED, FILLED = range(len(REASONS))

Scores = npt.NDArray[np.float64]


class Arranger:
    """Carries rules out for one edition of a catalog. Safe to share between threads.

    Args:
        catalog: what rules speak of.
        vectors: float32, shape (N + 1, D), of any length each; likeness is their cosine.

    Raises:
        InvalidInput: `vectors` are not one per row of the catalog.
    """

    def __init__(self, catalog: Catalog, vectors: FloatArray) -> None:
        if len(vectors) != len(catalog) + 1:
            raise InvalidInput(
                f"{len(vectors)} vectors for a catalog of {len(catalog)} items; give one per item and one for PAD_ROW"
            )
        self.catalog = catalog
        self.vectors = vectors
        self.limits = lru_cache(CACHED_RULES)(partial(Limits, catalog))
        self.promoted = lru_cache(CACHED_RULES)(partial(_promoted, catalog))

    def check(self, rules: Rules) -> None:
        """Refuses rules that mean nothing for this catalog, and makes what they need for their first request.

        Raises:
            InvalidRule: an attribute that the catalog lacks or that is of another kind.
        """
        if rules.caps:
            self.limits(rules.caps)
        if rules.promotion is not None:
            self.promoted(rules.promotion.item_ids, rules.promotion.where)
        if rules.freshness is not None:
            self.times(rules.freshness)

    def arrange(self, queries: Sequence[Query], answers: Sequence[Answer]) -> list[Answer]:
        """The lists that are shown: min(k, eligible and not excluded) items each, by the rules of their query.

        Args:
            queries: B queries; those of equal rules are carried out together. Without rules nothing but `k` matters.
            answers: B answers whose items are the candidates, best first: distinct, eligible, not excluded, with finite
                scores, and of any number.

        Returns:
            B answers; behind the first k what lies `ahead`. What came from outside the candidates has source `popular`
            and the lowest score of theirs.

        Raises:
            InvalidRule: see `check`.
        """
        arranged = list(answers)
        groups: dict[Rules, list[int]] = {}
        for b, (query, answer) in enumerate(zip(queries, answers, strict=True)):
            if query.rules != NO_RULES:
                groups.setdefault(query.rules, []).append(b)
            elif len(answer) > query.k + query.ahead:
                arranged[b] = answer.taken(np.arange(query.k + query.ahead))
        for rules, at in groups.items():
            self.check(rules)
            made = _Lists(self, rules, [queries[b] for b in at], [answers[b] for b in at]).answers()
            for b, answer in zip(at, made, strict=True):
                arranged[b] = answer
        return arranged

    @cached_property
    def order(self) -> IntArray:
        """int64, shape (N,): all rows by falling popularity, equal ones in their order."""
        return np.argsort(-self.catalog.popularity[1:], kind="stable") + 1

    @cached_property
    def inverse_lengths(self) -> FloatArray:
        """float32, shape (N + 1,): one over the length of each vector, 0 where that is 0."""
        lengths = np.sqrt(np.einsum("ij,ij->i", self.vectors, self.vectors))
        return np.asarray(np.divide(1, lengths, out=np.zeros_like(lengths), where=lengths > 0))

    def times(self, freshness: Freshness) -> Scores:
        """float64, shape (N + 1,): when the items appeared, seconds since 1970; NaN where unknown."""
        column = self.catalog.columns.get(freshness.attribute)
        if not isinstance(column, Numbers):
            raise refusal(self.catalog, "freshness", freshness.attribute, "numbers")
        return column.values


def _promoted(catalog: Catalog, item_ids: tuple[str, ...], where: AttributeRule | None) -> tuple[BoolArray, IntArray]:
    """What is promoted: bool of shape (N + 1,), and the rows of it by falling popularity, equal ones in their order."""
    mask = np.zeros(len(catalog) + 1, dtype=np.bool_)
    if where is not None:
        try:
            mask |= Filters(catalog).eligible(Filter(attributes=(where,))).mask
        except InvalidFilter as error:
            raise InvalidRule(f"no item can be promoted: {error}") from error
    mask[catalog.rows(item_ids)] = True
    mask[PAD_ROW] = False
    rows = np.flatnonzero(mask)
    return mask, rows[np.argsort(-catalog.popularity[rows], kind="stable")]


class _Reserve:
    """Items of one request that are no candidates, in an order. Safe for one thread.

    Args:
        order: int64, rows.
        allowed: bool, shape (N + 1,): which of them may be had; the caller clears what it places.
    """

    def __init__(self, order: IntArray, allowed: BoolArray) -> None:
        self._order, self._allowed = order, allowed
        self._head = order[:0]
        self._at, self._size = 0, RESERVE_HEAD

    def first(self, fitting: Callable[[IntArray], IntArray], hopeless: Callable[[], bool]) -> int:
        """The first row that may be had and is `fitting`; PAD_ROW where none is left.

        What does not fit is never looked at again: counts of words only grow.
        """
        while True:
            self._head = fitting(self._head[self._allowed[self._head]])
            if len(self._head):
                return int(self._head[0])
            if self._at >= len(self._order) or (self._at and hopeless()):
                return PAD_ROW
            self._head = self._order[self._at : self._at + self._size]
            self._at, self._size = self._at + self._size, self._size * 4


class _Lists:
    """Lists of R requests with the same rules in the making; [R, C] arrays of candidates, K places at most.

    Only what is rare is done for one request at a time: its pins, and items from outside its candidates.
    """

    def __init__(self, arranger: Arranger, rules: Rules, queries: Sequence[Query], answers: Sequence[Answer]) -> None:
        self._arranger, self._rules, self._queries, self._answers = arranger, rules, queries, answers
        sizes = np.array([len(answer) for answer in answers])
        shape = len(answers), max(1, int(sizes.max()))
        self._each = np.arange(len(answers))
        self._rows = np.full(shape, PAD_ROW)
        for r, answer in enumerate(answers):
            self._rows[r, : len(answer)] = answer.rows
        self._origin = np.broadcast_to(np.arange(shape[1]), shape)  # where a column stands in its answer
        # Candidates are reachable: where they suffice nobody needs to count the others.
        self._lengths = np.array(
            [
                query.k if len(answer) >= query.k else query.reachable
                for query, answer in zip(queries, answers, strict=True)
            ]
        )
        self._unmet: list[list[str]] = [[] for _ in queries]
        if rules.freshness is not None or rules.diversity:
            self._score(rules)
        self._left = self._rows != PAD_ROW  # candidates that have no place yet
        self._place_pins()
        self._start_promotion(rules.promotion)
        self._start_caps()
        self._allowed: dict[int, BoolArray] = {}
        self._reserves: dict[tuple[int, bool], _Reserve] = {}
        self._orders: dict[Eligible, IntArray] = {}
        self._kinds: dict[Eligible, Codes] = {}

    def answers(self) -> list[Answer]:
        """Fills the places, the first one first."""
        places = self._placed.shape[1]
        for p in range(places):
            self._fill(p)
            if self._rules.diversity and p + 1 < places:
                self._compare(self._placed[:, p])
        self._miss_promotion()
        return [self._answer(r) for r in range(len(self._answers))]

    # What is known before the first place is filled.

    def _score(self, rules: Rules) -> None:
        """Puts the candidates in the order of their scores, and finds their relevance."""
        known = self._rows != PAD_ROW
        scores = np.full(known.shape, -np.inf)
        for r, answer in enumerate(self._answers):
            scores[r, : len(answer)] = answer.scores
        scores = np.minimum.accumulate(scores, axis=1)
        if rules.freshness is not None:
            lowest = np.where(known, scores, np.inf).min(axis=1)
            scores = (scores - np.minimum(lowest, 0)[:, None]) * self._kept(rules.freshness)
            self._origin = np.argsort(-scores, axis=1, kind="stable")
            scores = np.take_along_axis(scores, self._origin, axis=1)
            self._rows = np.take_along_axis(self._rows, self._origin, axis=1)
            known = self._rows != PAD_ROW
        if rules.diversity:
            lowest = np.where(known, scores, np.inf).min(axis=1)
            span = scores[:, 0] - lowest
            relevance = np.where(known, scores - lowest[:, None], 0) / np.where(span > 0, span, 1)[:, None]
            self._worth = (1 - rules.diversity) * relevance
            self._likeness = np.full(known.shape, -np.inf, dtype=np.float32)
            self._value: Scores = self._worth
            self._vectors = self._arranger.vectors[self._rows]
            self._inverse_lengths = self._arranger.inverse_lengths[self._rows]

    def _kept(self, freshness: Freshness) -> Scores:
        """float64, shape (R, C): what age leaves of a score."""
        times = np.array([query.request.time for query in self._queries])[:, None]
        ages = np.maximum(times - self._arranger.times(freshness)[self._rows], 0)
        with np.errstate(over="ignore"):  # an item may be older than any number of half-lives
            kept = 1 - freshness.weight * (1 - np.exp2(-ages / freshness.half_life_s))
        return np.where(np.isnan(kept), 1, kept)

    def _place_pins(self) -> None:
        """Gives pins their places and takes them from the candidates."""
        shape = len(self._queries), int(self._lengths.max())
        self._placed = np.zeros(shape, dtype=np.int64)
        self._columns = np.full(shape, OUTSIDE)
        pins = sorted(self._rules.pins, key=lambda pin: -pin.position)
        pinned = self._arranger.catalog.rows(pin.item_id for pin in pins).tolist()
        for r, query in enumerate(self._queries):
            place = int(self._lengths[r])
            for pin, row in zip(pins, pinned, strict=True):
                if row == PAD_ROW:
                    why = "not in the catalog"
                elif not query.eligible.mask[row]:
                    why = "not eligible"
                elif (query.exclude == row).any():
                    why = "excluded"
                elif pin.position > query.k:
                    why = f"position {pin.position} is beyond the list of {query.k}"
                else:
                    place = min(place, pin.position) - 1
                    self._placed[r, place] = row
                    continue
                self._unmet[r].append(f"pin of {pin.item_id!r}: {why}")
            self._unmet[r].reverse()  # the first position first
        self._pinned = self._placed != PAD_ROW
        self._reasons = np.where(self._pinned, PINNED, PLAIN)
        for p in np.flatnonzero(self._pinned.any(axis=0)).tolist():
            same = self._left & (self._rows == self._placed[:, p, None])
            self._left &= ~same
            self._columns[:, p] = np.where(same.any(axis=1), same.argmax(axis=1), OUTSIDE)

    def _start_promotion(self, promotion: Promotion | None) -> None:
        """Finds how many promoted items there must be up to each place."""
        if promotion is None:
            return
        self._promoted, self._promoted_order = self._arranger.promoted(promotion.item_ids, promotion.where)
        self._is_promoted = self._promoted[self._rows]
        self._shown = np.zeros(len(self._queries), dtype=np.int64)  # promoted items that have a place
        self._ran_out = np.zeros(len(self._queries), dtype=np.bool_)
        places = np.arange(1, self._placed.shape[1] + 1)
        # 0.29 * 100 is a little less than 29 in floating point.
        asked = np.floor(promotion.share * places + 1e-9).astype(np.int64)
        self._asked = np.where(places <= self._lengths[:, None], asked, 0)
        self._needed = self._asked.copy()
        gains = ~self._pinned | self._promoted[self._placed]
        for p in range(len(places) - 2, -1, -1):
            self._needed[:, p] = np.maximum(self._asked[:, p], self._needed[:, p + 1] - gains[:, p + 1])

    def _start_caps(self) -> None:
        """Counts the words of the pins."""
        if not self._rules.caps:
            return
        self._limits = self._arranger.limits(self._rules.caps)
        if any(query.ahead for query in self._queries):
            self._most: list[int] = self._limits.most.tolist()
        width = len(self._limits.most)
        self._base = self._each * width
        self._counts = np.zeros(len(self._each) * width, dtype=np.int64)
        self._full = np.zeros(len(self._each) * width, dtype=np.bool_)
        self._words = self._limits.words(self._limits.kinds[self._rows]) + self._base[:, None]
        self._fits = np.ones(self._rows.shape, dtype=np.bool_)
        self._over = np.zeros(len(self._each), dtype=np.bool_)  # a word is beyond its cap
        self._gave_way = np.zeros(len(self._each), dtype=np.bool_)
        for p in np.flatnonzero(self._pinned.any(axis=0)).tolist():
            self._count(self._placed[:, p])

    # One place.

    def _fill(self, p: int) -> None:
        """Gives place `p` of every list to an item, where no pin has it."""
        turn = (p < self._lengths) & ~self._pinned[:, p]
        open_ = self._left & self._fits if self._rules.caps else self._left
        if self._rules.diversity and p:
            self._value = self._worth - self._rules.diversity * self._likeness
        columns, found = self._best(open_, turn)
        lacking = np.zeros_like(turn)
        if self._rules.promotion is not None:
            needs = turn & (self._shown < self._needed[:, p]) & ~self._ran_out
            if needs.any():
                promoted, has = self._best(open_ & self._is_promoted, needs)
                self._reasons[has & (promoted != columns), p] = PROMOTED
                columns = np.where(has, promoted, columns)
                lacking = needs & ~has
        rows = np.where(found, self._rows[self._each, columns], PAD_ROW)
        for r in np.flatnonzero(lacking | (turn & ~found)).tolist():
            row, columns[r], self._reasons[r, p] = self._reach(r, columns[r] if found[r] else None, bool(lacking[r]))
            rows[r] = row
        chosen = turn & (columns != OUTSIDE)
        self._left[self._each[chosen], columns[chosen]] = False
        self._placed[turn, p] = rows[turn]
        self._columns[turn, p] = columns[turn]
        if self._rules.promotion is not None:
            self._shown += self._promoted[self._placed[:, p]]
        if self._rules.caps:
            self._count(rows)

    def _best(self, open_: BoolArray, turn: BoolArray) -> tuple[IntArray, BoolArray]:
        """The best open column of each request, and whether there is one and it is its turn."""
        columns = (np.where(open_, self._value, -np.inf) if self._rules.diversity else open_).argmax(axis=1)
        return columns, open_[self._each, columns] & turn

    def _reach(self, r: int, column: int | None, lacking: bool) -> tuple[int, int, int]:
        """An item for one request whose candidates do not serve.

        Args:
            r: the request.
            column: its best candidate that breaks no cap; None where there is none.
            lacking: whether a promoted item is needed, and no candidate is one.

        Returns:
            its row, its column and its reason.
        """
        if lacking:
            row = self._first(r, promoted=True)
            if row != PAD_ROW:
                by_itself = column is None and self._first(r) == row
                return self._from_outside(r, row), OUTSIDE, FILLED if by_itself else PROMOTED
            self._ran_out[r] = True
        if column is not None:
            return int(self._rows[r, column]), column, PLAIN
        row = self._first(r)
        if row == PAD_ROW:
            self._give_way(r)
            if self._left[r].any():
                column = int(self._best(self._left, self._left.any(axis=1))[0][r])
                return int(self._rows[r, column]), column, PLAIN
            row = self._first(r)
        return self._from_outside(r, row), OUTSIDE, FILLED

    def _give_way(self, r: int) -> None:
        """Every item left breaks a cap: from here on caps stop nothing, and no promoted item fits."""
        self._gave_way[r] = True
        self._reserves.pop((r, False), None)  # what was dropped for the caps is wanted again
        if self._rules.promotion is not None:
            self._ran_out[r] = True

    def _from_outside(self, r: int, row: int) -> int:
        self._allowed[r][row] = False
        return row

    def _first(self, r: int, *, promoted: bool = False) -> int:
        """The first item of the reserve that breaks no cap; PAD_ROW where there is none."""
        eligible = self._queries[r].eligible
        if r not in self._allowed:
            allowed = eligible.mask.copy()
            for rows in (self._queries[r].exclude, self._answers[r].rows, self._placed[r]):
                allowed[rows] = False
            self._allowed[r] = allowed
        reserve = self._reserves.get((r, promoted))
        if reserve is None:
            order = self._promoted_order if promoted else self._order(eligible)
            reserve = self._reserves[r, promoted] = _Reserve(order, self._allowed[r])
        if not self._rules.caps or self._gave_way[r]:
            return reserve.first(lambda rows: rows, lambda: False)
        kinds = self._limits.kinds
        return reserve.first(
            lambda rows: rows[self._fitting(r, kinds[rows])],
            lambda: not self._fitting(r, self._kinds_of(eligible)).any(),
        )

    def _fitting(self, r: int, kinds: Codes) -> BoolArray:
        """Which kinds of items break no cap."""
        return np.asarray(~self._full[self._limits.words(kinds) + self._base[r]].any(axis=0))

    def _order(self, eligible: Eligible) -> IntArray:
        if eligible not in self._orders:
            order = self._arranger.order
            self._orders[eligible] = order[eligible.mask[order]]
        return self._orders[eligible]

    def _kinds_of(self, eligible: Eligible) -> Codes:
        if eligible not in self._kinds:
            found = np.bincount(self._limits.kinds[eligible.rows])
            self._kinds[eligible] = np.flatnonzero(found).astype(np.int32)
        return self._kinds[eligible]

    def _count(self, rows: IntArray) -> None:
        """Counts the words of one item per request, PAD_ROW for none, and finds which candidates still fit."""
        words = self._limits.words(self._limits.kinds[rows])
        at = words + self._base
        self._counts[at] += 1  # a word that an item names twice counts once
        counts, most = self._counts[at], self._limits.most[words]
        self._over |= (counts > most).any(axis=0)
        full = counts >= most
        if full.any():
            self._full[at] = full
            self._fits = ~self._full[self._words].any(axis=0)
            self._fits[self._gave_way] = True

    def _compare(self, rows: IntArray) -> None:
        """Brings the likeness of all candidates up to date with one more item per request.

        Source:
            Carbonell and Goldstein (1998), "The Use of MMR, Diversity-Based Reranking", section 2.
        """
        placed = self._arranger.vectors[rows] * self._arranger.inverse_lengths[rows][:, None]
        cosines = (self._vectors @ placed[:, :, None])[:, :, 0] * self._inverse_lengths
        np.maximum(self._likeness, cosines, out=self._likeness)

    # What is said of it.

    def _miss_promotion(self) -> None:
        """Names the longest beginning of a list in which promoted items are too few."""
        promotion = self._rules.promotion
        if promotion is None:
            return
        shown = self._promoted[self._placed].cumsum(axis=1)
        for r in np.flatnonzero((shown < self._asked).any(axis=1)).tolist():
            p = int(np.flatnonzero(shown[r] < self._asked[r])[-1])
            why = "no other promoted item is eligible and within the caps"
            self._unmet[r].append(
                f"promotion of {promotion.share:g}: {shown[r, p]} of the first {p + 1}, {self._asked[r, p]} were asked "
                f"for; {why if self._ran_out[r] else 'pins hold the places'}"
            )

    def _miss_caps(self, r: int) -> None:
        """Names the words of one list that are beyond their cap."""
        width = len(self._limits.most)
        counts = self._counts[self._base[r] : self._base[r] + width]
        pinned = self._placed[r][self._pinned[r]]
        held = self._limits.words(self._limits.kinds[pinned])
        for n, cap in enumerate(self._rules.caps):
            beyond = [w for w in np.flatnonzero(counts > self._limits.most).tolist() if self._limits.names[w][0] == n]
            if beyond:
                words = ", ".join(f"{counts[w]} of {self._limits.names[w][1]!r}" for w in beyond)
                by_pins = all((held == w).any(axis=0).sum() == counts[w] for w in beyond)
                why = "all of them pinned" if by_pins else "every eligible item left breaks a cap"
                self._unmet[r].append(f"cap of {cap.most} on {cap.attribute!r}: {words}; {why}")

    def _ahead(self, r: int) -> IntArray:
        """Columns of the candidates that come next."""
        query, left = self._queries[r], np.flatnonzero(self._left[r])
        if not self._rules.caps:
            return left[: query.ahead]
        most = self._most
        free = len(most) - 1
        carried = (self._words[:, r, left] - self._base[r]).T.tolist()
        pages: list[list[int]] = [[] for _ in range(-(-query.ahead // query.k))]
        counts: list[Counter[int]] = [Counter() for _ in pages]
        put_off: list[int] = []
        first = 0  # page that is not full
        for column, words in zip(left.tolist(), carried, strict=True):
            own = [word for word in words if word != free]
            # Whatever comes later cannot take a place on an earlier page from this one, so each goes to its first.
            at = next((p for p in range(first, len(pages)) if _fits(own, counts[p], most, pages[p], query.k)), None)
            if at is None:
                put_off.append(column)
                continue
            pages[at].append(column)
            counts[at].update({*own})
            while first < len(pages) and len(pages[first]) == query.k:
                first += 1
            if first == len(pages):
                break
        ahead: list[int] = []
        for page in pages:
            lacking = query.k - len(page)
            ahead += page + put_off[:lacking]  # no candidate is left that keeps to the caps
            put_off = put_off[lacking:]
        return np.array(ahead[: query.ahead], dtype=np.int64)

    def _answer(self, r: int) -> Answer:
        if self._rules.caps and self._over[r]:
            self._miss_caps(r)
        answer, n = self._answers[r], int(self._lengths[r])
        columns, rows, reasons = self._columns[r, :n], self._placed[r, :n], self._reasons[r, :n]
        if self._queries[r].ahead:
            ahead = self._ahead(r)
            columns, rows = np.concatenate([columns, ahead]), np.concatenate([rows, self._rows[r, ahead]])
            reasons = np.concatenate([reasons, np.full(len(ahead), PLAIN)])
        places = self._origin[r][columns]
        outside = columns == OUTSIDE
        if outside.any():
            places = np.where(outside, len(answer) - 1 + outside.cumsum(), places)
            finite = answer.scores[np.isfinite(answer.scores)]
            scores = np.full(int(outside.sum()), finite.min(initial=np.inf) if len(finite) else 0, dtype=np.float32)
            answer = answer.followed_by(Answer.of(rows[outside], scores, "popular"))
        return replace(
            answer.taken(places),
            reasons=tuple(REASONS[reason] for reason in reasons.tolist()),
            unmet=(*answer.unmet, *self._unmet[r]),
        )


def _fits(words: Sequence[int], counts: Mapping[int, int], most: Sequence[int], page: Sequence[int], k: int) -> bool:
    """Whether a page has room for an item of these words."""
    if len(page) == k:
        return False
    for word in words:
        shown = counts.get(word)
        if shown is not None and shown >= most[word]:
            return False
    return True
