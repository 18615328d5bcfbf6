"""The wire format: what callers send, in their own ids, with the examples that the docs show.

Pydantic models that refuse what they do not know, because a misspelt `filter` that silently does nothing shows the
wrong items. What callers get is in `answers`.
"""

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator
from pydantic_core import PydanticCustomError

from retrieval.filters import OPS
from service.errors import InvalidRequest

MAX_BODY_BYTES = 1 << 20
MAX_ID = 256  # characters
MAX_WORD = 64  # characters of an event type or of a context's name
MAX_HISTORY = 1_000  # events
MAX_EVENTS = 500  # per call
MAX_K = 500
DEFAULT_K = 20
DEFAULT_EVENT_TYPE = "view"
MAX_CONTEXT = 32  # entries
MAX_IDS = 10_000  # in one list of a filter
MAX_CANDIDATES = 500  # of a ranking
MAX_ATTRIBUTES = 32  # of an item
MAX_TEXT = 4_096  # characters of an item's attribute
MAX_WORDS = 256  # words in one attribute of an item
MAX_GOALS = 32  # of a placement, as the caps and pins
MAX_WEIGHT = 1e6  # of a goal
MAX_CAPS = 16
MAX_PINS = 100
MAX_DEADLINE_MS = 10_000
CLOCK_SKEW_S = 86_400.0  # how far ahead of ours a caller's clock may be; milliseconds lie 50,000 years ahead


def parse_time(value: Any) -> Any:
    """Seconds since 1970 from a number or from ISO 8601; a time without zone is UTC."""
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
            value = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):
            raise PydanticCustomError("time", "a time is seconds since 1970 or ISO 8601") from None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PydanticCustomError("time", "a time is seconds since 1970 or ISO 8601")
    try:
        value = float(value)
    except OverflowError:  # JSON has integers of any length
        value = math.inf
    if not math.isfinite(value) or value < 0:
        raise PydanticCustomError("time", "a time must be finite and not before 1970")
    return value


Id = Annotated[str, Field(min_length=1, max_length=MAX_ID, strict=True)]
Word = Annotated[str, Field(min_length=1, max_length=MAX_WORD, strict=True)]
Number = Annotated[float, Field(allow_inf_nan=False, strict=True)]
Time = Annotated[
    float,
    BeforeValidator(parse_time, json_schema_input_type=float | str),
    Field(description="Seconds since 1970, or ISO 8601."),
]
# An integer of any length is JSON; what lies beyond 64 bits is read as a float, where it is one.
Integer = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Scalar = Annotated[str, Field(max_length=MAX_ID)] | bool | Integer | Number | None
Context = Annotated[dict[Word, Scalar], Field(max_length=MAX_CONTEXT)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class HistoryEvent(_Body):
    """One event of a history that the caller holds."""

    item_id: Id
    event_type: Word = DEFAULT_EVENT_TYPE
    value: Number | None = None
    timestamp: Time | None = Field(default=None, description="Left out: the moment of the request.")


class Event(HistoryEvent):
    """One event to remember."""

    user_id: Id
    timestamp: Time | None = Field(default=None, description="Left out: the moment of arrival.")
    event_id: Id | None = Field(
        default=None, description="An event with an id already seen for this user is a duplicate."
    )
    recommendation_id: Id | None = Field(default=None, description="The recommendation that this event followed.")
    context: Context | None = None


class EventsRequest(_Body):
    """Events, each stored or the whole call refused."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"events": [{"user_id": "anna", "item_id": "b42", "event_type": "click"}]}}
    )

    events: list[Event] = Field(min_length=1, max_length=MAX_EVENTS)


class MergeRequest(_Body):
    """Two users who are one: whoever came without a name and has signed in since."""

    model_config = ConfigDict(json_schema_extra={"example": {"from": "visitor-7f3a", "into": "anna"}})

    source: Id = Field(alias="from", description="Whose events move; nothing is remembered under this id afterwards.")
    into: Id

    @model_validator(mode="after")
    def _distinct(self) -> "MergeRequest":
        if self.source == self.into:
            raise PydanticCustomError("same", "`from` and `into` are the same user; there is nothing to merge")
        return self


class Categories(_Body):
    """Conditions on categories."""

    any: list[Id] = Field(
        default_factory=list, max_length=MAX_IDS, description="At least one of these; empty: no condition."
    )
    none: list[Id] = Field(default_factory=list, max_length=MAX_IDS, description="None of these.")


class AttributeCondition(_Body):
    """A condition on one attribute of the catalog."""

    name: Id
    op: Literal[OPS]  # type: ignore[valid-type]
    value: Number | str | list[Number | str]


NO_CATEGORIES = Categories()  # frozen: requests that say nothing share it


class FilterRequest(_Body):
    """What may be returned; all of it must hold."""

    exclude_ids: list[Id] = Field(default_factory=list, max_length=MAX_IDS)
    include_ids: list[Id] = Field(
        default_factory=list, max_length=MAX_IDS, description="Nothing else; empty: no condition."
    )
    categories: Categories = Field(default_factory=lambda: NO_CATEGORIES)
    attributes: list[AttributeCondition] = Field(default_factory=list, max_length=MAX_CONTEXT)
    new_only: Annotated[bool, Field(strict=True)] = Field(
        default=False, description="Only items that were added after the model was trained."
    )


NO_FILTER = FilterRequest()


class CapRequest(_Body):
    """At most so many items that share a word."""

    attribute: Id = Field(default="categories", description="A column of words.")
    most: Annotated[int, Field(ge=1, le=MAX_K, strict=True)]
    values: list[Id] = Field(
        default_factory=list, max_length=MAX_IDS, description="The words; empty: each word of the column."
    )


class PinRequest(_Body):
    """An item with a place of its own, where it may be shown."""

    item_id: Id
    position: Annotated[int, Field(ge=1, le=MAX_K, strict=True)] = Field(default=1, description="1 is the first.")


class PromotionRequest(_Body):
    """Items that get at least a share of the places."""

    share: Annotated[float, Field(gt=0, le=1, strict=True)]
    item_ids: list[Id] = Field(default_factory=list, max_length=MAX_IDS)
    where: AttributeCondition | None = Field(default=None, description="Promotes what fits it, beside `item_ids`.")


class FreshnessRequest(_Body):
    """Scores lose by age: multiplied by 1 - weight * (1 - 2^(-age / half_life_s))."""

    attribute: Id = Field(default="published", description="A column of seconds since 1970; unknown: no age.")
    half_life_s: Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
    weight: Annotated[float, Field(gt=0, le=1, strict=True)] = 1.0


K = Annotated[int, Field(ge=1, le=MAX_K, strict=True)]
Weight = Annotated[float, Field(ge=-MAX_WEIGHT, le=MAX_WEIGHT, strict=True)]
Diversity = Annotated[float, Field(ge=0, le=1, strict=True, description="How much likeness to items above costs.")]


class Placement(_Body):
    """What is wanted of the lists of one place. Everything is optional."""

    goals: Annotated[dict[Word, Weight], Field(max_length=MAX_GOALS)] = Field(
        default={}, description="Weight of each task that the ranker predicts; empty: as the bundle says."
    )
    caps: list[CapRequest] = Field(default_factory=list, max_length=MAX_CAPS)
    pins: list[PinRequest] = Field(default_factory=list, max_length=MAX_PINS)
    promotion: PromotionRequest | None = None
    freshness: FreshnessRequest | None = None
    diversity: Diversity = 0.0
    k: K | None = None
    exclude_seen: Annotated[bool, Field(strict=True)] | None = None
    filter: FilterRequest | None = None


class PlacementRequest(Placement):
    """A placement of the caller's own; with a name, that of this name with other values for the fields given here."""

    name: Word | None = None


def _placement_kind(value: Any) -> str:
    return "<name>" if isinstance(value, str) else "<placement>"


PlacementField = Annotated[
    Annotated[Word, Tag("<name>")] | Annotated[PlacementRequest, Tag("<placement>")], Discriminator(_placement_kind)
]


def _history_kind(value: Any) -> str:
    return "<id>" if isinstance(value, str) else "<event>"


HistoryEntry = Annotated[
    Annotated[Id, Tag("<id>")] | Annotated[HistoryEvent, Tag("<event>")], Discriminator(_history_kind)
]


class _Question(_Body):
    """For whom, and within what."""

    user_id: Id | None = None
    history: list[HistoryEntry] = Field(
        default_factory=list,
        max_length=MAX_HISTORY,
        description="Item ids or events, oldest first. Unknown items are passed over.",
    )
    context: Context = Field(default_factory=dict)
    model: Word | None = Field(
        default=None, description="A variant or the name of its model; left out: as experiments deal, or `default`."
    )
    consent: Annotated[bool, Field(strict=True)] = Field(
        default=True, description="false: nothing is read or stored, only this body counts."
    )
    deadline_ms: Annotated[float, Field(gt=0, le=MAX_DEADLINE_MS, strict=True)] | None = None


class RecommendationRequest(_Question):
    """For whom, how many, and what may be shown.

    With a `history`, that is what the model reads. With a `user_id`, the stored history is what it reads where no
    `history` is given, and what counts as seen in any case.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "user_id": "anna",
                "k": 5,
                "placement": {"caps": [{"attribute": "categories", "most": 2}], "diversity": 0.2},
                "filter": {
                    "categories": {"none": ["horror"]},
                    "attributes": [{"name": "price", "op": "<=", "value": 20}],
                },
            }
        }
    )

    k: K = Field(default=DEFAULT_K, description="Left out: as the placement says.")
    placement: PlacementField | None = Field(
        default=None,
        description="Where it will be shown: the name of a placement, or what is wanted of the list. `k`, `filter`, "
        "`exclude_seen` and `diversity` of this body stand in place of the placement's.",
    )
    filter: FilterRequest = Field(default_factory=lambda: NO_FILTER)
    exclude_seen: Annotated[bool, Field(strict=True)] | None = Field(
        default=None, description="Leave out what the history holds; left out: as the placement or the model says."
    )
    diversity: Diversity = 0.0
    explain: Annotated[bool, Field(strict=True)] = Field(
        default=False, description="true: the answer says how its order came about."
    )


class RankingRequest(_Question):
    """For whom, and what to put in order. Every candidate comes back, whether it was seen or is available or not."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"user_id": "anna", "candidates": ["b42", "b7", "b13"], "explain": True}},
    )

    candidates: list[Id] = Field(
        min_length=1, max_length=MAX_CANDIDATES, description="Item ids to put in order, each once."
    )
    placement: PlacementField | None = Field(
        default=None, description="As for recommendations. Only its goals count here: every candidate comes back."
    )
    explain: Annotated[bool, Field(strict=True)] = Field(
        default=False, description="true: the answer says how its order came about."
    )

    @field_validator("candidates")
    @classmethod
    def _distinct(cls, ids: list[str]) -> list[str]:
        places: dict[str, int] = {}
        for place, item_id in enumerate(ids):
            first = places.setdefault(item_id, place)
            if first != place:
                raise PydanticCustomError(
                    "duplicate",
                    "{item_id} stands twice, at {first} and at {place}; send each candidate once",
                    {"item_id": repr(item_id), "first": first, "place": place},
                )
        return ids


def _attribute_kind(value: Any) -> str | None:
    if isinstance(value, str):
        return "<text>"
    if isinstance(value, list):
        return "<words>"
    return "<number>" if isinstance(value, int | float) and not isinstance(value, bool) else None


Attribute = Annotated[
    Annotated[Number, Tag("<number>")]
    | Annotated[str, Field(max_length=MAX_TEXT), Tag("<text>")]
    | Annotated[list[Id], Field(max_length=MAX_WORDS), Tag("<words>")],
    Discriminator(
        _attribute_kind,
        custom_error_type="attribute",
        custom_error_message="an attribute is a number, a text or a list of words",
    ),
]


class ItemRequest(_Body):
    """What is to hold of an item from now on."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"attributes": {"title": "The Left Hand of Darkness", "price": 9.5}}}
    )

    attributes: Annotated[dict[Id, Attribute], Field(max_length=MAX_ATTRIBUTES)] | None = Field(
        default=None, description="All of them: numbers, texts or lists of words. Left out: as they were."
    )
    available: Annotated[bool, Field(strict=True)] = Field(default=True, description="Whether it may be shown.")


VariantName = Annotated[Word, Field(description="Which variant.")]


class ActivationRequest(_Body):
    """Which bundle to serve."""

    model_config = ConfigDict(json_schema_extra={"example": {"bundle": "books"}})

    bundle: Annotated[str, Field(min_length=1, max_length=MAX_ID, strict=True)] = Field(
        description="The name of a directory in SEQUITUR_BUNDLES."
    )
    variant: VariantName = "default"


class RollbackRequest(_Body):
    """Where to go back."""

    variant: VariantName = "default"


def check_times(events: Sequence[HistoryEvent | str], now: float, *, field: str) -> None:
    """Refuses events of the future; the schema cannot, because it knows no clock.

    Raises:
        InvalidRequest: names every event that lies more than `CLOCK_SKEW_S` ahead of `now`.
    """
    errors = [
        {
            "loc": f"{field}[{place}].timestamp",
            "msg": f"{event.timestamp:.15g} is more than a day ahead of this service's clock; send seconds since 1970, "
            "not milliseconds",
        }
        for place, event in enumerate(events)
        if not isinstance(event, str) and event.timestamp is not None and event.timestamp > now + CLOCK_SKEW_S
    ]
    if errors:
        raise InvalidRequest(errors)
