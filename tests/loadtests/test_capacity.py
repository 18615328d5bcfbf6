"""The search finds where a service gives in, and a probe counts what failed as infinitely late."""

import asyncio
import math
import time

import pytest

from loadtests import capacity, wire
from loadtests.capacity import Alarm, Bounds, Probe

ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"


def sought(limit, *, guess, hiccups=0, step=1.1):
    """The rate that is found where everything up to `limit` is held, but for the first few probes; and the probes."""
    asked = []

    async def ask(rate):
        asked.append(rate)
        slow = rate > limit or len(asked) <= hiccups
        return Probe(rate, [1.0 if slow else 0.001], 0.0, 0.0)

    return asyncio.run(capacity.highest(ask, guess, step=step)).rate, asked


@pytest.mark.parametrize("guess", [500.0, 900.0, 1_000.0, 1_300.0, 2_000.0])
def test_the_search_ends_within_its_resolution_wherever_it_begins(guess):
    rate, asked = sought(1_000, guess=guess)
    assert 1_000 / 1.06 < rate <= 1_000
    assert len(asked) <= capacity.MOST_PROBES + capacity.TRIES - 1


def test_one_hiccup_is_forgiven():
    assert sought(1_000, guess=990, hiccups=1)[0] > 980


def test_where_nothing_is_held_the_rate_is_nought():
    rate, asked = sought(0, guess=100)
    assert rate == 0
    assert min(asked) >= capacity.LEAST_RATE


def test_both_percentiles_have_to_keep_their_bound():
    bounds = Bounds(p90_ms=7, p99_5_ms=15)
    assert bounds.hold(Probe(1, [0.006] * 90 + [0.014] * 10, 0, 0))
    assert not bounds.hold(Probe(1, [0.006] * 89 + [0.008] * 11, 0, 0))
    assert not bounds.hold(Probe(1, [0.001] * 99 + [math.inf], 0, 0))
    assert not bounds.hold(Probe(1, [0.001], 0, 0, is_drowned=True))


def test_a_late_or_busy_generator_is_not_sound():
    assert Probe(1, [0.0], 0.5, 0.5).is_sound
    assert not Probe(1, [0.0], 1.5, 0.5).is_sound
    assert not Probe(1, [0.0], 0.5, 0.95).is_sound


def offered(due, *, answer=ANSWER, delay_s=0.0, rate=100.0, is_good=lambda _number, reply: reply.is_ok):
    """The probe of a small server."""

    async def serve(reader, writer):
        try:
            while True:
                await reader.readuntil(b"\r\n\r\n")
                await asyncio.sleep(delay_s)
                writer.write(answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def whole():
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with wire.wired(url, connections=4) as line:
            got = await capacity.offer(line, [wire.encode("GET", "/")], due, is_good, rate=rate)
        server.close()
        await server.wait_closed()
        return got

    return wire.run(whole())


def test_latency_counts_from_when_a_request_was_due():
    got = offered([0.31, 0.32, 0.33], delay_s=0.02)
    assert len(got.latencies) == 3
    assert all(0.015 <= latency < 5 for latency in got.latencies)
    assert not got.is_drowned


def test_the_warm_up_is_not_counted():
    assert len(offered([0.0, 0.1, 0.3, 0.35]).latencies) == 2


def test_what_fails_is_infinitely_late_and_named():
    got = offered([0.0, 0.01], answer=b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n")
    assert got.latencies == [math.inf, math.inf]
    assert got.codes == ("503", "503")


def test_a_growing_queue_is_given_up():
    got = offered([n / 10_000 for n in range(200)], delay_s=0.02)
    assert got.is_drowned
    assert got.latencies.count(math.inf) > 100


def test_a_crowd_counts_good_answers():
    async def whole():
        async def serve(reader, writer):
            try:
                while True:
                    await reader.readuntil(b"\r\n\r\n")
                    writer.write(ANSWER)
            except (asyncio.IncompleteReadError, ConnectionError):
                writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with wire.wired(url, connections=2) as line:
            got = await capacity.crowd(
                line, [wire.encode("GET", "/")], lambda n, _reply: n % 2 == 0, callers=2, seconds=0.05
            )
        server.close()
        await server.wait_closed()
        return got

    assert wire.run(whole()) > 0


def test_an_alarm_rings_when_it_was_set_and_never_early():
    async def whole():
        rung = asyncio.get_running_loop().create_future()
        alarm = Alarm(lambda: rung.set_result(time.monotonic()))
        moment = time.monotonic() + 0.0123
        alarm.set(moment)
        late = await rung - moment
        alarm.close()
        return late

    assert 0 <= wire.run(whole()) < 5
