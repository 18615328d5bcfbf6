"""The ways to answer a request, tried one after the other: each simpler and faster than the one before.

A bundle that generates has two rungs, the generator in a pool of its own with a share of the time, then the encoder
with what is left; any other has the encoder alone. Below the last one are the popular items, which need no model, no
pool and hardly any time. Whatever is not answered on the first rung says so as `degraded`.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from retrieval.recommenders import Served
from service import metrics
from service.batching import Pool, Run
from service.errors import DeadlineExceeded, Overloaded, code_of
from service.timing import Timings

_log = logging.getLogger(__name__)

Q = TypeVar("Q")
A = TypeVar("A")
TimeLeft = Callable[[], float]  # seconds; none or less where the time is over


@dataclass(slots=True)
class Call:
    """One request under way.

    Attributes:
        served: the edition that it holds from start to end, whatever takes its place meanwhile.
        now: seconds since 1970 when it came.
        deadline: on the pipeline's clock.
        budget_s: the time that it had in all.
        timings: what each stage took so far.
        reasons: why its answer is degraded, in the order in which it happened.
        variant: which of the variants `served` is of.
        is_counted: whether somebody gets the answer, and not only a trial or a shadow.
    """

    served: Served
    now: float
    deadline: float
    budget_s: float
    timings: Timings
    reasons: list[str] = field(default_factory=list)
    variant: str = "default"
    is_counted: bool = True

    def degrade(self, reason: str, error: Exception | None = None) -> None:
        """Says and counts that something simpler has to do."""
        self.reasons.append(reason)
        if not self.is_counted:
            return
        metrics.DEGRADED.labels(reason).inc()
        if error is not None:
            metrics.ERRORS.labels(code_of(error)).inc()


@dataclass(slots=True, eq=False)
class Rung(Generic[Q, A]):
    """One way to answer. Not frozen for the reason that is given in `retrieval.queries`.

    Attributes:
        batcher: carries the question.
        run: answers it.
        share: of the time that is left, after which the next rung is tried.
        late: the reason that is given when it did not answer in that time.
        failed: the reason that is given when it did not answer at all.
        is_own: whether an answer is one of this rung, and not what stood in where its model had nothing to say.
    """

    batcher: Pool
    run: Run[Q, A]
    share: float
    late: str
    failed: str
    is_own: Callable[[A], bool]


async def climb_down(
    call: Call,
    rungs: Sequence[Rung[Q, A]],
    question: Callable[[TimeLeft], Q],
    *,
    until: float,
    clock: Callable[[], float],
) -> A | None:
    """The answer of the first rung that has one; None where none has.

    Args:
        call: hears what went wrong.
        rungs: at least one, the best first.
        question: what to ask; given how much of its time is left, for those who work in steps.
        until: on the clock; what comes later is of no use.
        clock: seconds from some fixed moment.

    Raises:
        Overloaded: the last rung has no room.
    """
    for at, rung in enumerate(rungs):
        now = clock()
        deadline = now + rung.share * (until - now)
        try:
            asked = question(lambda deadline=deadline: deadline - clock())  # type: ignore[misc]
            batched = await rung.batcher.submit(asked, rung.run, deadline=deadline)
        except DeadlineExceeded as error:
            if call.is_counted:
                metrics.DEADLINE_EXCEEDED.labels(error.stage).inc()
            call.degrade(rung.late)
        except Overloaded:
            if at == len(rungs) - 1:
                raise
            call.degrade(rung.late)
        except Exception as error:
            _log.exception("the %s failed", rung.failed.removesuffix("_failed"))
            call.degrade(rung.failed, error)
        else:
            call.timings.add("queue", batched.queue_s)
            for stage, seconds in batched.stages_s.items():
                call.timings.add(stage, seconds)
            if rung.is_own(batched.answer):
                return batched.answer
            call.degrade(rung.failed if clock() < deadline else rung.late)
    return None
