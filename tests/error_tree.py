"""What every room's `errors.py` promises: a tree at the top that is the truth, and codes that mean one thing."""

import inspect
from types import ModuleType

from retrieval.errors import SequiturError


def check(module: ModuleType) -> None:
    """Holds the tree in the module's docstring, its classes and their codes against each other."""
    own = {name: cls for name, cls in inspect.getmembers(module, inspect.isclass) if cls.__module__ == module.__name__}
    assert own
    drawn = {line.strip("│├└─ ").split()[0] for line in (module.__doc__ or "").splitlines() if "── " in line}
    assert drawn == set(own) - {"SequiturError"}
    for cls in own.values():
        assert issubclass(cls, SequiturError)
        assert cls.__doc__
        assert "code" in vars(cls), f"{cls.__name__} has no code of its own"
    assert len({cls.code for cls in own.values()}) == len(own)
