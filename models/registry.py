"""Every system by name. A model is one file in a family folder, and nobody edits a list.

A family is a class with a few facts about itself (see `Encoder`, `Generator` and `Ranker`), a `torch.nn.Module` where
it learns by gradients. Importing its file registers it.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, get_type_hints

import numpy.typing as npt
import torch

from models import encoders, generators, rankers
from models.errors import InvalidOption, UnknownModel
from retrieval.inputs import Tables
from retrieval.sequences import FloatArray

if TYPE_CHECKING:
    from models.lists import Arrays
    from models.progress import Progress
    from models.ranker_training import Fitted, RankerTraining

Loss = tuple[torch.Tensor, int]


class Family(Protocol):
    """What is true of every model.

    Attributes:
        paper: authors, title, venue.
        stage: where it stands in a request: `encoder`, `generator` or `ranker`.
        status: how far our copy is held against its paper, in a few words.
        Config: frozen dataclass of its hyper-parameters.
        recipe: training options whose defaults this family changes.
        inputs: names from `retrieval.inputs`, in the order of `forward`.
        config: the resolved hyper-parameters.
    """

    paper: ClassVar[str]
    stage: ClassVar[str]
    status: ClassVar[str]
    Config: ClassVar[type]
    recipe: ClassVar[Mapping[str, Any]]
    inputs: ClassVar[tuple[str, ...]]
    config: Any


class Finder(Family, Protocol):
    """A model that finds items: an encoder or a generator. Its `config` has at least `window`.

    Attributes:
        exclude_seen: whether what a user had already is left out of answers unless a request says otherwise.
    """

    exclude_seen: ClassVar[bool]


class Encoder(Finder, Protocol):
    """A model that makes one query out of a history, to be compared with item vectors."""

    def hidden(self, *feeds: torch.Tensor) -> torch.Tensor:
        """float32 (B, L, D): at each slot, the query for what comes next."""
        ...

    def forward(self, *feeds: torch.Tensor) -> torch.Tensor:
        """float32 (B, D) or (B, Q, D): the query of the newest slot, which is all that serving needs."""
        ...

    def item_vectors(self) -> torch.Tensor:
        """float32 (N + 1, D): what queries are compared with; row 0 is zero."""
        ...


class Generator(Finder, Protocol):
    """A model that writes the codes of the next item, level by level or all levels at once.

    Attributes:
        semantic: options of `models.semantic_ids` whose defaults this family changes.
        memory_names: what `prefill` gives; empty where one pass gives all distributions.
        tables: what its inputs gather from beside the histories: the codes and, where it reads them, text vectors.
    """

    semantic: ClassVar[Mapping[str, Any]]
    memory_names: ClassVar[tuple[str, ...]]
    tables: Tables

    def loss(self, feeds: tuple[torch.Tensor, ...], targets: torch.Tensor, real: torch.Tensor) -> Loss:
        """The mean over all targets, catalog rows (B, n), whose slot is real, bool (B, n); and how many they are."""
        ...

    def prefill(self, *feeds: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What all steps of a request share; every tensor has the batch first."""
        ...

    def step(self, prefix: torch.Tensor, *memory: torch.Tensor) -> torch.Tensor:
        """float32 (B, M, V): log-probabilities of the next code; prefix int64 (B, M, T + 1): 0, then the T codes."""
        ...

    def distributions(self, *feeds: torch.Tensor) -> torch.Tensor:
        """float32 (B, L, V): log-probabilities of every level; only where `memory_names` is empty."""
        ...


class Ranker(Family, Protocol):
    """A model that says for each candidate how likely each task is. Made of a `Config` and a `FeatureSet`.

    Its `inputs` are names of `retrieval.features.ARRAYS`, of an instance where they depend on the features; NaN among
    the numbers means absent.
    """

    def fit(self, train: Arrays, validation: Arrays, how: RankerTraining, progress: Progress) -> Fitted:
        """Learns, and stops by what it reaches on the validation lists.

        Raises:
            Diverged: the loss stopped being a number.
        """
        ...

    def probabilities(self, feeds: Mapping[str, npt.NDArray[Any]], /) -> FloatArray:
        """float32, shape (B, C, T), of a batch of feeds; as at the first place of a page."""
        ...

    def write(self, path: Path, feeds: Mapping[str, npt.NDArray[Any]], /) -> None:
        """The ONNX graph `inputs` -> `probabilities` (B, C, T) with dynamic B, C and L; `feeds` are an example."""
        ...


_FAMILIES: dict[str, Any] = {}


def register(name: str) -> Callable[[type], type]:
    """Makes a family known under `name`."""

    def add(cls: type) -> type:
        if name in _FAMILIES:
            raise ValueError(f"model {name!r} is registered twice")
        _FAMILIES[name] = cls
        return cls

    return add


def families(stage: str | None = None) -> dict[str, Any]:
    """Every registered family by name, or those of one stage."""
    for folder in (encoders, generators, rankers):
        for module in pkgutil.iter_modules(folder.__path__, folder.__name__ + "."):
            importlib.import_module(module.name)
    return {name: made for name, made in sorted(_FAMILIES.items()) if stage in (None, made.stage)}


def family(name: str) -> Any:
    """One family.

    Raises:
        UnknownModel: no file registers that name.
    """
    known = families()
    if name not in known:
        raise UnknownModel(f"there is no model {name!r}; known are {', '.join(known)}")
    return known[name]


def configure(config: Any, options: Mapping[str, str]) -> tuple[Any, dict[str, str]]:
    """A dataclass with the options that it knows set from text, and the options that it does not know.

    Raises:
        InvalidOption: a value cannot be read as its field's type.
    """
    if not is_dataclass(config) or isinstance(config, type):
        raise TypeError(f"{config!r} is not a dataclass instance")
    hints = get_type_hints(type(config))
    known = {f.name for f in fields(config)}
    changes = {name: _parse(name, text, hints[name]) for name, text in options.items() if name in known}
    left = {name: text for name, text in options.items() if name not in known}
    return replace(config, **changes), left


def _parse(name: str, text: str, kind: Any) -> Any:
    try:
        if kind is bool:
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[text.lower()]
        return kind(text)
    except (ValueError, KeyError) as error:
        raise InvalidOption(f"--set {name}={text}: {kind.__name__} expected") from error
