"""From a log to a bundle and back to its quality, function by function."""

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import markov
import numpy as np
import pytest
import toy
from markov import Chain
from toy_generative import toy_generative

from models import runs
from models import train as training
from models.errors import CheckpointError, ExportError, InvalidOption, OrderOnly, UnknownModel
from models.progress import Progress
from models.runs import Source
from models.semantic_ids import SemanticIdConfig
from retrieval import bundle
from retrieval.bundle import Bundle
from retrieval.catalog import Catalog
from retrieval.errors import BundleError, InvalidInput
from retrieval.recommenders import load

NOWHERE = Source("csv", [Path("/nowhere/log.csv")])


def quiet() -> Progress:
    return Progress(io.StringIO())


def read(path: Path, **options: Any) -> Any:
    return runs.read(Source("csv", [path], **options), quiet())


@pytest.fixture
def csv(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a log of lines `user,item`; times are the line numbers."""

    def write(text: str, name: str = "log.csv") -> Path:
        lines = [f"{line.strip()},{at}" for at, line in enumerate(text.split())]
        (tmp_path / name).write_text("\n".join(["user_id,item_id,timestamp", *lines]) + "\n")
        return tmp_path / name

    return write


def test_a_log_is_split_and_popularity_counts_the_training_part(csv: Callable[[str], Path]) -> None:
    prepared = runs.prepare(read(csv("a,1 a,2 a,3 a,4 b,2 b,2")))
    assert prepared.train.lengths().tolist() == [2, 2]
    assert prepared.catalog.popularity.tolist() == [0, 1, 3, 0, 0]
    assert prepared.validation is not None
    assert prepared.test is not None
    assert (prepared.validation.targets.tolist(), prepared.test.targets.tolist()) == ([3], [4])
    facts = prepared.facts
    assert (facts["events"], facts["users"], facts["items"], facts["order_only"]) == (6, 2, 4, False)
    assert json.loads(json.dumps(facts)) == facts


def test_users_with_too_few_events_are_all_training(csv: Callable[[str], Path]) -> None:
    prepared = runs.prepare(read(csv("a,1 a,2 b,2")))
    assert (prepared.validation, prepared.test) == (None, None)
    assert prepared.train.lengths().tolist() == [2, 1]
    assert [h.rows.tolist() for h in runs.samples(prepared)] == [[1, 2], [2]]


def test_a_split_by_time_that_leaves_nobody_to_ask_is_all_but_the_cases(csv: Callable[[str], Path]) -> None:
    prepared = runs.prepare(read(csv(" ".join(f"u{n},1" for n in range(20)))), split="temporal")
    assert (prepared.validation, prepared.test) == (None, None)


def test_a_log_without_times_is_not_split_by_time(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("1 1\n1 2\n1 3\n")
    log = runs.read(Source("sasrec-txt", [tmp_path / "log.txt"]), quiet())
    with pytest.raises(OrderOnly, match="use loo"):
        runs.prepare(log, split="temporal")


def test_item_columns_that_say_nothing_are_left_out(csv: Callable[[str], Path], tmp_path: Path) -> None:
    """Every log has the usual item columns, also one that describes no item."""
    (tmp_path / "items.csv").write_text("item_id,title,categories,price,colour\n1,,,,\n2,,,,red\n")
    described = read(csv("a,1 a,2"), items=tmp_path / "items.csv")
    assert set(runs.prepare(described).catalog.columns) == {"colour"}
    assert runs.prepare(read(csv("a,1 a,2"))).catalog.columns == {}


def test_samples_are_real_histories_and_not_too_many(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "SAMPLE_HISTORIES", 25)
    prepared = runs.prepare(read(chain.log))
    drawn = runs.samples(prepared)
    assert len(drawn) == 25
    assert {len(h) for h in drawn} == {7}
    untested = runs.samples(replace(prepared, test=None))
    assert 25 <= len(untested) <= 50
    assert all(len(h) for h in untested)


def test_a_bundle_carries_what_it_was_made_of(chain: Chain) -> None:
    manifest = Bundle.open(chain.bundle).manifest
    log = read(chain.log)
    assert manifest.data["digest"] == log.digest
    assert manifest.data["items"] == 30
    assert manifest.hyper_parameters["d"] == 8
    assert manifest.hyper_parameters["epochs_run"] == 3
    assert manifest.event_types == ("view",)
    assert set(manifest.metrics) == {"loo", "parity", "training_minutes"}
    assert manifest.metrics["parity"]["histories"] == 60
    assert manifest.metrics["parity"]["identical_top20"] > 0.9
    assert not runs.workbench(chain.bundle).exists()


def test_the_graph_and_the_service_measure_what_training_measured(chain: Chain) -> None:
    bundle, log = Bundle.open(chain.bundle), read(chain.log)
    measured = bundle.manifest.metrics["loo"]
    for served in (False, True):
        report = runs.judge_bundle(bundle, log, split="loo", ks=(10, 20), served=served, progress=quiet())
        for name in ("recall@10", "ndcg@20", "mrr@10"):
            assert report.measures[name].value == pytest.approx(measured[name], abs=1e-3), (served, name)


def test_negatives_and_kept_items_reach_the_evaluation(chain: Chain) -> None:
    bundle, log = Bundle.open(chain.bundle), read(chain.log)
    among = runs.judge_bundle(bundle, log, split="loo", ks=(10,), negatives=5, seed=3, progress=quiet())
    assert among.measures["recall@10"].value == 1.0
    assert "5 uniform negatives" in among.protocol
    kept = runs.judge_bundle(bundle, log, split="temporal", ks=(10,), seen="kept", progress=quiet())
    assert "time split" in kept.protocol
    assert "seen items kept" in kept.protocol


def test_cases_are_written_in_item_ids(chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "CASE_EVENTS", 5)
    bundle, log = Bundle.open(chain.bundle), read(chain.log)
    assert runs.write_cases(bundle, log, tmp_path / "a", split="loo", limit=10, seed=1) == 10
    runs.write_cases(bundle, log, tmp_path / "b", split="loo", limit=10, seed=1)
    assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text()
    users = markov.sequences(60, 8, items=30)
    ends = [([f"i{row}" for row in rows[2:7]], f"i{rows[7]}") for rows in users]
    for line in (tmp_path / "a").read_text().splitlines():
        case = json.loads(line)
        assert set(case) == {"history", "target"}
        assert (case["history"], case["target"]) in ends
    assert runs.write_cases(bundle, log, tmp_path / "all", split="loo", limit=10_000, seed=1) == 60


def test_a_log_that_holds_nothing_out_has_no_cases(chain: Chain, csv: Callable[[str], Path]) -> None:
    with pytest.raises(InvalidInput, match="bring a longer log"):
        runs.cases_for(Bundle.open(chain.bundle), read(csv("a,i1 a,i2 b,i3")), split="loo")


@pytest.mark.parametrize(
    ("name", "options", "error", "words"),
    [
        ("sasrek", {}, UnknownModel, "known are"),
        (
            "sasrec",
            {"depth": "3", "d": "8"},
            InvalidOption,
            r"depth: not an option of sasrec .*known: .*dropout.*epochs",
        ),
        ("sasrec", {"d": "wide"}, InvalidOption, "--set d=wide: int expected"),
        ("sasrec", {"d": "8", "heads": "3"}, InvalidOption, "d 8 is not divisible by heads 3"),
        ("sasrec", {"loss": "hinge"}, InvalidOption, "'hinge' is none of"),
        ("sasrec", {"beams": "5"}, InvalidOption, "beams: not an option of sasrec"),
        ("tiger", {"beans": "5"}, InvalidOption, r"beans: not an option of tiger .*beams.*codewords.*d,.*epochs"),
        ("tiger", {"beams": "0"}, InvalidOption, "beams 0 must be at least 1"),
        ("tiger", {"exact_below": "-1"}, InvalidOption, "exact_below -1 not negative"),
        ("tiger", {"candidates": "both"}, InvalidOption, "'both' is none of generated, hybrid"),
        ("tiger", {"candidates": "hybrid"}, InvalidOption, "name its bundle with --dense"),
        ("tiger", {"levels": "0"}, InvalidOption, "levels 0 must be at least 1"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_the_log_is_read(
    tmp_path: Path, name: str, options: dict[str, str], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        runs.train(name, NOWHERE, tmp_path / "b", options, progress=quiet())
    assert list(tmp_path.iterdir()) == []


def test_a_taken_name_is_refused_before_the_log_is_read(tmp_path: Path, chain: Chain) -> None:
    with pytest.raises(BundleError, match="--overwrite"):
        runs.train("sasrec", NOWHERE, chain.bundle, {}, progress=quiet())
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(BundleError, match="something else than a bundle"):
        runs.train("sasrec", NOWHERE, tmp_path, {}, progress=quiet(), overwrite=True)
    assert (tmp_path / "thesis.txt").exists()


def test_an_unfinished_run_is_not_overwritten_without_a_word(tmp_path: Path, chain: Chain) -> None:
    unfinished = runs.workbench(tmp_path / "b") / training.CHECKPOINT
    unfinished.parent.mkdir()
    unfinished.write_bytes(b"hours")
    with pytest.raises(CheckpointError, match=r"unfinished run.*--resume.*--overwrite"):
        runs.train("sasrec", NOWHERE, tmp_path / "b", {}, progress=quiet())
    with pytest.raises(InvalidOption):
        runs.train("sasrec", NOWHERE, tmp_path / "b", {"dd": "8"}, progress=quiet(), overwrite=True)
    with pytest.raises(CheckpointError, match="cannot be read"):
        runs.train("sasrec", Source("csv", [chain.log]), tmp_path / "b", {}, progress=quiet(), resume=True)
    assert unfinished.read_bytes() == b"hours"


def test_a_checkpoint_of_another_split_is_refused(
    tmp_path: Path, chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has seen what the other split holds out."""

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "export", interrupted)
    options = {"d": "8", "blocks": "1", "window": "6", "epochs": "1", "threads": "1"}
    source = Source("csv", [chain.log])
    with pytest.raises(KeyboardInterrupt):
        runs.train("sasrec", source, tmp_path / "b", options, progress=quiet())
    with pytest.raises(CheckpointError, match="of another run"):
        runs.train("sasrec", source, tmp_path / "b", options, progress=quiet(), resume=True, split="temporal")
    with pytest.raises(KeyboardInterrupt):
        runs.train("sasrec", source, tmp_path / "b", options, progress=quiet(), resume=True)


def compare(chain: Chain, workspace: Path, **changes: Any) -> runs.Compared:
    given: dict[str, Any] = {"names": (), "bundles": [chain.bundle], "source": Source("csv", [chain.log]), **changes}
    return runs.compare(
        given["names"],
        given["bundles"],
        given["source"],
        {},
        workspace=workspace,
        split="loo",
        ks=(10,),
        progress=quiet(),
    )


def test_a_comparison_has_bundles_beside_every_baseline(tmp_path: Path, chain: Chain) -> None:
    compared = compare(chain, tmp_path)
    names = [line.report.name for line in compared.table.lines]
    assert "bundle" in names
    assert {"popular"} < set(names)
    own = next(line.report for line in compared.table.lines if line.report.name == "bundle")
    measured = Bundle.open(chain.bundle).manifest.metrics["loo"]
    assert own.measures["ndcg@10"].value == pytest.approx(measured["ndcg@10"], abs=1e-3)
    compared.append(tmp_path / "RESULTS.md", command="python -m models compare")
    text = (tmp_path / "RESULTS.md").read_text()
    assert "python -m models compare" in text
    assert Bundle.open(chain.bundle).manifest.data["digest"][:12] in text


def test_a_comparison_uses_what_it_trained_before_and_goes_on_with_what_it_began(
    tmp_path: Path, chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(chain.bundle, tmp_path / "sasrec")
    assert "sasrec" in str(compare(chain, tmp_path, names=("sasrec",), bundles=[]).table)
    shutil.rmtree(tmp_path / "sasrec")
    unfinished = runs.workbench(tmp_path / "sasrec") / training.CHECKPOINT
    unfinished.parent.mkdir()
    unfinished.touch()
    asked: list[bool] = []

    def train(_name: str, _source: Source, out: Path, _options: Any, **rest: Any) -> None:
        asked.append(rest["resume"])
        shutil.copytree(chain.bundle, out)

    monkeypatch.setattr(runs, "train", train)
    compare(chain, tmp_path, names=("sasrec",), bundles=[])
    assert asked == [True]


def test_a_bundle_of_other_data_is_not_compared(tmp_path: Path, chain: Chain) -> None:
    other = markov.write_csv(tmp_path / "other.csv", 30, 8, items=30, seed=5)
    with pytest.raises(InvalidInput, match="trained on other data"):
        compare(chain, tmp_path, source=Source("csv", [other]))


def test_a_log_that_holds_nothing_out_is_nothing_to_compare_on(
    tmp_path: Path, chain: Chain, csv: Callable[[str], Path]
) -> None:
    with pytest.raises(InvalidInput, match="nothing to compare on"):
        compare(chain, tmp_path, source=Source("csv", [csv("a,i1 a,i2")]))


def test_events_of_items_outside_the_catalog_are_counted(chain: Chain, tmp_path: Path) -> None:
    newer = tmp_path / "newer.csv"
    newer.write_text(chain.log.read_text() + "u0,brand-new,9999999\n")
    report = runs.judge_bundle(Bundle.open(chain.bundle), read(newer), split="loo", ks=(10,), progress=quiet())
    assert "1 events of items outside the catalog left out" in report.protocol
    assert np.isfinite(report.measures["recall@10"].value)


def test_codes_are_made_once_for_a_run_and_its_resumption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = SemanticIdConfig(text_width=4, levels=2, codewords=4)
    made = runs._semantic_ids(tmp_path, toy.catalog(), config, 1, quiet())
    monkeypatch.setattr(runs, "assign", lambda *_, **__: pytest.fail("weights mean nothing under other codes"))
    again = runs._semantic_ids(tmp_path, toy.catalog(), config, 1, quiet())
    np.testing.assert_array_equal(again.table.codes, made.table.codes)


def test_a_generator_is_joined_with_an_encoder_and_searched_otherwise(tmp_path: Path) -> None:
    generator = toy_generative(tmp_path / "generator", dense=False)
    encoder = toy.write(tmp_path / "encoder")
    joined = runs.join(generator, tmp_path / "both", dense=encoder, options={"beams": "7", "candidates": "hybrid"})
    own = Bundle.open(generator).manifest
    assert set(joined.manifest.graphs) == {"prefill", "step", "encoder"}
    assert joined.manifest.generation == {**own.generation, "beams": 7, "candidates": "hybrid"}
    np.testing.assert_array_equal(joined.item_vectors, Bundle.open(encoder).item_vectors)
    assert load(joined).dense is not None
    alone = runs.join(generator, tmp_path / "alone", dense=None, options={})
    assert alone.manifest.generation == own.generation
    assert alone.manifest.graphs == own.graphs


def test_what_does_not_fit_together_is_not_joined(tmp_path: Path) -> None:
    generator, encoder = toy_generative(tmp_path / "generator"), toy.write(tmp_path / "encoder")
    other = tmp_path / "other"
    with bundle.writing(other) as directory:
        for file in Bundle.open(encoder).manifest.files:
            shutil.copyfile(encoder / file, directory / file)
        Catalog.build([f"o{n}" for n in range(20)]).save(directory / bundle.CATALOG)
        bundle.seal(directory, Bundle.open(encoder).manifest)
    out = tmp_path / "out"
    with pytest.raises(ExportError, match="is of kind 'encoder'; a generator was expected"):
        runs.join(encoder, out, dense=None, options={})
    with pytest.raises(ExportError, match="is of kind 'generative'; an encoder was expected"):
        runs.join(generator, out, dense=generator, options={})
    with pytest.raises(ExportError, match="has another catalog than the generator"):
        runs.join(generator, out, dense=other, options={})
    with pytest.raises(InvalidOption, match="--set epochs: not an option of the search; known: beams"):
        runs.join(generator, out, dense=None, options={"epochs": "3"})
    with pytest.raises(InvalidOption, match="beams 0 must be at least 1"):
        runs.join(generator, out, dense=None, options={"beams": "0"})
    assert not out.exists()


@pytest.fixture
def again(written: Chain, generator_sets: list[str]) -> Callable[..., Any]:
    """Trains the generator of the shared bundle once more, by the same options."""
    options = dict(option.split("=") for option in generator_sets[1::2])
    source = Source("csv", [written.log], written.log.with_name("items.csv"))

    def run(out: Path, **changes: Any) -> Any:
        given = {"source": source, "options": {}, **changes}
        source_, more = given.pop("source"), given.pop("options")
        return runs.train("tiger-decoder", source_, out, {**options, **more}, progress=quiet(), **given)

    return run


def test_the_bundle_of_a_generator_carries_what_it_was_made_of(written: Chain) -> None:
    """Options of the model, of its semantic ids, of the search and of the training come in by the same word."""
    bundle = Bundle.open(written.bundle)
    manifest = bundle.manifest
    assert (manifest.kind, manifest.model, manifest.window) == ("generative", "tiger-decoder", 6)
    assert {manifest.hyper_parameters[key] for key in ("code_blocks", "epochs_run")} == {1, 2}
    assert (manifest.hyper_parameters["codewords"], manifest.hyper_parameters["quantiser"]) == (4, "rq_kmeans")
    assert (manifest.generation["beams"], manifest.generation["vocabulary"]) == (12, [4, 4, 4])
    assert "beams" not in manifest.hyper_parameters
    assert set(manifest.metrics) == {"loo", "parity", "semantic_ids", "training_minutes"}
    assert manifest.metrics["semantic_ids"]["coded"] == 29
    assert manifest.metrics["parity"]["identical_top20"] > 0.9
    assert bundle.codes is not None
    assert bundle.codes.coded.sum() == 29
    assert not runs.workbench(written.bundle).exists()
    assert "semantic ids: text by tfidf, codes by rq_kmeans" in written.said
    assert "largest difference of a log-probability" in written.said


def test_a_generator_is_served_as_well_as_training_measured(written: Chain) -> None:
    bundle, log = Bundle.open(written.bundle), read(written.log)
    report = runs.judge_bundle(bundle, log, split="loo", ks=(10, 20), progress=quiet())
    # Beside what is written stand the popular items, when a history has nothing to read: here, nearly the same.
    assert report.measures["recall@10"].value == pytest.approx(bundle.manifest.metrics["loo"]["recall@10"], abs=0.05)
    assert "12 beams" in report.protocol
    with pytest.raises(InvalidInput, match="leave out --negatives"):
        runs.judge_bundle(bundle, log, split="loo", ks=(10,), negatives=5, progress=quiet())


def test_a_generator_is_compared_by_its_lists(tmp_path: Path, chain: Chain, written: Chain) -> None:
    described = Source("csv", [written.log], written.log.with_name("items.csv"))
    compared = compare(chain, tmp_path, bundles=[written.bundle], source=described)
    lines = {line.report.name: line for line in compared.table.lines}
    assert {"bundle", "popular"} < set(lines)
    assert "min to train, 12 beams" in lines["bundle"].remark
    assert lines["bundle"].difference is not None


def test_an_encoder_has_nothing_to_fall_back_on(tmp_path: Path, chain: Chain) -> None:
    with pytest.raises(InvalidOption, match="--dense goes with a generator; sasrec is an encoder itself"):
        runs.train("sasrec", NOWHERE, tmp_path / "b", {}, progress=quiet(), dense=chain.bundle)
    with pytest.raises(BundleError, match="no bundle"):
        runs.train("tiger", NOWHERE, tmp_path / "b", {}, progress=quiet(), dense=tmp_path / "missing")


def test_an_encoder_of_another_catalog_is_refused_before_training(
    tmp_path: Path, toy_bundle: Path, again: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "train", lambda *_, **__: pytest.fail("hours for nothing"))
    with pytest.raises(ExportError, match="has another catalog than the generator"):
        again(tmp_path / "b", dense=toy_bundle)
    assert list(tmp_path.iterdir()) == []


def test_items_without_any_text_teach_no_generator(tmp_path: Path, chain: Chain) -> None:
    with pytest.raises(InvalidInput, match=r"semantic ids need text.*bring an item table with titles"):
        runs.train("tiger", Source("csv", [chain.log]), tmp_path / "b", {"d": "8"}, progress=quiet())
    assert not (tmp_path / "b").exists()


@pytest.mark.train
@pytest.mark.usefixtures("quick_export")
def test_an_interrupted_generator_goes_on_to_the_same_bundle_with_an_encoder_beside_it(
    tmp_path: Path, chain: Chain, written: Chain, again: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "b"
    with monkeypatch.context() as patched:
        patched.setattr(runs.generator_export, "export_generator", interrupted)
        with pytest.raises(KeyboardInterrupt):
            again(out)
    assert not out.exists()
    with pytest.raises(CheckpointError, match="of another run"):
        again(out, options={"codewords": "8"}, resume=True)
    assert (runs.workbench(out) / training.CHECKPOINT).exists()
    bundle, report = again(out, resume=True, dense=chain.bundle, options={"candidates": "hybrid"})
    theirs = Bundle.open(written.bundle)
    for file in ("codes.npz", "trie.npz", "text_vectors.npy", "catalog.npz"):
        assert bundle.manifest.files[file]["sha256"] == theirs.manifest.files[file]["sha256"], file
    assert bundle.manifest.metrics["loo"] == theirs.manifest.metrics["loo"]
    assert report is not None
    assert set(bundle.manifest.graphs) == {"prefill", "step", "encoder"}
    assert load(bundle).recommender.name == "hybrid"
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
