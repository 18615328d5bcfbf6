"""`python -m service.journal drain redis-stream://host:port/db/name DIRECTORY`: from a stream into files.

Run it now and then, and once more before training; `python -m models compact DIRECTORY` makes Parquet of the files.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from service.errors import ConfigurationError
from service.journal.drain import drain
from service.journal.stream import address
from service.journal.writer import SinkFailure


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when the stream is drained, 2 when that was refused, 130 when it was interrupted."""
    parser = argparse.ArgumentParser(prog="python -m service.journal", description="The durable log.")
    commands = parser.add_subparsers(required=True, metavar="command")
    draining = commands.add_parser("drain", help="move the entries of a Redis stream into files")
    draining.add_argument("stream", help="redis-stream://host:port/db/name")
    draining.add_argument("directory", type=Path, help="where the files go, for --data log")
    said = parser.parse_args(arguments)
    try:
        moved = drain(address(said.stream), said.directory, on_progress=_say)
    except (ConfigurationError, SinkFailure) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except OSError as error:
        sys.stderr.write(f"{error.filename or said.directory}: {error.strerror or error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    sys.stdout.write(f"{moved:,} records in {said.directory}\n")
    return 0


def _say(moved: int) -> None:
    sys.stderr.write(f"{moved:,} records moved\n")


if __name__ == "__main__":
    sys.exit(main())
