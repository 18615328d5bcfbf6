"""Requests drawn from the service's own OpenAPI document, by schemathesis: some that it allows, some that it forbids.

What it makes is taken as bytes and sent like every other case, so that all are judged by the same rules.
"""

from collections.abc import Mapping
from typing import Any

from loadtests import wire
from loadtests.cases import Case
from loadtests.target import LoadError

FAMILY = "drawn"
# Headers that this side says itself, and one that is another in every run.
CONFLICTING = (
    *("host", "content-length", "user-agent", "accept-encoding", "accept", "connection", "authorization"),
    "x-schemathesis-testcaseid",
)


def drawn(document: Mapping[str, Any], *, seed: int, count: int, headers: Mapping[str, str]) -> list[Case]:
    """`count` cases or a few less, spread over all calls of the document, half of them against it.

    Raises:
        LoadError: schemathesis is not installed.
    """
    try:
        import hypothesis
        import requests
        import schemathesis
        from schemathesis import GenerationMode
    except ImportError as error:
        raise LoadError(f"cases are drawn by schemathesis, from the dev extra ({error}); or say --drawn 0") from error
    calls: Any = schemathesis.openapi.from_dict(dict(document)).get_all_operations()
    operations = [found.ok() for found in calls]
    made: list[Case] = []
    modes = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    each = max(1, round(count / (len(operations) * len(modes))))

    def taken(case: Any) -> None:
        said = case.as_transport_kwargs(base_url="http://127.0.0.1")
        names = ("method", "url", "headers", "params", "data", "json", "cookies", "files")
        asked: Any = requests.Request(**{name: said[name] for name in names if name in said}).prepare()
        body = asked.body.encode() if isinstance(asked.body, str) else asked.body
        own = {
            name.lower(): value.decode("latin-1") if isinstance(value, bytes) else value
            for name, value in asked.headers.items()
            if name.lower() not in CONFLICTING
        }
        try:
            raw = wire.encode(asked.method or "GET", asked.path_url, body, headers={**own, **headers})
        except UnicodeEncodeError:
            return  # a header beyond Latin-1 cannot be sent by anybody
        made.append(Case(FAMILY, (raw,)))

    for operation in operations:
        for mode in modes:

            @hypothesis.seed(seed)
            @hypothesis.settings(
                max_examples=each,
                database=None,
                deadline=None,
                phases=[hypothesis.Phase.generate],
                suppress_health_check=list(hypothesis.HealthCheck),
            )
            @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
            def draw(case: Any) -> None:
                taken(case)

            try:
                draw()
            except hypothesis.errors.Unsatisfiable:
                continue  # a call without parameters allows everything
    return made
