"""The wire format: what callers get. Typed dictionaries: they describe what is sent and cost nothing to send."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict


class EventResult(TypedDict):
    """What became of one event, in the order given."""

    outcome: Annotated[
        Literal["accepted", "duplicate", "too_old"],
        Field(description="`too_old`: older than everything in a history that is full."),
    ]
    known: Annotated[bool, Field(description="Whether the served catalog has the item; it is kept either way.")]
    event_id: NotRequired[str]


class EventsAnswer(TypedDict):
    """What became of the events."""

    accepted: int
    results: list[EventResult]


class Step(TypedDict):
    """One step of a generator towards an item."""

    code: int
    log_probability: Annotated[float, Field(description="Its share of the item's score.")]


class Explanation(TypedDict):
    """How an item came about."""

    path: NotRequired[
        Annotated[list[Step], Field(description="Of a generated item: the model wrote these codes, one by one.")]
    ]
    tasks: NotRequired[
        Annotated[dict[str, float], Field(description="Of a ranked item: the probability of each task.")]
    ]


class Ranking(TypedDict):
    """How the ranker put a list in order."""

    formula: Annotated[str, Field(description="What a score is: `1 * click + 0.5 * like`.")]
    goals: dict[str, float]
    ranked: Annotated[int, Field(description="How many candidates the list was chosen from; 0: none was ranked.")]


class Reason(TypedDict):
    """Why an item is in a list: the rule that put it there, else what it is near to."""

    kind: Annotated[
        Literal["near", "pinned", "promoted", "filled"],
        Field(
            description="`near`: the model found it, and of the history that it read `item_id` lies nearest in its own "
            "space. `filled`: from outside the candidates, to keep to a cap."
        ),
    ]
    item_id: NotRequired[Annotated[str, Field(description="Of the history; where the item is `near` it.")]]


class RecommendedItem(TypedDict):
    """One recommendation. Scores compare within one source, those of ranked items with each other."""

    item_id: str
    score: float
    rank: int
    source: Annotated[
        str,
        Field(
            description="What found it: `generated`, `retrieval`, `described` (newer than the model, which finds it "
            "where items lie that are described alike), `popular` or `similar`."
        ),
    ]
    reason: NotRequired[
        Annotated[Reason, Field(description="Absent of popular items, and of items that have no vector.")]
    ]
    attributes: NotRequired[Annotated[Any, Field(json_schema_extra={"type": "object"})]]  # JSON already, see `cards`
    explanation: NotRequired[
        Annotated[Explanation, Field(description="Of generated and of ranked items, where asked for.")]
    ]


class ServedModel(TypedDict):
    """What answered."""

    name: str
    bundle: str
    variant: str


class RecommendationAnswer(TypedDict):
    """A list of recommendations, and how it came about."""

    recommendation_id: str
    items: list[RecommendedItem]
    next: Annotated[
        str | None,
        Field(
            description="Where the next page is, for 30 minutes. null where nothing follows, without consent, and "
            "where the store is away."
        ),
    ]
    model: ServedModel
    degraded: bool
    degraded_reasons: list[str]
    exact: NotRequired[
        Annotated[
            bool,
            Field(
                description="Of generated items: true where it is proven that scoring every eligible item would have "
                "given the same; false where it is not. Absent where nothing was generated."
            ),
        ]
    ]
    ranking: NotRequired[Annotated[Ranking, Field(description="Where the bundle ranks, and asked for by `explain`.")]]
    unmet: NotRequired[
        Annotated[
            list[str],
            Field(description="What the placement wanted and could not have, in words. Absent where all is met."),
        ]
    ]
    timings_ms: dict[str, float]


class MergeAnswer(TypedDict):
    """One user where there were two."""

    user_id: str
    moved: Annotated[int, Field(description="Events that came to be kept by it; 0 where there was nothing to move.")]


class RankedItem(TypedDict):
    """One candidate in its place."""

    item_id: str
    score: Annotated[float | None, Field(description="null where `known` is false.")]
    rank: int
    known: Annotated[
        bool, Field(description="false: not in the catalog, or the model has nothing to score it by; those come last.")
    ]
    explanation: NotRequired[Annotated[Explanation, Field(description="Of ranked items, where asked for.")]]


class RankingAnswer(TypedDict):
    """The caller's candidates, best first, then those that could not be scored in the order given."""

    items: list[RankedItem]
    source: Annotated[str, Field(description="What scored them: `ranked`, `generated`, `retrieval` or `popular`.")]
    model: ServedModel
    degraded: bool
    degraded_reasons: list[str]
    ranking: NotRequired[Annotated[Ranking, Field(description="Where the bundle ranks, and asked for by `explain`.")]]
    timings_ms: dict[str, float]


class ItemAnswer(TypedDict):
    """What holds of an item."""

    item_id: str
    available: bool
    attributes: dict[str, Any]
    is_new: Annotated[bool, Field(description="Added after the model was trained.")]
    edition: Annotated[int, Field(description="Of the catalogue, in the process that answers; 0 as it was trained.")]


class SimilarAnswer(TypedDict):
    """Items like one item."""

    item_id: str
    items: list[RecommendedItem]
    model: ServedModel
    timings_ms: dict[str, float]


class HistoryItem(TypedDict):
    """One event that is remembered."""

    item_id: str
    event_type: str
    value: float | None
    timestamp: float
    event_id: NotRequired[str]
    recommendation_id: NotRequired[str]
    context: NotRequired[Mapping[str, Any]]


class HistoryAnswer(TypedDict):
    """What is remembered of a user, oldest first; empty for a user who is not known."""

    user_id: str
    events: list[HistoryItem]


class ModelRanking(TypedDict):
    """How lists are ranked."""

    tasks: Annotated[list[str], Field(description="What is predicted of each candidate; goals weigh these.")]
    goals: Annotated[dict[str, float], Field(description="Weights, where a placement has none.")]
    candidates: Annotated[int, Field(description="How many are found and ranked, unless a list is longer.")]
    calibration: Annotated[dict[str, str], Field(description="`platt` or `isotonic`, by task.")]


class ModelVariant(TypedDict):
    """A bundle in service, by the name that `model` of a request may say."""

    name: str
    model: str
    bundle: str


class ModelAnswer(TypedDict):
    """What is being served."""

    name: str
    kind: str
    bundle: str
    digest: str
    created: str
    git_commit: str
    seed: int
    data: Mapping[str, Any]
    catalog_items: int
    edition: Annotated[int, Field(description="Of the catalogue, in the process that answers; 0 as it was trained.")]
    generation: Annotated[Mapping[str, Any], Field(description="How items are generated; empty where none are.")]
    ranking: NotRequired[Annotated[ModelRanking, Field(description="Absent where the bundle has no ranker.")]]
    window: int
    event_types: list[str]
    exclude_seen: bool
    hyper_parameters: Mapping[str, Any]
    index: Mapping[str, Any]
    metrics: Annotated[Mapping[str, Any], Field(description="Measured quality: protocol, metric, value.")]
    variants: Annotated[list[ModelVariant], Field(description="All that is served, the default one first.")]


class StoredBundle(TypedDict):
    """A directory that may be activated."""

    name: str
    bundle: NotRequired[str]
    model: NotRequired[str]
    kind: NotRequired[str]
    created: NotRequired[str]
    refused: NotRequired[Annotated[str, Field(description="Why it is no bundle. Digests are verified on activation.")]]


class BundleVariant(TypedDict):
    """What a variant serves, and what it would go back to."""

    variant: str
    bundle: str
    before: str | None


class BundlesAnswer(TypedDict):
    """What may be served, and what is."""

    bundles: list[StoredBundle]
    variants: list[BundleVariant]


class SwapAnswer(BundleVariant):
    """What a variant serves from now on."""

    shared: Annotated[bool, Field(description="Whether others were told; false: it holds for this process only.")]
    took_s: float


class Readiness(TypedDict):
    """Ready to serve; the store may be away all the same."""

    status: Literal["ready"]
    bundle: str
    store: Literal["ok", "away"]


class Liveness(TypedDict):
    """The process lives."""

    status: Literal["alive"]


class ProblemError(TypedDict):
    """One thing wrong with a request."""

    loc: str
    msg: str


class Problem(TypedDict):
    """RFC 9457, with our stable `code` and the request's id."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str
    errors: NotRequired[list[ProblemError]]
