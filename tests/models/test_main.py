"""`python -m models`: what each verb prints, and that no mistake of a user ends in a traceback."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from markov import Chain

from models import checkpoint, runs
from models.__main__ import main
from models.train import CHECKPOINT
from retrieval.bundle import Bundle
from retrieval.recommenders import load

ROOT = Path(__file__).resolve().parents[2]
Write = Callable[[str], Path]


@pytest.fixture
def csv(tmp_path: Path) -> Write:
    """Writes a log of lines `user,item`; times are the line numbers."""

    def write(text: str) -> Path:
        lines = [f"{line},{at}" for at, line in enumerate(text.split())]
        (tmp_path / "log.csv").write_text("\n".join(["user_id,item_id,timestamp", *lines]) + "\n")
        return tmp_path / "log.csv"

    return write


def training(log: Path, out: Path, *more: str, model: str = "sasrec") -> list[str]:
    return ["train", "--model", model, "--data", "csv", "--events", str(log), "--out", str(out), *more]


def on_log(verb: str, chain: Chain, *more: str) -> list[str]:
    return [verb, "--data", "csv", "--events", str(chain.log), *more]


def test_training_says_its_seed_its_progress_and_its_parity(chain: Chain) -> None:
    assert "training sasrec with seed 1: d=8, blocks=1" in chain.said
    assert [f"epoch   {n}  loss" in chain.said for n in (1, 2, 3, 4)] == [True, True, True, False]
    assert "ONNX against torch over 60 histories: largest difference of a query coordinate" in chain.said
    assert "of the top-20 lists identical" in chain.said
    assert f"bundle {Bundle.open(chain.bundle).name} at {chain.bundle}" in chain.printed
    assert "ndcg@10" in chain.printed


def test_list_shows_every_system(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    shown = capsys.readouterr().out
    for words in (
        "sasrec\n",
        "sasrec-2018\n",
        "tiger\n",
        "tiger-decoder\n",
        "recgpt\n",
        "ICDM 2018",
        "stage     encoder",
        "status",
        "d=64",
        "recipe    loss=bce",
        "stage     generator",
        "semantic  levels=3",
    ):
        assert words in shown, words


def test_list_shows_of_a_generator_what_it_changes_of_its_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    shown = dict(re.findall(r"^(\S+)\n((?:  .*\n)+)", capsys.readouterr().out, re.MULTILINE))
    assert "quantiser=fsq" in shown["recgpt"]
    assert "dedup=False" in shown["recgpt"]
    assert "quantiser=rq_kmeans" in shown["tiger"]
    assert "head_width=64" in shown["tiger"]
    assert "learning_rate=0.0003" in shown["tiger"]
    assert "NeurIPS 2023" in shown["tiger"]
    assert "semantic" not in shown["sasrec"]


def test_inspect_shows_manifest_digests_sizes_and_metrics(chain: Chain, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(chain.bundle)]) == 0
    shown = capsys.readouterr().out
    manifest = Bundle.open(chain.bundle).manifest
    for words in (
        "seed          1",
        "window        6",
        "parity",
        "ndcg@10",
        "encoder.onnx: item_rows -> (B, D)",
        " bytes ",
    ):
        assert words in shown, words
    for entry in manifest.files.values():
        assert entry["sha256"] in shown


def test_inspect_shows_how_a_generator_is_searched(written: Chain, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(written.bundle)]) == 0
    shown = capsys.readouterr().out
    for words in (
        "kind          generative",
        "beams               12",
        "vocabulary          [4, 4, 4]",
        "semantic_ids",
        "step.onnx: prefix, state, allowed, keys, values -> (B, M, V)",
    ):
        assert words in shown, words


def test_join_says_where_the_bundle_stands(
    tmp_path: Path, chain: Chain, written: Chain, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "both"
    command = ["join", "--generator", str(written.bundle), "--dense", str(chain.bundle), "--out", str(out)]
    assert main([*command, "--set", "beams=5", "--set", "candidates=hybrid"]) == 0
    made = Bundle.open(out)
    assert f"bundle {made.name} at {out}" in capsys.readouterr().out
    assert (made.manifest.generation["beams"], load(made).recommender.name) == (5, "hybrid")
    assert main(command) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main([*command, "--overwrite", "--set", "beans=5"]) == 2
    assert "beans: not an option of the search" in capsys.readouterr().err
    assert Bundle.open(out).digest == made.digest


def test_a_tampered_bundle_is_not_inspected(tmp_path: Path, chain: Chain, capsys: pytest.CaptureFixture[str]) -> None:
    torn = shutil.copytree(chain.bundle, tmp_path / "torn")
    vectors = bytearray((torn / "item_vectors.npy").read_bytes())
    vectors[-1] ^= 1
    (torn / "item_vectors.npy").write_bytes(vectors)
    assert main(["inspect", str(torn)]) == 2
    assert "bundle_tampered: item_vectors.npy" in capsys.readouterr().err


def test_evaluate_prints_and_writes_its_report(
    tmp_path: Path, chain: Chain, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report.json"
    command = on_log("evaluate", chain, "--bundle", str(chain.bundle), "--k", "5,10", "--json", str(out))
    assert main(command) == 0
    assert "recall@5" in capsys.readouterr().out
    report = json.loads(out.read_text())
    assert report["bundle"] == Bundle.open(chain.bundle).name
    measured = Bundle.open(chain.bundle).manifest.metrics["loo"]
    assert report["metrics"]["ndcg@10"]["value"] == pytest.approx(measured["ndcg@10"], abs=1e-3)
    assert main([*command, "--served", "--seen", "kept"]) == 0
    assert "as served by" in capsys.readouterr().out


def test_compare_prints_one_table_and_appends_it(
    tmp_path: Path, chain: Chain, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["models", "compare", "--and", "so on"])
    table, results = tmp_path / "table.json", tmp_path / "RESULTS.md"
    more = ["--bundles", str(chain.bundle), "--json", str(table), "--results", str(results)]
    assert main(on_log("compare", chain, *more)) == 0
    shown = capsys.readouterr().out
    assert "bundle" in shown
    assert "popular" in shown
    assert json.loads(table.read_text())
    assert "python -m models compare --and 'so on'" in results.read_text()


def test_cases_are_json_lines(tmp_path: Path, chain: Chain, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "cases.jsonl"
    assert main(on_log("cases", chain, "--bundle", str(chain.bundle), "--limit", "7", "--out", str(out))) == 0
    assert capsys.readouterr().out.startswith("7 cases of bundle@")
    cases = [json.loads(line) for line in out.read_text().splitlines()]
    assert [sorted(case) for case in cases] == [["history", "target"]] * 7
    assert {len(case["history"]) for case in cases} == {7}


REFUSED = {
    "an unknown model": (["--model", "sasrek"], "model_unknown: there is no model 'sasrek'; known are"),
    "an unknown option": (["--set", "depth=2"], r"known: .*dropout.*learning_rate"),
    "a bad value": (["--set", "d=wide"], "option_invalid: --set d=wide: int expected"),
    "a value out of range": (["--set", "epochs=0"], "option_invalid: epochs 0 must be above zero"),
    "an impossible model": (["--set", "d=9"], "option_invalid: d 9 is not divisible by heads"),
    "nothing to resume": (["--resume"], "checkpoint_invalid: there is no checkpoint at .*; start without --resume"),
    "an unknown layout": (["--data", "cvs"], "layout_unknown"),
    "a missing directory": (["--events", "/nowhere/at/all"], "data_missing.*/nowhere/at/all"),
    "a missing item table": (["--items", "/nowhere/items.csv"], "data_missing.*/nowhere/items.csv"),
    "a directory that cannot be made": (["--out", "/proc/nowhere/b"], "/proc/nowhere"),
}


@pytest.mark.parametrize("mistake", REFUSED)
def test_a_mistake_is_named_and_nothing_is_left(
    mistake: str, tmp_path: Path, chain: Chain, capsys: pytest.CaptureFixture[str]
) -> None:
    changes, words = REFUSED[mistake]
    assert main(training(chain.log, tmp_path / "b", *changes)) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert re.search(words, error), error
    assert not (tmp_path / "b").exists()


LOGS = {
    "empty": ("", "log_empty"),
    "users with one event each": ("a,1 b,1 c,2", "no user has two events in the training part"),
}


@pytest.mark.parametrize("log", LOGS)
def test_a_log_that_teaches_nothing_is_refused(
    log: str, tmp_path: Path, csv: Write, sets: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    text, words = LOGS[log]
    assert main(training(csv(text), tmp_path / "b", *sets)) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_an_existing_bundle_is_refused_before_anything_is_read(
    chain: Chain, capsys: pytest.CaptureFixture[str]
) -> None:
    before = Bundle.open(chain.bundle).digest
    assert main(training(Path("/nowhere"), chain.bundle)) == 2
    assert "bundle" in capsys.readouterr().err
    assert Bundle.open(chain.bundle).digest == before


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["trane"],
        ["train", "--model", "sasrec"],
        training(Path("a"), Path("b"), "--set", "d"),
        training(Path("a"), Path("b"), "--set", "=8"),
        ["evaluate", "--bundle", "b", "--data", "csv", "--events", "a", "--k", "0"],
        ["evaluate", "--bundle", "b", "--data", "csv", "--events", "a", "--k", "ten"],
        ["cases", "--bundle", "b", "--data", "csv", "--events", "a", "--out", "c", "--limit", "0"],
    ],
)
def test_a_command_that_cannot_be_read_shows_the_usage(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "usage: python -m models" in capsys.readouterr().err


@pytest.mark.train
def test_one_user_is_enough_and_ids_of_every_kind_survive(tmp_path: Path, sets: list[str]) -> None:
    """Commas, quotes, spaces and emoji."""
    strange = ['"a,b"', '"say ""hi"""', "ärger 🙂", "#1", '"a,b"']
    lines = [f"u,{item},{at}" for at, item in enumerate(strange)]
    (tmp_path / "log.csv").write_text("\n".join(["user_id,item_id,timestamp", *lines]) + "\n")
    assert main(training(tmp_path / "log.csv", tmp_path / "b", *sets)) == 0
    bundle = Bundle.open(tmp_path / "b")
    assert set(bundle.manifest.metrics) == {"loo", "parity", "training_minutes"}
    assert set(bundle.catalog.ids[1:]) == {"a,b", 'say "hi"', "ärger 🙂", "#1"}


@pytest.mark.train
def test_one_item_and_users_with_one_event_train_without_validation(
    tmp_path: Path, csv: Write, sets: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(training(csv("a,1 a,1 b,1 c,1"), tmp_path / "b", *sets)) == 0
    said = capsys.readouterr()
    assert "no user has enough events to hold one out: every epoch is run, and nothing is measured" in said.err
    assert "epoch   3" in said.err
    assert "ndcg" not in said.out
    bundle = Bundle.open(tmp_path / "b")
    assert set(bundle.manifest.metrics) == {"parity", "training_minutes"}
    assert len(load(bundle).catalog) == 1


@pytest.mark.train
def test_full_disk_while_exporting_keeps_what_was_learnt(
    tmp_path: Path,
    chain: Chain,
    sets: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same run as the shared one: exported at last, it is the same bundle."""

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "encoder.onnx")

    out = tmp_path / "b"
    with monkeypatch.context() as patched:
        patched.setattr("models.export.write_graph", full)
        assert main(training(chain.log, out, *sets)) == 2
    error = capsys.readouterr().err
    assert "No space left on device (encoder.onnx); nothing was left half written" in error
    assert f"what was learnt is kept in {out}.training; --resume goes on from there" in error
    assert [path.name for path in tmp_path.iterdir()] == ["b.training"]

    assert main(training(chain.log, out, *sets)) == 2
    assert "--resume" in capsys.readouterr().err
    assert main(training(chain.log, out, *sets, "--resume", "--set", "epochs=3")) == 0
    ours, theirs = (Bundle.open(path).manifest for path in (out, chain.bundle))
    for name in ("item_vectors.npy", "catalog.npz"):
        assert ours.files[name]["sha256"] == theirs.files[name]["sha256"]
    assert ours.metrics["loo"] == theirs.metrics["loo"]
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


@pytest.mark.train
def test_cancelled_by_ctrl_c_ends_with_130_and_leaves_a_checkpoint(
    tmp_path: Path, chain: Chain, sets: list[str]
) -> None:
    """A real process, interrupted once it says that its first epoch is done."""
    out = tmp_path / "b"
    endless = training(chain.log, out, *sets, "--set", "epochs=1000000", "--set", "patience=1000000")
    process = subprocess.Popen(
        [sys.executable, "-m", "models", *endless], cwd=ROOT, stderr=subprocess.PIPE, text=True, env=os.environ
    )
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        if "epoch   1" in line:
            process.send_signal(signal.SIGINT)
            break
    said += process.stderr.read()
    process.stderr.close()
    assert process.wait(60) == 130, said
    assert "--resume goes on from there" in said
    assert "Traceback" not in said
    assert not out.exists()
    _, facts = checkpoint.load(runs.workbench(out) / CHECKPOINT)
    assert facts["position"]["epoch"] >= 1


def test_cancelled_while_reading_ends_with_130(
    tmp_path: Path, chain: Chain, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def read(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "read", read)
    assert main(training(chain.log, tmp_path / "b")) == 130
    assert "--resume" not in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
