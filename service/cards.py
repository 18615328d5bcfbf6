"""What answers show of an item besides its place: encoded once, then copied.

Twenty items of five attributes each cost more to look up and to encode than the list costs to find. A catalog never
changes (a change makes the next one), so what was encoded for it holds for as long as it lives, and goes with it.
"""

from weakref import WeakKeyDictionary

import orjson

from retrieval.catalog import Catalog

_cards: WeakKeyDictionary[Catalog, dict[int, orjson.Fragment | None]] = WeakKeyDictionary()


class Cards:
    """The cards of one catalog, each made when it is first asked for; on the event loop, which needs no lock."""

    __slots__ = ("_catalog", "_made")

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        made = _cards.get(catalog)
        if made is None:
            made = _cards[catalog] = {}
        self._made = made

    def attributes(self, row: int) -> orjson.Fragment | None:
        """The attributes of an item as JSON; None where it has none."""
        try:
            return self._made[row]
        except KeyError:
            known = self._catalog.attributes(row)
            card = self._made[row] = orjson.Fragment(orjson.dumps(known)) if known else None
            return card
