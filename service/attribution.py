"""Recommendation ids: made here, and read here when an event names the list that it followed.

An id carries the variant that answered, so a click is attributed without keeping anything of the list: on any worker,
after any restart, and for as long as a caller cares to send it.
"""

import secrets
from collections.abc import Container

RANDOM_BYTES = 16  # nobody guesses one, and none is given twice
RANDOM_CHARS = 22  # of base64 without padding


def new_id(variant: str) -> str:
    """A recommendation id: url-safe, at least `RANDOM_CHARS` characters, and another one every time."""
    return f"{secrets.token_urlsafe(RANDOM_BYTES)}.{variant}"


def variant_of(recommendation_id: str, known: Container[str]) -> str | None:
    """The variant that an id was made for; None where it is no such id, or none of the known variants.

    Whatever a caller sends is an id, so what comes out must be bounded: it becomes a label.
    """
    random, _, variant = recommendation_id.rpartition(".")
    return variant if len(random) == RANDOM_CHARS and variant in known else None
