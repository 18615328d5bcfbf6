"""A served recommender as an outsider sees it: it is told item ids and tells item ids. Only services of this machine.

Everything that a thief or a shop's back end needs is here, and nothing of ours: HTTP from the standard library, one
connection per thread. Scores are in the answers and are not looked at; who copies a model does without them.
"""

import json
import os
import threading
from collections.abc import Sequence
from http.client import HTTPConnection, HTTPException
from urllib.parse import urlsplit

from models.errors import VictimError

HOSTS = ("127.0.0.1", "::1", "localhost")
KEY_VARIABLE = "EXTRACT_API_KEY"
PATIENCE_MS = 10_000  # deadline of each request: what counts here is the list, not how fast it comes
WAIT_S = 30.0


class CutOff(Exception):
    """The service answers no more of these questions: 429.

    Attributes:
        code: of the problem: `rate_limited` or `budget_exhausted`.
        retry_after_s: when it would go on.
    """

    def __init__(self, code: str, retry_after_s: int) -> None:
        super().__init__(f"{code}, to be tried again in {retry_after_s} s")
        self.code = code
        self.retry_after_s = retry_after_s


class Victim:
    """The service at an address; the API key is that of the environment, if there is one.

    Raises:
        VictimError: the address is not on this machine.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or parts.hostname not in HOSTS:
            raise VictimError(
                f"{url!r} is not on this machine; only one's own service is attacked, http://127.0.0.1:8000"
            )
        self._host, self._port = parts.hostname, parts.port or 80
        key = os.environ.get(KEY_VARIABLE)
        self._headers = {"content-type": "application/json", **({"authorization": f"Bearer {key}"} if key else {})}
        self._own = threading.local()
        self._connections: list[HTTPConnection] = []

    def __enter__(self) -> "Victim":
        return self

    def __exit__(self, *_: object) -> None:
        for connection in self._connections:
            connection.close()

    def recommend(self, history: Sequence[str], k: int) -> list[str]:
        """The ids of the list for a made-up history, best first.

        Raises:
            CutOff: 429.
            VictimError: any other refusal, or nobody answers.
        """
        body = {"history": list(history), "k": k, "consent": False, "deadline_ms": PATIENCE_MS}
        connection = getattr(self._own, "connection", None)
        if connection is None:
            connection = self._own.connection = HTTPConnection(self._host, self._port, timeout=WAIT_S)
            self._connections.append(connection)
        try:
            connection.request("POST", "/v1/recommendations", json.dumps(body), self._headers)
            answer = connection.getresponse()
            said = json.loads(answer.read())
        except (OSError, HTTPException, ValueError) as error:
            connection.close()
            raise VictimError(
                f"{self._host}:{self._port} does not answer ({error}); start `python -m service`"
            ) from error
        if answer.status == 429:
            raise CutOff(said["code"], int(answer.headers["retry-after"]))
        if answer.status != 200:
            raise VictimError(f"{self._host}:{self._port} answers {answer.status}: {said.get('detail', said)}")
        return [item["item_id"] for item in said["items"]]
