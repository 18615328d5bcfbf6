"""Copies of a bundle: one that fails on some histories, one that is broken, and twins.

The format is that of `retrieval.bundle`, which a generator of load does not import: a manifest with the SHA-256 of
every other file, arrays without pickle, strings as one block of UTF-8 with its ends.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from loadtests.target import LoadError

MANIFEST = "manifest.json"
CATALOG = "catalog.npz"
VECTORS = "item_vectors.npy"
POISON = "poison-{}"
MORE = 8  # items beyond the catalog: an encoder may have a few rows of its own, for masks


def twin(bundle: Path, folder: Path, name: str) -> Path:
    """The same under another name, with a digest of its own."""
    return _copied(bundle, folder / name, created=f"2026-01-01T00:00:00+00:00, {name}")


def broken(bundle: Path, folder: Path, name: str) -> Path:
    """A copy of which one byte is not what the manifest says."""
    copy = _copied(bundle, folder / name)
    file = copy / VECTORS
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    file.write_bytes(raw)
    return copy


def poisoned(bundle: Path, folder: Path) -> tuple[Path, str]:
    """A copy whose encoder raises on a history with one item in it; the copy and the item.

    The catalog gets items that the encoder was not trained on: their rows lie beyond its table of embeddings, and
    looking one up there is an error of the graph, in the middle of its work.

    Raises:
        LoadError: the bundle is of a kind that cannot be spoilt like this.
    """
    manifest = _manifest(bundle)
    if manifest["kind"] != "encoder" or manifest["index"].get("kind", "exact") != "exact" or "ranker" in str(manifest):
        raise LoadError(
            f"{bundle} has more in it than an encoder and its vectors; give a bundle of the kind of the demo"
        )
    copy = _copied(bundle, folder / "poisoned")
    vectors = np.load(copy / VECTORS, allow_pickle=False)
    more = np.repeat(vectors[-1:], MORE, axis=0)
    np.save(copy / VECTORS, np.concatenate([vectors, more]), allow_pickle=False)
    with np.load(copy / CATALOG, allow_pickle=False) as stored:
        arrays = dict(stored.items())
    with (copy / CATALOG).open("wb") as out:
        np.savez_compressed(out, allow_pickle=False, **_longer(arrays))
    _seal(copy, manifest)
    return copy, POISON.format(MORE - 1)


def _longer(arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """A catalog with more items at its end; they may not be shown, and nothing is known of them."""
    longer = dict(arrays)

    def extend(name: str, values: npt.NDArray[Any] | list[Any]) -> None:
        longer[name] = np.concatenate([arrays[name], np.asarray(values, arrays[name].dtype)])

    ids = [POISON.format(n).encode() for n in range(MORE)]
    extend("ids.text", np.frombuffer(b"".join(ids), np.uint8))
    extend("ids.ends", arrays["ids.ends"][-1] + np.cumsum([len(one) for one in ids]))
    extend("popularity", [0] * MORE)
    extend("available", [False] * MORE)
    for name in arrays:
        column, _, part = name.partition(".")
        if not column.isdigit():
            continue
        if part == "values":
            extend(name, [np.nan] * MORE)
        elif part == "offsets":
            extend(name, [arrays[name][-1]] * MORE)
        elif part == "codes" and f"{column}.offsets" not in arrays:
            extend(name, [-1] * MORE)
    return longer


def _manifest(bundle: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((bundle / MANIFEST).read_text())
        if not {"kind", "index", "files"} <= set(manifest):
            raise ValueError("a manifest says more")
    except (OSError, ValueError, TypeError) as error:
        raise LoadError(f"{bundle} holds no manifest that can be read ({error!r}); give a bundle directory") from error
    return manifest


def _copied(bundle: Path, copy: Path, **changes: Any) -> Path:
    manifest = _manifest(bundle)
    shutil.copytree(bundle, copy)
    (copy / MANIFEST).write_text(json.dumps({**manifest, **changes}))
    return copy


def _seal(copy: Path, manifest: Mapping[str, Any]) -> None:
    """Writes the manifest again, with what the files are now."""
    files = {
        name: {"sha256": hashlib.sha256((copy / name).read_bytes()).hexdigest(), "bytes": (copy / name).stat().st_size}
        for name in manifest["files"]
    }
    (copy / MANIFEST).write_text(json.dumps({**manifest, "files": files}))
