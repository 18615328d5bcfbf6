"""The published kind of attack against the service, with and without a query budget."""

import hashlib
import json
from pathlib import Path

import pytest

from models.demo.books import BOOKS_CSV, read_books
from models.demo.readers import simulate
from models.victim import KEY_VARIABLE

DEMO = Path(__file__).resolve().parents[2] / "artifacts" / "demo"
BUDGET = 60


@pytest.mark.train
def test_a_budget_cuts_a_thief_off_and_leaves_a_shop_alone(start_service, tmp_path, monkeypatch, capsys):
    from models.__main__ import main

    keys = tmp_path / "keys"
    keys.write_text(
        "".join(
            f"{name}:read:{hashlib.sha256(name.encode()).hexdigest()}:budget={budget}\n"
            for name, budget in (("free", 0), ("thief", BUDGET), ("shop", 250))
        )
    )
    events = tmp_path / "readers.csv"
    simulate(read_books()).write_csv(events)
    service = start_service("--bundle", str(DEMO), API_KEYS_FILE=str(keys), STORE="memory://")
    common = ["extract", "--url", service.url, "--bundle", str(DEMO), "--data", "csv", "--events", str(events)]
    common += ["--items", str(BOOKS_CSV)]

    def told(key: str, *more: str) -> dict:
        monkeypatch.setenv(KEY_VARIABLE, key)
        assert main([*common, *more]) == 0
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    how = ["--sequences", "40", "--length", "10", "--lists", "50", "--arms", "autoregressive"]
    how += ["--steps", "100", "--limit", "200"]
    lines = {key: told(key, *how)["lines"] for key in ("free", "thief")}
    popular, untaught = (line["figures"]["agreement@10"] for line in lines["free"][1:3])
    free, thief = lines["free"][-1], lines["thief"][-1]
    assert (free["questions"], free["cut_off"]) == (400, None)
    assert (thief["questions"], thief["cut_off"]) == (BUDGET, "budget_exhausted")
    assert untaught < 0.05
    assert free["figures"]["agreement@10"] > popular
    assert free["figures"]["agreement@10"] > thief["figures"]["agreement@10"] + 0.05

    honest = told("shop", "--replay")
    assert honest["asked"] > 200
    assert honest["refused"] == 0
