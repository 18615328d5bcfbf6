"""Before, during and after: what a run comes to.

An answer counts towards goodput when it is right and came within 50 ms of the moment its request was due; a degraded
one is right, an honest refusal is none. All is well in half a second when, of the requests due in it, no more than one
in twenty was refused, degraded, wrong, failed or late. The time to recover counts from the end of the trouble to the
first moment after which all is well twice in a row, so that one lucky half second is no recovery.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from loadtests.faults.exchanges import Course, Exchange
from loadtests.faults.verdicts import FAILED, REFUSED, RIGHT, WRONG, Audit, Verdict
from loadtests.report import percentile

PROMPT_S = 0.05
LOOK_S = 0.5
WELL = 0.95
TIMES = ("before", "during", "after")
Judged = tuple[Exchange, Verdict]


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds on the clock of the run.

    Attributes:
        begin: of what is measured.
        struck: when the trouble begins.
        lifted: when it ends.
        end: of what is measured.
        over: from when on recovery counts, where that is not the end of the trouble: what happens in a moment is over
            at once, and what follows belongs to it all the same.
    """

    begin: float
    struck: float
    lifted: float
    end: float
    over: float | None = None

    def of(self, due: float) -> str | None:
        """The time in which a request was due; None for the warm-up."""
        if not self.begin <= due < self.end:
            return None
        return TIMES[(due >= self.struck) + (due >= self.lifted)]

    def lasting(self) -> dict[str, float]:
        """Seconds of each."""
        spans = (self.struck - self.begin, self.lifted - self.struck, self.end - self.lifted)
        return dict(zip(TIMES, spans, strict=True))


def is_prompt(one: Judged) -> bool:
    """Whether it counts towards goodput."""
    exchange, verdict = one
    return verdict.word == RIGHT and exchange.done - exchange.due <= PROMPT_S


def is_well(one: Judged) -> bool:
    """Whether its user noticed nothing."""
    return is_prompt(one) and not one[1].degraded


def recovery(run: Sequence[Judged], times: Times) -> float | None:
    """Seconds from the end of the trouble until all was well; None where it never was.

    Args:
        run: in the order in which requests were due.
        times: of the run.
    """
    over = times.lifted if times.over is None else times.over
    after = [one for one in run if over <= one[0].due < times.end]
    starts = [over, *(e.due for e, v in after if not is_well((e, v)))]
    for start in starts:
        # Just after an ill one: whatever comes earlier has it within its first half second.
        start = start if start == over else start + 1e-6
        if start + 2 * LOOK_S > times.end:
            break
        if _all_well(after, start) and _all_well(after, start + LOOK_S):
            return round(start - over, 3)
    return None


def _all_well(run: Sequence[Judged], start: float) -> bool:
    window = [one for one in run if start <= one[0].due < start + LOOK_S]
    return bool(window) and sum(map(is_well, window)) >= WELL * len(window)


def of_run(course: Course, run: Sequence[Judged], times: Times, audit: Audit) -> dict[str, Any]:
    """The figures of one run.

    Args:
        course: as it was carried out.
        run: its exchanges with their verdicts, in the order in which they were due.
        times: of the run.
        audit: of the histories in the end.
    """
    parts: dict[str, list[Judged]] = {name: [] for name in TIMES}
    for one in run:
        name = times.of(one[0].due)
        if name is not None:
            parts[name].append(one)
    counted = [one for name in TIMES for one in parts[name]]
    lasting = times.lasting()

    def by_time(figure: Callable[[list[Judged]], float]) -> dict[str, float]:
        return {name: round(figure(parts[name]), 4) for name in TIMES}

    def of_right(q: float, *, questions: bool = False) -> Callable[[list[Judged]], float]:
        return lambda part: (
            1000
            * percentile([e.done - e.due for e, v in part if v.word == RIGHT and (e.is_question or not questions)], q)
        )

    p99 = by_time(of_right(99))
    refused = [e for e, v in counted if v.word == REFUSED]
    wrong = Counter(v.word for _, v in counted if v.word in WRONG)
    return {
        "requests": len(counted),
        "failed": sum(v.word == FAILED for _, v in counted),
        "failed_by": dict(Counter(v.code for _, v in counted if v.word == FAILED)),
        "refused_events": sum(not e.is_question for e in refused),
        "refused_questions": sum(e.is_question for e in refused),
        "refused_by": dict(Counter(v.code for _, v in counted if v.word == REFUSED)),
        "refused_p99_ms": round(percentile([e.done - e.left for e in refused], 99) * 1000, 4),
        "degraded_share": by_time(_degraded),
        "degraded_by": dict(Counter(reason for _, v in counted for reason in v.degraded)),
        "p50_ms": by_time(of_right(50)),
        "p99_ms": p99,
        "question_p99_ms": by_time(of_right(99, questions=True)),
        "p99_ratio": round(p99["during"] / p99["before"], 3),
        "offered_per_s": {name: round(len(parts[name]) / max(lasting[name], 1e-9), 2) for name in TIMES},
        "goodput_per_s": {
            name: round(sum(map(is_prompt, parts[name])) / max(lasting[name], 1e-9), 2) for name in TIMES
        },
        "recover_s": recovery(run, times),
        "trouble_s": round(times.lifted - times.struck, 3),
        "acknowledged": audit.acknowledged,
        "lost": audit.lost,
        "unread": audit.unread,
        "stored_twice": audit.repeated,
        "foreign": wrong["foreign"] + audit.foreign,
        **{word: wrong[word] for word in WRONG if word != "foreign"},
        "felt": sum(v.word == REFUSED or bool(v.degraded) or e.again for e, v in counted),
        "sent_again": sum(e.again for e, _ in counted),
        "lag_p99_ms": round(percentile([e.left - e.due for e, _ in counted], 99) * 1000, 4),
        "generator_cpu": course.generator_cpu,
    }


def _degraded(part: Sequence[Judged]) -> float:
    answers = [v for e, v in part if e.is_question and v.word == RIGHT]
    return sum(bool(v.degraded) for v in answers) / max(1, len(answers))
