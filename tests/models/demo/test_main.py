"""The command that makes the demo bundle; training it again is in `tests/test_house.py`."""

from pathlib import Path

import polars as pl
import pytest

from models.demo.__main__ import main


def test_the_log_alone_is_written_and_nothing_is_trained(tmp_path: Path) -> None:
    assert main(["--events-only", str(tmp_path / "readers.csv")]) == 0
    assert pl.read_csv(tmp_path / "readers.csv").columns[:3] == ["user_id", "item_id", "timestamp"]
    assert [path.name for path in tmp_path.iterdir()] == ["readers.csv"]


def test_a_bundle_that_stands_is_not_replaced_unasked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "demo").mkdir()
    assert main(["--out", str(tmp_path / "demo")]) == 2
    assert "--overwrite" in capsys.readouterr().err
