"""Recommendation ids: made here, and read here when an event names the list that it followed.

An id carries the variant that answered, so a click is attributed without keeping anything of the list: on any worker,
after any restart, and for as long as a caller cares to send it.
"""

import base64
import os
import secrets
from collections.abc import Container

RANDOM_CHARS = 22  # of base64, 132 bits: nobody guesses one, and none is given twice
AT_ONCE = 256  # ids that random characters are drawn for

_drawn: list[str] = []
os.register_at_fork(after_in_child=_drawn.clear)  # or two processes would give the same ids


def new_id(variant: str) -> str:
    """A recommendation id: url-safe, at least `RANDOM_CHARS` characters, and another one every time."""
    if not _drawn:
        # Asking the system for a few bytes takes longer than all the rest, and lets other threads in between.
        random = base64.urlsafe_b64encode(secrets.token_bytes(AT_ONCE * RANDOM_CHARS * 3 // 4)).decode()
        _drawn.extend(random[at : at + RANDOM_CHARS] for at in range(0, len(random) - RANDOM_CHARS + 1, RANDOM_CHARS))
    return f"{_drawn.pop()}.{variant}"


def variant_of(recommendation_id: str, known: Container[str]) -> str | None:
    """The variant that an id was made for; None where it is no such id, or none of the known variants.

    Whatever a caller sends is an id, so what comes out must be bounded: it becomes a label.
    """
    random, _, variant = recommendation_id.rpartition(".")
    return variant if len(random) == RANDOM_CHARS and variant in known else None
