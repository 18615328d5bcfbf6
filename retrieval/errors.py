"""What the core can refuse.

SequiturError
├── BundleError          a bundle directory that cannot be served
│   ├── BundleMissing    there is no such directory, or no manifest in it
│   ├── BundleTorn       a listed file is missing or unreadable
│   ├── BundleTampered   a file is not the one the manifest describes
│   └── BundleForeign    another layout, kind or provenance than this version understands
├── EmptyHistory         nothing in the history is known to the catalog
├── UnknownItem          an item id that is not in the catalog
├── InvalidFilter        a filter that cannot mean anything for this catalog
├── InvalidRule          a rule of a placement, or a goal, that cannot mean anything
└── InvalidInput         an array or number outside what a function accepts

An error carries data and a stable `code`; it knows nothing of HTTP.
"""

from typing import ClassVar


class SequiturError(Exception):
    """The root of every error that this project raises on purpose."""

    code: ClassVar[str] = "internal"


class BundleError(SequiturError):
    """A bundle that cannot be served; the message says which file or field and what to do."""

    code = "bundle_invalid"


class BundleMissing(BundleError):
    """No bundle where one was expected."""

    code = "bundle_missing"


class BundleTorn(BundleError):
    """A file that the manifest lists is missing, truncated or unreadable."""

    code = "bundle_torn"


class BundleTampered(BundleError):
    """A file does not have the digest that the manifest states, or points outside the bundle."""

    code = "bundle_tampered"


class BundleForeign(BundleError):
    """A layout version, kind or graph input that this version does not know."""

    code = "bundle_foreign"


class EmptyHistory(SequiturError):
    """Nothing in the history is known to the catalog, so there is nothing to encode."""

    code = "empty_history"


class UnknownItem(SequiturError):
    """An item id that the catalog does not hold."""

    code = "unknown_item"

    def __init__(self, item_id: str) -> None:
        super().__init__(f"item {item_id!r} is not in the catalog that is being served")
        self.item_id = item_id


class InvalidFilter(SequiturError):
    """A filter names an attribute or an operator that cannot be applied to this catalog."""

    code = "invalid_filter"


class InvalidRule(SequiturError):
    """A rule of a placement names something that cannot be, or contradicts another; or a goal that no task serves."""

    code = "invalid_rule"


class InvalidInput(SequiturError):
    """An argument outside its stated range, shape or dtype."""

    code = "invalid_input"
