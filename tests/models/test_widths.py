"""Beam widths beside scoring every item."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import toy
from toy_generative import toy_generative

from models.histories import Histories
from models.splits import Cases, leave_one_out
from models.widths import study
from retrieval.bundle import Bundle
from retrieval.errors import InvalidInput


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.open(toy_generative(tmp_path_factory.mktemp("bundle") / "toy"))


@pytest.fixture(scope="module")
def cases() -> Cases:
    rng = np.random.default_rng(0)
    return leave_one_out(Histories.from_rows([rng.permutation(20)[:6] + 1 for _ in range(12)])).test


def test_as_wide_as_the_catalogue_it_is_exact(bundle: Bundle, cases: Cases) -> None:
    wide = study(bundle, cases, widths=(20,), k=5, exhaustive=12).lines
    assert [line.beams for line in wide] == [20, 19]  # one item has no code
    assert [(line.identical, line.found, line.certified) for line in wide] == [(1, 1, 1), (1, 1, 1)]
    assert wide[0].recall == wide[1].recall


def test_a_certificate_is_never_given_to_another_list(bundle: Bundle, cases: Cases) -> None:
    found = study(bundle, cases, widths=(1, 3, 5, 8), k=3, exhaustive=12)
    for line in found.lines:
        assert 0 <= line.certified <= line.identical <= 1
        assert line.identical <= line.found <= 1
    assert found.lines[0].found <= found.lines[-2].found


def test_only_the_drawn_cases_are_scored_whole(bundle: Bundle, cases: Cases) -> None:
    done: list[tuple[int, int]] = []
    found = study(bundle, cases, widths=(5,), k=3, exhaustive=4, on_progress=lambda *at: done.append(at))
    assert [line.cases for line in found.lines] == [12, 4]
    assert done[-1] == (16, 16)


def test_it_is_a_table_and_json(bundle: Bundle, cases: Cases) -> None:
    found = study(bundle, cases, widths=(5,), k=3, exhaustive=4)
    assert str(found).splitlines()[0] == "| beams | cases | recall@3 | ndcg@3 | certified | identical | found | ms |"
    assert json.loads(json.dumps(found.lines[0].to_json()))["beams"] == 5


def test_a_bundle_without_generator_is_refused(tmp_path: Path, cases: Cases) -> None:
    with pytest.raises(InvalidInput, match="holds no generator"):
        study(Bundle.open(toy.write(tmp_path / "toy")), cases, widths=(5,))


def test_no_case_is_refused(bundle: Bundle, cases: Cases) -> None:
    nobody = replace(cases, targets=cases.targets[:0], starts=cases.starts[:0], ends=cases.ends[:0])
    with pytest.raises(InvalidInput, match="no case"):
        study(bundle, nobody, widths=(5,))
