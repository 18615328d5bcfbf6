"""Arrays that a ranker reads, made from a seed: random ones for shapes, and lists whose labels have a known reason.

Three tasks in the known lists: `click` wants a candidate of the genre that fills the history, `like` wants a number to
be high, `share` is drawn from nothing.
"""

from typing import Any

import numpy as np

from models.lists import Arrays
from retrieval.features import Category, FeatureSet, Number
from retrieval.tasks import Task

ITEMS, GENRES, WIDTH, CITIES = 30, 5, 3, ("here", "there")
BEHAVIOURS = 2


def features(**changes: Any) -> FeatureSet:
    """Two fields and three numbers of candidates, one and two of requests, two behaviours, three tasks."""
    fields: dict[str, Any] = {
        "tasks": (Task("click"), Task("like", op=">=", value=4.0), Task("share", event_type=3)),
        "candidate_codes": (Category("id", ITEMS, 2), Category("attribute:genres", GENRES, 1, WIDTH)),
        "candidate_numbers": (Number("popularity"), Number("retrieval:score"), Number("similarity:max")),
        "request_codes": (Category("context:city", len(CITIES), words=CITIES),),
        "request_numbers": (Number("length"), Number("recency")),
        "event_fields": (0, 1),
        "behaviours": ("all", "like"),
        "windows": (6, 4),
    }
    return FeatureSet(**{**fields, **changes})


def feeds(b: int, c: int, length: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Random arrays of `features()`; a tenth of the numbers and some events are absent."""
    rng = np.random.default_rng((seed, b, c, length))

    def codes(*shape: int) -> np.ndarray:
        genres = rng.integers(0, GENRES + 2, (*shape, WIDTH))
        return np.concatenate([rng.integers(1, ITEMS + 3, (*shape, 1)), genres], axis=-1)

    def numbers(*shape: int) -> np.ndarray:
        drawn = rng.normal(size=shape).astype(np.float32)
        drawn[rng.random(shape) < 0.1] = np.nan
        return drawn

    # Behaviours one behind the other, padding in front, as `retrieval.features` lays them out.
    behaviours = np.sort(rng.integers(0, BEHAVIOURS + 1, (b, length)), axis=1)
    return {
        "candidate_codes": codes(b, c),
        "candidate_numbers": numbers(b, c, 3),
        "request_codes": rng.integers(0, len(CITIES) + 2, (b, 1)),
        "request_numbers": numbers(b, 2),
        "event_codes": np.where(behaviours[..., None] > 0, codes(b, length), 0),
        "event_behaviours": behaviours,
    }


def known(lists: int, *, candidates: int = 12, seed: int = 0) -> Arrays:
    """Lists of `features()` whose labels are drawn from known probabilities; see the module."""
    rng = np.random.default_rng(seed)
    made = feeds(lists, candidates, 8, seed)
    loved = rng.integers(2, GENRES + 2, lists)  # codes of words: 1 is the slot of unknown ones
    made["event_codes"][..., 1] = np.where(made["event_behaviours"] > 0, loved[:, None], 0)
    made["event_codes"][..., 2:] = 0
    made["candidate_codes"][..., 2:] = 0
    made["candidate_codes"][..., 1] = rng.integers(2, GENRES + 2, (lists, candidates))
    click = np.where(made["candidate_codes"][..., 1] == loved[:, None], 0.8, 0.1)
    high = np.nan_to_num(made["candidate_numbers"][..., 1])
    like = 1 / (1 + np.exp(2.0 - 2.5 * high))
    truth = np.stack([click, like, np.full_like(click, 0.3)], axis=2)
    labels = (rng.random(truth.shape) < truth).astype(np.float32)
    return Arrays(made, labels, np.zeros((lists, candidates), np.int64), np.arange(lists))
