"""Locust readers: ask, click one of the items, ask again. Every answer is held to the promise.

Locust users wait for their answers, so a slow service lowers its own load. Each user therefore has a target rate, and
a run that stays below users times rate was not sustained; `python -m loadtests open-loop` is the one that measures
latency at an offered rate. The environment sets LOADTEST_RATE (rounds per second and user), LOADTEST_K, LOADTEST_SEED.
"""

import os
import secrets
from itertools import count
from typing import Any

import numpy as np
from locust import FastHttpUser, constant_throughput, events, task
from locust.exception import StopUser

from loadtests import target
from loadtests.target import Facts, LoadError
from loadtests.traffic import Habits, click_position, visit_length

RATE = float(os.environ.get("LOADTEST_RATE", "1"))
K = int(os.environ.get("LOADTEST_K", "20"))
SEED = int(os.environ.get("LOADTEST_SEED", "1"))
HABITS = Habits(longest_visit=20)

_numbers = count()
_known: dict[str, Facts] = {}


@events.test_start.add_listener
def learn(environment: Any, **_others: Any) -> None:
    """Learns the catalog once for all users; where that is not possible there are none."""
    _known.clear()
    try:
        _known["facts"] = target.learn(environment.host or "")
    except LoadError as error:
        print(error, flush=True)
        environment.process_exit_code = 2
        if environment.web_ui is None:
            environment.runner.quit()


class Reader(FastHttpUser):
    """One person after another at one screen: a visit ends, and somebody new sits down."""

    wait_time = constant_throughput(RATE)
    default_headers = target.headers()

    def on_start(self) -> None:
        """Draws from a stream of its own, so that the number of users does not change what each one does."""
        if "facts" not in _known:
            raise StopUser
        self._rng = np.random.default_rng((SEED, next(_numbers)))
        self._sit_down()

    def _sit_down(self) -> None:
        self._user_id = f"locust-{secrets.token_hex(8)}"
        self._clicked: list[str] = []
        self._left = visit_length(self._rng, HABITS)
        self._shown: dict[str, Any] | None = None

    @task
    def read_click_and_ask_again(self) -> None:
        """One round; what is shown at its end is what is clicked in the next."""
        shown = self._shown or self._ask()
        if shown is None or not shown["items"] or not self._click(shown):
            self._sit_down()
            return
        self._shown = self._ask()
        self._left -= 1
        if self._left == 0 or self._shown is None:
            self._sit_down()

    def _ask(self) -> dict[str, Any] | None:
        """Recommendations that keep the promise; None where there are none, which Locust has counted."""
        facts = _known["facts"]
        body = {"user_id": self._user_id, "k": K}
        with self.client.post("/v1/recommendations", json=body, catch_response=True) as answer:
            if answer.status_code != 200:
                answer.failure(f"status {answer.status_code}")
                return None
            shown: dict[str, Any] = answer.json()
            hidden = self._clicked if facts.model["exclude_seen"] else []
            wrong = facts.wrong_with(shown, k=K, hidden=hidden)
            if wrong is not None:
                answer.failure(f"list is wrong: {wrong}")
                return None
            return shown

    def _click(self, shown: dict[str, Any]) -> bool:
        item_id = shown["items"][click_position(len(shown["items"]), self._rng)]["item_id"]
        event = {
            "user_id": self._user_id,
            "item_id": item_id,
            "event_type": "click",
            "event_id": secrets.token_hex(8),
            "recommendation_id": shown["recommendation_id"],
        }
        with self.client.post("/v1/events", json={"events": [event]}, catch_response=True) as answer:
            if answer.status_code != 202 or answer.json()["accepted"] != 1:
                answer.failure(f"status {answer.status_code}, not accepted")
                return False
        self._clicked.append(item_id)
        return True
