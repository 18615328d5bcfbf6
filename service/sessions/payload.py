"""An event as bytes, the same in SQLite and in Redis; so with the attributes of an item.

A payload is a JSON array: item id, event type, value, recommendation id, context; what is absent at the end is left
out. Timestamp and event id travel beside it, because the stores order and de-duplicate by them.

Encoding is strict so that decoding cannot fail: a history that cannot be read back would poison its user for good.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import repeat
from math import isfinite
from typing import Any

import orjson

from service.errors import InvalidRequest
from service.sessions import NO_EVENTS, Columns, ItemChange, StoredEvent


def encode(event: StoredEvent) -> bytes:
    """The payload of an event; one line, never a raw control character.

    Raises:
        InvalidRequest: a time or value that is not finite, or something JSON cannot hold.
    """
    if not isfinite(event.timestamp):
        raise _refused("timestamp", f"{event.timestamp!r} is not a point in time; give seconds since 1970")
    if event.value is not None and not isfinite(event.value):
        raise _refused("value", f"{event.value!r} is not a finite number; leave it out where there is none")
    fields: list[object] = [event.item_id, event.event_type]
    if event.context is not None:
        fields += [event.value, event.recommendation_id, dict(event.context)]
    elif event.recommendation_id is not None:
        fields += [event.value, event.recommendation_id]
    elif event.value is not None:
        fields += [event.value]
    try:
        if event.event_id is not None:
            event.event_id.encode()  # an id that is not text would only fail later, inside somebody else's batch
        return orjson.dumps(fields)
    except (TypeError, UnicodeEncodeError) as error:
        raise _refused("event", f"it cannot be kept as JSON: {error}") from error


def decode(
    timestamps: Iterable[float], event_ids: Iterable[str | None], payloads: Iterable[bytes]
) -> list[StoredEvent]:
    """The events that `encode` was given.

    All at once, because a history of 200 is read with every request: one call of the parser and no call of Python for
    an event without value, recommendation or context: half the price of the whole read at that length.
    """
    parsed = orjson.loads(b"[" + b",".join(payloads) + b"]")
    if not parsed:
        return []
    if set(map(len, parsed)) == {2}:
        item_ids, event_types = zip(*parsed, strict=True)
        fields = zip(item_ids, event_types, _NOTHING, timestamps, event_ids, _NOTHING, _NOTHING, strict=False)
        return list(map(_event, fields))
    events = []
    for (item_id, event_type, *rest), timestamp, event_id in zip(parsed, timestamps, event_ids, strict=True):
        value, recommendation_id, context = (*rest, None, None, None)[:3]
        events.append(_event((item_id, event_type, value, timestamp, event_id, recommendation_id, context)))
    return events


def columns(timestamps: Sequence[float], payloads: Sequence[bytes]) -> Columns:
    """What `decode` gives, by column."""
    parsed = orjson.loads(b"[" + b",".join(payloads) + b"]")
    if not parsed:
        return NO_EVENTS
    if set(map(len, parsed)) == {2}:
        item_ids, event_types = zip(*parsed, strict=True)
        return Columns(item_ids, event_types, (None,) * len(parsed), timestamps)
    values = [fields[2] if len(fields) > 2 else None for fields in parsed]
    return Columns([fields[0] for fields in parsed], [fields[1] for fields in parsed], values, timestamps)


_NOTHING = repeat(None)
_event: Callable[[tuple[Any, ...]], StoredEvent] = partial(tuple.__new__, StoredEvent)  # past its own `__new__`


def check_user_id(user_id: str) -> str:
    """The user id itself, when it is text that every store can hold."""
    return check_text(user_id, "user_id")


def check_text(text: str, field: str) -> str:
    """The text itself, when every store can hold it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _refused(field, f"{text!r} is not valid Unicode text: {error.reason}") from error
    return text


def encode_attributes(change: ItemChange) -> bytes | None:
    """The attributes of an item as one JSON object; None where the change says nothing of them.

    Raises:
        InvalidRequest: a number that is not finite, an id that is not text, or something JSON cannot hold.
    """
    try:
        change.item_id.encode()
        if change.attributes is None:
            return None
        return json.dumps(dict(change.attributes), ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise _refused("attributes", f"item {change.item_id!r} cannot be kept as JSON: {error}") from error


def decode_item(item_id: str, available: bool, attributes: bytes | None) -> ItemChange:
    """The change of which `encode_attributes` was given the attributes."""
    return ItemChange(item_id, available, orjson.loads(attributes) if attributes else None)


def check(user_id: str, events: Iterable[StoredEvent]) -> None:
    """Refuse what `encode` would refuse."""
    check_user_id(user_id)
    for event in events:
        encode(event)


def _refused(field: str, reason: str) -> InvalidRequest:
    return InvalidRequest([{"loc": field, "msg": reason}])
