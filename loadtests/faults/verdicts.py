"""Each answer judged against what its user had sent, and what had been acknowledged, when it was made.

What an answer hides of the items that were asked about is what the service took for the user's history. It has to hold
every click that was acknowledged before the question left, else the answer is `stale`; and nothing that the user had
not sent by the time it came, else it was made from somebody else's: `foreign`. An answer that says
`store_unavailable` says that it does not know the history, so it may hide less, but never more.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any

from loadtests.faults.exchanges import Exchange
from loadtests.faults.people import Step, owner

RIGHT, REFUSED, FAILED = "right", "refused", "failed"
WRONG = ("foreign", "stale", "ineligible", "repeated", "malformed")
KEPT = ("accepted", "duplicate")  # outcomes of an event that is stored


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one exchange was.

    Attributes:
        word: `right`; `refused`, honestly, with the time to come back; one of `WRONG`; or `failed`.
        code: of the answer, or of the failure.
        degraded: the reasons that an answer gives.
    """

    word: str
    code: str
    degraded: tuple[str, ...] = ()


@dataclass(slots=True)
class Ledger:
    """What users have sent and what of it was acknowledged: item -> moment, by user; and the ids of what was."""

    sent: dict[str, dict[str, float]] = field(default_factory=lambda: defaultdict(dict))
    kept: dict[str, dict[str, float]] = field(default_factory=lambda: defaultdict(dict))
    ids: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))

    def remember(self, step: Step) -> None:
        """Adds an event that was acknowledged before the run began."""
        assert step.item_id is not None
        assert step.event_id is not None
        self.sent[step.user_id][step.item_id] = self.kept[step.user_id][step.item_id] = -inf
        self.ids[step.user_id].add(step.event_id)

    def enter(self, exchanges: Iterable[Exchange]) -> None:
        """Adds the events among these."""
        for exchange in exchanges:
            step = exchange.step
            if step.item_id is None or step.event_id is None:
                continue
            sent, kept = self.sent[step.user_id], self.kept[step.user_id]
            sent[step.item_id] = min(exchange.left, sent.get(step.item_id, exchange.left))
            if is_kept(exchange):
                kept[step.item_id] = min(exchange.done, kept.get(step.item_id, exchange.done))
                self.ids[step.user_id].add(step.event_id)

    def sent_before(self, user_id: str, moment: float) -> set[str]:
        """Items that the service may know of."""
        return {item_id for item_id, at in self.sent[user_id].items() if at < moment}

    def kept_before(self, user_id: str, moment: float) -> set[str]:
        """Items that the service has to know of."""
        return {item_id for item_id, at in self.kept[user_id].items() if at < moment}


def is_kept(exchange: Exchange) -> bool:
    """Whether an event was acknowledged as stored."""
    if exchange.reply.status != 202:
        return False
    try:
        return exchange.reply.json()["results"][0]["outcome"] in KEPT
    except (ValueError, KeyError, IndexError, TypeError):
        return False


def judged(exchange: Exchange, ledger: Ledger) -> Verdict:
    """The verdict on one exchange; all events of the run have to be in the ledger."""
    reply = exchange.reply
    if reply.status and reply.header("x-request-id") not in (exchange.request_id, None):
        return Verdict("foreign", reply.code)
    if reply.status == 503 and reply.header("retry-after") and _problem(reply.body):
        return Verdict(REFUSED, _problem(reply.body))
    if not exchange.is_question:
        return Verdict(RIGHT if is_kept(exchange) else FAILED, reply.code)
    if reply.status != 200:
        return Verdict(FAILED, reply.code)
    try:
        answer = reply.json()
        reasons = tuple(answer["degraded_reasons"])
        return Verdict(_word(exchange, answer, reasons, ledger), reply.code, reasons)
    except (ValueError, KeyError, TypeError, AttributeError):
        return Verdict("malformed", reply.code)


def _word(exchange: Exchange, answer: Mapping[str, Any], reasons: Sequence[str], ledger: Ledger) -> str:
    step = exchange.step
    shown = [item["item_id"] for item in answer["items"]]
    if len(set(shown)) < len(shown):
        return "repeated"
    if not step.among.issuperset(shown):
        return "ineligible"
    sent = ledger.sent_before(step.user_id, exchange.done)
    hidden = step.among.difference(shown)
    told = {near for item in answer["items"] if (near := _near(item)) is not None}
    if not sent.issuperset(hidden | told):
        return "foreign"
    if "store_unavailable" not in reasons:
        known = ledger.kept_before(step.user_id, exchange.left)
        if not known.isdisjoint(shown):
            return "stale"
    return RIGHT


def _near(item: Mapping[str, Any]) -> str | None:
    """The item of the user's history that an item is said to be shown for, where one is said."""
    reason = item.get("reason")
    return reason.get("item_id") if isinstance(reason, Mapping) else None


def _problem(body: bytes) -> str:
    """The code of an error's body; empty where it is none."""
    try:
        return str(json.loads(body)["code"])
    except (ValueError, KeyError, TypeError):
        return ""


@dataclass(slots=True)
class Audit:
    """What the histories say that were read back in the end.

    Attributes:
        acknowledged: events that were, in all.
        lost: of these, not in the history of their user.
        foreign: events in the history of somebody else.
        repeated: events that are there twice.
        unread: users whose history was not to be had.
    """

    acknowledged: int = 0
    lost: int = 0
    foreign: int = 0
    repeated: int = 0
    unread: int = 0


def audited(ledger: Ledger, histories: Mapping[str, Mapping[str, Any] | None]) -> Audit:
    """Compares what was acknowledged with what is there.

    Args:
        ledger: of the whole run.
        histories: by user: the answer of `GET /v1/users/ID/history`, None where there was none.
    """
    audit = Audit()
    for user_id, history in histories.items():
        wanted = ledger.ids[user_id]
        audit.acknowledged += len(wanted)
        if history is None:
            audit.unread += 1
            continue
        found = [event.get("event_id") or "" for event in history["events"]]
        audit.lost += len(wanted.difference(found))
        audit.foreign += sum(owner(event_id) != user_id for event_id in found)
        audit.foreign += history["user_id"] != user_id
        audit.repeated += len(found) - len(set(found))
    return audit
