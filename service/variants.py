"""Variants: several bundles served at once, each under a name, and which of them answers a request.

`default` is always there and serves the bundle of the settings. A TOML file may name others, deal requests out among
them, and let one see a share of what another answers:

    [variants.challenger]
    bundle = "books"                # a directory in SEQUITUR_BUNDLES

    [experiments.home]
    shares = {challenger = 0.1}     # of users; whoever is left goes to the next experiment, or to `default`
    placements = ["home"]           # left out: wherever a list is shown

    [shadow.challenger]
    of = "default"
    share = 0.2

A user's place in an experiment is a hash of both, so it is the same on every worker and after every restart, it moves
only for those whom a changed share moves, and it says nothing of that user's place in another experiment. Without a
user id the history of the request stands for one: the same question has the same answer.
"""

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from retrieval.errors import BundleMissing
from retrieval.recommenders import Served
from service.errors import ConfigurationError, InvalidRequest, of_validation
from service.schemas import HistoryEvent, PlacementRequest, RankingRequest, RecommendationRequest, Word

DEFAULT = "default"
MAX_VARIANTS = 16  # each is a whole bundle in memory, and a label
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$")]  # part of recommendation ids and labels
Share = Annotated[float, Field(gt=0, le=1)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class VariantTable(_Table):
    """Another bundle to serve."""

    bundle: Annotated[str, Field(min_length=1)]


class ExperimentTable(_Table):
    """Who is answered by what.

    Attributes:
        shares: of users by variant; together at most 1.
        placements: where it holds; empty: everywhere.
    """

    shares: Annotated[dict[Name, Share], Field(min_length=1)]
    placements: tuple[Word, ...] = ()


class ShadowTable(_Table):
    """A variant that is asked as well, for a share of the requests that another answers, and not listened to."""

    of: Name
    share: Share


class Plan(_Table):
    """What the file says; empty where there is none."""

    variants: Annotated[dict[Name, VariantTable], Field(max_length=MAX_VARIANTS)] = {}
    experiments: dict[Name, ExperimentTable] = {}
    shadow: dict[Name, ShadowTable] = {}

    @classmethod
    def read(cls, path: Path | None) -> "Plan":
        """The plan of a file; an empty one where there is no path.

        Raises:
            ConfigurationError: the file cannot be read, is not TOML, or something in it means nothing.
        """
        if path is None:
            return cls()
        try:
            tables = tomllib.loads(path.read_text())
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"SEQUITUR_VARIANTS: {path} cannot be read ({error})") from error
        except tomllib.TOMLDecodeError as error:
            raise ConfigurationError(f"SEQUITUR_VARIANTS: {path} is not TOML: {error}; correct it") from error
        try:
            plan = cls.model_validate(tables)
        except ValidationError as error:
            problem = of_validation(error.errors(include_url=False))
            raise ConfigurationError(
                f"{path}: {problem}; correct it, there are [variants.NAME] with a bundle, [experiments.NAME] with "
                "shares and placements, and [shadow.NAME] with of and share"
            ) from error
        for said in plan._contradictions():
            raise ConfigurationError(f"{path}, {said}")
        return plan

    @property
    def names(self) -> tuple[str, ...]:
        """All variants, `default` first."""
        return (DEFAULT, *self.variants)

    def _contradictions(self) -> Iterator[str]:
        known = ", ".join(self.names)
        if DEFAULT in self.variants:
            yield f"variant {DEFAULT!r}: it serves the bundle of SEQUITUR_BUNDLE; take it out or call it otherwise"
        for name, experiment in self.experiments.items():
            for variant in experiment.shares:
                if variant not in self.names:
                    yield f"experiment {name!r}: there is no variant {variant!r}; use {known}"
            total = sum(experiment.shares.values())
            if total > 1 + 1e-9:
                yield f"experiment {name!r}: the shares add up to {total:g}; they must not exceed 1"
        for name, shadow in self.shadow.items():
            for variant in (name, shadow.of):
                if variant not in self.names:
                    yield f"shadow {name!r}: there is no variant {variant!r}; use {known}"
            if name == shadow.of:
                yield f"shadow {name!r}: a variant cannot be its own shadow; name another one in `of`"


@dataclass(slots=True, eq=False)
class Variant:
    """One bundle in service. The event loop alone changes it, and a request keeps the `served` that it began with.

    Attributes:
        name: see `Plan`.
        served: what answers now.
        version: of the store's item changes, as far as they are in `served`.
        before: what answered before the last swap, and its version; None where there was no swap.
    """

    name: str
    served: Served
    version: int = 0
    before: tuple[Served, int] | None = field(default=None, repr=False)


class Variants:
    """The variants of a process, and which of them answers.

    Args:
        served: by name, one for each of the plan.
        plan: see there.
    """

    def __init__(self, served: Mapping[str, Served], plan: Plan | None = None) -> None:
        self.plan = plan or Plan()
        self._named = {name: Variant(name, served[name]) for name in self.plan.names}
        self.default = self._named[DEFAULT]

    def __iter__(self) -> Iterator[Variant]:
        return iter(self._named.values())

    def __contains__(self, name: object) -> bool:
        return name in self._named

    def named(self, name: str, *, loc: str = "variant") -> Variant:
        """The variant of a name.

        Raises:
            InvalidRequest: there is none; `loc` is where the name stood.
        """
        if name not in self._named:
            message = f"{name!r} is not served here; leave it out or use {', '.join(self._named)}"
            raise InvalidRequest([{"loc": loc, "msg": message}])
        return self._named[name]

    def choose(self, asked: RecommendationRequest | RankingRequest) -> Variant:
        """What answers a request: the variant or the model that it names, or the one that it is dealt.

        Raises:
            InvalidRequest: it names one that is not served.
        """
        if asked.model is not None:
            for variant in () if asked.model in self._named else self:
                if variant.served.bundle.manifest.model == asked.model:
                    return variant
            return self.named(asked.model, loc="model")
        if not self.plan.experiments:
            return self.default
        who = unit_of(asked)
        if who is None:
            return self.default
        placement = asked.placement.name if isinstance(asked.placement, PlacementRequest) else asked.placement
        for name, experiment in self.plan.experiments.items():
            if not experiment.placements or placement in experiment.placements:
                dealt = deal(name, who, experiment.shares)
                if dealt is not None:
                    return self._named[dealt]
        return self.default


def unit_of(asked: RecommendationRequest | RankingRequest) -> str | None:
    """Who is dealt a variant: the user, else the history that was sent; None where there is neither."""
    if asked.user_id is not None:
        return f"u{asked.user_id}"
    if not asked.history:
        return None
    return "h" + "\0".join(one.item_id if isinstance(one, HistoryEvent) else one for one in asked.history)


def deal(experiment: str, who: str, shares: Mapping[str, float]) -> str | None:
    """The variant that somebody gets in an experiment; None where they are left out of it."""
    place, end = place_of(experiment, who), 0.0
    for variant, share in shares.items():
        end += share
        if place < end:
            return variant
    return None


def place_of(salt: str, who: str) -> float:
    """Where somebody stands between 0 and 1: evenly spread, and for another salt independent of this."""
    digest = blake2b(f"{salt}\0{who}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53  # 53 bits: more would be rounded up to 1


def bundle_path(directory: Path, name: str) -> Path:
    """Where the bundle of a name lies: directly in the directory, whatever the name looks like.

    Raises:
        BundleMissing: the name is none, or leads elsewhere.
    """
    # Names that begin with a dot are exports that are still being written.
    if not name or name.startswith(".") or "/" in name or "\\" in name or "\0" in name:
        raise BundleMissing(f"{name[:80]!r} is not the name of a bundle; name a directory in {directory}")
    path = (directory / name).resolve()
    if path.parent != directory.resolve() or not path.is_dir():
        raise BundleMissing(f"there is no bundle {name[:80]!r} in {directory}; see GET /v1/admin/bundles")
    return path
