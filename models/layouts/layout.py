"""A layout: a form in which logs are published, by name, and where its files are found."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from models.errors import MissingData
from models.intake import Batch

Reader = Callable[[Path], Iterator[Batch]]


@dataclass(frozen=True)
class Sources:
    """The files of one log."""

    events: tuple[Path, ...]
    items: Path | None = None
    users: Path | None = None


@dataclass(frozen=True)
class Layout:
    """A form in which logs are published.

    Attributes:
        name: what `--data` says.
        summary: what it reads, in a few words.
        columns: which columns it takes, and what becomes of them.
        event_files: names looked for in a directory, the first that is there counts; each is also met with `.gz`.
        read_events: a file to batches with `user_id`, `item_id`, `timestamp` (not where `is_ordered_only`) and others.
        read_items: a file to batches with `item_id` and others.
        read_users: a file to batches with `user_id` and others; None where the layout has none.
        item_files, user_files: like `event_files`.
        is_ordered_only: the source knows the order of each user's events and no times.
        read_together: makes the reader of several event files, where what stands in one changes what another says; None
            where each speaks for itself.
        takes_all: every event file of a directory counts, and items are not looked for beside a single file, since
            any folder may hold a file of such a name.
    """

    name: str
    summary: str
    columns: str
    event_files: tuple[str, ...]
    read_events: Reader
    read_items: Reader
    read_users: Reader | None = None
    item_files: tuple[str, ...] = ()
    user_files: tuple[str, ...] = ()
    is_ordered_only: bool = False
    read_together: Callable[[Sequence[Path]], Reader] | None = None
    takes_all: bool = False

    def find(self, path: Path) -> Sources:
        """The files that a path means: itself, or those of the layout's names in a directory.

        Raises:
            MissingData: nothing is there, nothing of the layout is there, or one of several could be meant.
        """
        if path.is_dir():
            folder, events = path, self._events_in(path)
        elif path.exists():
            folder, events = path.parent, (path,)
            if self.takes_all:
                return Sources(events)
        else:
            raise MissingData(f"{path} does not exist; give the file or directory that holds the events")
        items, users = (next(iter(_found(folder, names)), None) for names in (self.item_files, self.user_files))
        return Sources(events, items, users)

    def _events_in(self, folder: Path) -> tuple[Path, ...]:
        others = {*_found(folder, self.item_files), *_found(folder, self.user_files)}
        groups = [[file for file in _found(folder, [name]) if file not in others] for name in self.event_files]
        files = (
            sorted({file for group in groups for file in group}) if self.takes_all else next(filter(None, groups), [])
        )
        if not files:
            raise MissingData(f"{folder} holds no {' or '.join(self.event_files)}, which layout {self.name} reads")
        if len(files) > 1 and not self.takes_all:
            raise MissingData(
                f"{folder} holds {', '.join(file.name for file in files)}; name the one that holds the events"
            )
        return tuple(files)


def _found(folder: Path, names: tuple[str, ...] | list[str]) -> list[Path]:
    """Files that match a name, plain before gzip; the negatives of an evaluation (`*_sample`) are not data."""
    files = [file for name in names for end in ("", ".gz") for file in sorted(folder.glob(name + end))]
    return [file for file in files if file.is_file() and "_sample." not in file.name]
