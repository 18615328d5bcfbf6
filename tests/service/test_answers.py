"""What is sent is what is described."""

import pytest
from pydantic import TypeAdapter

from service import answers

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("method", "path", "body", "described"),
    [
        ("POST", "/v1/recommendations", {"history": ["i01"]}, answers.RecommendationAnswer),
        ("GET", "/v1/users/u/recommendations", None, answers.RecommendationAnswer),
        ("POST", "/v1/recommendations", {"history": ["i01"], "explain": True}, answers.RecommendationAnswer),
        ("POST", "/v1/rankings", {"history": ["i01"], "candidates": ["i05", "x"]}, answers.RankingAnswer),
        ("GET", "/v1/items/i01", None, answers.ItemAnswer),
        ("PUT", "/v1/items/i01", {"attributes": {"price": 3}}, answers.ItemAnswer),
        ("POST", "/v1/events", {"events": [{"user_id": "u", "item_id": "i", "event_id": "e"}]}, answers.EventsAnswer),
        ("GET", "/v1/users/u/history", None, answers.HistoryAnswer),
        ("GET", "/v1/items/i01/similar", None, answers.SimilarAnswer),
        ("GET", "/v1/model", None, answers.ModelAnswer),
        ("GET", "/readyz", None, answers.Readiness),
        ("GET", "/livez", None, answers.Liveness),
        ("GET", "/nowhere", None, answers.Problem),
        ("POST", "/v1/events", {}, answers.Problem),
    ],
)
async def test_answers_are_what_is_described(client, method, path, body, described):
    """Answers are not validated when they are sent, so they are here: strictly, and with nothing besides."""
    answer = await client.request(method, path, json=body)
    adapter = TypeAdapter(described)
    assert adapter.dump_python(adapter.validate_json(answer.content, strict=True)) == answer.json()


@pytest.mark.parametrize(
    ("method", "path", "body", "described"),
    [
        (
            "POST",
            "/v1/recommendations",
            {
                "history": ["i01"],
                "explain": True,
                "placement": {"pins": [{"item_id": "i09"}, {"item_id": "gone", "position": 2}]},
            },
            answers.RecommendationAnswer,
        ),
        (
            "POST",
            "/v1/rankings",
            {"history": ["i01"], "candidates": ["i05", "x"], "explain": True},
            answers.RankingAnswer,
        ),
        ("GET", "/v1/model", None, answers.ModelAnswer),
    ],
)
async def test_answers_of_a_bundle_that_ranks_are_what_is_described(open_client, ranked, method, path, body, described):
    async with open_client(app={"served": ranked}) as client:
        answer = await client.request(method, path, json=body)
    adapter = TypeAdapter(described)
    assert adapter.dump_python(adapter.validate_json(answer.content, strict=True)) == answer.json()
    assert "ranking" in answer.json()
