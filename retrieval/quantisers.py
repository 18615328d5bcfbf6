"""Vectors to codes: what a bundle carries so that an item that arrives later gets its semantic id.

All of them compute in float64, so that an item's codes do not hang on what else is coded with it, and the table of a
bundle is made by these very functions, so nothing can disagree with it.

Letters: n vectors of width D; L levels of V codewords.
"""

import hashlib
import math
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from retrieval.codes import Codes
from retrieval.errors import BundleForeign, BundleTorn, InvalidInput
from retrieval.sequences import FloatArray

SLICE = 1024  # vectors whose distances to a codebook are held at once

Arrays = dict[str, npt.NDArray[Any]]
Doubles = npt.NDArray[np.float64]


class Quantiser(Protocol):
    """Vectors in, codes out.

    Attributes:
        kind: the name under which `save_quantiser` stores it.
        vocabulary: L numbers, the codewords of each level.
    """

    kind: str
    vocabulary: tuple[int, ...]

    def codes(self, vectors: FloatArray) -> Codes:
        """int32, shape (n, L), of float32 vectors of shape (n, D)."""
        ...

    def arrays(self) -> Arrays:
        """Everything that makes it, by name."""
        ...


class ResidualCodebooks:
    """Each level codes what the levels before it left over: RQ-k-means, or RQ-VAE with its encoder in front.

    r_0 = encoder((x - mean) / scale); c_l = argmin_k |r_l - e_lk|; r_(l+1) = r_l - e_(l, c_l). Of equally near
    codewords the first is taken. The encoder is linear layers with ReLU between them.

    Args:
        codebooks: float32, shape (L, V, E).
        mean, scale: float32, shape (D,): how a vector is standardised first.
        layers: weight float32 (out, in) and bias float32 (out,) of each layer; none at all means that E = D.

    Raises:
        InvalidInput: shapes that do not follow from one another.

    Source: Rajput et al., Recommender Systems with Generative Retrieval, NeurIPS 2023, section 3.1.
    """

    kind = "residual"

    def __init__(
        self,
        codebooks: FloatArray,
        mean: FloatArray,
        scale: FloatArray,
        layers: Sequence[tuple[FloatArray, FloatArray]] = (),
    ) -> None:
        widths = [len(mean), *(len(bias) for _, bias in layers)]
        fits = all(w.shape == (b, a) for (w, _), a, b in zip(layers, widths, widths[1:], strict=False))
        if codebooks.ndim != 3 or scale.shape != mean.shape or not fits or codebooks.shape[2] != widths[-1]:
            raise InvalidInput(
                f"codebooks {codebooks.shape}, {len(layers)} layers and vectors of {len(mean)} do not belong together"
            )
        self.codebooks, self._mean, self._scale, self._layers = codebooks, mean, scale, tuple(layers)
        self.vocabulary = (codebooks.shape[1],) * codebooks.shape[0]

    def codes(self, vectors: FloatArray) -> Codes:
        """See `Quantiser.codes`."""
        given = _checked(vectors, len(self._mean))
        codes = np.empty((len(given), len(self.vocabulary)), dtype=np.int32)
        for start in range(0, len(given), SLICE):
            residual = self.latent(given[start : start + SLICE])
            for level, codebook in enumerate(self.codebooks.astype(np.float64)):
                nearest = nearest_codewords(residual, codebook)
                codes[start : start + SLICE, level] = nearest
                residual = residual - codebook[nearest]
        return codes

    def latent(self, vectors: FloatArray) -> Doubles:
        """float64, shape (n, E): what is quantised, of vectors of shape (n, D)."""
        hidden: Doubles = (vectors.astype(np.float64) - self._mean) / self._scale
        for at, (weight, bias) in enumerate(self._layers):
            hidden = (np.maximum(hidden, 0.0) if at else hidden) @ weight.T.astype(np.float64) + bias
        return hidden

    def decoded(self, codes: Codes, levels: int | None = None) -> Doubles:
        """float64, shape (n, E): the sum of the codewords of the first `levels` levels."""
        total = np.zeros((len(codes), self.codebooks.shape[2]))
        for level in range(len(self.vocabulary) if levels is None else levels):
            total += self.codebooks[level][codes[:, level]]
        return total

    def arrays(self) -> Arrays:
        """See `Quantiser.arrays`."""
        made = {"codebooks": self.codebooks, "mean": self._mean, "scale": self._scale}
        for at, (weight, bias) in enumerate(self._layers):
            made |= {f"w.{at}": weight, f"b.{at}": bias}
        return made

    @classmethod
    def of(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> "ResidualCodebooks":
        """The quantiser that gave these arrays."""
        layers = [(arrays[f"w.{at}"], arrays[f"b.{at}"]) for at in range(sum(name[:2] == "w." for name in arrays))]
        return cls(arrays["codebooks"], arrays["mean"], arrays["scale"], layers)


class FiniteScalar:
    """FSQ: a vector is cut into T pieces, each a point of a small grid, and the point's number is the code.

    One linear map takes every piece to one coordinate per grid dimension; a coordinate is bounded to its l_j values
    and rounded. All positions share one vocabulary, the product of the l_j.

    Args:
        weight: float32, shape (J, D' / T), where D' is D padded with zeros to a multiple of T.
        bias: float32, shape (J,).
        mean, scale: float32, shape (D,): how a vector is standardised first.
        steps: J numbers l_j, each at least two: the values of each grid dimension.
        tokens: T.
        rotation: float32, shape (D, D'), applied after standardising: it deals what a vector says out to all pieces.
            An encoder whose coordinates all matter alike needs none, and an empty (0, 0) array says so.

    Raises:
        InvalidInput: shapes that do not follow from one another.

    Source: Mentzer et al., Finite Scalar Quantization: VQ-VAE Made Simple, ICLR 2024, section 3.1.
    """

    kind = "finite"

    def __init__(
        self,
        weight: FloatArray,
        bias: FloatArray,
        mean: FloatArray,
        scale: FloatArray,
        *,
        steps: Sequence[int],
        tokens: int,
        rotation: FloatArray | None = None,
    ) -> None:
        padded = -(-len(mean) // tokens) * tokens
        turn = np.zeros((0, 0), dtype=np.float32) if rotation is None else rotation
        shapes = (weight.shape, bias.shape, scale.shape, turn.shape)
        wanted = (
            (len(steps), padded // tokens),
            (len(steps),),
            mean.shape,
            (len(mean), padded) if turn.size else (0, 0),
        )
        if shapes != wanted or min(steps) < 2:
            raise InvalidInput(f"weight, bias, scale and rotation have shapes {shapes}; {wanted} was expected")
        self._weight, self._bias, self._mean, self._scale, self._rotation = weight, bias, mean, scale, turn
        self.steps, self.tokens = tuple(steps), tokens
        self.vocabulary = (math.prod(steps),) * tokens

    def codes(self, vectors: FloatArray) -> Codes:
        """See `Quantiser.codes`."""
        given = _checked(vectors, len(self._mean))
        pieces = self.pieces(given) @ self._weight.T.astype(np.float64) + self._bias
        return grid_codes(np.rint(bounded(pieces, self.steps)), self.steps)

    def pieces(self, vectors: FloatArray) -> Doubles:
        """float64, shape (n, T, D' / T): the standardised vectors, cut."""
        given: Doubles = (vectors.astype(np.float64) - self._mean) / self._scale
        if self._rotation.size:
            given = given @ self._rotation.astype(np.float64)
        short = -given.shape[1] % self.tokens
        return np.pad(given, ((0, 0), (0, short))).reshape(len(given), self.tokens, self._weight.shape[1])

    def arrays(self) -> Arrays:
        """See `Quantiser.arrays`."""
        made = {"weight": self._weight, "bias": self._bias, "mean": self._mean, "scale": self._scale}
        return {**made, "rotation": self._rotation, "steps": np.array(self.steps), "tokens": np.array(self.tokens)}

    @classmethod
    def of(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> "FiniteScalar":
        """The quantiser that gave these arrays."""
        parts = [arrays[name] for name in ("weight", "bias", "mean", "scale")]
        steps = [int(step) for step in arrays["steps"]]
        return cls(*parts, steps=steps, tokens=int(arrays["tokens"]), rotation=arrays["rotation"])


class RandomCodes:
    """Codes that say nothing of the item, of the same shape as the ones that do: the control of an experiment.

    They are a keyed hash of the vector, so that equal vectors get equal codes here too.

    Args:
        vocabulary: L numbers.
        seed: another seed is another assignment.
    """

    kind = "random"

    def __init__(self, vocabulary: Sequence[int], *, seed: int) -> None:
        self.vocabulary, self._seed = tuple(vocabulary), seed

    def codes(self, vectors: FloatArray) -> Codes:
        """See `Quantiser.codes`."""
        key, size = self._seed.to_bytes(8, "little"), 8 * len(self.vocabulary)
        given = np.ascontiguousarray(vectors, dtype="<f4")
        digests = [hashlib.blake2b(vector.tobytes(), key=key, digest_size=size).digest() for vector in given]
        drawn = np.frombuffer(b"".join(digests), dtype="<u8").reshape(len(given), len(self.vocabulary))
        return (drawn % np.array(self.vocabulary, dtype=np.uint64)).astype(np.int32)

    def arrays(self) -> Arrays:
        """See `Quantiser.arrays`."""
        return {"vocabulary": np.array(self.vocabulary), "seed": np.array(self._seed)}

    @classmethod
    def of(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> "RandomCodes":
        """The quantiser that gave these arrays."""
        return cls([int(v) for v in arrays["vocabulary"]], seed=int(arrays["seed"]))


def nearest_codewords(points: Doubles, codebook: Doubles) -> npt.NDArray[np.int64]:
    """int64, shape (n,): the nearest of the codewords (V, E) to each point (n, E), the first of equals."""
    distances = (codebook**2).sum(axis=1) - 2.0 * points @ codebook.T  # without |x|^2, which is the same for all
    nearest: npt.NDArray[np.int64] = distances.argmin(axis=1)
    return nearest


def bounded(pieces: Doubles, steps: Iterable[int]) -> Doubles:
    """Each coordinate squeezed so that rounding it gives one of its l values: float64, shape (..., J).

    b(z) = tanh(z + tan(o / h)) h - o with h = (l - 1)(1 - 1e-3) / 2 and o = 1/2 for an even l, else 0: an even number
    of values has none in the middle, so the grid is shifted by half a step.
    """
    values = np.array(list(steps), dtype=np.float64)
    half = (values - 1.0) * (1.0 - 1e-3) / 2.0
    offset = np.where(values % 2 == 0, 0.5, 0.0)
    squeezed: Doubles = np.tanh(pieces + np.tan(offset / half)) * half - offset
    return squeezed


def grid_codes(points: Doubles, steps: Sequence[int]) -> Codes:
    """int32: the number of each grid point (..., J): sum_j (q_j + l_j // 2) prod_(i < j) l_i."""
    basis = np.cumprod([1, *steps[:-1]])
    numbers: Codes = ((points + np.array(steps) // 2) @ basis.astype(np.float64)).astype(np.int32)
    return numbers


def grid_points(codes: Codes, steps: Sequence[int]) -> Doubles:
    """float64, shape (..., J): the grid points of these numbers; undoes `grid_codes`."""
    values, basis = np.array(steps), np.cumprod([1, *steps[:-1]])
    points: Doubles = (np.asarray(codes)[..., None] // basis % values - values // 2).astype(np.float64)
    return points


def save_quantiser(quantiser: Quantiser, path: Path) -> None:
    """Writes one `.npz` file of plain arrays."""
    with path.open("wb") as out:
        kind = np.frombuffer(quantiser.kind.encode(), dtype=np.uint8)
        np.savez_compressed(out, allow_pickle=False, kind=kind, **quantiser.arrays())


def load_quantiser(path: Path) -> Quantiser:
    """Reads what `save_quantiser` wrote.

    Raises:
        BundleTorn: the file is missing or damaged.
        BundleForeign: a quantiser that this version does not know.
    """
    known: dict[str, type[ResidualCodebooks] | type[FiniteScalar] | type[RandomCodes]] = {
        cls.kind: cls for cls in (ResidualCodebooks, FiniteScalar, RandomCodes)
    }
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = dict(stored.items())
        kind = arrays.pop("kind").tobytes().decode()
        if kind in known:
            return known[kind].of(arrays)
    except (
        OSError,
        EOFError,
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        InvalidInput,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise BundleTorn(f"{path.name} is not a readable quantiser ({error}); export the bundle again") from error
    raise BundleForeign(f"quantiser {kind!r} is unknown to this version, which knows {', '.join(known)}; upgrade it")


def _checked(vectors: FloatArray, width: int) -> FloatArray:
    given = np.asarray(vectors, dtype=np.float32)
    if given.ndim != 2 or given.shape[1] != width:
        raise InvalidInput(f"vectors have shape {given.shape}; (n, {width}) was expected, as the quantiser was trained")
    return given
