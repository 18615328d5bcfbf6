"""Models by name, and options from text."""

from dataclasses import dataclass

import pytest

from models.encoders.sasrec import SASRec
from models.errors import InvalidOption, UnknownModel
from models.registry import configure, families, family, register


@dataclass(frozen=True)
class Options:
    """One field of each kind."""

    width: int = 1
    rate: float = 0.5
    wide: bool = False
    name: str = "a"


def test_every_family_says_what_the_list_shows() -> None:
    found = families()
    assert found["sasrec"] is SASRec
    for name, made in found.items():
        assert all(isinstance(getattr(made, fact), str) for fact in ("paper", "stage", "status")), name
        if made.stage != "ranker":  # what a ranker reads depends on what is declared, and it hides nothing
            assert isinstance(made.exclude_seen, bool)
            assert made.inputs
            assert made.Config().window > 0


def test_an_unknown_model_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(UnknownModel, match=r"no model 'sasrek'; known are .*sasrec"):
        family("sasrek")


def test_a_name_is_registered_once() -> None:
    families()
    with pytest.raises(ValueError, match="'sasrec' is registered twice"):
        register("sasrec")(SASRec)


def test_options_are_read_as_the_types_of_their_fields() -> None:
    made, left = configure(Options(), {"width": "3", "rate": "1e-3", "wide": "Yes", "name": "b", "depth": "4"})
    assert made == Options(3, 1e-3, True, "b")
    assert left == {"depth": "4"}


@pytest.mark.parametrize(
    ("name", "text", "kind"),
    [("width", "3.5", "int"), ("width", "", "int"), ("rate", "fast", "float"), ("wide", "perhaps", "bool")],
)
def test_a_value_of_another_type_is_refused(name: str, text: str, kind: str) -> None:
    with pytest.raises(InvalidOption, match=f"--set {name}={text}: {kind} expected"):
        configure(Options(), {name: text})


def test_only_instances_are_configured() -> None:
    with pytest.raises(TypeError, match="is not a dataclass instance"):
        configure(Options, {})
