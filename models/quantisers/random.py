"""Random codes of the same shape: what a generator learns without any meaning in its codes."""

from models.progress import Progress
from models.quantisers.registry import PROVIDERS, Learnt, QuantiserOptions
from retrieval.quantisers import RandomCodes
from retrieval.sequences import FloatArray


@PROVIDERS.register("random")
def random(vectors: FloatArray, options: QuantiserOptions, *, seed: int, progress: Progress) -> Learnt:
    """Codes drawn by a keyed hash of each vector, so that nothing has to be learnt."""
    del vectors, progress
    return Learnt(RandomCodes((options.codewords,) * options.levels, seed=seed))
