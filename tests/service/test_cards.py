import gc
import weakref

import orjson

from retrieval.catalog import Catalog
from service.cards import Cards


def catalog(**attributes) -> Catalog:
    return Catalog.build(["a", "b"], attributes=attributes)


def test_a_card_holds_what_the_catalog_says():
    known = catalog(title=["One", None], price=[2.5, None])
    assert orjson.loads(orjson.dumps(Cards(known).attributes(1))) == known.attributes(1)


def test_an_item_without_attributes_has_no_card():
    assert Cards(catalog(title=["One", None])).attributes(2) is None


def test_a_card_is_made_once_for_all_who_look_at_the_catalog():
    known = catalog(title=["One", "Two"])
    assert Cards(known).attributes(1) is Cards(known).attributes(1)


def test_another_edition_has_cards_of_its_own_and_the_old_ones_go_with_theirs():
    old = catalog(title=["One", "Two"])
    Cards(old).attributes(1)
    new = catalog(title=["Uno", "Due"])
    assert b"Uno" in orjson.dumps(Cards(new).attributes(1))
    gone = weakref.ref(old)
    del old
    gc.collect()
    assert gone() is None
