"""Semantic ids for a catalog: text to vectors, vectors to codes, and a report of whether the codes are any good."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models.errors import InvalidOption
from models.progress import Progress
from models.quantisers import registry as quantisers
from models.text import registry as texts
from retrieval.catalog import Catalog, Numbers, Tags, Words
from retrieval.codes import CodeTable
from retrieval.describer import Describer
from retrieval.errors import BundleTorn, InvalidInput
from retrieval.sequences import FloatArray
from retrieval.text import describe

TABLE, VECTORS, DESCRIBER, REPORT = "codes.npz", "vectors.npy", "describer", "report.json"
FIELDS = ("title", "brand", "categories", "text_id", "description")
CATEGORIES = ("categories", "category", "genres")
SLICE = 512  # texts between two signs of life
PAIRS = 20_000  # drawn to see how often items share a category


@dataclass(frozen=True)
class SemanticIdConfig(texts.TextOptions, quantisers.QuantiserOptions):
    """How items get their codes.

    Attributes:
        text: a text encoder by name.
        text_fields: attributes that make an item's text, separated by commas; empty for those of title, brand,
            categories, text_id and description that the catalog has.
        quantiser: a quantiser by name.
        dedup: whether a last level numbers the items whose other codes are equal.
    """

    text: str = "tfidf"
    text_fields: str = ""
    quantiser: str = "rq_kmeans"
    dedup: bool = True

    def __post_init__(self) -> None:
        """Raises `InvalidOption` where a value is out of its range."""
        texts.TextOptions.__post_init__(self)
        quantisers.QuantiserOptions.__post_init__(self)


@dataclass(frozen=True, eq=False)
class SemanticIds:
    """A catalog's codes.

    Attributes:
        table: by catalog row.
        vectors: float32, shape (N + 1, Dt): the texts' vectors; zero for row 0 and for items without text.
        describer: gives later items theirs.
        report: how good the codes are, as a manifest can hold it.
    """

    table: CodeTable
    vectors: FloatArray
    describer: Describer
    report: Mapping[str, Any]

    def save(self, directory: Path) -> None:
        """Writes everything into a directory, which may be there already."""
        directory.mkdir(parents=True, exist_ok=True)
        self.table.save(directory / TABLE)
        np.save(directory / VECTORS, self.vectors, allow_pickle=False)
        self.describer.save(directory / DESCRIBER)
        (directory / REPORT).write_text(json.dumps(self.report, ensure_ascii=False))

    @classmethod
    def load(cls, directory: Path) -> "SemanticIds":
        """Reads what `save` wrote: the same codes again, without learning anything anew.

        Raises:
            BundleError: a file is missing or damaged.
        """
        table, describer = CodeTable.load(directory / TABLE), Describer.load(directory / DESCRIBER)
        try:
            vectors = np.load(directory / VECTORS, allow_pickle=False)
            report = json.loads((directory / REPORT).read_text())
        except (OSError, ValueError, EOFError) as error:
            raise BundleTorn(f"the semantic ids in {directory} cannot be read ({error}); assign them again") from error
        if vectors.shape != (len(table) + 1, describer.text.width) or table.vocabulary != describer.vocabulary:
            raise BundleTorn(f"the files of the semantic ids in {directory} do not belong together; assign them again")
        return cls(table, vectors, describer, report)


def assign(catalog: Catalog, config: SemanticIdConfig, *, seed: int, progress: Progress) -> SemanticIds:
    """Learns text encoder and quantiser from a catalog and codes its items.

    Raises:
        InvalidInput: no item has any text in these fields.
        InvalidOption: a field that the catalog lacks, or an option out of its range.
    """
    fields = text_fields(catalog, config)
    said = [describe(catalog.attributes(row), fields) for row in range(1, len(catalog) + 1)]
    spoken = [text for text in said if text]
    if not spoken:
        raise InvalidInput(
            f"no item of this catalog has any text in {', '.join(fields)}; bring an item table with titles"
        )
    encoder = texts.PROVIDERS.get(config.text)(spoken, config, seed=seed, progress=progress)
    vectors = np.zeros((len(catalog) + 1, encoder.width), dtype=np.float32)
    for start in progress.bar(range(0, len(said), SLICE), "describing items", unit=f"{SLICE} items"):
        vectors[1 + start : 1 + start + SLICE] = encoder.encode(said[start : start + SLICE])
    telling = vectors[vectors.any(axis=1)]
    if not len(telling):
        raise InvalidInput(f"text encoder {config.text} finds nothing in the texts of {', '.join(fields)}")
    learnt = quantisers.PROVIDERS.get(config.quantiser)(telling, config, seed=seed, progress=progress)
    describer = Describer(encoder, learnt.quantiser, fields, config.codewords if config.dedup else 0)
    facts = {"text": config.text, "quantiser": config.quantiser, "reconstruction": list(learnt.errors)}
    return _coded(catalog, describer, vectors, {**facts, **(learnt.facts or {})}, seed=seed)


def assign_by(catalog: Catalog, describer: Describer, *, seed: int = 0) -> SemanticIds:
    """Codes a catalog with what was learnt from another one: nothing is trained.

    Raises:
        InvalidInput: no item has any text in the describer's fields.
    """
    vectors = np.zeros((len(catalog) + 1, describer.text.width), dtype=np.float32)
    vectors[1:] = describer.vectors_for([catalog.attributes(row) for row in range(1, len(catalog) + 1)])
    if not vectors.any():
        raise InvalidInput(f"no item of this catalog has any text in {', '.join(describer.fields)}")
    return _coded(catalog, describer, vectors, {}, seed=seed)


def text_fields(catalog: Catalog, config: SemanticIdConfig) -> tuple[str, ...]:
    """The attributes that make an item's text.

    Raises:
        InvalidInput: the catalog has none of the usual ones.
        InvalidOption: it lacks one that was asked for.
    """
    has = ", ".join(catalog.columns) or "no attribute at all"
    asked = tuple(name.strip() for name in config.text_fields.split(",") if name.strip())
    if unknown := [name for name in asked if name not in catalog.columns]:
        raise InvalidOption(f"text_fields {', '.join(unknown)}: the catalog has {has}")
    found = asked or tuple(name for name in FIELDS if name in catalog.columns)
    if not found:
        raise InvalidInput(
            f"semantic ids need text, and the catalog has none of {', '.join(FIELDS)} (it has {has}); bring an item "
            "table with titles, or name the attributes by --set text_fields=..."
        )
    return found


def category_sharing(catalog: Catalog, table: CodeTable, *, seed: int) -> dict[str, float] | None:
    """How often two items with the same first code share a category, and how often two items at large do.

    Categories that more than half of the items carry are left out: they tell nothing apart.

    Returns:
        `same_first_code` and `random`, shares of pairs; None where the catalog has no categories, or too few items
        with the same first code.
    """
    name = next((name for name in CATEGORIES if name in catalog.columns), None)
    rows = np.flatnonzero(table.coded)
    column = catalog.columns.get(name or "")
    if column is None or isinstance(column, Numbers) or len(rows) < 2:
        return None
    held = [_words(column, int(row)) for row in rows]
    usual = {word for word, count in Counter(w for words in held for w in words).items() if 2 * count > len(rows)}
    kept = [words - usual for words in held]
    rng = np.random.default_rng(seed)
    order = np.argsort(table.codes[rows, 0], kind="stable")
    first = table.codes[rows[order], 0]
    start, end = np.searchsorted(first, first), np.searchsorted(first, first, side="right")
    paired = np.flatnonzero(end - start > 1)
    if not len(paired):
        return None
    left = rng.choice(paired, PAIRS)
    right = start[left] + rng.integers(0, end[left] - start[left] - 1)
    right += right >= left  # anyone of the same code but itself
    anyone = rng.integers(0, len(rows), PAIRS)
    other = (anyone + rng.integers(1, len(rows), PAIRS)) % len(rows)
    pairs = {"same_first_code": (order[left], order[right]), "random": (anyone, other)}
    return {
        key: float(np.mean([not kept[i].isdisjoint(kept[j]) for i, j in zip(a, b, strict=True)]))
        for key, (a, b) in pairs.items()
    }


def _coded(
    catalog: Catalog, describer: Describer, vectors: FloatArray, facts: Mapping[str, Any], *, seed: int
) -> SemanticIds:
    table = CodeTable(describer.codes_of(vectors), describer.vocabulary)
    coded = table.codes[table.coded]
    prefixes = coded[:, : len(describer.quantiser.vocabulary)]
    leaves, prefix = (np.unique(codes, axis=0, return_counts=True)[1] for codes in (coded, prefixes))
    used = [len(np.unique(level)) / size for level, size in zip(coded.T, describer.vocabulary, strict=True)]
    report = {
        "items": len(catalog),
        "coded": len(coded),
        "fields": list(describer.fields),
        "vocabulary": list(table.vocabulary),
        "usage": used,
        "unique_before_dedup": float((prefix == 1).sum() / len(coded)),
        "largest_group_before_dedup": int(prefix.max()),
        "items_sharing_a_leaf": int(leaves[leaves > 1].sum()),
        "category_sharing": category_sharing(catalog, table, seed=seed),
        **facts,
    }
    return SemanticIds(table, vectors, describer, report)


def _words(column: Words | Tags, row: int) -> set[str]:
    found = column.get(row)
    return set(found if isinstance(found, list) else [] if found is None else [found])
