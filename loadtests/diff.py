"""Two results side by side: what is the same about them, and by how much the rest differs."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loadtests import report
from loadtests.target import LoadError

SAME_MACHINE = ("cpu", "cores", "system")  # a newer Python is a change one may want to measure


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Why two results say nothing about each other; empty when they do."""
    out = []
    if first["benchmark"] != second["benchmark"]:
        out.append(f"benchmark {first['benchmark']} against {second['benchmark']}")
    for where, names in (("machine", SAME_MACHINE), ("conditions", {**first["conditions"], **second["conditions"]})):
        for name in names:
            one, other = first[where].get(name), second[where].get(name)
            if one != other:
                out.append(f"{where} {name} {one} against {other}")
    return out


def rows(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[list[str]]:
    """A row per figure that both have: its name, both values, their ratio; spreads that overlap are marked with `~`."""
    others = dict(report.leaves(second["results"]))
    out = [["figure", "A", "B", "B / A"]]
    for path, one in report.leaves(first["results"]):
        other = others.get(path)
        if isinstance(one, bool):
            continue
        a, b = (value["median"] if isinstance(value, Mapping) else value for value in (one, other))
        if a is None or b is None:
            continue
        ratio = f"{b / a:.3f}" if a else "-"
        if (
            isinstance(one, Mapping)
            and isinstance(other, Mapping)
            and one["low"] <= other["high"]
            and other["low"] <= one["high"]
        ):
            ratio = f"~{ratio}"
        out.append(["/".join(path), f"{a:.4g}", f"{b:.4g}", ratio])
    return out


def main(arguments: Sequence[str]) -> int:
    """Prints the comparison."""
    parser = argparse.ArgumentParser(prog="python -m loadtests diff", description=__doc__)
    parser.add_argument("first", type=Path, metavar="A.json")
    parser.add_argument("second", type=Path, metavar="B.json")
    parser.add_argument("--anyway", action="store_true", help="compare results of unlike conditions")
    given = parser.parse_args(arguments)
    first, second = report.read(given.first), report.read(given.second)
    unlike = differences(first, second)
    if unlike and not given.anyway:
        raise LoadError(f"these results do not compare ({'; '.join(unlike)}); --anyway shows them all the same")
    for name, one in (("A", first), ("B", second)):
        print(f"{name}: {one['date']} commit {one['commit'][:12]} bundle {one['bundle'].get('name')}")
    for line in unlike:
        print(f"unlike: {line}")
    print(report.format_table(rows(first, second)))
    print("~: the ranges of the repetitions overlap")
    return 0
