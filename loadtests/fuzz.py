"""Requests that nobody should send, by the hundred thousand: whatever comes, a live service answers rightly.

Cases are of hand-made families (`bodies`, `envelopes`) and drawn from the OpenAPI document (`loadtests.drawings`). For
each holds: an answer, unless there was no whole request; no 5xx but 503 and 504; every error a problem (RFC 9457) with
all its members, in JSON that everybody reads. What the HTTP server refuses before the application sees it is counted
apart. A witness, whose history nobody else touches, is asked now and then and at the end: it has to be answered by
model, with its own history. The process has to live, and none of its log lines may tell of an exception.

What fails is kept, one JSON line per case, and `--replay FILE` sends it again.
"""

import argparse
import asyncio
import base64
import hashlib
import json
import os
import random
import secrets
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from loadtests import bodies, cases, drawings, envelopes, objectives, report, rivals, target, wire
from loadtests.cases import Case, Families, Ground
from loadtests.report import Report
from loadtests.target import LoadError
from loadtests.wire import Reply, Wire

FAMILIES = Families({**bodies.FAMILIES, **envelopes.FAMILIES})
MEMBERS = ("type", "title", "status", "detail", "code", "request_id")
REFUSED_BY_SERVER = b"Invalid HTTP request received."  # what uvicorn says, as text and not as a problem
SERVER_ERRORS = (503, 504)  # that may be
CALLERS = 12
PATIENCE_S = 20.0
KEPT = 200  # failures that are written down
WITNESS_EVERY = 2_000
PATIENT = 20  # questions of the witness, one after the other, that may be shed
RETRY_S = 0.25
WITNESS = "fuzz-witness"
KEPT_IN = Path(".state/fuzz-failures.jsonl")


class _Constant(ValueError):
    pass


def _no_constant(name: str) -> Any:
    raise _Constant(name)


def strictly(body: bytes) -> Any:
    """JSON as the standard has it.

    Raises:
        ValueError: it is none; NaN and infinities are none.
    """
    return json.loads(body.decode("utf-8"), parse_constant=_no_constant)


def wrong_with(case: Case, reply: Reply) -> str | None:
    """What an answer may not be, in a few words; None when all is well."""
    if not reply.status:
        return None if case.may_be_silent and reply.failure == "closed" else f"no answer: {reply.failure}"
    if reply.status >= 500 and reply.status not in SERVER_ERRORS:
        return f"status {reply.status}"
    if is_refused_by_server(reply) or case.parts[0].startswith(b"HEAD "):
        return None
    if reply.status >= 400:
        return wrong_with_problem(reply)
    if (reply.header("content-type") or "").startswith("application/json"):
        try:
            strictly(reply.body)
        except ValueError as error:
            return f"an answer that is no JSON: {error!r}"
    return None


def wrong_with_problem(reply: Reply) -> str | None:
    """What a problem lacks."""
    kind = reply.header("content-type")
    if kind != "application/problem+json":
        return f"status {reply.status} as {kind}"
    try:
        problem = strictly(reply.body)
    except ValueError as error:
        return f"a problem that is no JSON: {error!r}"
    missing = [name for name in MEMBERS if not isinstance(problem, dict) or name not in problem]
    if missing:
        return f"a problem without {', '.join(missing)}"
    if problem["status"] != reply.status:
        return f"a problem that says {problem['status']} with status {reply.status}"
    if not all(isinstance(problem[name], str) and problem[name] for name in MEMBERS if name != "status"):
        return "a problem with an empty member"
    if reply.status in (429, 503) and reply.header("retry-after") is None:
        return f"status {reply.status} without Retry-After"
    return None


def is_refused_by_server(reply: Reply) -> bool:
    """Whether the HTTP server answered, and not the application."""
    return reply.status == 400 and reply.body == REFUSED_BY_SERVER


@dataclass(slots=True)
class Tally:
    """What came of all of them."""

    sent: int = 0
    by_family: Counter[str] = field(default_factory=Counter)
    by_code: Counter[str] = field(default_factory=Counter)
    refused_by_server: int = 0
    silent: int = 0
    wrong: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[Case, str, Reply]] = field(default_factory=list)

    def add(self, case: Case, reply: Reply) -> None:
        """Judges one."""
        self.sent += 1
        self.by_family[case.family] += 1
        self.by_code[reply.code] += 1
        self.refused_by_server += is_refused_by_server(reply)
        self.silent += not reply.status
        if what := wrong_with(case, reply):
            self.fail(case, what, reply)

    def fail(self, case: Case, what: str, reply: Reply) -> None:
        """Keeps what went wrong."""
        self.wrong[f"{case.family}: {what}"] += 1
        if len(self.failures) < KEPT:
            self.failures.append((case, what, reply))


class Witness:
    """A user of whom everything is known, and who is asked about while others are fuzzed."""

    def __init__(self, ground: Ground, item_ids: Sequence[str]) -> None:
        self._ground = ground
        self._history = list(item_ids[:5])
        self._ask = self._case("POST", "/v1/recommendations", {"user_id": WITNESS, "k": 3, "deadline_ms": 10_000})
        self._see = self._case("GET", f"/v1/users/{WITNESS}/history", None)

    def _case(self, method: str, path: str, body: Any) -> Case:
        return cases.asked("witness", method, path, body, self._ground)

    async def introduce(self, line: Wire) -> None:
        """Tells the service of the witness.

        Raises:
            LoadError: it does not listen.
        """
        events = [{"user_id": WITNESS, "item_id": item_id} for item_id in self._history]
        await line.send(self._case("DELETE", f"/v1/users/{WITNESS}", None).parts[0])
        reply = await line.send(self._case("POST", "/v1/events", {"events": events}).parts[0])
        if reply.status != 202:
            raise LoadError(f"the witness could not be introduced: {reply.code} {reply.body[:300]!r}")

    async def _answered(self, line: Wire, case: Case) -> Reply:
        """The answer, when the service is not too busy with others for one."""
        for _ in range(PATIENT):
            reply = await line.send(case.parts[0])
            if reply.status not in SERVER_ERRORS:
                break
            await asyncio.sleep(RETRY_S)
        return reply

    async def testify(self, line: Wire, tally: Tally) -> None:
        """Asks; what is not as it was is wrong."""
        reply = await self._answered(line, self._see)
        try:
            seen = [event["item_id"] for event in strictly(reply.body)["events"]]
        except (ValueError, KeyError, TypeError):
            seen = []
        if seen != self._history:
            tally.fail(self._see, f"a history of others: {reply.code}", reply)
        reply = await self._answered(line, self._ask)
        try:
            answer = strictly(reply.body)
            shown = [item["item_id"] for item in answer["items"]]
        except (ValueError, KeyError, TypeError):
            tally.fail(self._ask, f"no answer to the witness: {reply.code}", reply)
            return
        # What is in the catalog by now is for the other cases to say, which add and remove items.
        if len(set(shown)) != 3 or set(shown) & set(self._history) or answer["degraded"]:
            tally.fail(self._ask, "a wrong answer to the witness", reply)


async def send(case: Case, line: Wire, url: str) -> Reply:
    """One case, as it wants to be sent."""
    if not case.is_alone:
        return await line.send(case.parts[0])
    parts = urlsplit(url)
    alone = Wire(parts.hostname or "", parts.port or 80, connections=1, timeout_s=PATIENCE_S)
    answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
    exchange = alone.submit(case.parts[0], answer.set_result)
    for more in case.parts[1:]:
        await asyncio.sleep(cases.PAUSE_S)
        await exchange.add(more)
    if case.ends:
        await exchange.end()
    try:
        return await answer
    finally:
        await alone.close()


async def fuzz(url: str, made: Sequence[Callable[[], Case]], ground: Ground, witness: Witness, tally: Tally) -> None:
    """Sends everything, a few at a time, and hears the witness now and then."""
    todo = iter(made)

    async with wire.wired(url, connections=CALLERS + 1, timeout_s=PATIENCE_S) as line:
        await witness.introduce(line)

        async def caller() -> None:
            for make in todo:
                case = make()
                tally.add(case, await send(case, line, url))
                if tally.sent % WITNESS_EVERY == 0:
                    await witness.testify(line, tally)

        await asyncio.gather(*(caller() for _ in range(CALLERS)))
        await witness.testify(line, tally)
        for path in ("/livez", "/readyz"):
            case = cases.asked("witness", "GET", path, None, ground)
            reply = await line.send(case.parts[0])
            if reply.status != 200:
                tally.fail(case, f"{path} says {reply.code}", reply)


def kept(failures: Sequence[tuple[Case, str, Reply]]) -> Iterator[str]:
    """Failures as lines of a file."""
    for case, what, reply in failures:
        parts = [base64.b64encode(part).decode() for part in case.parts]
        about = {
            "family": case.family,
            "what": what,
            "code": reply.code,
            "answer": reply.body[:500].decode(errors="replace"),
        }
        flags = {"is_alone": case.is_alone, "ends": case.ends, "may_be_silent": case.may_be_silent}
        yield json.dumps({**about, **flags, "parts": parts})


def read(path: Path, headers: Mapping[str, str]) -> list[Case]:
    """The cases of a file that `kept` wrote, with the API key of now.

    Raises:
        LoadError: it is none.
    """
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
        return [
            Case(
                line["family"],
                tuple(_signed(base64.b64decode(part), headers) for part in line["parts"]),
                line["is_alone"],
                line["ends"],
                line["may_be_silent"],
            )
            for line in lines
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LoadError(f"{path} holds no cases ({error!r}); --keep writes them") from error


OLD_KEY = b"fuzz-key-"  # how every key of a run begins; a replay puts its own in the same place


def _signed(part: bytes, headers: Mapping[str, str]) -> bytes:
    key = headers.get("authorization", "").removeprefix("Bearer ").encode()
    at = part.find(OLD_KEY)
    return part if at < 0 or len(key) != KEY_LENGTH else part[:at] + key + part[at + KEY_LENGTH :]


KEY_LENGTH = len(OLD_KEY) + 32


@contextmanager
def service(bundle: Path, key: str) -> Iterator[tuple[rivals.Server, Path]]:
    """A service to fuzz, with what may break switched on, and the file with what it says."""
    with tempfile.TemporaryDirectory(prefix="sequitur-fuzz-") as name:
        folder = Path(name)
        keys = folder / "keys"
        keys.write_text(f"fuzz:read,write,metrics,admin:{hashlib.sha256(key.encode()).hexdigest()}\n")
        own = {
            "SEQUITUR_STORE": f"sqlite:///{folder / 'sessions.sqlite'}",
            "SEQUITUR_API_KEYS_FILE": str(keys),
            "SEQUITUR_LOG": f"file://{folder / 'log'}",
            "SEQUITUR_DEADLINE_MS": "2000",  # the machine may be busy, and what is judged is what is answered
        }
        own = {name: value for name, value in own.items() if name in rivals.known_settings()}
        command = [sys.executable, "-m", "service", "--bundle", str(bundle.resolve()), "--port", "0"]
        said = folder / "said"
        with rivals.launched(command, {**rivals.clean(), **own}, says=said) as server:
            yield server, said


def document_of(url: str) -> dict[str, Any]:
    """The OpenAPI document of a service."""

    async def once() -> Reply:
        async with wire.wired(url, connections=1) as line:
            return await line.send(wire.encode("GET", "/openapi.json"))

    found: dict[str, Any] = wire.run(once()).json()
    return found


def exceptions_in(text: str) -> list[str]:
    """The last lines of what looks like a traceback."""
    lines = text.splitlines()
    at = [number for number, line in enumerate(lines) if "Traceback (most recent call last)" in line]
    found = []
    for begin in at:
        end = next((line for line in lines[begin + 1 :] if line and not line.startswith((" ", "\t"))), "")
        found.append(end[:200])
    return found


def is_alive(pid: int) -> bool:
    """Whether a child still runs."""
    try:
        return os.waitpid(pid, os.WNOHANG) == (0, 0)
    except ChildProcessError:
        return False


def table(tally: Tally) -> list[list[str]]:
    """The results for people."""
    rows = [["family", "requests", "wrong"]]
    wrong: Counter[str] = Counter()
    for what, count in tally.wrong.items():
        wrong[what.partition(":")[0]] += count
    return rows + [[name, str(count), str(wrong[name])] for name, count in sorted(tally.by_family.items())]


def results_of(tally: Tally, *, exceptions: int, alive: bool, seconds: float) -> dict[str, Any]:
    """The numbers."""
    return {
        "requests": tally.sent,
        "wrong": sum(tally.wrong.values()),
        "exceptions": exceptions,
        "crashed": int(not alive),
        "server_errors": sum(
            n for code, n in tally.by_code.items() if code.startswith("5") and int(code) not in SERVER_ERRORS
        ),
        "refused_by_http_server": tally.refused_by_server,
        "silent": tally.silent,
        "codes": dict(sorted(tally.by_code.items())),
        "seconds": round(seconds, 1),
    }


def main(arguments: Sequence[str]) -> int:
    """The exit status: 1 when anything was wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path, default=Path("artifacts/demo"), help="what is served while fuzzing")
    parser.add_argument("--requests", type=int, default=100_000, help="how many")
    parser.add_argument("--drawn", type=float, default=0.15, help="share of them drawn from the OpenAPI document")
    parser.add_argument("--seed", type=int, default=1, help="of all of them")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="send what an earlier run kept, and nothing else")
    parser.add_argument("--keep", type=Path, default=KEPT_IN, metavar="FILE", help="where failures are written")
    objectives.add_requirements(parser)
    report.add_record(parser)
    given = parser.parse_args(arguments)
    if given.record:
        report.refuse_dirty()
    machine = report.Machine.here()
    key = (OLD_KEY.decode() + secrets.token_hex(16))[:KEY_LENGTH]
    headers = {"authorization": f"Bearer {key}"}
    tally = Tally()
    with service(given.bundle, key) as (server, said):
        facts = target.learn(server.url, headers)
        ground = Ground(facts.item_ids, headers=headers)
        made: list[Callable[[], Case]]
        if given.replay:
            made = [lambda case=case: case for case in read(given.replay, headers)]  # type: ignore[misc]
        else:
            count = round(given.requests * given.drawn)
            drawn = (
                drawings.drawn(document_of(server.url), seed=given.seed, count=count, headers=headers) if count else []
            )
            made = cases.cases(FAMILIES, ground, seed=given.seed, count=given.requests - len(drawn))
            made += [lambda case=case: case for case in drawn]  # type: ignore[misc]
            random.Random(given.seed).shuffle(made)
        began = time.monotonic()
        wire.run(fuzz(server.url, made, ground, Witness(ground, facts.item_ids), tally))
        seconds = time.monotonic() - began
        alive = is_alive(server.pid)
        exceptions = exceptions_in(said.read_text(errors="replace"))
    results = results_of(tally, exceptions=len(exceptions), alive=alive, seconds=seconds)
    notes = [f"{what}: {count}" for what, count in tally.wrong.most_common(20)]
    notes += [f"the service logged {count} times: {what}" for what, count in Counter(exceptions).most_common(10)]
    if tally.failures:
        given.keep.parent.mkdir(parents=True, exist_ok=True)
        given.keep.write_text("\n".join(kept(tally.failures)) + "\n")
        notes.append(f"send what failed again with --replay {given.keep}")
    conditions = {
        "requests": given.requests,
        "drawn": given.drawn,
        "seed": given.seed,
        "replay": given.replay is not None,
    }
    done = Report("fuzz", conditions, facts.bundle, results, table(tally), machine, notes)
    report.emit(done, record=given.record)
    return objectives.judge(results, ["wrong==0", "exceptions==0", "crashed==0", "server_errors==0", *given.require])
