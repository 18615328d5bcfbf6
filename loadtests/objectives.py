"""Objectives: what a result must reach, and an exit status that says whether it did.

A requirement is a name, a comparison and a number: `p99_ms<=50`, `recall>=0.31`, `encode B=8/ms<=3`. It holds for every
figure whose path ends in that name. Of repetitions the worst counts: an objective that is met now and then is not met.
"""

import argparse
import math
import operator
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtests import report
from loadtests.target import LoadError

SOUND = ("errors==0", "wrong==0")  # whatever else is measured
_COMPARE = {"<=": operator.le, ">=": operator.ge, "==": operator.eq}
_FORM = re.compile(r"(?P<name>.+?)\s*(?P<op><=|>=|==)\s*(?P<limit>[-+0-9.eE]+)")


@dataclass(frozen=True, slots=True)
class Objective:
    """One requirement."""

    name: str
    op: str
    limit: float

    @classmethod
    def parse(cls, text: str) -> "Objective":
        """An objective from its text.

        Raises:
            LoadError: it is none.
        """
        found = _FORM.fullmatch(text.strip())
        try:
            if found is None:
                raise ValueError("no comparison")
            return cls(found["name"], found["op"], float(found["limit"]))
        except ValueError as error:
            raise LoadError(
                f"{text!r} is not an objective; write NAME<=NUMBER, NAME>=NUMBER or NAME==NUMBER"
            ) from error

    def missed(self, results: Mapping[str, Any]) -> list[str]:
        """Every figure that misses it, in words.

        Raises:
            LoadError: no figure has that name; an objective that judges nothing must not pass.
        """
        wanted = tuple(self.name.split("/"))
        figures = [(path, value) for path, value in report.leaves(results) if _ends(path, wanted)]
        if not figures:
            raise LoadError(f"no figure is called {self.name!r}; the last line of the output has their names")
        out = []
        for path, value in figures:
            worst = self._worst(value)
            if math.isnan(worst) or not _COMPARE[self.op](worst, self.limit):
                out.append(f"{'/'.join(path)} is {worst:g}, and should be {self.op} {self.limit:g}")
        return out

    def _worst(self, value: Any) -> float:
        ends = [value["low"], value["high"]] if isinstance(value, Mapping) else [value]
        if None in ends:
            return math.nan
        if self.op == "==":
            return float(max(ends, key=lambda end: abs(end - self.limit)))
        return float(max(ends) if self.op == "<=" else min(ends))


def _ends(path: tuple[str, ...], wanted: tuple[str, ...]) -> bool:
    # Names such as `50/s` have a slash of their own, so the joined forms are compared.
    return f"/{'/'.join(path)}".endswith(f"/{'/'.join(wanted)}")


def judge(results: Mapping[str, Any], requirements: Sequence[str]) -> int:
    """0 when all hold; 1 otherwise, after saying on standard error which do not."""
    missed = [line for text in requirements for line in Objective.parse(text).missed(results)]
    for line in missed:
        sys.stderr.write(f"missed: {line}\n")
    return 1 if missed else 0


def add_requirements(parser: argparse.ArgumentParser) -> None:
    """The option of every verb that measures."""
    parser.add_argument(
        "--require", action="append", default=[], metavar="NAME<=X", help="exit with 1 where this does not hold"
    )


def main(arguments: Sequence[str]) -> int:
    """Judges a result that was kept."""
    parser = argparse.ArgumentParser(prog="python -m loadtests check", description=__doc__)
    parser.add_argument("result", type=Path, help="a file that ends in the JSON line of a result")
    parser.add_argument("requirements", nargs="+", metavar="NAME<=X")
    given = parser.parse_args(arguments)
    status = judge(report.read(given.result)["results"], given.requirements)
    print("missed" if status else "met")
    return status
