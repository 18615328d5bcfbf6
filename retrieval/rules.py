"""Rules: what a placement wants of a list beside good items. `retrieval.arrangement` carries them out.

They are values, compared by content, so that requests of one placement are carried out together.
"""

import math
from dataclasses import dataclass

from retrieval.errors import InvalidRule
from retrieval.filters import AttributeRule


@dataclass(frozen=True, slots=True)
class Cap:
    """At most so many items that share a word, for example three of one category.

    Attributes:
        most: items, at least 1.
        attribute: a column of words or tags; an item with several tags counts for each of them.
        values: the words that are capped; empty means every word, each on its own.
    """

    most: int
    attribute: str = "categories"
    values: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raises `InvalidRule` where nothing could be shown."""
        if self.most < 1:
            raise InvalidRule(f"a cap of {self.most} on {self.attribute!r} shows nothing; filter it out instead")


@dataclass(frozen=True, slots=True)
class Pin:
    """An item with a place of its own; it must be eligible like any other, and counts towards caps.

    Attributes:
        item_id: what is pinned.
        position: 1 is the first place; beyond the end of the list it is not shown.
    """

    item_id: str
    position: int = 1

    def __post_init__(self) -> None:
        """Raises `InvalidRule` where there is no such place."""
        if self.position < 1:
            raise InvalidRule(f"{self.item_id!r} is pinned to position {self.position}; the first place is 1")


@dataclass(frozen=True, slots=True)
class Promotion:
    """Items that get at least a share of the places: of the first n, `floor(share * n)`, while eligible ones are left.

    Attributes:
        share: 0 to 1.
        item_ids: what is promoted.
        where: promotes every item that fits this, beside `item_ids`.
    """

    share: float
    item_ids: tuple[str, ...] = ()
    where: AttributeRule | None = None

    def __post_init__(self) -> None:
        """Raises `InvalidRule` where the share is none, or nothing is promoted."""
        if not 0 < self.share <= 1:
            raise InvalidRule(f"a promoted share of {self.share} must be above 0 and at most 1")
        if not self.item_ids and self.where is None:
            raise InvalidRule("a promotion names neither item_ids nor where; say what is promoted")


@dataclass(frozen=True, slots=True)
class Freshness:
    """Scores lose by age: multiplied by 1 - weight * (1 - 2^(-age / half_life_s)), for items of known age.

    Attributes:
        half_life_s: seconds.
        attribute: a column of numbers: seconds since 1970 at which the item appeared.
        weight: 0 to 1; how much of its score an old item loses.
    """

    half_life_s: float
    attribute: str = "published"
    weight: float = 1.0

    def __post_init__(self) -> None:
        """Raises `InvalidRule` where a number is out of range."""
        if not 0 < self.half_life_s < math.inf or not 0 < self.weight <= 1:
            raise InvalidRule(
                f"freshness with half_life_s {self.half_life_s} and weight {self.weight}: the first must be above 0, "
                "the second above 0 and at most 1"
            )


@dataclass(frozen=True, slots=True)
class Rules:
    """Everything that a placement wants of its list.

    Attributes:
        caps: none is broken while an eligible item is left that breaks none.
        pins: at most one for each item and each position.
        promotion: see there.
        freshness: see there.
        diversity: 0 to 1: how much likeness to items higher up costs, by maximal marginal relevance.
    """

    caps: tuple[Cap, ...] = ()
    pins: tuple[Pin, ...] = ()
    promotion: Promotion | None = None
    freshness: Freshness | None = None
    diversity: float = 0.0

    def __post_init__(self) -> None:
        """Raises `InvalidRule` where two rules contradict each other."""
        if not 0 <= self.diversity <= 1:
            raise InvalidRule(f"diversity {self.diversity} must be between 0 and 1")
        for what in ("position", "item_id"):
            values = [getattr(pin, what) for pin in self.pins]
            twice = next((value for value in values if values.count(value) > 1), None)
            if twice is not None:
                raise InvalidRule(f"{what} {twice!r} is pinned twice; pin each once")


NO_RULES = Rules()
