"""Being written: carries rules out."""

from collections.abc import Sequence

import numpy as np

from retrieval.catalog import Catalog
from retrieval.queries import Answer, Query
from retrieval.sequences import FloatArray


class Arranger:
    """Being written."""

    def __init__(self, catalog: Catalog, vectors: FloatArray) -> None:
        self._catalog, self._vectors = catalog, vectors

    def arrange(self, queries: Sequence[Query], answers: Sequence[Answer]) -> list[Answer]:
        """Being written."""
        return [answer.taken(np.arange(min(q.k, len(answer)))) for q, answer in zip(queries, answers, strict=True)]
