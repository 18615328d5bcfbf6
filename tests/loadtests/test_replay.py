"""Replaying held-out users gives the quality that the arithmetic gives."""

import json
import math

import numpy as np
import pytest
import toy

from loadtests import replay
from loadtests.replay import Case, Served, read_cases, scored
from loadtests.target import LoadError

CASES = [
    {"history": ["i01", "i02"], "target": "i03"},
    {"history": ["i05"], "target": "i04"},
    {"history": ["i10", "i11", "i12"], "target": "i02"},
    {"history": ["i07", "i08"], "target": "i06"},
    {"history": ["unknown", "i15"], "target": "i17"},
    {"history": ["i09"], "target": "i20"},  # not available, so it is never found
]


def write(path, cases=CASES):
    path.write_text("\n".join(json.dumps(case) for case in cases) + "\n")
    return path


def expected_ranks(k):
    """The ranks of the targets, worked out from what the toy's graph is said to do."""
    table = toy.vectors().astype(np.float64)
    ranks = []
    for case in CASES:
        rows = [toy.ITEM_IDS.index(item) + 1 for item in case["history"] if item in toy.ITEM_IDS]
        query = sum(table[row] * 0.5**age for age, row in enumerate(reversed(rows)))
        open_rows = [row for row in range(1, 20) if row not in rows]  # i20 is unavailable
        best = sorted(open_rows, key=lambda row: -float(table[row] @ query))[:k]
        target = toy.ITEM_IDS.index(case["target"]) + 1
        ranks.append(best.index(target) + 1 if target in best else 0)
    return ranks


@pytest.mark.parametrize("through", ["body", "events"])
def test_the_quality_over_http_is_the_one_computed_by_hand(service, tmp_path, capsys, through):
    ranks = expected_ranks(4)
    assert 0 < sum(rank > 0 for rank in ranks) < len(ranks)
    arguments = ["--url", service, "--cases", str(write(tmp_path / "cases")), "--k", "4", "--through", through]
    assert replay.main([*arguments, "--concurrency", "3"]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    results = document["results"]
    assert results["recall"] == pytest.approx(sum(rank > 0 for rank in ranks) / len(ranks), abs=1e-6)
    ndcg = sum(1 / math.log2(1 + rank) for rank in ranks if rank) / len(ranks)
    assert results["ndcg"] == pytest.approx(ndcg, abs=1e-6)
    assert (results["cases"], results["errors"], results["wrong"]) == (len(CASES), 0, 0)
    assert document["conditions"]["exclude_seen"] is True


def test_seen_items_can_be_kept_in(service, tmp_path, capsys):
    path = write(tmp_path / "cases", [{"history": ["i05"], "target": "i05"}])
    arguments = ["--url", service, "--cases", str(path), "--k", "3"]
    assert replay.main([*arguments, "--no-exclude-seen", "--require", "recall>=1"]) == 0
    assert replay.main([*arguments, "--require", "recall>=1"]) == 1
    assert "seen items kept in" in capsys.readouterr().out


def test_the_figures_by_hand():
    served = [
        Served(1, 0.010, "200", True),
        Served(3, 0.020, "200", True, None, ("deadline",)),
        Served(0, 0.030, "200", True, "seen"),
        Served(0, 9.000, "503", False),
    ]
    figures = scored(served)
    assert figures["recall"] == 0.5
    assert figures["ndcg"] == (1 + 0.5) / 4
    assert (figures["errors"], figures["wrong"]) == (1, 1)
    assert figures["max_ms"] == 30.0
    assert figures["degraded_by"] == {"deadline": 1}
    assert figures["codes"] == {"200": 3, "503": 1}


def test_a_case_without_an_answer_is_a_miss_and_fails_the_run(fake_service, tmp_path, capsys):
    fake = fake_service(5)
    fake.recommend = lambda body: fake.honest(body) if body["k"] == 500 else (503, {"code": "overloaded"})
    path = write(tmp_path / "cases", [{"history": ["f1"], "target": "f0"}])
    assert replay.main(["--url", fake.url, "--cases", str(path), "--k", "1"]) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out.splitlines()[-1])["results"]["recall"] == 0
    assert "errors is 1" in captured.err


@pytest.mark.parametrize("status", [503, 202])
def test_events_that_are_refused_are_an_error(fake_service, tmp_path, status):
    fake = fake_service(5)
    fake.record = lambda _body: (status, {"accepted": 0})
    path = write(tmp_path / "cases", [{"history": ["f1"], "target": "f0"}])
    assert replay.main(["--url", fake.url, "--cases", str(path), "--k", "1", "--through", "events"]) == 1


@pytest.mark.parametrize("through", ["body", "events"])
def test_what_a_request_cannot_carry_of_a_long_history_is_excluded(fake_service, tmp_path, through, capsys):
    fake = fake_service(1_300)
    history = fake.item_ids[:1_200]
    path = write(tmp_path / "cases", [{"history": history, "target": "f1200"}])
    replay.main(["--url", fake.url, "--cases", str(path), "--k", "1", "--through", through])
    asked = fake.asked[-1]
    assert asked["filter"]["exclude_ids"] == sorted(history[:200])
    if through == "body":
        assert asked["history"] == history[200:]
    else:
        sent = [event["item_id"] for body in fake.asked if "events" in body for event in body["events"]]
        assert sent == history[200:]
    assert "1 histories are longer" in capsys.readouterr().out


def test_a_history_through_events_keeps_its_order(fake_service, tmp_path):
    fake = fake_service(9)
    path = write(tmp_path / "cases", [{"history": ["f2", "f1", "f3"], "target": "f0"}])
    replay.main(["--url", fake.url, "--cases", str(path), "--k", "1", "--through", "events"])
    (events,) = [body["events"] for body in fake.asked if "events" in body]
    assert [event["item_id"] for event in events] == ["f2", "f1", "f3"]
    times = [event["timestamp"] for event in events]
    assert times == sorted(set(times))


def test_cases_are_read(tmp_path):
    assert read_cases(write(tmp_path / "cases"))[1] == Case(("i05",), "i04")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("not json", "cases:2 is not a case"),
        ('{"history": []}', "cases:2 is not a case"),
        ("[]", "cases:2 is not a case"),
        ('{"history": "i01", "target": "i02"}', "cases:2: `history` is a list"),
        ('{"history": [1], "target": "i02"}', "cases:2: `history` is a list"),
        ('{"history": [], "target": 2}', "cases:2: `history` is a list"),
        ("", "cases:2 is not a case"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, said):
    path = tmp_path / "cases"
    path.write_text(f'{{"history": [], "target": "a"}}\n{line}\n{{"history": [], "target": "a"}}\n')
    with pytest.raises(LoadError, match=said):
        read_cases(path)


def test_an_empty_or_missing_file_is_said_with_the_remedy(tmp_path):
    (tmp_path / "empty").touch()
    with pytest.raises(LoadError, match="holds no case"):
        read_cases(tmp_path / "empty")
    with pytest.raises(LoadError, match="models cases"):
        read_cases(tmp_path / "absent")


def test_nobody_to_ask_is_refused(tmp_path):
    with pytest.raises(LoadError, match="at least 1"):
        replay.main(["--cases", str(write(tmp_path / "cases")), "--concurrency", "0"])
