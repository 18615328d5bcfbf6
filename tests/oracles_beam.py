"""What beam search is held against: a decoder that needs no model, a trie of dictionaries, and the scores of all items.

Everything here is slow and plain, and shares no code with what it judges.
"""

from dataclasses import dataclass

import numpy as np

from retrieval.codes import CodeTable

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
WORST = np.float32(-1e30)  # what a probability of zero counts


def mixed(x: np.ndarray) -> np.ndarray:
    """uint64 made of uint64, every bit depending on every bit (the finaliser of SplitMix64)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@dataclass(frozen=True)
class Asked:
    """A decoder's memory: which requests these are."""

    numbers: np.ndarray

    def __len__(self) -> int:
        return len(self.numbers)

    def take(self, indices: np.ndarray) -> "Asked":
        return Asked(self.numbers[indices])

    @classmethod
    def of(cls, *numbers: int) -> "Asked":
        return cls(np.array(numbers, dtype=np.uint64))


class NoiseDecoder:
    """Log-probabilities that are a fixed function of seed, request, prefix and code; not normalised, none above zero.

    Args:
        vocabulary: V of each level.
        seed: another one is another model.
        scale: the noise lies between -scale and 0.
        grain: values are multiples of it, so that there are ties; 0 for none.
        holes: share of the codes that are impossible, -inf.
    """

    def __init__(
        self, vocabulary: tuple[int, ...], seed: int = 0, *, scale: float = 5.0, grain: float = 0.0, holes: float = 0.0
    ) -> None:
        self.vocabulary, self.seed, self.scale, self.grain, self.holes = vocabulary, seed, scale, grain, holes
        self.calls: list[tuple[int, ...]] = []
        self.broken: dict[int, float] = {}  # request -> what it gets instead of one of its numbers

    def step(self, memory: Asked, prefix: np.ndarray) -> np.ndarray:
        assert prefix.dtype == np.int64
        assert len(memory) == len(prefix)
        self.calls.append(prefix.shape)
        level = prefix.shape[2]
        state = mixed(memory.numbers * GOLDEN + np.uint64(self.seed))[:, None] + np.zeros(prefix.shape[:2], np.uint64)
        for t in range(level):
            state = mixed(state + (prefix[:, :, t].astype(np.uint64) + np.uint64(1)) * GOLDEN)
        noise = mixed(state[:, :, None] + np.arange(1, self.vocabulary[level] + 1, dtype=np.uint64) * GOLDEN)
        uniform = (noise >> np.uint64(40)).astype(np.float32) / np.float32(1 << 24)
        values = -self.scale * uniform
        if self.grain:
            values = np.round(values / self.grain) * self.grain
        values[(noise & np.uint64(0xFFFF)) < np.uint64(self.holes * 0x10000)] = -np.inf
        for r, number in enumerate(memory.numbers.tolist()):
            if number in self.broken:
                values[r, 0, 0] = self.broken[number]
        return values.astype(np.float32)


def in_order(table: CodeTable, priority: np.ndarray | None = None) -> list[int]:
    """Coded rows as a trie orders them: by tuple, then falling priority, then row."""
    wanted = np.zeros(len(table) + 1) if priority is None else priority
    rows = [row for row in range(1, len(table) + 1) if table.coded[row]]
    return sorted(rows, key=lambda row: (tuple(table.codes[row].tolist()), -wanted[row], row))


def brute_force(
    decoder: NoiseDecoder, request: int, table: CodeTable, order: list[int], mask: np.ndarray, exclude: np.ndarray
) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Every feasible row, best first, with its score and its steps, float32."""
    allowed = mask.copy()
    allowed[[row for row in exclude.tolist() if 0 <= row < len(mask)]] = False
    rows = np.array([row for row in order if allowed[row]], dtype=np.int64)
    codes = table.codes[rows].astype(np.int64)
    steps = np.zeros((len(rows), table.levels), dtype=np.float32)
    scores = np.zeros(len(rows), dtype=np.float32)
    if not len(rows):
        return [], scores, steps
    for level in range(table.levels):
        log_probs = decoder.step(Asked.of(request), codes[None, :, :level])[0]
        steps[:, level] = np.maximum(log_probs[np.arange(len(rows)), codes[:, level]], WORST)
        scores = scores + steps[:, level]
    best = np.argsort(-scores, kind="stable")
    return rows[best].tolist(), scores[best], steps[best]


def dictionary(table: CodeTable, rows: list[int]) -> dict:
    """The trie of some rows as nested dictionaries; at the bottom a list of rows in their order."""
    root: dict = {}
    for row in rows:
        *inner, last = table.codes[row].tolist()
        node = root
        for code in inner:
            node = node.setdefault(code, {})
        node.setdefault(last, []).append(row)
    return root


def random_table(
    rng: np.random.Generator, *, items: int, levels: int, codewords: int, uncoded: float = 0.1
) -> CodeTable:
    """Codes drawn evenly, with items that have none; tuples collide where there are more items than tuples."""
    vocabulary = tuple(rng.integers(1, codewords + 1, levels).tolist())
    codes = np.stack([rng.integers(0, v, items + 1) for v in vocabulary], axis=1)
    codes[rng.random(items + 1) < uncoded] = -1
    codes[0] = -1
    return CodeTable(codes, vocabulary)
