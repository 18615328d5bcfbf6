"""Lines where nobody watches, a bar where somebody does."""

import io

import pytest

from models import progress
from models.progress import Progress


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in seconds, to be set by the test."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_away_from_a_terminal_a_line_comes_every_half_minute(clock: list[float]) -> None:
    out = io.StringIO()
    for _ in Progress(out).bar(range(10), "epoch 1", done=5):
        clock[0] += 16
    assert out.getvalue().splitlines() == [f"epoch 1: {n} of 15 ({100 * n // 15} %)" for n in (7, 9, 11, 13)]


def test_short_work_says_nothing(clock: list[float]) -> None:
    out = io.StringIO()
    shown = Progress(out)
    assert list(shown.bar("abc", "letters")) == ["a", "b", "c"]
    clock[0] += 1
    shown.rows(10, 0.1)
    shown.cases(5, 5)
    assert out.getvalue() == ""


def test_rows_and_cases_are_told_now_and_then(clock: list[float]) -> None:
    out = io.StringIO()
    shown = Progress(out)
    clock[0] = 31
    shown.rows(1_500_000, 0.25)
    shown.rows(1_600_000, 0.26)
    clock[0] = 62
    shown.cases(2_000, 6_040)
    assert out.getvalue().splitlines() == ["read 1,500,000 rows (25 %)", "measured 2,000 of 6,040 cases"]


def test_on_a_terminal_a_bar_is_drawn_and_goes() -> None:
    out = Terminal()
    shown = Progress(out)
    assert list(shown.bar(range(3), "epoch 2", done=1, unit="batch")) == [0, 1, 2]
    assert "epoch 2" in out.getvalue()
    assert "\n" not in out.getvalue()
    shown.say("done")
    assert out.getvalue().endswith("done\n")


def test_on_a_terminal_a_count_replaces_itself(clock: list[float]) -> None:
    out = Terminal()
    shown = Progress(out)
    clock[0] = 1
    shown.cases(10, 20)
    shown.cases(20, 20)
    assert out.getvalue() == "\r\x1b[Kmeasured 10 of 20 cases\r\x1b[K"
