"""Text to vectors: what is known of an item as one string, and the encoders that a bundle can carry.

An encoder is plain arrays or an ONNX graph, so that a service can describe an item that was added a minute ago without
torch. Which one made the vectors of a bundle is written beside them, in `text.json`.
"""

import json
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from retrieval.errors import BundleForeign, BundleTorn, InvalidInput
from retrieval.sequences import FloatArray, IntArray

ABOUT = "text.json"
HASHED = "text.npz"
GRAPH = "text.onnx"
TOKENIZER = "tokenizer.json"
BATCH = 32  # texts that run through a graph at once

WORD = re.compile(r"\w+")
DAMAGED = (OSError, EOFError, ValueError, TypeError, KeyError, InvalidInput, zipfile.BadZipFile, zlib.error)


class TextEncoder(Protocol):
    """Texts in, vectors out; a text that says nothing to the encoder is a vector of zeros.

    Attributes:
        width: D, the length of a vector.
    """

    width: int

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """float32, shape (B, D); each vector has length one, or is zero."""
        ...

    def save(self, directory: Path) -> None:
        """Writes what `load_text` reads, into a directory that exists."""
        ...


def describe(attributes: Mapping[str, Any], fields: Sequence[str]) -> str:
    """The named attributes as one string, in the order of `fields`; what is absent is left out.

    Several words become a list with commas, numbers are written as short as they can be.
    """
    parts = []
    for name in fields:
        value = attributes.get(name)
        values = value if isinstance(value, list | tuple) else [value]
        words = [f"{v:g}" if isinstance(v, float) else str(v).strip() for v in values if v is not None]
        if said := ", ".join(word for word in words if word):
            parts.append(said)
    return ". ".join(parts)


def terms(text: str, buckets: int) -> Counter[int]:
    """How often each hashed word and pair of neighbouring words stands in a text.

    CRC-32 is the hash because it is the same in every process and on every machine, which Python's own is not.
    """
    words = WORD.findall(text.lower())
    pairs = [f"{a} {b}" for a, b in pairwise(words)]
    return Counter(zlib.crc32(term.encode()) % buckets for term in (*words, *pairs))


class HashedText:
    """Hashed TF-IDF, projected on the directions in which a catalog's texts differ most.

    A text is (1 + log tf) over its hashed words and pairs, times the matrix, scaled to length one. The inverse document
    frequencies stand in the matrix. Every text is summed alone and in the order of its terms, so a vector does not
    depend on what else is encoded with it, to the last bit.

    Args:
        places: int32, shape (buckets,): the row of the matrix for a hash, -1 for a term that was never learnt.
        matrix: float32, shape (F, D).

    Raises:
        InvalidInput: arrays of other shapes, or a place outside the matrix.

    Source: Manning, Raghavan, Schuetze, Introduction to Information Retrieval (2008), sections 6.4 and 18.4.
    """

    def __init__(self, places: npt.NDArray[np.int32], matrix: FloatArray) -> None:
        if places.ndim != 1 or matrix.ndim != 2 or not len(places) or places.max() >= len(matrix):
            raise InvalidInput(
                f"places {places.shape} and matrix {matrix.shape} of a hashed text do not belong together"
            )
        self._places, self._matrix = places, np.asarray(matrix, dtype=np.float32)
        self.width = matrix.shape[1]

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """See `TextEncoder.encode`."""
        vectors = np.zeros((len(texts), self.width), dtype=np.float32)
        for vector, text in zip(vectors, texts, strict=True):
            counted = sorted(terms(text, len(self._places)).items())
            found = [(self._places[bucket], count) for bucket, count in counted if self._places[bucket] >= 0]
            if not found:
                continue
            rows, counts = np.array(found).T
            summed = (1.0 + np.log(counts)) @ self._matrix[rows].astype(np.float64)
            vector[:] = summed / max(float(np.linalg.norm(summed)), 1e-12)
        return vectors

    def save(self, directory: Path) -> None:
        """See `TextEncoder.save`."""
        with (directory / HASHED).open("wb") as out:
            np.savez_compressed(out, allow_pickle=False, places=self._places, matrix=self._matrix)
        (directory / ABOUT).write_text(json.dumps({"kind": "hashed"}))


class OnnxText:
    """A transformer as an ONNX graph beside its tokenizer.

    Args:
        tokenizer: the JSON of a `tokenizers` file.
        graph: the bytes of a graph `input_ids`, `attention_mask` int64 (B, T) and optionally `token_type_ids` ->
            float32 (B, D), or (B, T, D), which is then averaged over the real tokens.
        tokens: longest text in tokens; what is beyond is cut.
        threads: of onnxruntime.

    Raises:
        BundleForeign: the package `tokenizers` is not installed, or the graph has other inputs.
        BundleTorn: tokenizer or graph cannot be opened.
    """

    def __init__(self, tokenizer: str, graph: bytes, *, tokens: int = 128, threads: int = 1) -> None:
        self._tokenizer = _tokenizer(tokenizer, tokens)
        self._json, self._graph, self._tokens = tokenizer, graph, tokens
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises a dozen undocumented classes here
            raise BundleTorn(f"the text graph cannot be opened by onnxruntime: {error}") from error
        self._inputs = {node.name for node in self._session.get_inputs()}
        if not {"input_ids"} <= self._inputs <= {"input_ids", "attention_mask", "token_type_ids"}:
            raise BundleForeign(
                f"the text graph takes {sorted(self._inputs)}; input_ids, attention_mask and token_type_ids are known"
            )
        width = self._session.get_outputs()[0].shape[-1]
        if not isinstance(width, int):
            raise BundleForeign("the text graph does not state the width of its output; export it with a fixed one")
        self.width = width

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """See `TextEncoder.encode`. Texts of like length run together, so that little is padded."""
        vectors = np.zeros((len(texts), self.width), dtype=np.float32)
        said = [at for at, text in enumerate(texts) if text.strip()]
        encoded = dict(zip(said, self._tokenizer.encode_batch([texts[at] for at in said]), strict=True))
        said = sorted((at for at in said if encoded[at].ids), key=lambda at: len(encoded[at].ids))
        for start in range(0, len(said), BATCH):
            batch = said[start : start + BATCH]
            ids = [encoded[at].ids for at in batch]
            mask = np.arange(max(map(len, ids))) < np.array([[len(i)] for i in ids])
            padded = np.zeros(mask.shape, dtype=np.int64)
            padded[mask] = np.concatenate(ids)
            vectors[batch] = self.run(padded, mask)
        return vectors

    def save(self, directory: Path) -> None:
        """See `TextEncoder.save`."""
        (directory / GRAPH).write_bytes(self._graph)
        (directory / TOKENIZER).write_text(self._json)
        (directory / ABOUT).write_text(json.dumps({"kind": "onnx", "tokens": self._tokens}))

    def run(self, ids: IntArray, mask: npt.NDArray[Any]) -> FloatArray:
        """float32, shape (B, D), of length one: the vectors of token ids int64 (B, T), where mask is true or 1."""
        feeds = {"input_ids": ids, "attention_mask": mask.astype(np.int64), "token_type_ids": np.zeros_like(ids)}
        out: Any = self._session.run(None, {name: feeds[name] for name in self._inputs})[0]
        pooled = np.asarray(out, dtype=np.float64)
        if pooled.ndim == 3:
            pooled = (pooled * mask[:, :, None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
        lengths = np.linalg.norm(pooled, axis=1, keepdims=True)
        vectors: FloatArray = (pooled / np.maximum(lengths, 1e-12)).astype(np.float32)
        return vectors


def _tokenizer(text: str, tokens: int) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise BundleForeign(
            "describing items with this text encoder needs the package tokenizers: pip install 'sequitur[text]'"
        ) from error
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the package raises bare Exception
        raise BundleTorn(f"{TOKENIZER} is not a tokenizer file: {error}") from error
    tokenizer.no_padding()
    tokenizer.enable_truncation(tokens)
    return tokenizer


def load_text(directory: Path, *, threads: int = 1) -> TextEncoder:
    """The text encoder that `save` left in a directory.

    Raises:
        BundleTorn: a file is missing or damaged.
        BundleForeign: an encoder that this version does not know.
    """
    try:
        about = json.loads((directory / ABOUT).read_text())
        if about["kind"] == "hashed":
            with (directory / HASHED).open("rb") as file, np.load(file, allow_pickle=False) as stored:
                return HashedText(stored["places"], stored["matrix"])
        if about["kind"] == "onnx":
            tokenizer, graph = (directory / TOKENIZER).read_text(), (directory / GRAPH).read_bytes()
            return OnnxText(tokenizer, graph, tokens=about["tokens"], threads=threads)
    except DAMAGED as error:
        raise BundleTorn(f"the text encoder in {directory.name} cannot be read ({error}); export it again") from error
    raise BundleForeign(f"text encoder {about['kind']!r} is unknown to this version; upgrade it")
