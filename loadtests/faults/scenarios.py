"""The troubles, each with what has to hold while it lasts.

Everything is started for one run and ended with it. Redis writes each append to its file before it replies; SQLite
runs as the service sets it up. In each scenario the promises of an answer hold throughout (`SOUND`), and no more than
the deadline passes until there is one.
"""

import asyncio
import hashlib
import json
import os
import secrets
import signal
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from loadtests import wire
from loadtests.faults import clock, copies
from loadtests.faults.play import Given, Ground, Scenario, Scene, Trouble
from loadtests.faults.servers import Line, Redis, Service, mounted
from loadtests.target import KEY_VARIABLE
from loadtests.traffic import arrivals
from loadtests.wire import Reply

SOUND = (
    *("foreign==0", "stale==0", "ineligible==0", "repeated==0", "malformed==0"),
    *("lost==0", "stored_twice==0", "unread==0"),
)
ANSWERED = (*SOUND, "failed==0", "refused_questions==0")  # an event may be refused while it cannot be kept
UNHARMED = (*ANSWERED, "refused_events==0")
IN_TIME = "question_p99_ms/during<=100"  # the deadline of a request
SLOW_S = 0.03  # each way: more in all than a request waits for its history
SLUGGISH_S = 0.004  # each way: less
BUFFERS_BYTES = 256 * 1024
DISK_BYTES = 8 << 20
QUITTERS_PER_S = 900.0  # of whom a third is gone before a healthy service has answered
PATIENCE_S = 0.003  # the longest that one of them waits
STEP_S = 3_600.0
RAISING = 0.1  # of the rate: questions that the encoder fails on
ENOUGH_SWAPS = 20  # after fewer, memory says nothing yet


@contextmanager
def ended(thing: Any) -> Iterator[Any]:
    """Ends a process with the block."""
    try:
        yield thing
    finally:
        thing.end()


def _redis(up: ExitStack, given: Given, folder: Path) -> Redis:
    redis = Redis(folder, core=_other(given))
    up.enter_context(ended(redis))
    redis.start()
    return redis


def _service(
    up: ExitStack,
    given: Given,
    folder: Path,
    store: str,
    *,
    bundle: Path | None = None,
    workers: int = 1,
    launcher: Sequence[str] = ("-m", "service"),
    **settings: str,
) -> Service:
    said = {"store": store, "cores": "1", "workers": str(workers), **settings}
    core = given.cores[0] if given.cores else None
    service = Service(bundle or given.bundle, said, folder, core=core, launcher=launcher)
    up.enter_context(ended(service))
    service.wait(workers)
    return service


def _other(given: Given) -> int | None:
    """The core of everything but the service."""
    return given.cores[1] if given.cores else None


def _sqlite(folder: Path) -> tuple[Path, str]:
    file = folder / "sessions.sqlite"
    return file, f"sqlite:///{file}"


def _for_a_while(given: Given, begin: Callable[[], object], end: Callable[[], object], **told: Any) -> Trouble:
    """A trouble with a beginning and an end, neither of which may hold up the load."""

    async def trouble(_ground: Ground) -> Mapping[str, Any]:
        await asyncio.to_thread(begin)
        await asyncio.sleep(given.seconds)
        await asyncio.to_thread(end)
        return told

    return trouble


def redis_killed(up: ExitStack, given: Given, folder: Path) -> Scene:
    """Redis dies as by a power cut, and is started again on its file."""
    redis = _redis(up, given, folder)
    service = _service(up, given, folder, redis.url)
    trouble = _for_a_while(given, redis.kill, redis.start, appendfsync=Redis.FSYNC)
    return Scene(service, trouble, given.seconds)


def redis_frozen(up: ExitStack, given: Given, folder: Path) -> Scene:
    """Redis keeps its connections and answers nothing, then goes on with what it was sent."""
    redis = _redis(up, given, folder)
    service = _service(up, given, folder, redis.url)
    return Scene(service, _for_a_while(given, redis.freeze, redis.thaw, appendfsync=Redis.FSYNC), given.seconds)


def redis_full(up: ExitStack, given: Given, folder: Path) -> Scene:
    """Redis reaches its memory limit and may evict nothing."""
    redis = _redis(up, given, folder)
    service = _service(up, given, folder, redis.url)

    def fill() -> None:
        redis.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")
        # Below what is in use, for that goes up and down with the buffers of whoever is connected.
        redis.ask("CONFIG", "SET", "maxmemory", str(redis.used_bytes() - BUFFERS_BYTES))

    def free() -> None:
        redis.ask("CONFIG", "SET", "maxmemory", "0")

    return Scene(service, _for_a_while(given, fill, free, appendfsync=Redis.FSYNC), given.seconds)


def _line(up: ExitStack, given: Given, folder: Path) -> tuple[Service, Line]:
    redis = _redis(up, given, folder)
    line = Line(redis.port, folder, core=_other(given))
    up.enter_context(ended(line))
    return _service(up, given, folder, f"redis://127.0.0.1:{line.port}/0"), line


def _states(given: Given, line: Line, states: Sequence[str]) -> Trouble:
    async def trouble(_ground: Ground) -> Mapping[str, Any]:
        for state in states:
            line.be(state)
            await asyncio.sleep(given.seconds / len(states))
        line.be("pass")
        return {"line": list(states)}

    return trouble


def network_cut(up: ExitStack, given: Given, folder: Path) -> Scene:
    """The line to Redis goes silent, then replies break off half-way, then every connection is refused."""
    service, line = _line(up, given, folder)
    return Scene(service, _states(given, line, ("hang", "tear", "reset")), given.seconds)


def network_slow(up: ExitStack, given: Given, folder: Path) -> Scene:
    """The line to Redis takes longer than a request waits, then less."""
    service, line = _line(up, given, folder)
    return Scene(service, _states(given, line, (f"delay {SLOW_S}", f"delay {SLUGGISH_S}")), given.seconds)


def sqlite_locked(up: ExitStack, given: Given, folder: Path) -> Scene:
    """Another process holds the write lock of the sessions' file."""
    file, store = _sqlite(folder)
    service = _service(up, given, folder, store)
    held: list[sqlite3.Connection] = []

    def lock() -> None:
        connection = sqlite3.connect(file, timeout=5, isolation_level=None, check_same_thread=False)
        held.append(connection)
        connection.execute("BEGIN IMMEDIATE")

    def release() -> None:
        held[0].execute("ROLLBACK")
        held[0].close()

    return Scene(service, _for_a_while(given, lock, release), given.seconds)


def disk_full(up: ExitStack, given: Given, folder: Path) -> Scene:
    """The file system of the sessions' file has no room left."""
    disk = up.enter_context(mounted(folder / "disk", DISK_BYTES))
    _, store = _sqlite(disk)
    service = _service(up, given, folder, store)
    ballast = disk / "ballast"

    def fill() -> None:
        with ballast.open("wb", buffering=0) as out:
            for size in (1 << 16, 1 << 12):
                try:
                    while True:
                        out.write(b"\0" * size)
                except OSError:
                    continue  # no room for that much any more

    return Scene(service, _for_a_while(given, fill, ballast.unlink), given.seconds)


def worker_killed(up: ExitStack, given: Given, folder: Path) -> Scene:
    """One of two workers dies in the middle of its requests."""
    redis = _redis(up, given, folder)
    service = _service(up, given, folder, redis.url, workers=2)

    async def trouble(_ground: Ground) -> Mapping[str, Any]:
        victim, other = service.workers()
        os.kill(victim, signal.SIGKILL)  # a process that we started, by way of its supervisor
        await asyncio.sleep(given.seconds)
        alive = service.workers()
        return {"workers": len(alive), "replaced": len({*alive} - {victim, other})}

    return Scene(service, trouble, given.seconds, is_sudden=True)


def encoder_raising(up: ExitStack, given: Given, folder: Path) -> Scene:
    """Some questions make the encoder raise, in one batch with everybody else's."""
    bundle, poison = copies.poisoned(given.bundle, folder)
    _, store = _sqlite(folder)
    service = _service(up, given, folder, store, bundle=bundle)
    request = wire.encode(
        "POST", "/v1/recommendations", {"history": [poison], "k": 20, "consent": False, "exclude_seen": True}
    )

    async def trouble(ground: Ground) -> Mapping[str, Any]:
        replies: list[Reply] = []
        due = arrivals(max(RAISING * given.rate, 2.0), given.seconds, seed=given.seed)
        async with wire.wired(ground.service.url, connections=64) as line:
            start = asyncio.get_running_loop().time()
            for moment in due.tolist():
                await asyncio.sleep(start + moment - asyncio.get_running_loop().time())
                line.submit(request, replies.append)
            await asyncio.sleep(0.5)
        told = [reply.json()["degraded_reasons"] for reply in replies if reply.status == 200]
        return {
            "raising": len(due),
            "raising_unanswered": len(due) - len(told),
            "raising_degraded": sum("encoder_failed" in reasons for reasons in told),
        }

    return Scene(service, trouble, given.seconds)


def clients_cancelled(up: ExitStack, given: Given, folder: Path) -> Scene:
    """Nine hundred clients a second ask, or tell, and a third of them closes the connection before being answered."""
    redis = _redis(up, given, folder)
    service = _service(up, given, folder, redis.url)

    async def trouble(ground: Ground) -> Mapping[str, Any]:
        rng = np.random.default_rng(given.seed)
        due = arrivals(QUITTERS_PER_S, given.seconds, seed=given.seed)
        items = ground.facts.item_ids
        requests = []
        for number in range(len(due)):
            user_id, item_id = f"gone-{number % 50}", items[int(rng.integers(len(items)))]
            event = {"events": [{"user_id": user_id, "item_id": item_id}]}
            question = {"user_id": user_id, "k": 20}
            said = ("/v1/events", event) if number % 2 else ("/v1/recommendations", question)
            requests.append(wire.encode("POST", *said))
        patience = (rng.random(len(due)) * PATIENCE_S).tolist()
        answered: list[Reply] = []
        loop = asyncio.get_running_loop()
        async with wire.wired(ground.service.url, connections=256) as line:
            start = loop.time()
            for moment, request, waits in zip(due.tolist(), requests, patience, strict=True):
                await asyncio.sleep(start + moment - loop.time())
                loop.call_later(waits, line.submit(request, answered.append).cancel)
            await asyncio.sleep(PATIENCE_S)
        gone = len(due) - len(answered)
        return {"quitters_per_s": round(len(due) / given.seconds, 1), "cancelled_per_s": round(gone / given.seconds, 1)}

    return Scene(service, trouble, given.seconds)


def overload(factor: float) -> Callable[[ExitStack, Given, Path], Scene]:
    """More requests than the service can carry."""

    def build(up: ExitStack, given: Given, folder: Path) -> Scene:
        redis = _redis(up, given, folder)
        service = _service(up, given, folder, redis.url)

        async def trouble(_ground: Ground) -> Mapping[str, Any]:
            await asyncio.sleep(given.seconds)
            return {"overload": factor}

        return Scene(service, trouble, given.seconds, overload=factor)

    return build


def clock_step(up: ExitStack, given: Given, folder: Path) -> Scene:
    """The wall clock of the service jumps an hour ahead, then an hour behind, then is right again."""
    _, store = _sqlite(folder)
    offset = clock.Offset(folder / "clock")
    launcher = ("-m", "loadtests.faults.clock", str(folder / "clock"))
    service = _service(up, given, folder, store, launcher=launcher)

    async def trouble(ground: Ground) -> Mapping[str, Any]:
        steps = (STEP_S, 0.0, -STEP_S)
        event = {"events": [{"user_id": "clock", "item_id": ground.facts.item_ids[0]}]}
        async with wire.wired(ground.service.url, connections=1) as line:
            for seconds in steps:
                offset.set(seconds)
                await line.send(wire.encode("POST", "/v1/events", event))
                await asyncio.sleep(given.seconds / len(steps))
            offset.set(0.0)
            history = (await line.send(wire.encode("GET", "/v1/users/clock/history"))).json()
        stamps = [event["timestamp"] for event in history["events"]]
        return {"stepped_s": round(max(stamps) - min(stamps))}

    return Scene(service, trouble, given.seconds)


@contextmanager
def administered(folder: Path) -> Iterator[Path]:
    """A file with one key that may do everything, which this process sends for as long as the block lasts."""
    key = secrets.token_urlsafe(32)
    file = folder / "keys"
    file.write_text(f"faults:read,write,metrics,admin:{hashlib.sha256(key.encode()).hexdigest()}\n")
    before = os.environ.get(KEY_VARIABLE)
    os.environ[KEY_VARIABLE] = key
    try:
        yield file
    finally:
        os.environ.pop(KEY_VARIABLE)
        if before is not None:
            os.environ[KEY_VARIABLE] = before


def _several(up: ExitStack, given: Given, folder: Path) -> tuple[Service, Path]:
    """The service on a bundle in a folder of several, with a key for the calls that change which."""
    keys = up.enter_context(administered(folder))
    bundles = folder / "bundles"
    bundles.mkdir()
    first = copies.twin(given.bundle, bundles, "first")
    redis = _redis(up, given, folder)
    service = _service(up, given, folder, redis.url, bundle=first, bundles=str(bundles), api_keys_file=str(keys))
    return service, bundles


async def _activate(ground: Ground, name: str) -> Reply:
    async with wire.wired(ground.service.url, connections=1, timeout_s=60) as line:
        return await line.send(wire.encode("POST", "/v1/admin/bundles/activate", {"bundle": name}))


def bundle_swaps(up: ExitStack, given: Given, folder: Path) -> Scene:
    """Two bundles take turns while requests are under way."""
    service, bundles = _several(up, given, folder)
    copies.twin(given.bundle, bundles, "second")

    async def trouble(ground: Ground) -> Mapping[str, Any]:
        took, resident, codes = [], [], []
        loop = asyncio.get_running_loop()
        start = loop.time()
        for number in range(given.swaps):
            await asyncio.sleep(start + number * given.every_s - loop.time())
            begun = loop.time()
            reply = await _activate(ground, ("second", "first")[number % 2])
            codes.append(reply.code if reply.is_ok else f"{reply.code} {reply.body[:200].decode(errors='replace')}")
            took.append(loop.time() - begun)
            resident.append(service.resident_mb())
        await asyncio.sleep(max(0.0, start + given.swaps * given.every_s - loop.time()))
        settled = resident[min(2, len(resident) - 1)]  # from then on there is one generation to go back to
        return {
            "swaps": sum(code.startswith("2") for code in codes),
            "swaps_refused": given.swaps - sum(code.startswith("2") for code in codes),
            "swaps_refused_by": sorted({code for code in codes if not code.startswith("2")}),
            "swap_s": round(float(np.median(took)), 3),
            "resident_growth": round(growth := resident[-1] / settled, 4),
            "is_memory_flat": given.swaps < ENOUGH_SWAPS or growth <= 1.03,
        }

    return Scene(service, trouble, given.swaps * given.every_s)


def corrupt_bundle(up: ExitStack, given: Given, folder: Path) -> Scene:
    """A bundle with a wrong byte is offered, again and again."""
    service, bundles = _several(up, given, folder)
    copies.broken(given.bundle, bundles, "broken")

    async def trouble(ground: Ground) -> Mapping[str, Any]:
        offers, refused, codes = 5, 0, set()
        for _ in range(offers):
            reply = await _activate(ground, "broken")
            codes.add(reply.code)
            refused += reply.status == 422 and b"bundle_refused" in reply.body
            await asyncio.sleep(given.seconds / offers)
        async with wire.wired(ground.service.url, connections=1) as line:
            served = json.loads((await line.send(wire.encode("GET", "/v1/model"))).body)["bundle"]
        return {
            "offered_bundles": offers,
            "accepted_bundles": offers - refused,
            "offer_codes": sorted(codes),
            "is_unchanged": served == ground.facts.model["bundle"],
        }

    return Scene(service, trouble, given.seconds)


SCENARIOS: Mapping[str, Scenario] = {
    "redis-killed": Scenario(
        "Redis killed, and started again", (*ANSWERED, "felt>=1", IN_TIME, "recover_s<=2"), redis_killed
    ),
    "redis-frozen": Scenario(
        "Redis stopped, and gone on", (*ANSWERED, "felt>=1", IN_TIME, "recover_s<=2"), redis_frozen
    ),
    "redis-full": Scenario(
        "Redis at its memory limit", (*ANSWERED, "refused_events>=1", IN_TIME, "recover_s<=1"), redis_full
    ),
    "network-cut": Scenario(
        "the line to Redis silent, torn, refused", (*ANSWERED, "felt>=1", IN_TIME, "recover_s<=2"), network_cut
    ),
    "network-slow": Scenario(
        "the line to Redis slow", (*ANSWERED, "felt>=1", "refused_events==0", IN_TIME, "recover_s<=1"), network_slow
    ),
    "sqlite-locked": Scenario(
        "the sessions' file locked for writing",
        (*ANSWERED, "refused_events>=1", IN_TIME, "recover_s<=2"),
        sqlite_locked,
    ),
    "disk-full": Scenario(
        "no room for the sessions' file", (*ANSWERED, "refused_events>=1", IN_TIME, "recover_s<=2"), disk_full
    ),
    "worker-killed": Scenario(
        "one of two workers killed", (*UNHARMED, "workers==2", "replaced==1", "recover_s<=5"), worker_killed
    ),
    "encoder-raising": Scenario(
        "an encoder that raises on some histories",
        (*UNHARMED, "raising_degraded>=1", "raising_unanswered==0", IN_TIME, "recover_s<=1"),
        encoder_raising,
    ),
    "overload-2x": Scenario(
        "twice the capacity", (*SOUND, "goodput_of_capacity>=0.9", "refused_p99_ms<=5", "recover_s<=2"), overload(2)
    ),
    "overload-10x": Scenario("ten times the capacity", (*SOUND, "recover_s<=2"), overload(10)),
    "clients-cancelled": Scenario(
        "300 cancelled clients per second",
        (*UNHARMED, "cancelled_per_s>=100", IN_TIME, "recover_s<=1"),
        clients_cancelled,
    ),
    "clock-step": Scenario("the wall clock set", (*UNHARMED, "stepped_s>=7000", IN_TIME, "recover_s<=1"), clock_step),
    "bundle-swaps": Scenario(
        "a bundle swapped again and again",
        (*UNHARMED, "swaps_refused==0", "is_memory_flat==1", "p99_ratio<=1.2", "recover_s<=1"),
        bundle_swaps,
    ),
    "corrupt-bundle": Scenario(
        "a broken bundle offered",
        (*UNHARMED, "accepted_bundles==0", "is_unchanged==1", IN_TIME, "recover_s<=1"),
        corrupt_bundle,
    ),
}
