"""The bundle: an immutable directory, and the only thing that passes from the workshop to the service.

    manifest.json       what this is, where it came from, and the SHA-256 of every other file
    catalog.npz         item ids, attributes, popularity, availability
    item_vectors.npy    float32 (N + 1, D); row 0 is zero
    *.onnx              the graphs that the manifest declares
    index.faiss         only where the catalog is large enough to want one
    codes.npz           generators: semantic ids by row
    trie.npz            generators: the same, sorted for the search
    text_vectors.npy    generators, optional: float32 (N + 1, D'), what the semantic ids were made from
    describer/          generators, optional: what turns a new item's text into a semantic id
    statistics.npz      with a ranker: what was counted in training and is looked up while ranking
    warmup.json         histories to replay before a service says it is ready
    warmup_queries.npy  optional: float32 (n, D) or (n, Q, D), what the trained model made of them

A bundle is written beside its destination and renamed at the end, so a killed export never leaves half of one. It is
read without pickle, and everything is checked before anything is served.
"""

import glob
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from retrieval.catalog import Catalog
from retrieval.codes import CodeTable
from retrieval.errors import BundleError, BundleForeign, BundleMissing, BundleTampered, BundleTorn
from retrieval.sequences import FloatArray
from retrieval.statistics import Statistics

LAYOUT = 1
MANIFEST = "manifest.json"
CATALOG = "catalog.npz"
ITEM_VECTORS = "item_vectors.npy"
INDEX = "index.faiss"
WARMUP = "warmup.json"
WARMUP_QUERIES = "warmup_queries.npy"
CODES = "codes.npz"
TRIE = "trie.npz"
TEXT_VECTORS = "text_vectors.npy"
DESCRIBER = "describer"
STATISTICS = "statistics.npz"
RANKER = "ranker"  # the role of a ranker's graph, which a bundle of any kind may have
# The graphs that a bundle of each kind may consist of, and the files that it needs beside every bundle's.
KINDS: Mapping[str, tuple[tuple[frozenset[str], ...], tuple[str, ...]]] = {
    "encoder": ((frozenset({"encoder"}),), ()),
    "generative": ((frozenset({"prefill", "step"}), frozenset({"distributions"})), (CODES, TRIE)),
}
_TYPES = {
    "window": int,
    "exclude_seen": bool,
    "data": dict,
    "hyper_parameters": dict,
    "graphs": dict,
    "index": dict,
    "metrics": dict,
    "files": dict,
    "generation": dict,
    "ranking": dict,
}


@dataclass(frozen=True, slots=True)
class Graph:
    """One ONNX graph of a bundle.

    Attributes:
        file: its name inside the bundle.
        inputs: names from `retrieval.inputs`, in the order of the graph.
        output: what the output is called; its shape in letters, for example `(B, D)`.
    """

    file: str
    inputs: tuple[str, ...]
    output: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a bundle says of itself.

    Attributes:
        layout: version of this directory layout.
        kind: which composition serves it: `encoder` or `generative`.
        model: registered model name, for example `sasrec`.
        created: ISO 8601, UTC.
        data: layout name, digest, events, users, items, first and last event time.
        seed: of the training run.
        git_commit: of the code that trained, with `-dirty` where it had changes.
        hyper_parameters: the resolved values.
        window: length L of the window that the graphs read.
        event_types: vocabulary; code c is `event_types[c - 1]`, code 0 is any other.
        exclude_seen: whether items of the history are left out of answers unless a request says otherwise.
        graphs: by role: `encoder`; `prefill` and `step`, or `distributions`; and `ranker`.
        index: kind, parameters, target and measured recall of the retrieval index.
        metrics: measured quality: protocol -> metric -> value.
        files: name -> {"sha256", "bytes"} of every other file.
        generation: of a generator what `retrieval.generative.Generation` reads; empty otherwise.
        ranking: with a ranker what `retrieval.ranking.Ranking` reads; empty otherwise.
    """

    layout: int
    kind: str
    model: str
    created: str
    data: Mapping[str, Any]
    seed: int
    git_commit: str
    hyper_parameters: Mapping[str, Any]
    window: int
    event_types: tuple[str, ...]
    exclude_seen: bool
    graphs: Mapping[str, Graph]
    index: Mapping[str, Any]
    metrics: Mapping[str, Any]
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    generation: Mapping[str, Any] = field(default_factory=dict)
    ranking: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> "Manifest":
        """A manifest from its JSON.

        Raises:
            BundleTorn: it is not JSON, or a field is missing.
            BundleForeign: another layout or kind than this version knows.
        """
        try:
            raw = json.loads(text)
        except ValueError as error:
            raise BundleTorn(f"{MANIFEST} is not JSON ({error}); export the bundle again") from error
        if not isinstance(raw, dict) or "layout" not in raw:
            raise BundleForeign(f"{MANIFEST} states no layout version, so this is not a bundle of this project")
        if raw["layout"] != LAYOUT:
            age = "newer" if isinstance(raw["layout"], int) and raw["layout"] > LAYOUT else "other"
            raise BundleForeign(
                f"bundle layout {raw['layout']} is {age} than this service ({LAYOUT}); export again or upgrade"
            )
        if raw.get("kind") not in KINDS:
            raise BundleForeign(f"bundle kind {raw.get('kind')!r} is unknown; this service knows {', '.join(KINDS)}")
        for later in ("generation", "ranking"):  # bundles that were written before there were any do not say
            raw.setdefault(later, {})
        try:
            for name, kind in _TYPES.items():
                if not isinstance(raw[name], kind):
                    raise TypeError(f"{name} is no {kind.__name__}")
            graphs = {role: Graph(g["file"], tuple(g["inputs"]), g["output"]) for role, g in raw.pop("graphs").items()}
            return cls(graphs=graphs, event_types=tuple(raw.pop("event_types")), **raw)
        except (KeyError, TypeError, AttributeError) as error:
            raise BundleTorn(f"{MANIFEST} lacks or misspells a field ({error}); export the bundle again") from error

    def text(self) -> str:
        """The JSON that `parse` reads."""
        return json.dumps(asdict(self), indent=2, sort_keys=True, allow_nan=False) + "\n"


@dataclass(frozen=True)
class Bundle:
    """A verified bundle on disk.

    Attributes:
        path: its directory.
        manifest: what it says of itself.
        digest: SHA-256 of the manifest, which holds the digests of everything else: the bundle's identity.
    """

    path: Path
    manifest: Manifest
    digest: str

    @cached_property
    def name(self) -> str:
        """The directory's name with the first digits of the digest: short, and unique enough to read aloud."""
        return f"{self.path.name}@{self.digest[:12]}"

    @classmethod
    def open(cls, path: Path) -> "Bundle":
        """A bundle, after every file in it was checked against its digest.

        Raises:
            BundleMissing, BundleTorn, BundleTampered, BundleForeign: see `retrieval.errors`.
        """
        path = path.resolve()
        if not path.is_dir():
            raise BundleMissing(f"there is no bundle directory at {path}; train one, or set SEQUITUR_BUNDLE")
        manifest_path = path / MANIFEST
        if not manifest_path.is_file():
            raise BundleMissing(f"{path} holds no {MANIFEST}, so it is no bundle; point at the directory that does")
        try:
            text = manifest_path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise BundleTorn(f"{manifest_path} cannot be read: {error}") from error
        manifest = Manifest.parse(text)
        alternatives, files = KINDS[manifest.kind]
        if not any(roles <= set(manifest.graphs) for roles in alternatives):
            needs = " or ".join(" and ".join(sorted(roles)) for roles in alternatives)
            raise BundleTorn(f"the manifest lists no graph {needs}, which a bundle of kind {manifest.kind!r} needs")
        for name, entry in manifest.files.items():
            _verify(path, name, entry)
        listed = set(manifest.files)
        ranks = (STATISTICS,) if RANKER in manifest.graphs else ()
        for needed in (CATALOG, ITEM_VECTORS, *files, *ranks, *(graph.file for graph in manifest.graphs.values())):
            if needed not in listed:
                raise BundleTorn(f"the manifest lists no {needed}, which a bundle of kind {manifest.kind!r} needs")
        if manifest.index.get("kind", "exact") != "exact" and INDEX not in listed:
            raise BundleTorn(f"the manifest names an index of kind {manifest.index['kind']!r} but lists no {INDEX}")
        return cls(path, manifest, hashlib.sha256(text.encode()).hexdigest())

    @cached_property
    def catalog(self) -> Catalog:
        """The catalog."""
        return Catalog.load(self.path / CATALOG)

    @cached_property
    def item_vectors(self) -> FloatArray:
        """float32, shape (N + 1, D).

        Raises:
            BundleTorn: unreadable, or not one finite row per catalog row.
        """
        return self._vectors(ITEM_VECTORS)

    @cached_property
    def text_vectors(self) -> FloatArray | None:
        """float32, shape (N + 1, D'): what the semantic ids were made from; None where the bundle has none.

        A bundle without an encoder has no other vectors: then they are the item vectors.

        Raises:
            BundleTorn: see `item_vectors`.
        """
        if TEXT_VECTORS in self.manifest.files:
            return self._vectors(TEXT_VECTORS)
        return None if "encoder" in self.manifest.graphs else self.item_vectors

    @cached_property
    def statistics(self) -> Statistics | None:
        """What a ranker looks up; None where the bundle has no ranker.

        Raises:
            BundleTorn: unreadable, or not one entry per catalog row.
        """
        if RANKER not in self.manifest.graphs:
            return None
        statistics = Statistics.load(self.path / STATISTICS)
        if len(statistics.rates) != len(self.catalog) + 1:
            rows = len(statistics.rates) - 1
            raise BundleTorn(f"{STATISTICS} has {rows} rows, the catalog {len(self.catalog)} items; export again")
        return statistics

    @cached_property
    def codes(self) -> CodeTable | None:
        """The items' semantic ids; None where the bundle has none.

        Raises:
            BundleTorn: unreadable, or not one per catalog row.
        """
        if CODES not in self.manifest.files:
            return None
        codes = CodeTable.load(self.path / CODES)
        if len(codes) != len(self.catalog):
            raise BundleTorn(f"{CODES} has {len(codes)} rows, the catalog {len(self.catalog)} items; export again")
        return codes

    def _array(self, name: str) -> npt.NDArray[Any]:
        try:
            with (self.path / name).open("rb") as file:
                return np.lib.format.read_array(file, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise BundleTorn(f"{name} cannot be read ({error}); export the bundle again") from error

    def _vectors(self, name: str) -> FloatArray:
        vectors = self._array(name)
        if vectors.dtype != np.float32 or vectors.ndim != 2 or len(vectors) != len(self.catalog) + 1:
            raise BundleTorn(
                f"{name} is {vectors.dtype} {vectors.shape}; float32 ({len(self.catalog) + 1}, D) was expected"
            )
        if not np.isfinite(vectors).all():
            raise BundleTorn(f"{name} holds NaN or infinite numbers; the training run diverged")
        return np.asarray(vectors, dtype=np.float32)

    @cached_property
    def warmup(self) -> list[list[str]]:
        """Histories (item ids, oldest first) to replay before serving; empty when the bundle has none."""
        path = self.path / WARMUP
        if WARMUP not in self.manifest.files:
            return []
        try:
            return [[str(item) for item in history] for history in json.loads(path.read_text())]
        except (OSError, ValueError, TypeError) as error:
            raise BundleTorn(f"{WARMUP} cannot be read ({error}); export the bundle again") from error

    @cached_property
    def warmup_queries(self) -> FloatArray | None:
        """float32, shape (n, D) or (n, Q, D): what the trained model made of `warmup`; None where nobody kept it.

        Raises:
            BundleTorn: unreadable, or no such array of finite numbers.
        """
        if WARMUP_QUERIES not in self.manifest.files:
            return None
        queries = self._array(WARMUP_QUERIES)
        if queries.dtype != np.float32 or queries.ndim not in (2, 3) or not np.isfinite(queries).all():
            raise BundleTorn(f"{WARMUP_QUERIES} is {queries.dtype} {queries.shape}; finite float32 (n, D) was expected")
        return queries


def refuse_taken(path: Path, *, overwrite: bool) -> None:
    """Raises `BundleError` where no bundle may be written; to be asked before hours of work, not only after."""
    if path.exists():
        if not overwrite:
            raise BundleError(f"{path} exists; choose another directory, or say --overwrite to replace it")
        if not (path / MANIFEST).is_file() and not (path.is_dir() and not any(path.iterdir())):
            raise BundleError(f"{path} holds something else than a bundle, which is not overwritten; choose another")


@contextmanager
def writing(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """An empty directory to fill; sealed by `seal` and left by the block, it becomes the bundle at `path`.

    Whatever ends the block early (an error, a full disk, Ctrl-C) leaves `path` as it was. What a killed process left
    beside it is cleared by the next one; so two exports to one place exclude each other, as trainings do by their
    checkpoint.

    Raises:
        BundleError: `path` exists and `overwrite` is false, or it is something else than a bundle; or the block did not
            call `seal`.
    """
    path = path.resolve()
    _sweep(path)
    refuse_taken(path, overwrite=overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.partial"
    beside.mkdir()
    try:
        yield beside
        if not (beside / MANIFEST).is_file():
            raise BundleError("the bundle was left without a manifest; call seal() before leaving")
        _sync(beside)
        if path.exists():
            # A directory cannot be replaced in one step: the old one steps aside first and goes last.
            aside = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.replaced"
            path.rename(aside)
            try:
                beside.rename(path)
            except OSError:
                aside.rename(path)
                raise
            shutil.rmtree(aside)
        else:
            beside.rename(path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def seal(directory: Path, manifest: Manifest) -> None:
    """Writes the manifest last, with the size and SHA-256 of every file in `directory`."""
    files = {}
    for file in sorted(p for p in directory.rglob("*") if p.is_file() and p.name != MANIFEST):
        name = file.relative_to(directory).as_posix()
        files[name] = {"sha256": _digest(file), "bytes": file.stat().st_size}
    sealed = Manifest(**{**{f: getattr(manifest, f) for f in Manifest.__slots__}, "files": files})
    (directory / MANIFEST).write_text(sealed.text())


def _verify(root: Path, name: str, entry: Mapping[str, Any]) -> None:
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\\" in name or "\0" in name:
        raise BundleTampered(f"the manifest names {name!r}, which lies outside the bundle")
    file = root / name
    if not file.resolve().is_relative_to(root):
        raise BundleTampered(f"{name!r} is a link out of the bundle; copy the file into it and export again")
    if not file.is_file():
        raise BundleTorn(f"{name} is listed in the manifest and missing from {root}; copy the whole directory again")
    if not isinstance(entry, dict):
        raise BundleTorn(f"{MANIFEST} states neither size nor SHA-256 of {name}; export the bundle again")
    size = file.stat().st_size
    if size != entry.get("bytes"):
        raise BundleTorn(f"{name} has {size} bytes, the manifest says {entry.get('bytes')}; copy it again")
    if _digest(file) != entry.get("sha256"):
        raise BundleTampered(f"{name} does not have the SHA-256 that the manifest states; copy or export it again")


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sweep(path: Path) -> None:
    """Clears what a killed export left, and puts the old bundle back where it was killed between the two renames."""
    for replaced in path.parent.glob(f".{glob.escape(path.name)}.*.replaced"):
        if path.exists():
            shutil.rmtree(replaced, ignore_errors=True)
        else:
            replaced.rename(path)
    for partial in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        shutil.rmtree(partial, ignore_errors=True)


def _sync(directory: Path) -> None:
    """Puts every file, then the directory, on the disk, so that the rename never outlives its contents."""
    for file in [*directory.rglob("*"), directory]:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
