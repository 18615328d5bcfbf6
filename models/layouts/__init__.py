"""The layouts by name: how logs are published, and how each becomes rows of one form."""

from collections.abc import Mapping
from types import MappingProxyType

from models.layouts import log, movielens, recbole, sequences, sessions, tables, windows
from models.layouts.layout import Layout, Sources

__all__ = ["Layout", "Sources", "layouts"]

_FAMILIES = (tables, movielens, recbole, sequences, sessions, windows, log)
_LAYOUTS = MappingProxyType({layout.name: layout for family in _FAMILIES for layout in family.LAYOUTS})


def layouts() -> Mapping[str, Layout]:
    """Every layout by its name."""
    return _LAYOUTS
