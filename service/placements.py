"""Placements: what is wanted of the lists of each place, from one file, and what a request says besides.

The file is TOML, one table for each placement, read and checked once at the start. A request names a placement, brings
one of its own, or both: then its fields stand in place of those in the file. Without a file any name is accepted and
means nothing, so that callers may name their places before anybody wants something of them.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from retrieval.errors import InvalidFilter, InvalidRule
from retrieval.filters import AttributeRule
from retrieval.recommenders import Served
from retrieval.rules import NO_RULES, Cap, Freshness, Pin, Promotion, Rules
from service.errors import ConfigurationError, InvalidRequest, of_validation
from service.questions import filter_of
from service.schemas import FilterRequest, Placement, PlacementRequest, RecommendationRequest, Word

NOTHING = Placement()
_NAME: TypeAdapter[str] = TypeAdapter(Word)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a request wants of its list, by itself and by its placement.

    Attributes:
        k: how many items.
        filter: what may be shown.
        exclude_seen: whether to leave out what was seen; None means as the model says.
        goals: see `retrieval.queries.Query`.
        rules: see there.
        is_known: whether goals and rules were checked at the start.
    """

    k: int
    filter: FilterRequest
    exclude_seen: bool | None
    goals: Mapping[str, float]
    rules: Rules
    is_known: bool


class Placements:
    """The placements of a deployment.

    Args:
        named: by name; None where there is no file.
        file: where they are from, for messages.

    Raises:
        ConfigurationError: one contradicts itself.
    """

    def __init__(self, named: Mapping[str, Placement] | None = None, file: Path | None = None) -> None:
        self._named, self._file = named, file
        self._rules: dict[str, Rules] = {}
        for name, placement in (named or {}).items():
            try:
                self._rules[name] = rules_of(placement)
            except (InvalidRule, InvalidFilter) as error:
                raise self._refused(name, error) from error

    @classmethod
    def read(cls, path: Path | None) -> "Placements":
        """The placements of a file; none where there is no path.

        Raises:
            ConfigurationError: the file cannot be read, is not TOML, or a placement in it is none.
        """
        if path is None:
            return cls()
        try:
            tables = tomllib.loads(path.read_text())
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"SEQUITUR_PLACEMENTS: {path} cannot be read ({error})") from error
        except tomllib.TOMLDecodeError as error:
            raise ConfigurationError(f"SEQUITUR_PLACEMENTS: {path} is not TOML: {error}; correct it") from error
        if not tables:
            raise ConfigurationError(
                f"SEQUITUR_PLACEMENTS: {path} holds no placement; write a table for each, or unset it"
            )
        named = {}
        for name, table in tables.items():
            if not isinstance(table, dict):
                raise ConfigurationError(f"{path}: {name!r} stands outside of a placement; write [NAME] above it")
            try:
                _NAME.validate_python(name)
                named[name] = Placement.model_validate(table)
            except ValidationError as error:
                known = ", ".join(Placement.model_fields)
                problem = of_validation(error.errors(include_url=False))
                raise ConfigurationError(
                    f"{path}, placement {name!r}: {problem}; correct it, a placement has {known}"
                ) from error
        return cls(named, path)

    def check(self, served: Served) -> None:
        """Refuses placements that mean nothing for a bundle.

        Raises:
            ConfigurationError: one names a goal, a column or a value that is not there.
        """
        for name, placement in (self._named or {}).items():
            try:
                served.recommender.check(placement.goals, self._rules[name])
                if placement.filter is not None:
                    served.filters.eligible(filter_of(placement.filter))
            except (InvalidRule, InvalidFilter) as error:
                raise self._refused(name, error) from error

    def goals(self, asked: str | PlacementRequest | None) -> Mapping[str, float]:
        """The goals of what a request says of its placement.

        Raises:
            InvalidRequest: there is no placement of that name.
        """
        return self._placement(asked).goals

    def wanted(self, asked: RecommendationRequest) -> Wanted:
        """What a request wants.

        Raises:
            InvalidRequest: there is no placement of that name.
            InvalidRule, InvalidFilter: its own placement contradicts itself.
        """
        placement, said = self._placement(asked.placement), asked.model_fields_set
        if isinstance(asked.placement, PlacementRequest):
            is_known, rules = False, rules_of(placement)
        else:
            is_known, rules = True, self._rules.get(asked.placement or "", NO_RULES)
        if "diversity" in said and asked.diversity != rules.diversity:
            rules = replace(rules, diversity=asked.diversity)
        return Wanted(
            k=asked.k if "k" in said or placement.k is None else placement.k,
            filter=asked.filter if "filter" in said or placement.filter is None else placement.filter,
            exclude_seen=placement.exclude_seen if asked.exclude_seen is None else asked.exclude_seen,
            goals=placement.goals,
            rules=rules,
            is_known=is_known,
        )

    def _placement(self, asked: str | PlacementRequest | None) -> Placement:
        name = asked.name if isinstance(asked, PlacementRequest) else asked
        named = NOTHING
        if name is not None and self._named is not None:
            if name not in self._named:
                where = "placement.name" if isinstance(asked, PlacementRequest) else "placement"
                message = f"there is no placement {name!r}; use {', '.join(self._named)}, or leave it out"
                raise InvalidRequest([{"loc": where, "msg": message}])
            named = self._named[name]
        if not isinstance(asked, PlacementRequest):
            return named
        return named.model_copy(update={field: getattr(asked, field) for field in asked.model_fields_set - {"name"}})

    def _refused(self, name: str, error: Exception) -> ConfigurationError:
        return ConfigurationError(f"{self._file}, placement {name!r}: {error}; correct it or take it out")


def rules_of(placement: Placement) -> Rules:
    """The core's form of a placement's rules.

    Raises:
        InvalidRule, InvalidFilter: they contradict themselves.
    """
    promotion = freshness = None
    if placement.promotion is not None:
        asked = placement.promotion
        where = None if asked.where is None else AttributeRule(asked.where.name, asked.where.op, asked.where.value)
        promotion = Promotion(asked.share, tuple(asked.item_ids), where)
    if placement.freshness is not None:
        age = placement.freshness
        freshness = Freshness(age.half_life_s, age.attribute, age.weight)
    return Rules(
        caps=tuple(Cap(cap.most, cap.attribute, tuple(cap.values)) for cap in placement.caps),
        pins=tuple(Pin(pin.item_id, pin.position) for pin in placement.pins),
        promotion=promotion,
        freshness=freshness,
        diversity=placement.diversity,
    )
