"""What is under test: where it is, what it says of itself, and what each of its answers has to keep.

A load test that only counts answers praises a service that answers nonsense quickly. So every generator here learns the
catalog over HTTP first and holds each answer to the promise: no item twice, none that had to be hidden, none that may
not be shown, and `k` of them whenever so many are left.
"""

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, Request, build_opener

HOSTS = ("127.0.0.1", "::1", "localhost", "service")  # `service` is the service of the compose file
KEY_VARIABLE = "LOADTEST_API_KEY"
PAGE = 500  # most items of one answer
MOST_EXCLUDED = 10_000  # ids that one filter may hold
MOST_BYTES = 900_000  # of a body; the service takes 1 MiB
PATIENCE_MS = 10_000  # deadline for requests that are about what is answered and not about how fast
LEARNING_S = 30.0  # longest wait for one answer while learning

_opener = build_opener(ProxyHandler({}))  # this machine is never reached through a proxy


class LoadError(Exception):
    """A load test that cannot be run as asked; the message says why and what to do instead."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What an outside client can know of a service.

    Attributes:
        model: the answer of `GET /v1/model`.
        item_ids: what may be shown, most popular first.
        is_complete: whether these are all of them; catalogs beyond about 10,000 items are known by their head.
    """

    model: Mapping[str, Any]
    item_ids: tuple[str, ...]
    eligible: frozenset[str]
    is_complete: bool

    @property
    def bundle(self) -> dict[str, Any]:
        """What a report says of the bundle."""
        return {key: self.model.get(key) for key in ("name", "bundle", "digest", "catalog_items", "index")}

    def wrong_with(
        self, answer: Mapping[str, Any], *, k: int, hidden: Collection[str], perhaps: Collection[str] = ()
    ) -> str | None:
        """The first promise that an answer breaks, in a word; None when it keeps them all.

        Args:
            answer: to a request for recommendations.
            k: how many were asked for.
            hidden: ids that must not be in it.
            perhaps: ids that need not be in it: events that were still on their way when the list was made.
        """
        if "store_unavailable" in answer["degraded_reasons"]:  # it says that it does not know what was seen
            hidden, perhaps = (), {*hidden, *perhaps}
        ids = [item["item_id"] for item in answer["items"]]
        if len(set(ids)) < len(ids):
            return "repeated"
        if not set(ids).isdisjoint(hidden):
            return "seen"
        if self.is_complete and not self.eligible.issuperset(ids):
            return "ineligible"
        gone = self.eligible.intersection({*hidden, *perhaps})
        if len(ids) > k:
            return "long"
        if len(ids) < min(k, len(self.eligible) - len(gone)):
            return "short"
        return None


def checked_url(url: str) -> str:
    """The address without a trailing slash, when it is one that may be loaded.

    Raises:
        LoadError: another machine: load belongs on services of one's own.
    """
    parts = urlsplit(url)
    if parts.scheme != "http" or parts.hostname is None:
        raise LoadError(f"{url!r} is not the address of a service; write http://127.0.0.1:8000")
    if parts.hostname not in HOSTS:
        raise LoadError(
            f"{parts.hostname} is another machine, which load tests leave alone; they go to {', '.join(HOSTS)}"
        )
    return url.rstrip("/")


def headers() -> dict[str, str]:
    """The API key of the environment, as a header, where there is one."""
    key = os.environ.get(KEY_VARIABLE)
    return {"authorization": f"Bearer {key}"} if key else {}


def learn(url: str, key: Mapping[str, str] | None = None) -> Facts:
    """Asks a service what it serves, and pages through its catalog by excluding what is known already.

    Args:
        url: of the service.
        key: the header with its API key; from the environment when left out.

    Raises:
        LoadError: nobody answers there, or not as this service does.
    """
    base = checked_url(url)
    model = _ask(f"{base}/v1/model", key=key)
    known: list[str] = []
    is_complete = False
    while not is_complete and len(known) <= MOST_EXCLUDED:
        body = {"k": PAGE, "consent": False, "filter": {"exclude_ids": known}, "deadline_ms": PATIENCE_MS}
        if len(json.dumps(body)) > MOST_BYTES:
            break
        page = [item["item_id"] for item in _ask(f"{base}/v1/recommendations", body, key=key)["items"]]
        known += page
        is_complete = len(page) < PAGE
    if not known:
        raise LoadError(f"{base} recommends nothing at all; there is nothing to load")
    return Facts(model, tuple(known), frozenset(known), is_complete)


def _ask(address: str, body: Mapping[str, Any] | None = None, *, key: Mapping[str, str] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = Request(address, data, {"content-type": "application/json", **(headers() if key is None else key)})
    try:
        with _opener.open(request, timeout=LEARNING_S) as answer:
            return json.load(answer)
    except HTTPError as error:
        with error:
            detail = error.read(300).decode(errors="replace")
        raise LoadError(f"{address} answers {error.code}: {detail}") from error
    except (URLError, OSError, ValueError) as error:
        raise LoadError(f"{address} does not answer ({error}); start `python -m service` first") from error
