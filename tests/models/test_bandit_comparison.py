"""Estimates beside the truth: what the table says of a world whose clicks are known, and of the published sample."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from models.__main__ import main
from models.bandit_comparison import BanditComparison, Line, compare_bandits
from models.errors import InvalidPolicy
from models.off_policy import Estimate
from models.progress import Progress
from retrieval.errors import InvalidInput

HEADER = ",timestamp,item_id,position,click,propensity_score,user_feature_0"
RATES = np.array([0.1, 0.2, 0.3, 0.6])
SAMPLER = np.array([0.1, 0.1, 0.2, 0.6])  # so it earns 0.45, and chance earns 0.3


def write(root: Path, policy: str, probabilities: np.ndarray, n: int = 3000, items: int = 4) -> Path:
    rng, chances = np.random.default_rng(len(policy)), probabilities.tolist()
    actions = rng.choice(4, n, p=probabilities)
    clicks = rng.random(n) < RATES[actions]
    lines = [
        f"{row},2019-11-24 00:{row // 60 % 60:02d}:{row % 60:02d}+00:00,{action},{1 + row % 3},{int(click)},"
        f"{chances[action]},{'ab'[row % 2]}"
        for row, (action, click) in enumerate(zip(actions.tolist(), clicks.tolist(), strict=True))
    ]
    folder = root / policy
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "men.csv").write_text("\n".join([HEADER, *lines]) + "\n")
    contexts = "".join(f"{item},{item},{item / 4}\n" for item in range(items))
    (folder / "men_item_context.csv").write_text(",item_id,item_feature_0\n" + contexts)
    return root


def write_both(root: Path) -> Path:
    write(root, "random", np.full(4, 0.25))
    return write(root, "bts", SAMPLER)


@pytest.fixture
def world(tmp_path: Path) -> Path:
    return write_both(tmp_path)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> BanditComparison:
    return compare_bandits(write_both(tmp_path_factory.mktemp("bandits")), ["men", "men"], progress=Progress())


def test_both_policies_are_found_from_each_others_logs(compared: BanditComparison) -> None:
    truths = {line.policy: line.truth.value for line in compared.lines}
    assert truths == {"bts": pytest.approx(0.45, abs=0.03), "random": pytest.approx(0.3, abs=0.03)}
    names = ["own log", "ips", "clipped ips", "snips", "clipped snips", "dm", "dr", "clipped dr"]
    assert [line.estimate.name for line in compared.lines] == names * 2
    for line in compared.lines:
        assert line.log == (
            line.policy if line.estimate.name == "own log" else {"bts": "random", "random": "bts"}[line.policy]
        )
        assert line.relative_error is not None
        assert line.relative_error < 0.15
        if line.estimate.name not in ("own log", "dm"):
            assert line.holds == {"variance": True, "bootstrap": True}


def test_weights_are_one_on_average_and_clipped_at_the_root_of_the_rows(compared: BanditComparison) -> None:
    for weighing in compared.weighings:
        assert weighing.mean == pytest.approx(1, abs=0.1)
        assert weighing.clip == pytest.approx(3000**0.5)
    assert compared.weighings[1].largest == pytest.approx(0.25 / 0.1)


def test_every_way_to_learn_the_sampler_is_judged(compared: BanditComparison) -> None:
    assert len(compared.choices) == 6
    best = compared.propensity_loss["men"]
    assert best == pytest.approx(-(SAMPLER * np.log(SAMPLER)).sum(), abs=0.05)
    assert all(choice.likeness.log_loss > best - 0.01 for choice in compared.choices)


def test_what_a_line_says() -> None:
    truth = Estimate("own log", 0.004, 0.0003, (0.0034, 0.0046), (0.0035, 0.0045), 100.0)
    low = Estimate("ips", 0.003, 0.0004, (0.0022, 0.0038), (0.0024, 0.0041), 20.0)
    line = Line("men", "bts", "random", low, truth)
    assert line.relative_error == pytest.approx(0.25)
    assert line.distance == pytest.approx(-0.001 / 0.0005)  # of the errors .0003 and .0004
    assert line.holds == {"variance": False, "bootstrap": True}
    nothing = Estimate("own log", 0.0, 0.0, (0.0, 0.0), (0.0, 0.0), 100.0)
    lone = Line("men", "bts", "random", nothing, nothing)
    assert (lone.relative_error, lone.distance) == (None, None)


def test_the_table_says_within_or_not_and_aligns(compared: BanditComparison) -> None:
    lines = [line for line in str(compared).splitlines() if line.startswith("|")]
    assert sum("is the truth" in line for line in lines) == 2
    assert len({len(line) for line in lines[:18]}) == 1
    assert "* bts from the log of random, men: weights have mean" in str(compared)


def test_the_command_writes_figures_and_results_and_is_the_same_again(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, results = tmp_path / "out.json", tmp_path / "RESULTS.md"
    asked = ["off-policy", "--events", str(world), "--campaign", "men"]
    assert main([*asked, "--json", str(out), "--results", str(results)]) == 0
    first = capsys.readouterr()
    assert "men, log of bts: 3,000 impressions" in first.err
    figures = json.loads(out.read_text())
    assert [line["policy"] for line in figures["lines"][::8]] == ["bts", "random"]
    section = results.read_text()
    assert "off-policy estimates, Open Bandit sample" in section
    assert first.out.strip() in section
    assert main(asked) == 0
    assert capsys.readouterr().out == first.out
    assert main([*asked, "--seed", "1"]) == 0
    assert capsys.readouterr().out != first.out


def test_a_bad_row_is_refused_or_left_out_aloud(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = world / "bts" / "men.csv"
    file.write_text(file.read_text() + "9,2019-11-24 00:00:00+00:00,0,1,0,0,a\n")
    asked = ["off-policy", "--events", str(world), "--campaign", "men"]
    assert main(asked) == 2
    assert "bad_row: " in capsys.readouterr().err
    assert main([*asked, "--on-bad-row", "skip"]) == 0
    assert "skipped 1: propensity_score out of range" in capsys.readouterr().err


def test_a_campaign_that_is_not_there(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["off-policy", "--events", str(world), "--campaign", "women"]) == 2
    assert "data_missing: " in capsys.readouterr().err


def test_no_campaign_is_refused(world: Path) -> None:
    with pytest.raises(InvalidInput, match="no campaign is named"):
        compare_bandits(world, [], progress=Progress())


def test_logs_of_other_items_are_refused(world: Path) -> None:
    write(world, "bts", SAMPLER, items=5)
    with pytest.raises(InvalidInput, match="different items"):
        compare_bandits(world, ["men"], progress=Progress())


def test_a_log_of_chance_that_chance_did_not_write(world: Path) -> None:
    write(world, "random", SAMPLER)
    with pytest.raises(InvalidPolicy, match="uniform chance"):
        compare_bandits(world, ["men"], progress=Progress())


@pytest.mark.data
def test_on_the_published_sample_the_truth_is_within_all_but_the_direct_method(
    shared_data: Callable[[str], Path],
) -> None:
    found = compare_bandits(shared_data("obd-small"), progress=Progress())
    truths = {(line.campaign, line.policy): line.truth.value for line in found.lines}
    assert truths == {
        ("men", "bts"): 0.0069,
        ("men", "random"): 0.0046,
        ("women", "bts"): 0.0046,
        ("women", "random"): 0.0046,
    }
    weighted = [line for line in found.lines if line.log != line.policy and line.estimate.name != "dm"]
    assert len(weighted) == 24
    assert all(line.holds["bootstrap"] for line in weighted)
    # One row of women was logged as all but impossible, and takes every estimator that does not clip with it.
    assert found.weighings[3].largest > 20_000
    assert {round(line.estimate.effective_size) for line in weighted[-6:]} == {2, 587}
