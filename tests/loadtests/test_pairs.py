"""Stale answers are found out, and two real processes give none."""

import asyncio
import json

import pytest

from loadtests import __main__ as commands
from loadtests import pairs, wire
from loadtests.pairs import Tally

ITEMS = [f"i{n}" for n in range(12)]


class Shop:
    """Two doors of one service, answering from one set of histories; `forgetful` hides the newest event."""

    def __init__(self, *, forgetful=False, status=202):
        self.histories = {}
        self.forgetful, self.status = forgetful, status
        self.heard = []

    def answer(self, door, head, body):
        self.heard.append((door, head.split(b" ")[1]))
        if head.startswith(b"POST /v1/events"):
            (event,) = json.loads(body)["events"]
            self.histories.setdefault(event["user_id"], []).append(event["item_id"])
            return self.status, {}
        user = json.loads(body)["user_id"] if body else head.split(b"/")[3].decode()
        known = self.histories.get(user, [])[: -1 if self.forgetful else None]
        if head.startswith(b"GET"):
            return 200, {"events": [{"item_id": item_id} for item_id in known]}
        left = [item_id for item_id in ITEMS if item_id not in known]
        return 200, {"items": [{"item_id": item_id} for item_id in left], "degraded": False}

    async def run(self, **options):
        servers = []
        for door in range(2):

            async def serve(reader, writer, door=door):
                try:
                    while True:
                        head = await reader.readuntil(b"\r\n\r\n")
                        length = next(
                            (line for line in head.split(b"\r\n") if line.startswith(b"content-length")), b":0"
                        )
                        body = await reader.readexactly(int(length.split(b":")[1]))
                        status, said = self.answer(door, head, body)
                        raw = json.dumps(said).encode()
                        writer.write(b"HTTP/1.1 %d x\r\ncontent-length: %d\r\n\r\n" % (status, len(raw)) + raw)
                except (asyncio.IncompleteReadError, ConnectionError):
                    writer.close()

            servers.append(await asyncio.start_server(serve, "127.0.0.1", 0))
        urls = [f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}" for server in servers]
        tally = await pairs.told(urls, ITEMS, readers=2, **options)
        for server in servers:
            server.close()
        return tally


def test_events_and_questions_go_to_different_processes_in_turns():
    shop = Shop()
    tally = wire.run(shop.run(pairs=20))
    assert (tally.pairs, tally.stale.total(), tally.errors.total()) == (20, 0, 0)
    assert {door for door, path in shop.heard if path == b"/v1/events"} == {0, 1}
    assert {door for door, path in shop.heard if path == b"/v1/recommendations"} == {0, 1}


def test_an_answer_that_does_not_know_of_the_event_is_stale():
    tally = wire.run(Shop(forgetful=True).run(pairs=5))
    assert tally.stale["shown again"] >= 1
    assert tally.stale["another history"] >= 5


def test_an_event_that_is_refused_is_an_error():
    assert wire.run(Shop(status=503).run(pairs=5)).errors["503"] >= 1


def test_the_numbers_say_what_was_stale():
    tally = Tally(pairs=3, seconds=[0.001, 0.002, 0.003])
    tally.stale["shown again"] += 1
    results = pairs.results_of(tally)
    assert (results["stale"], results["p50_ms"]) == (1, 2.0)
    assert pairs.table(results)[1][:2] == ["3", "1"]


@pytest.mark.redis
def test_two_real_processes_give_none(toy_bundle, capsys):
    assert commands.main(["pairs", "--bundle", str(toy_bundle), "--pairs", "60"]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document["stale"] == 0
    assert document["results"]["pairs"] == 60
