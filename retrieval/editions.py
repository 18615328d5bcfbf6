"""Editions: a catalog that moves while it is being served.

Each change makes a new `Served` beside the old one, which stays as it is: whoever began on an edition ends on it. Rows
never move, new items stand behind the others, and what is taken out is only unavailable, so a put brings it back. What
does not depend on the catalog (graphs, indexes, vectors of trained items) is shared.

A new item can be found in as many ways as is known of it. By filters and as a popular item: always. By the generator:
where the bundle can turn its attributes into a semantic id. By inner product and by likeness: the model has no vector
of an item that it never met, so it gets the mean vector of the `NEIGHBOURS` trained items whose texts are nearest to
its own (a bundle without an encoder retrieves by text anyway, and takes the text's vector). Where no texts are read
they are the items that share most of its words, see `likeness`; an item without a word has no vector. New vectors are
searched exactly, beside the index that the bundle has. Semantic ids, once given, never change, nor do the vectors that
came with them; what changes with a new text of an item are its attributes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from retrieval.catalog import Catalog, NewItem
from retrieval.codes import NO_CODE, CodeTable
from retrieval.errors import UnknownItem
from retrieval.index import CandidateIndex, GrownIndex
from retrieval.likeness import Likeness
from retrieval.recommenders import Served, compose
from retrieval.sequences import PAD_ROW, FloatArray
from retrieval.trie import ConstraintTrie

__all__ = ["NEIGHBOURS", "NewItem", "with_items", "without_items"]

NEIGHBOURS = 5  # trained items whose mean vector stands for that of a new one


def with_items(served: Served, items: Sequence[NewItem]) -> Served:
    """The edition in which some items are new, or other than before.

    Args:
        served: the edition before.
        items: of distinct ids. The attributes of an item that is there already are replaced, all of them.

    Raises:
        InvalidInput: an id is repeated or overlong, or an attribute of another kind than its column.
    """
    catalog = served.catalog.with_items(items)
    added, trained = len(catalog) - len(served.catalog), catalog.trained
    codes, texts = served.codes, served.text_vectors
    own = _longer(served.index.vectors[trained + 1 :], added)  # vectors of the items that came later
    if texts is not None:
        texts = _longer(texts, added)
    if codes is not None:
        longer = _longer(codes.codes, added, NO_CODE)
        if served.engine.describer is not None:
            describer = served.engine.describer
            bare = [item for item in items if longer[catalog.row(item.item_id), 0] == NO_CODE]
            rows = catalog.rows([item.item_id for item in bare])
            described = describer.vectors_for([item.attributes for item in bare])
            longer[rows] = describer.codes_of(described, codes)
            if texts is not None:
                texts[rows] = described
                new = rows > trained
                if served.engine.encoder is not None:
                    described = _mean_of_nearest(described, texts[: trained + 1], served.index.vectors[: trained + 1])
                own[rows[new] - trained - 1] = described[new]
        codes = CodeTable(longer, codes.vocabulary)
    if served.engine.encoder is not None:
        for item in items:
            at = catalog.row(item.item_id) - trained - 1
            if at >= 0 and not own[at].any():
                table = Likeness.of(served.bundle.catalog, served.bundle.item_vectors)
                own[at] = table.vector(item.attributes, NEIGHBOURS)
    base = served.index.base if isinstance(served.index, GrownIndex) else served.index
    return _next(served, catalog, GrownIndex(base, own) if len(own) else base, codes, texts)


def without_items(served: Served, item_ids: Sequence[str]) -> Served:
    """The edition in which some items are unavailable.

    Raises:
        UnknownItem: the catalog does not hold one.
    """
    rows = served.catalog.rows(item_ids)
    for item_id, row in zip(item_ids, rows.tolist(), strict=True):
        if row == PAD_ROW:
            raise UnknownItem(item_id)
    return _next(served, served.catalog.without(rows), served.index, served.codes, served.text_vectors)


def _next(
    served: Served, catalog: Catalog, index: CandidateIndex, codes: CodeTable | None, texts: FloatArray | None
) -> Served:
    edition = served.edition + 1
    trie = None
    if served.generative is not None and codes is not None:
        trie = ConstraintTrie.build(codes, priority=catalog.popularity, version=edition)
    return compose(
        served.bundle, served.engine, catalog, index, codes=codes, trie=trie, text_vectors=texts, edition=edition
    )


def _longer(array: npt.NDArray[Any], more: int, fill: float = 0) -> npt.NDArray[Any]:
    """A copy with `more` rows behind."""
    return np.concatenate([array, np.full((more, array.shape[1]), fill, dtype=array.dtype)])


def _mean_of_nearest(texts: FloatArray, known_texts: FloatArray, vectors: FloatArray) -> FloatArray:
    """float32, shape (n, D): for each text the mean vector of the items with the nearest texts (cosine).

    Args:
        texts: float32, shape (n, D'); a text of zeros has no neighbours and gets zeros.
        known_texts: float32, shape (m, D'), with zeros where nothing is known.
        vectors: float32, shape (m, D): of the same items.
    """
    lengths = np.sqrt(np.vecdot(known_texts, known_texts))
    known = np.flatnonzero(lengths > 0)
    directions, near = known_texts[known] / lengths[known, None], min(NEIGHBOURS, len(known))
    out = np.zeros((len(texts), vectors.shape[1]), dtype=np.float32)
    for at in np.flatnonzero(texts.any(axis=1)) if near else ():
        # One text at a time: a vector does not depend on which items came together.
        likeness = directions @ texts[at]
        out[at] = vectors[known[np.argpartition(-likeness, near - 1)[:near]]].mean(axis=0)
    return out
