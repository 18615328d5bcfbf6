"""Transfer between small catalogs whose items speak of the same things under other ids."""

import io
import json
from pathlib import Path

import numpy as np
import pytest

from models import transfer
from models.__main__ import main
from models.errors import CheckpointError, InvalidOption
from models.histories import Histories
from models.progress import Progress
from models.runs import Source
from models.transfer import Domain, RepeatLast, TextNeighbours, WithoutLast
from retrieval.catalog import Catalog
from retrieval.errors import InvalidInput
from retrieval.sequences import History

TOPICS = ("red paint brush", "steel bolt nut", "garden hose water", "running shoe sole", "night cream skin")
SMALL = {
    "d": "16",
    "blocks": "1",
    "heads": "2",
    "window": "8",
    "dropout": "0",
    "precision": "float32",
    "text_width": "16",
    "quantiser_epochs": "2",
    "epochs": "12",
    "learning_rate": "0.01",
    "warmup": "0",
    "batch": "32",
    "threads": "1",
    "tune_epochs": "2",
    "scratch_epochs": "1",
}


def shop(folder: Path, *, seed: int, events: str, windows: bool) -> Source:
    """A log in which every user stays with one topic, and a catalog of six items per topic."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(seed)
    order = rng.permutation(6 * len(TOPICS))  # so that ids say nothing
    if not (folder / "items.jsonl").exists():
        words = [f"{TOPICS[at // 6]} number {at % 6}" for at in range(len(order))]
        lines = [json.dumps({"item": int(i), "title": w}) for i, w in zip(order, words, strict=True)]
        (folder / "items.jsonl").write_text("\n".join(lines) + "\n")
    order = np.array([json.loads(line)["item"] for line in (folder / "items.jsonl").read_text().splitlines()])
    lines = ["user\thistory\ttarget"] if windows else []
    for user in range(60):
        items = order[rng.integers(len(TOPICS)) * 6 + rng.permutation(6)][: rng.integers(3, 7)].tolist()
        if windows and user % 6 == 0:
            items.append(items[-1])
        if windows:
            lines.append(f"u{user // 2}\t{' '.join(map(str, items[:-1]))}\t{items[-1]}")
        else:
            lines.append(f"{user} {' '.join(map(str, items))}")
    (folder / events).write_text("\n".join(lines) + "\n")
    return Source("windows" if windows else "s3rec", [folder / events])


@pytest.fixture
def sources(tmp_path: Path) -> tuple[list[Source], Source, Source]:
    """Two catalogs to train on; tuning and test histories of a third."""
    train = [shop(tmp_path / str(at), seed=at, events="log.txt", windows=False) for at in range(2)]
    test = shop(tmp_path / "other", seed=7, events="test.tsv", windows=True)
    return train, shop(tmp_path / "other", seed=8, events="valid.tsv", windows=True), test


def domain(histories: list[list[int]], texts: list[str], owners: list[int] | None = None) -> Domain:
    catalog = Catalog.build([str(at) for at in range(len(texts))], attributes={"text": texts})
    people = np.array(owners if owners is not None else range(len(histories)))
    return Domain(catalog, Histories.from_rows(histories), people, "0" * 64)


def test_domains_are_joined_behind_each_other() -> None:
    catalog, histories = transfer.joined([domain([[1, 2], [2]], ["a", "b"]), domain([[3, 1]], ["c", "d", "e"])])
    assert catalog.ids[1:] == ("0/0", "0/1", "1/0", "1/1", "1/2")
    assert [catalog.attributes(row)["text"] for row in range(1, 6)] == ["a", "b", "c", "d", "e"]
    assert [histories[user].rows.tolist() for user in range(3)] == [[1, 2], [2], [5, 3]]
    assert catalog.popularity.tolist() == [0, 1, 2, 1, 0, 1]


def test_cases_ask_for_the_last_event_and_go_by_owner() -> None:
    asked = transfer.last_events(domain([[1, 2, 3], [2], [3, 3], [1, 3]], ["a", "b", "c"], owners=[4, 4, 4, 9]))
    assert asked.targets.tolist() == [3, 3, 3]
    assert [history.rows.tolist() for history in asked.histories(0, 3)] == [[1, 2], [3], [1]]
    assert asked.users.tolist() == [4, 4, 9]
    changed = transfer.without_repeats(asked)
    assert [history.rows.tolist() for history in changed.histories(0, 3)] == [[1, 2], [1]]
    assert "1 that repeat" in changed.words


def test_nothing_to_ask_is_refused() -> None:
    with pytest.raises(InvalidInput, match="two events"):
        transfer.last_events(domain([[1], [2]], ["a", "b"]))


def test_the_baselines_of_the_last_item() -> None:
    histories = [History.of_rows([2, 1, 2, 3]), History.of_rows([])]
    assert np.argsort(-RepeatLast(4).scores(histories, [0, 0])[0])[:3].tolist() == [3, 2, 1]
    vectors = np.array([[0, 0], [1, 0], [0, 1], [0.6, 0.8], [0.8, 0.6]], np.float32)
    found = TextNeighbours(vectors).scores(histories, [0, 0])
    np.testing.assert_allclose(found[0], [0, 0.6, 0.8, 1.0, 0.96], atol=1e-6)
    assert not found[1].any()
    left = WithoutLast(TextNeighbours(vectors)).scores(histories, [0, 0])
    assert left[0, 3] == -np.inf
    assert np.array_equal(np.delete(left, 3, axis=1), np.delete(found, 3, axis=1))


@pytest.mark.train
def test_what_was_learnt_on_two_catalogs_answers_on_a_third(
    sources: tuple[list[Source], Source, Source], tmp_path: Path
) -> None:
    train, tune, test = sources
    said = io.StringIO()
    out = tmp_path / "run"
    done = transfer.transfer("recgpt", train, tune, test, out, SMALL, progress=Progress(said))
    figures = {line.report.name: line.report.measures["recall@10"].value for line in done.whole.lines}
    # Five topics of six items: whoever knows the topic has the target among ten, whoever does not in a third of all.
    assert figures["recgpt zero-shot"] > 0.8 > figures["popular"]
    assert figures["recgpt zero-shot, shuffled codes"] < figures["recgpt zero-shot"]
    assert figures["recgpt zero-shot"] > figures["recgpt untrained"]
    assert {"recgpt tuned", "recgpt from nothing", "recgpt zero-shot, no text input", "text-knn"} < set(figures)
    assert done.whole.lines[0].report.n_cases == 60
    assert done.whole.lines[0].report.n_users == 30
    changed = {line.report.name: line.report for line in done.changed.lines}
    assert changed["popular"].n_cases == 50
    assert changed["repeat-last"].measures["recall@1"].value == 0.0
    assert done.to_json()["codes_of_test"]["items"] == 30

    with pytest.raises(CheckpointError, match="--resume"):
        transfer.transfer("recgpt", train, tune, test, out, SMALL, progress=Progress(said))
    again = transfer.transfer("recgpt", train, tune, test, out, SMALL, progress=Progress(said), resume=True)
    assert str(again.whole) == str(done.whole)
    for option, words in (("d", "another run"), ("quantiser_epochs", "other options")):
        other = {**SMALL, option: "4"}
        with pytest.raises(CheckpointError, match=words):
            transfer.transfer("recgpt", train, tune, test, out, other, progress=Progress(said), resume=True)


def test_a_model_that_writes_code_by_code_is_refused(
    sources: tuple[list[Source], Source, Source], tmp_path: Path
) -> None:
    with pytest.raises(InvalidOption, match="sasrec is none"):
        transfer.transfer("sasrec", *sources, tmp_path / "run", {}, progress=Progress(io.StringIO()))


def test_an_unknown_option_is_refused_by_name(sources: tuple[list[Source], Source, Source], tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match="colour"):
        transfer.transfer("recgpt", *sources, tmp_path / "run", {"colour": "1"}, progress=Progress(io.StringIO()))


def test_an_items_table_that_says_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("1 2 3\n")
    with pytest.raises(InvalidInput, match="text_fields"):
        transfer.read(Source("s3rec", [tmp_path / "log.txt"]), ("title",), Progress(io.StringIO()))


def test_the_command_refuses_a_source_without_layout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--train", "beauty.txt", "--tune", "windows:a", "--test", "windows:b", "--out", str(tmp_path / "run")]
    with pytest.raises(SystemExit, match="2"):
        main(["transfer", "--model", "recgpt", *arguments])
    assert "LAYOUT:PATH" in capsys.readouterr().err
