"""`python -m models.demo`: the demo bundle, from the shipped catalogue and the seeded readers.

python -m models.demo --out artifacts/demo --overwrite
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from models import runs
from models.demo.books import BOOKS_CSV, read_books
from models.demo.readers import simulate
from models.progress import Progress
from retrieval.errors import SequiturError

# Small enough to ship (under 1 MB), large enough to beat every baseline on this log; chosen on validation cases.
OPTIONS = {
    "window": "30",
    "expansion": "2",
    "activation": "relu",
    "epochs": "30",
    "threads": "1",  # two threads add floats in another order; one gives the same weights again on the same machine
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains and exports; 0 when the bundle stands."""
    parser = argparse.ArgumentParser(prog="python -m models.demo", description="Make the demo bundle.")
    parser.add_argument("--out", type=Path, default=Path("artifacts/demo"))
    parser.add_argument("--overwrite", action="store_true", help="replace the bundle that stands there")
    parser.add_argument("--events-only", type=Path, metavar="CSV", help="write the readers' events there and stop")
    options = parser.parse_args(arguments)
    if options.events_only:
        simulate(read_books()).write_csv(options.events_only)
        return 0
    progress = Progress()
    try:
        with tempfile.TemporaryDirectory() as directory:
            events = Path(directory) / "readers.csv"
            simulate(read_books()).write_csv(events)
            source = runs.Source("csv", [events], BOOKS_CSV)
            bundle, report = runs.train(
                "sasrec", source, options.out, OPTIONS, progress=progress, overwrite=options.overwrite
            )
    except SequiturError as error:
        progress.say(f"{error.code}: {error}")
        return 2
    progress.say(f"{report}\nbundle {bundle.name} at {bundle.path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
