"""The door: what goes through it whole, and everything that does not get through."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy
import toy_ranker

from retrieval import bundle
from retrieval.bundle import CATALOG, INDEX, ITEM_VECTORS, MANIFEST, STATISTICS, WARMUP, Bundle, Graph, Manifest
from retrieval.catalog import Catalog
from retrieval.errors import BundleError, BundleForeign, BundleMissing, BundleTampered, BundleTorn

ROOT = Path(__file__).parents[2]
ENCODER = "encoder.onnx"


@pytest.fixture
def copy(toy_bundle: Path, tmp_path: Path) -> Path:
    """A toy bundle of one's own to damage."""
    return Path(shutil.copytree(toy_bundle, tmp_path / "copy"))


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Changes the manifest of a sealed bundle."""
    raw = json.loads((path / MANIFEST).read_text())
    change(raw)
    (path / MANIFEST).write_text(json.dumps(raw))


def reseal(path: Path, **changes: Any) -> None:
    """Makes the manifest true again for files that were changed on purpose."""
    (path / MANIFEST).unlink()
    bundle.seal(path, toy.manifest(**changes))


def test_a_sealed_bundle_opens_with_everything_in_it(toy_bundle: Path) -> None:
    opened = Bundle.open(toy_bundle)
    assert opened.catalog.ids == toy.catalog().ids
    np.testing.assert_array_equal(opened.item_vectors, toy.vectors())
    assert opened.warmup == [["i01"], ["i02", "i03"]]
    assert set(opened.manifest.files) == {CATALOG, ITEM_VECTORS, WARMUP, ENCODER}
    assert opened.manifest.graphs["encoder"] == Graph(ENCODER, ("item_rows",), "(B, D)")
    assert opened.name == f"toy@{opened.digest[:12]}"


def test_a_manifest_survives_its_own_text() -> None:
    manifest = toy.manifest(files={"a": {"sha256": "0", "bytes": 1}})
    assert Manifest.parse(manifest.text()) == manifest


def test_the_digest_is_that_of_the_content(toy_bundle: Path, copy: Path, tmp_path: Path) -> None:
    assert Bundle.open(copy).digest == Bundle.open(toy_bundle).digest
    assert Bundle.open(toy.write(tmp_path / "other", seed=1)).digest != Bundle.open(toy_bundle).digest


def test_a_bundle_is_found_through_a_link(toy_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(toy_bundle)
    assert Bundle.open(tmp_path / "current").path == toy_bundle.resolve()


def test_a_bundle_without_warmup_has_no_histories_to_replay(copy: Path) -> None:
    (copy / WARMUP).unlink()
    reseal(copy)
    assert Bundle.open(copy).warmup == []


# --- missing and torn ------------------------------------------------------------------------------------------------


def test_a_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(BundleMissing, match="no bundle directory"):
        Bundle.open(tmp_path / "nowhere")


def test_a_directory_that_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleMissing, match=r"holds no manifest\.json"):
        Bundle.open(tmp_path)


@pytest.mark.parametrize("name", [CATALOG, ITEM_VECTORS, ENCODER, WARMUP])
def test_a_listed_file_that_is_gone(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(BundleTorn, match=f"{name} is listed in the manifest and missing"):
        Bundle.open(copy)


@pytest.mark.parametrize("name", [CATALOG, ITEM_VECTORS, ENCODER, WARMUP])
def test_a_file_that_was_cut(copy: Path, name: str) -> None:
    file = copy / name
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(BundleTorn, match=f"{name} has .* bytes, the manifest says"):
        Bundle.open(copy)


@pytest.mark.parametrize("name", [CATALOG, ITEM_VECTORS, ENCODER])
def test_a_needed_file_that_the_manifest_does_not_list(copy: Path, name: str) -> None:
    edit(copy, lambda raw: raw["files"].pop(name))
    with pytest.raises(BundleTorn, match=f"lists no {name}"):
        Bundle.open(copy)


def test_a_missing_index(copy: Path) -> None:
    edit(copy, lambda raw: raw["index"].update(kind="ivf"))
    with pytest.raises(BundleTorn, match=f"index of kind 'ivf' but lists no {INDEX}"):
        Bundle.open(copy)


@pytest.mark.parametrize("name", [STATISTICS, "ranker.onnx"])
def test_a_ranker_without_what_it_needs(tmp_path: Path, name: str) -> None:
    path = toy_ranker.write(tmp_path / "ranked")
    edit(path, lambda raw: raw["files"].pop(name))
    with pytest.raises(BundleTorn, match=f"lists no {name}"):
        Bundle.open(path)
    (path / name).unlink()
    with pytest.raises(BundleTorn, match=f"lists no {name}"):
        Bundle.open(path)


def test_a_ranker_is_an_addition(toy_bundle: Path, tmp_path: Path) -> None:
    ranked = Bundle.open(toy_ranker.write(tmp_path / "ranked"))
    assert ranked.manifest.ranking == json.loads(json.dumps(toy_ranker.ranking().to_json()))
    statistics = ranked.statistics
    assert statistics is not None
    assert statistics.rates.shape == (21, 2)
    assert Bundle.open(toy_bundle).statistics is None
    assert Bundle.open(toy_bundle).manifest.ranking == {}


def test_a_manifest_without_its_graph(copy: Path) -> None:
    edit(copy, lambda raw: raw.update(graphs={}))
    with pytest.raises(BundleTorn, match="no graph"):
        Bundle.open(copy)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[1, 2"])
def test_a_manifest_that_is_not_json(copy: Path, content: bytes) -> None:
    (copy / MANIFEST).write_bytes(content)
    with pytest.raises(BundleTorn, match=r"manifest\.json"):
        Bundle.open(copy)


@pytest.mark.parametrize(
    "field", [name for name in Manifest.__slots__ if name not in ("layout", "kind", "files", "generation", "ranking")]
)
def test_a_manifest_that_lacks_a_field(copy: Path, field: str) -> None:
    edit(copy, lambda raw: raw.pop(field))
    with pytest.raises(BundleTorn, match="lacks or misspells a field"):
        Bundle.open(copy)


@pytest.mark.parametrize(
    "change",
    [
        {"files": ["catalog.npz"]},
        {"files": {"catalog.npz": "a digest"}},
        {"files": None},
        {"index": "exact"},
        {"generation": ["beams"]},
        {"ranking": ["click"]},
        {"index": None},
        {"graphs": ["encoder.onnx"]},
        {"graphs": {"encoder": {"file": "encoder.onnx"}}},
        {"graphs": {"encoder": {"file": 3, "inputs": ["item_rows"], "output": "(B, D)"}}},
        {"event_types": 3},
        {"window": "200"},
        {"unheard_of": 1},
    ],
    ids=str,
)
def test_a_manifest_with_a_field_of_another_type(copy: Path, change: dict[str, Any]) -> None:
    edit(copy, lambda raw: raw.update(change))
    with pytest.raises(BundleTorn, match=r"manifest\.json|lists no"):
        Bundle.open(copy)


def test_a_bundle_from_before_there_were_generators(copy: Path) -> None:
    edit(copy, lambda raw: raw.pop("generation"))
    opened = Bundle.open(copy)
    assert opened.manifest.generation == {}
    assert (opened.codes, opened.text_vectors) == (None, None)


# --- foreign and newer -----------------------------------------------------------------------------------------------


def test_a_newer_bundle(copy: Path) -> None:
    edit(copy, lambda raw: raw.update(layout=bundle.LAYOUT + 1))
    with pytest.raises(BundleForeign, match=r"layout 2 is newer than this service \(1\); export again or upgrade"):
        Bundle.open(copy)


@pytest.mark.parametrize("layout", [0, "1.0", None, -3])
def test_a_bundle_of_another_layout(copy: Path, layout: Any) -> None:
    edit(copy, lambda raw: raw.update(layout=layout))
    with pytest.raises(BundleForeign, match="is other than this service"):
        Bundle.open(copy)


@pytest.mark.parametrize("content", ['{"name": "package"}', "[]", '"text"', "3", "null"])
def test_a_foreign_manifest(copy: Path, content: str) -> None:
    (copy / MANIFEST).write_text(content)
    with pytest.raises(BundleForeign, match="not a bundle of this project"):
        Bundle.open(copy)


def test_a_bundle_of_an_unknown_kind(copy: Path) -> None:
    edit(copy, lambda raw: raw.update(kind="oracle"))
    with pytest.raises(BundleForeign, match="kind 'oracle' is unknown; this service knows encoder"):
        Bundle.open(copy)


# --- tampered --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [CATALOG, ITEM_VECTORS, ENCODER, WARMUP])
def test_a_tampered_file(copy: Path, name: str) -> None:
    file = copy / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(BundleTampered, match=f"{name} does not have the SHA-256"):
        Bundle.open(copy)


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "a/../../secret", "..\\secret", "a\0b"])
def test_a_path_outside_the_bundle(copy: Path, name: str) -> None:
    (copy.parent / "secret").write_text("x")
    edit(copy, lambda raw: raw["files"].update({name: {"sha256": "0", "bytes": 1}}))
    with pytest.raises(BundleTampered, match="lies outside the bundle"):
        Bundle.open(copy)


def test_a_link_out_of_the_bundle(copy: Path, tmp_path: Path) -> None:
    shutil.move(copy / WARMUP, tmp_path / "elsewhere.json")
    (copy / WARMUP).symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(BundleTampered, match="is a link out of the bundle"):
        Bundle.open(copy)


def test_a_linked_directory_out_of_the_bundle(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_text("x")
    (copy / "inside").symlink_to(tmp_path / "elsewhere")
    edit(copy, lambda raw: raw["files"].update({"inside/file": {"sha256": "0", "bytes": 1}}))
    with pytest.raises(BundleTampered, match="is a link out of the bundle"):
        Bundle.open(copy)


# --- files that are what the manifest says, and still no good --------------------------------------------------------


def test_a_pickled_array_is_never_unpickled(copy: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(copy / "went off"),)

    np.save(copy / ITEM_VECTORS, np.array([Bomb()], dtype=object), allow_pickle=True)
    reseal(copy)
    with pytest.raises(BundleTorn, match=f"{ITEM_VECTORS} cannot be read"):
        _ = Bundle.open(copy).item_vectors
    assert not (copy / "went off").exists()


@pytest.mark.parametrize(
    ("vectors", "says"),
    [
        (toy.vectors()[:-1], r"float32 \(20, 4\); float32 \(21, D\) was expected"),
        (toy.vectors().astype(np.float64), "is float64"),
        (toy.vectors()[:, 0], "was expected"),
        (np.where(np.eye(21, 4) > 0, np.nan, toy.vectors()).astype(np.float32), "holds NaN"),
        (np.where(np.eye(21, 4) > 0, np.inf, toy.vectors()).astype(np.float32), "holds NaN or infinite"),
    ],
    ids=["a row short", "float64", "flat", "nan", "inf"],
)
def test_item_vectors_that_do_not_fit(copy: Path, vectors: np.ndarray, says: str) -> None:
    np.save(copy / ITEM_VECTORS, vectors, allow_pickle=False)
    reseal(copy)
    with pytest.raises(BundleTorn, match=says):
        _ = Bundle.open(copy).item_vectors


@pytest.mark.parametrize("content", [b"", b"no array", b"\x93NUMPY\x01\x00"])
def test_item_vectors_that_are_no_array(copy: Path, content: bytes) -> None:
    (copy / ITEM_VECTORS).write_bytes(content)
    reseal(copy)
    with pytest.raises(BundleTorn, match=f"{ITEM_VECTORS} cannot be read"):
        _ = Bundle.open(copy).item_vectors


@pytest.mark.parametrize("content", ["", "[3]", "7"])
def test_warmup_histories_that_are_none(copy: Path, content: str) -> None:
    (copy / WARMUP).write_text(content)
    reseal(copy)
    with pytest.raises(BundleTorn, match=f"{WARMUP} cannot be read"):
        _ = Bundle.open(copy).warmup


# --- writing ---------------------------------------------------------------------------------------------------------


def test_a_bundle_that_stands_is_not_overwritten_unasked(copy: Path) -> None:
    before = Bundle.open(copy).digest
    with pytest.raises(BundleError, match="exists; choose another directory, or say --overwrite"), bundle.writing(copy):
        pytest.fail("the block must not run")
    assert Bundle.open(copy).digest == before


@pytest.mark.parametrize("through_a_link", [False, True])
def test_overwriting_replaces_the_whole_directory(copy: Path, tmp_path: Path, through_a_link: bool) -> None:
    path = copy
    if through_a_link:
        path = tmp_path / "current"
        path.symlink_to(copy)
    before = set(tmp_path.iterdir())
    (copy / "stray").write_text("x")
    with bundle.writing(path, overwrite=True) as directory:
        fill(directory)
        bundle.seal(directory, toy.manifest(seed=42))
    assert Bundle.open(path).manifest.seed == 42
    assert not (path / "stray").exists()
    assert set(tmp_path.iterdir()) == before  # nothing is left beside


def test_a_directory_that_holds_something_else_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter-1").write_text("x")
    (tmp_path / "file").write_text("x")
    for name in ("thesis", "file"):
        with pytest.raises(BundleError, match="is not overwritten"), bundle.writing(tmp_path / name, overwrite=True):
            pytest.fail("the block must not run")
    assert (tmp_path / "thesis" / "chapter-1").read_text() == (tmp_path / "file").read_text() == "x"


def test_an_empty_directory_may_become_a_bundle(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    with bundle.writing(tmp_path / "new", overwrite=True) as directory:
        fill(directory)
        bundle.seal(directory, toy.manifest())
    assert Bundle.open(tmp_path / "new").manifest.model == "toy"


def fill(directory: Path) -> None:
    toy.catalog().save(directory / CATALOG)
    np.save(directory / ITEM_VECTORS, toy.vectors(), allow_pickle=False)
    toy.graph(directory / ENCODER, toy.vectors())


def test_leaving_without_sealing_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="without a manifest"), bundle.writing(tmp_path / "new") as directory:
        fill(directory)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stop", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_whatever_ends_the_writing_early_leaves_nothing(tmp_path: Path, stop: type[BaseException]) -> None:
    def write() -> None:
        with bundle.writing(tmp_path / "new") as directory:
            fill(directory)
            raise stop

    with pytest.raises(stop):
        write()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("at", ["catalog", "manifest", "sync", "rename"])
@pytest.mark.parametrize("stands", [False, True], ids=["new", "overwriting"])
def test_full_disk_while_writing(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str, stands: bool
) -> None:
    path = copy if stands else tmp_path / "new"
    before = {p: p.stat().st_ino for p in tmp_path.iterdir()}
    rename = Path.rename

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def full_for_the_new_one(self: Path, target: Path) -> Path:
        return full() if self.name.endswith(".partial") else rename(self, target)  # type: ignore[func-returns-value]

    match at:
        case "catalog":
            monkeypatch.setattr(Catalog, "save", full)
        case "manifest":
            monkeypatch.setattr(Path, "write_text", full)
        case "sync":
            monkeypatch.setattr(os, "fsync", full)
        case "rename":
            monkeypatch.setattr(Path, "rename", full_for_the_new_one)

    def write() -> None:
        with bundle.writing(path, overwrite=stands) as directory:
            fill(directory)
            bundle.seal(directory, toy.manifest(seed=42))

    with pytest.raises(OSError, match="No space left"):
        write()
    monkeypatch.undo()
    assert {p: p.stat().st_ino for p in tmp_path.iterdir()} == before
    if stands:
        assert Bundle.open(path).manifest.seed == 0


def test_killed_while_writing_leaves_no_bundle_and_the_next_one_is_written(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nimport toy\nfrom retrieval import bundle\n"
        "with bundle.writing(Path(sys.argv[1])) as directory:\n"
        "    toy.catalog().save(directory / bundle.CATALOG)\n"
        "    bundle.seal(directory, toy.manifest())\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    path = tmp_path / "new"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    killed = subprocess.run([sys.executable, "-c", code, str(path)], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not path.exists()
    assert all(leftover.name.endswith(".partial") for leftover in tmp_path.iterdir())
    assert Bundle.open(toy.write(path)).manifest.model == "toy"
    assert list(tmp_path.iterdir()) == [path], "what the killed one left is cleared"


def test_killed_between_the_two_renames_the_old_bundle_comes_back(tmp_path: Path) -> None:
    path = toy.write(tmp_path / "b", seed=3)
    path.rename(tmp_path / ".b.01234567.replaced")
    (tmp_path / ".b.89abcdef.partial").mkdir()
    with pytest.raises(RuntimeError, match="stopped"), bundle.writing(path, overwrite=True):
        raise RuntimeError("stopped")
    assert list(tmp_path.iterdir()) == [path]
    assert Bundle.open(path).manifest.seed == 3


def test_a_bundle_is_on_the_disk_before_it_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    sync = os.fsync

    def watched(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        assert not (tmp_path / "new").exists()
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    toy.write(tmp_path / "new")
    names = {Path(name).name for name in synced}
    assert names > {MANIFEST, CATALOG, ITEM_VECTORS, ENCODER}
