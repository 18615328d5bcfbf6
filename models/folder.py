"""A folder of which every file registers something by name, so that nobody edits a list."""

import importlib
import pkgutil
from collections.abc import Callable
from typing import Generic, TypeVar

from models.errors import InvalidOption

T = TypeVar("T")


class Folder(Generic[T]):
    """What the files of a package make known.

    Args:
        package: its name; every module in it is imported when something is first asked for.
        kind: what its files hold, for messages.
    """

    def __init__(self, package: str, kind: str) -> None:
        self._package, self._kind = package, kind
        self._known: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Makes something known under `name`."""

        def add(thing: T) -> T:
            if name in self._known:
                raise ValueError(f"{self._kind} {name!r} is registered twice")
            self._known[name] = thing
            return thing

        return add

    def names(self) -> list[str]:
        """Every name, in alphabetical order."""
        package = importlib.import_module(self._package)
        for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
            importlib.import_module(module.name)
        return sorted(self._known)

    def get(self, name: str) -> T:
        """What is known under `name`.

        Raises:
            InvalidOption: no file registers that name.
        """
        names = self.names()
        if name not in self._known:
            raise InvalidOption(f"{self._kind} {name!r} is not known; the known ones are {', '.join(names)}")
        return self._known[name]
