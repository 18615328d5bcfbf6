"""How fast and in how much memory a log loads.

    python -m models.loading_bench --rows 10000000 --layout csv

A synthetic log (skewed users and items, rows in time order, five columns) is written to a temporary directory that is
removed at the end. A fresh process loads it, so the peak is that of loading alone: interpreter, libraries, file
buffers and the finished log. The clock includes reading, checking, sorting and the digest, not the imports. The last
line of output is one JSON document.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl

from models.events import read_log

_LAYOUTS = ("csv", "parquet")
_EVENT_TYPES = ("view", "view", "view", "click", "cart", "purchase")


def synthetic_events(rows: int, *, seed: int) -> pl.DataFrame:
    """A log of `rows` events in time order, with a tenth as many users and a hundredth as many items, both skewed."""
    rng = np.random.default_rng(seed)
    users, items = max(rows // 10, 1), max(rows // 100, 1)
    kind = rng.integers(0, len(_EVENT_TYPES), rows)
    price = np.where(kind == len(_EVENT_TYPES) - 1, rng.integers(100, 20_000, rows) / 100, np.nan)
    return pl.DataFrame(
        {
            "user_id": (users * rng.random(rows) ** 2).astype(np.int64),
            "item_id": (items * rng.random(rows) ** 3).astype(np.int64),
            "timestamp": 1_700_000_000 + np.sort(rng.integers(0, 30 * 86_400, rows)),
            "event_type": pl.Series(np.array(_EVENT_TYPES)[kind], dtype=pl.String),
            "value": pl.Series(price).fill_nan(None),
        }
    ).with_columns(
        pl.format("user-{}", pl.col("user_id")).alias("user_id"),
        pl.format("item-{}", pl.col("item_id")).alias("item_id"),
    )


def load(layout: str, path: Path) -> dict[str, float | int | str]:
    """One load in this process, measured."""
    started = time.perf_counter()
    log = read_log(layout, path, on_progress=lambda rows, share: _say(f"{rows:,} rows read, {share:.0%} of the file"))
    seconds = time.perf_counter() - started
    # Linux counts ru_maxrss in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    rows = log.report.rows_read
    return {
        "layout": layout,
        "rows": rows,
        "users": log.report.users,
        "items": log.report.items,
        "file_bytes": path.stat().st_size,
        "seconds": round(seconds, 2),
        "rows_per_s": round(rows / seconds),
        "peak_memory_bytes": peak,
        "digest": log.digest,
    }


def main(arguments: list[str] | None = None) -> None:
    """Writes the log, loads it in a child process and passes on what that says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--layout", choices=_LAYOUTS, default="csv")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--load", type=Path, help="load this file in this process; what the child does")
    chosen = parser.parse_args(arguments)
    if chosen.load:
        _say(json.dumps(load(chosen.layout, chosen.load)))
        return
    with tempfile.TemporaryDirectory(prefix="sequitur-loading-") as folder:
        path = Path(folder) / f"events.{chosen.layout}"
        _say(f"writing {chosen.rows:,} rows")
        events = synthetic_events(chosen.rows, seed=chosen.seed)
        if chosen.layout == "csv":
            events.write_csv(path)
        else:
            events.write_parquet(path)
        del events
        command = [sys.executable, "-m", "models.loading_bench", "--layout", chosen.layout, "--load", str(path)]
        subprocess.run(command, check=True)


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
