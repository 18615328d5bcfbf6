"""Filters: what a request allows, as one bitmap over the catalog.

A `Filter` is what the caller said, hashable; `Eligible` is what it means for this catalog. Equal filters get the very
same `Eligible`, because its identity is what groups requests of a batch: an index takes one selection for a whole
search. Ids to leave out are not in the bitmap: they differ per request and are few, so they travel beside it.
"""

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from retrieval.catalog import Catalog, Column, Numbers, Tags, Words
from retrieval.errors import InvalidFilter
from retrieval.sequences import BoolArray, IntArray

_COMPARE: Mapping[str, Callable[[npt.NDArray[np.float64], float], Any]] = {
    "==": np.equal,
    "!=": np.not_equal,
    "<": np.less,
    "<=": np.less_equal,
    ">": np.greater,
    ">=": np.greater_equal,
}
OPS = (*_COMPARE, "in", "contains")
CATEGORIES = "categories"  # the column that `any_categories` and `no_categories` read
LONG_INCLUDE = 64  # ids; a longer list is a caller's own candidate set, which will hardly be asked for twice
CACHE_BYTES = 64 << 20  # of bitmaps; only catalogs above 262,144 items hold fewer than 256 of them for it


@dataclass(frozen=True, slots=True)
class AttributeRule:
    """One condition on one attribute.

    Attributes:
        name: of the attribute.
        op: one of `OPS`. `!=` holds wherever `==` does not, items without the attribute included; those fit nothing
            else.
        value: a number or a string; for `in` a list of them.

    Raises:
        InvalidFilter: no such operator, or a value of another kind.
    """

    name: str
    op: str
    value: Any

    def __post_init__(self) -> None:
        if self.op not in OPS:
            raise InvalidFilter(f"filter operator {self.op!r} on {self.name!r} is unknown; use one of {', '.join(OPS)}")
        is_list = isinstance(self.value, list | tuple)
        if is_list != (self.op == "in"):
            raise InvalidFilter(
                f"{self.name!r} {self.op} {_short(self.value)}: `in` takes a list, the others one value"
            )
        if is_list:
            object.__setattr__(self, "value", tuple(self.value))  # hashable, and out of the caller's hands
        for value in self.value if is_list else (self.value,):
            if not isinstance(value, str) and not _is_number(value):
                raise InvalidFilter(f"{self.name!r} {self.op} {_short(value)}: only finite numbers and strings compare")


@dataclass(frozen=True, slots=True)
class Filter:
    """What a request allows; all of it must hold.

    Attributes:
        exclude_ids: never to be returned.
        include_ids: nothing else may be returned; None means anything.
        any_categories: at least one of these; empty means anything.
        no_categories: none of these.
        attributes: rules on attributes.
        new_only: only items that came after the bundle was made, for a lane of their own: a model that never met them
            hardly ever prefers them to others.
    """

    exclude_ids: tuple[str, ...] = ()
    include_ids: tuple[str, ...] | None = None
    any_categories: tuple[str, ...] = ()
    no_categories: tuple[str, ...] = ()
    attributes: tuple[AttributeRule, ...] = ()
    new_only: bool = False


NO_FILTER = Filter()


@dataclass(frozen=True, eq=False)
class Eligible:
    """The rows that may be returned. Compared by identity: one object, one group in a batch.

    Attributes:
        mask: bool, shape (N + 1,), read-only; false at PAD_ROW.
        count: how many are true.
    """

    mask: BoolArray
    count: int

    @classmethod
    def of(cls, mask: BoolArray) -> "Eligible":
        """A selection from its mask, which it takes over and makes read-only."""
        mask.setflags(write=False)
        return cls(mask, int(np.count_nonzero(mask)))

    @cached_property
    def rows(self) -> IntArray:
        """int64, shape (count,), ascending."""
        return np.flatnonzero(self.mask)

    @cached_property
    def closed(self) -> IntArray:
        """int64, shape (N + 1 - count,), ascending: the rows that may not, PAD_ROW among them."""
        return np.flatnonzero(~self.mask)

    @cached_property
    def bitmap(self) -> npt.NDArray[np.uint8]:
        """uint8, shape (ceil(N / 8),): bit n, lowest first, is row n + 1 (an index need not know of PAD_ROW)."""
        return np.packbits(self.mask[1:], bitorder="little")


class Filters:
    """Turns filters into selections of one catalog, and remembers the recent ones. Safe to share between threads.

    Args:
        catalog: what is being filtered.
        cache_size: selections to remember; fewer where they would take more than `CACHE_BYTES`.
    """

    def __init__(self, catalog: Catalog, *, cache_size: int = 256) -> None:
        self._catalog = catalog
        self._all = Eligible.of(catalog.available.copy())
        self._size = min(cache_size, max(1, CACHE_BYTES // len(catalog.available)))
        self._recent: OrderedDict[Filter, Eligible] = OrderedDict()
        self._lock = threading.Lock()

    def eligible(self, filter: Filter) -> Eligible:
        """The rows that are available and fit `filter`, its `exclude_ids` left aside.

        Unknown ids and categories match nothing; they are no error.

        Raises:
            InvalidFilter: an attribute that the catalog does not have, or a rule that its kind does not know.
        """
        if filter.exclude_ids:
            filter = replace(filter, exclude_ids=())
        if filter == NO_FILTER:
            return self._all
        with self._lock:
            known = self._recent.get(filter)
            if known is not None:
                self._recent.move_to_end(filter)
                return known
        made = Eligible.of(self._mask(filter))
        if len(filter.include_ids or ()) > LONG_INCLUDE:
            return made
        with self._lock:
            # Another thread may have been faster; its object is in use already and must stay the only one.
            made = self._recent.setdefault(filter, made)
            while len(self._recent) > self._size:
                self._recent.popitem(last=False)
        return made

    def _mask(self, filter: Filter) -> BoolArray:
        mask = self._catalog.available.copy()
        if filter.new_only:
            mask[: self._catalog.trained + 1] = False
        if filter.include_ids is not None:
            included = np.zeros_like(mask)
            included[self._catalog.rows(filter.include_ids)] = True
            mask &= included
        if filter.any_categories:
            mask &= self._in_categories(filter.any_categories)
        if filter.no_categories:
            mask &= ~self._in_categories(filter.no_categories)
        for rule in filter.attributes:
            column = self._catalog.columns.get(rule.name)
            if column is None:
                known = ", ".join(sorted(self._catalog.columns)) or "none"
                raise InvalidFilter(f"the catalog has no attribute {rule.name!r}; it has: {known}")
            mask &= _fits(column, rule)
        return mask

    def _in_categories(self, names: Sequence[str]) -> BoolArray:
        column = self._catalog.columns.get(CATEGORIES)
        if isinstance(column, Words | Tags):
            return _worded(column, set(names).__contains__)
        return np.zeros_like(self._catalog.available)


def _fits(column: Column, rule: AttributeRule) -> BoolArray:
    """bool, shape (N + 1,): where the rule holds.

    Raises:
        InvalidFilter: the column's kind does not know the operator, or is of another kind than the value.
    """
    wanted = rule.value if rule.op == "in" else (rule.value,)
    match column:
        case Numbers(values):
            _require(rule, "numbers", (*_COMPARE, "in"), all(not isinstance(v, str) for v in wanted))
            if rule.op == "in":
                return np.isin(values, np.array(wanted, dtype=np.float64))
            return np.asarray(_COMPARE[rule.op](values, float(rule.value)))
        case Words():
            _require(rule, "words", ("==", "!=", "in", "contains"), all(isinstance(v, str) for v in wanted))
            if rule.op == "contains":
                return _worded(column, lambda word: rule.value in word)
            fits = _worded(column, set(wanted).__contains__)
            return ~fits if rule.op == "!=" else fits
        case Tags():
            _require(rule, "tags", ("in", "contains"), all(isinstance(v, str) for v in wanted))
            return _worded(column, set(wanted).__contains__)


def _worded(column: Words | Tags, wanted: Callable[[str], bool]) -> BoolArray:
    """bool, shape (N + 1,): items that carry a wanted word."""
    # One more entry than words: the code -1 of an absent word reads the last one, which stays false.
    chosen = np.array([*map(wanted, column.vocabulary), False])
    if isinstance(column, Words):
        return np.asarray(chosen[column.codes])
    hits = np.concatenate([[0], np.cumsum(chosen[column.codes])])
    return np.asarray(hits[column.offsets[1:]] > hits[column.offsets[:-1]])


def _require(rule: AttributeRule, kind: str, ops: Sequence[str], values_fit: bool) -> None:
    if rule.op not in ops:
        raise InvalidFilter(f"{rule.name!r} holds {kind}, which know {', '.join(ops)}; {rule.op!r} is none of them")
    if not values_fit:
        other = "a number" if kind == "numbers" else "a string"
        raise InvalidFilter(f"{rule.name!r} holds {kind}; compare it with {other}, not with {_short(rule.value)}")


def _is_number(value: object) -> bool:
    try:
        return isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:  # an int beyond any float
        return False


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
