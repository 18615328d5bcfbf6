"""Raw columns into the types of the contract; a value that breaks a rule takes its row out as a named fault."""

import polars as pl

from models.errors import UnreadableData
from models.intake import Batch
from retrieval.catalog import MAX_ID_CHARS

_TIME_RULE = "a time is seconds since 1970 or ISO 8601, such as 1700000000.5 or 2023-11-14T22:13:20Z"
# The forms of ISO 8601 that are read, after "T" for the space and "." for the comma. No offset means UTC.
_WITH_OFFSET = ("%Y-%m-%dT%H:%M:%S%.f%#z", "%Y-%m-%dT%H:%M%#z")
_WITHOUT_OFFSET = ("%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%dT%H:%M", "%Y-%m-%d")
_WHOLE, _FRACTION = r"^(0|-?[1-9]\d{0,17})$", r"^-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?$"
_YES, _NO = ("true", "t", "yes", "y", "1"), ("false", "f", "no", "n", "0")


def ids(batch: Batch, name: str) -> Batch:
    """The batch with `name` as strings exactly as given, each of 1 to 256 characters."""
    column = batch.frame[name]
    if column.dtype.is_integer() or column.dtype in (pl.Categorical, pl.Enum):
        batch = batch.having(column.cast(pl.String))
    elif column.dtype not in (pl.String, pl.Null):
        raise UnreadableData(
            f"{batch.file}: column {name} is {column.dtype}; ids are strings or whole numbers: cast it"
        )
    column = batch.frame[name].cast(pl.String)
    batch = batch.reject(_is_blank(column), f"missing {name}", f"{name} is required in every row", column)
    column = batch.frame[name]
    # Bytes bound characters from above and cost nothing to count.
    if column.dtype == pl.String and (column.str.len_bytes().max() or 0) > MAX_ID_CHARS:  # type: ignore[operator]
        rule = f"an id has at most {MAX_ID_CHARS} characters"
        batch = batch.reject(column.str.len_chars() > MAX_ID_CHARS, f"overlong {name}", rule, column)
    return batch


def times(batch: Batch, name: str) -> Batch:
    """The batch with `name` as float64 seconds since 1970, finite and not negative."""
    raw = batch.frame[name]
    if raw.dtype == pl.String:
        missing = _is_blank(raw)
    elif raw.dtype.is_numeric() or raw.dtype in (pl.Datetime, pl.Date, pl.Null):
        missing = raw.is_null()
    else:
        raise UnreadableData(f"{batch.file}: column {name} is {raw.dtype}; {_TIME_RULE}")
    batch = batch.reject(missing, f"missing {name}", f"{name} is required in every row", raw.cast(pl.String))
    raw = batch.frame[name]
    seconds = _seconds(raw)
    is_early = ((seconds < 0) & seconds.is_finite()).fill_null(False)
    batch = batch.reject(is_early, f"negative {name}", "a time is not before 1970", raw.cast(pl.String))
    return _judged(batch, name, seconds.filter(~is_early), f"unparsable {name}", _TIME_RULE)


def numbers(batch: Batch, name: str) -> Batch:
    """The batch with `name` as finite float64; nothing given is null."""
    raw = batch.frame[name]
    if raw.dtype == pl.String:
        raw = pl.select(pl.when(~_is_blank(raw)).then(raw)).to_series().alias(name)
        batch = batch.having(raw)
    elif not (raw.dtype.is_numeric() or raw.dtype in (pl.Boolean, pl.Null)):
        raise UnreadableData(f"{batch.file}: column {name} is {raw.dtype} where a number is expected: cast it")
    found = raw.cast(pl.Float64, strict=False)
    return _judged(batch, name, found, f"{name} is not a number", f"{name} is a number or empty")


def flags(batch: Batch, name: str) -> Batch:
    """The batch with `name` as booleans; nothing given is true."""
    raw = batch.frame[name].cast(pl.String)
    word = raw.str.strip_chars().str.to_lowercase()
    is_known = word.is_in([*_YES, *_NO]).fill_null(True) | _is_blank(raw)
    batch = batch.reject(~is_known, f"{name} is neither true nor false", "true, false, 1, 0, yes, no or empty", raw)
    word = batch.frame[name].cast(pl.String).str.strip_chars().str.to_lowercase()
    return batch.having(~word.is_in(list(_NO)).fill_null(False))


def texts(column: pl.Series) -> pl.Series:
    """A column as strings; "" is null."""
    text = column.cast(pl.String)
    return pl.select(pl.when(text != "").then(text)).to_series().alias(column.name)


def tags(column: pl.Series) -> pl.Series:
    """A column as lists of strings: strings are split at `|`, lists stay lists, nothing given is an empty list."""
    lists = (
        column.cast(pl.List(pl.String)) if isinstance(column.dtype, pl.List) else column.cast(pl.String).str.split("|")
    )
    trimmed = lists.list.eval(pl.element().str.strip_chars().filter(pl.element().str.strip_chars() != ""))
    return trimmed.fill_null(pl.Series([[]], dtype=pl.List(pl.String)))


def natural(column: pl.Series) -> pl.Series:
    """A column of strings as whole numbers or floats where every value is one; codes such as 02460 stay strings."""
    if column.dtype != pl.String:
        return column
    column = texts(column)
    given = column.drop_nulls()
    if given.is_empty():
        return column
    for pattern, dtype in ((_WHOLE, pl.Int64), (_FRACTION, pl.Float64)):
        # A first look at a few values spares most text columns the whole pass.
        if given.head(100).str.contains(pattern).all() and given.str.contains(pattern).all():
            return column.cast(dtype)
    return column


def _seconds(column: pl.Series) -> pl.Series:
    """Seconds since 1970; null where there is no telling."""
    if column.dtype in (pl.Datetime, pl.Date):
        return column.cast(pl.Datetime("us")).dt.timestamp("us").cast(pl.Float64) / 1e6
    seconds = column.cast(pl.Float64, strict=False)
    if column.dtype != pl.String or not seconds.null_count():
        return seconds
    left = seconds.is_null()
    text = column.filter(left).str.strip_chars().str.to_uppercase()
    text = text.str.replace(r"^(\d{4}-\d{2}-\d{2}) ", "${1}T").str.replace(",", ".", literal=True)
    found = text.cast(pl.Float64, strict=False)
    for pattern in (*_WITH_OFFSET, *_WITHOUT_OFFSET):
        rest = found.is_null()
        if not rest.any():
            break
        zone = "UTC" if pattern in _WITH_OFFSET else None
        moment = text.filter(rest).str.to_datetime(pattern, time_unit="us", time_zone=zone, strict=False)
        found = found.scatter(rest.arg_true(), moment.dt.timestamp("us").cast(pl.Float64) / 1e6)
    return seconds.scatter(left.arg_true(), found)


def _judged(batch: Batch, name: str, found: pl.Series, reason: str, rule: str) -> Batch:
    """The batch with `found` in place of column `name`; what could not be read, or is not finite, becomes a fault."""
    raw = batch.frame[name]
    wrong = (found.is_null() & raw.is_not_null()) | ~found.is_finite().fill_null(True)
    batch = batch.reject(wrong, reason, rule, raw.cast(pl.String))
    return batch.having(found.filter(~wrong).alias(name))


def _is_blank(column: pl.Series) -> pl.Series:
    return column.is_null() | (column.str.strip_chars() == "").fill_null(False)
