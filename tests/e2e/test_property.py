"""Never an ineligible id, never a duplicate, always min(k, eligible): whatever is asked.

Random requests against the whole application. What is eligible is worked out here a second time, item by item and in
plain Python, from what `tests/toy.py` says of its items; nothing of `retrieval/filters.py` is used to judge it.
SEQUITUR_PROPERTY_REQUESTS raises the number of requests.
"""

import asyncio
import operator
import os
import random
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import toy
from toy_generative import toy_generative

from retrieval.bundle import Bundle
from retrieval.recommenders import load
from service.app import create_app
from service.settings import Settings

REQUESTS = int(os.environ.get("SEQUITUR_PROPERTY_REQUESTS", "300"))
AT_ONCE = 16
SEED = 20_260_101
COMPARE = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
ITEMS = {
    item_id: {
        "title": f"Item {n}",
        "categories": ["red", "all"] if n % 3 == 0 else ["blue", "all"],
        "price": float(n),
        "available": item_id != "i20",
    }
    for n, item_id in enumerate(toy.ITEM_IDS, start=1)
}
IDS = [*ITEMS, "unknown", "i00", "ä,\"'"]


def some(rng: random.Random, values: list[Any], most: int) -> list[Any]:
    return rng.choices(values, k=rng.randrange(most + 1)) if rng.random() < 0.5 else []


def rule(rng: random.Random) -> dict[str, Any]:
    match rng.randrange(4):
        case 0:
            return {"name": "price", "op": rng.choice(list(COMPARE)), "value": rng.choice([-1, 3, 7.5, 10, 20, 21])}
        case 1:
            return {"name": "price", "op": "in", "value": [float(n) for n in some(rng, list(range(22)), 6)] or [4]}
        case 2:
            return {"name": "title", "op": rng.choice(["==", "!="]), "value": f"Item {rng.randrange(22)}"}
        case _:
            return {"name": "categories", "op": "in", "value": some(rng, ["red", "blue", "green"], 2) or ["red"]}


def holds(item: dict[str, Any], condition: dict[str, Any]) -> bool:
    has, op, value = item[condition["name"]], condition["op"], condition["value"]
    if condition["name"] == "categories":
        return any(category in value for category in has)
    return has in value if op == "in" else COMPARE[op](has, value)


def question(rng: random.Random) -> dict[str, Any]:
    history = [
        item
        if rng.random() < 0.5
        else {"item_id": item, "event_type": rng.choice(["view", "click", "odd"]), "value": 1}
        for item in some(rng, IDS, 30)
    ]
    body: dict[str, Any] = {
        "k": rng.choice([1, 2, 5, 10, 19, 20, 50, 500]),
        "history": history,
        "filter": {
            "exclude_ids": some(rng, IDS, 12),
            "include_ids": some(rng, IDS, 12),
            "categories": {
                "any": some(rng, ["red", "blue", "green", "all"], 2),
                "none": some(rng, ["red", "blue", "green"], 1),
            },
            "attributes": [rule(rng) for _ in range(rng.choice([0, 0, 0, 1, 2]))],
        },
    }
    if rng.random() < 0.5:
        body["user_id"] = f"u{rng.randrange(10)}"
    if rng.random() < 0.5:
        body["exclude_seen"] = rng.random() < 0.5
    if rng.random() < 0.2:
        body["consent"] = False
    return body


def eligible(body: dict[str, Any], remembered: dict[str, list[str]]) -> set[str]:
    wanted = body["filter"]
    seen: set[str] = set()
    if body.get("exclude_seen", True):
        seen = {entry if isinstance(entry, str) else entry["item_id"] for entry in body["history"]}
        if body.get("consent", True):
            seen |= set(remembered.get(body.get("user_id", ""), []))
    return {
        item_id
        for item_id, item in ITEMS.items()
        if item["available"]
        and item_id not in seen
        and item_id not in wanted["exclude_ids"]
        and (not wanted["include_ids"] or item_id in wanted["include_ids"])
        and (not wanted["categories"]["any"] or set(item["categories"]) & set(wanted["categories"]["any"]))
        and not set(item["categories"]) & set(wanted["categories"]["none"])
        and all(holds(item, condition) for condition in wanted["attributes"])
    }


async def ask(bundle: Path) -> dict[str, int]:
    rng = random.Random(SEED)
    settings = Settings(store="memory://", deadline_ms=60_000, batch_wait_ms=1)
    app = create_app(settings, served=load(Bundle.open(bundle)))
    met = {"requests": 0, "empty": 0, "short": 0, "whole": 0, "degraded": 0}
    remembered = {f"u{n}": rng.choices(IDS, k=n) for n in range(8)}
    transport = httpx.ASGITransport(app)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://s") as http:
        for user_id, item_ids in remembered.items():
            events = [{"user_id": user_id, "item_id": item_id} for item_id in item_ids]
            if events:
                assert (await http.post("/v1/events", json={"events": events})).status_code == 202
        while met["requests"] < REQUESTS:
            bodies = [question(rng) for _ in range(min(AT_ONCE, REQUESTS - met["requests"]))]
            answers = await asyncio.gather(*(http.post("/v1/recommendations", json=body) for body in bodies))
            for body, answer in zip(bodies, answers, strict=True):
                assert answer.status_code == 200, (body, answer.text)
                got = [item["item_id"] for item in answer.json()["items"]]
                allowed = eligible(body, remembered)
                assert len(set(got)) == len(got), (body, got)
                assert set(got) <= allowed, (body, set(got) - allowed)
                assert len(got) == min(body["k"], len(allowed)), (body, got, allowed)
                met["requests"] += 1
                met["degraded"] += answer.json()["degraded"]
                met["empty" if not got else "short" if len(got) < body["k"] else "whole"] += 1
    return met


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ["encoder", "generative", "parallel", "hybrid", "generator alone"])
def test_random_requests_are_answered_with_what_is_eligible_and_all_of_it(kind, tmp_path):
    write = {
        "encoder": toy.write,
        "generative": toy_generative,
        "parallel": partial(toy_generative, parallel=True),
        "hybrid": partial(toy_generative, generation={"candidates": "hybrid"}),
        "generator alone": partial(toy_generative, dense=False),
    }[kind]
    met = asyncio.run(ask(write(tmp_path / "bundle")))
    assert met["requests"] == REQUESTS
    # A generator that asks only easy questions proves nothing.
    for kind in ("empty", "short", "whole", "degraded"):
        assert met[kind] >= REQUESTS // 50, met
