import inspect
import re

import orjson
import pytest
from pydantic import ValidationError
from starlette.exceptions import HTTPException

import retrieval.errors
from retrieval.errors import SequiturError, UnknownItem
from service import errors, schemas
from service.errors import TABLE, InvalidRequest, Overloaded, lookup, of_http, of_validation, problem, responses


def classes():
    return [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, SequiturError)]


def test_the_look_up_walks_the_hierarchy():
    class Special(Overloaded):
        """Inherits its status."""

    assert lookup(Special) == TABLE[Overloaded]
    assert lookup(KeyError)[0] == 500


def test_every_error_of_the_shell_stands_in_the_tree_and_has_a_code_of_its_own():
    tree = errors.__doc__ or ""
    ours = [c for c in classes() if c.__module__ == "service.errors"]
    for kind in ours:
        assert re.search(rf"─ {kind.__name__} ", tree), f"{kind.__name__} is missing from the tree"
    everything = {*ours, *(c for _, c in inspect.getmembers(retrieval.errors, inspect.isclass))}
    codes = [kind.code for kind in everything]
    assert len(codes) == len(set(codes))


def test_a_problem_has_the_promised_fields():
    body = orjson.loads(problem(UnknownItem("x"), request_id="r1").body)
    assert body == {
        "type": "urn:sequitur:error:unknown_item",
        "title": "No such item",
        "status": 404,
        "detail": "item 'x' is not in the catalog that is being served",
        "code": "unknown_item",
        "request_id": "r1",
    }


def test_a_fault_of_ours_shows_nothing_of_our_insides():
    answer = problem(RuntimeError("password=hunter2"), request_id="r1")
    assert answer.status_code == 500
    assert b"hunter2" not in answer.body
    assert orjson.loads(answer.body)["code"] == "internal"


def test_overload_says_when_to_come_back():
    assert problem(Overloaded("full", reason="queue_full"), request_id="r").headers["retry-after"] == "1"


def test_waiting_is_said_in_whole_seconds_that_are_enough():
    for after_s, said in ((0.02, "1"), (1.2, "2"), (3_600.0, "3600")):
        for refused in (
            errors.RateLimited("shop", 5, after_s=after_s),
            errors.BudgetExhausted("shop", 5, after_s=after_s),
        ):
            answer = problem(refused, request_id="r")
            assert (answer.status_code, answer.headers["retry-after"]) == (429, said)


def test_what_was_not_read_to_its_end_closes_the_connection():
    for refused in (errors.BodyTooLarge(5), errors.SlowBody(5)):
        assert problem(refused, request_id="r").headers["connection"] == "close"


def test_what_is_wrong_is_named_as_a_caller_would_write_it():
    with pytest.raises(ValidationError) as refused:
        schemas.RecommendationRequest.model_validate(
            {"history": ["a", {"item_id": "b", "value": "x"}, 5], "filter": {"categories": {"any": [""]}}, "k": 0}
        )
    named = of_validation(refused.value.errors())
    assert [error["loc"] for error in named.errors] == [
        "history[1].value",
        "history[2]",
        "k",
        "filter.categories.any[0]",
    ]
    assert str(named).startswith("history[1].value: ")
    assert str(named).endswith("(and 3 more)")


@pytest.mark.parametrize(
    ("status", "kind"), [(404, "NotFound"), (405, "MethodNotAllowed"), (400, "MalformedJson"), (418, "HTTPException")]
)
def test_what_the_framework_raises_becomes_ours(status, kind):
    assert type(of_http(HTTPException(status), method="PUT", path="/x")).__name__ == kind


def test_the_documentation_comes_from_the_same_table():
    documented = responses(InvalidRequest, Overloaded, errors.StoreUnavailable, Exception)
    assert set(documented) == {422, 503, 500}
    assert "overloaded" in documented[503]["description"]
    assert "store_unavailable" in documented[503]["description"]
    assert "Retry-After" in documented[503]["headers"]
