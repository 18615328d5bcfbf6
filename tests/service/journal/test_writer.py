"""The writer against a sink that can be stopped, broken and filled."""

import threading

import orjson
import pytest

from service import metrics
from service.errors import ConfigurationError
from service.journal import NoJournal, open_journal
from service.journal.records import ServedList
from service.journal.writer import Limits, SinkFailure, Writer
from service.sessions import StoredEvent

pytestmark = pytest.mark.anyio

NOW = 1_700_000_000.0
ANSWER = {
    "recommendation_id": "r1",
    "items": [{"item_id": "i1", "score": 1.0, "rank": 1, "source": "retrieval"}],
    "model": {"name": "toy", "bundle": "toy-1", "variant": "default"},
    "degraded_reasons": [],
    "timings_ms": {},
}
LIST = ServedList(ANSWER, "u", None, 1, False)


class Sink:
    """Keeps lines; `failing` makes it refuse, `gate` makes it wait."""

    where = "a sink"

    def __init__(self):
        self.lines: list[bytes] = []
        self.failing = False
        self.refused = threading.Event()
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.syncs = 0
        self.closed = False

    def write(self, lines):
        self.entered.set()
        assert self.gate.wait(10)
        if self.failing:
            self.refused.set()
            raise SinkFailure("No space left on device")
        self.lines += lines
        lines.clear()

    def sync(self):
        self.syncs += 1

    def tend(self): ...

    def close(self):
        self.closed = True

    @property
    def records(self):
        return [orjson.loads(line) for line in self.lines]


def dropped(reason: str) -> float:
    return metrics.REGISTRY.get_sample_value("sequitur_journal_dropped_total", {"reason": reason}) or 0.0


def written(kind: str) -> float:
    return metrics.REGISTRY.get_sample_value("sequitur_journal_records_total", {"kind": kind}) or 0.0


def events(n: int, **fields):
    return [("u", StoredEvent(f"i{i}", "view", None, NOW, **fields)) for i in range(n)]


@pytest.fixture
def sink():
    return Sink()


def writer(sink, *, now=lambda: NOW, **limits) -> Writer:
    return Writer(sink, now=now, limits=Limits(**{"linger_s": 0.005, "retry_s": 0.005, **limits}))


async def test_everything_offered_is_written_in_order_by_the_end(sink):
    before = written("event"), written("served")
    journal = writer(sink, linger_s=60)
    await journal.open()
    journal.events(events(100))
    journal.served(LIST)
    journal.merged("anonymous", "u")
    await journal.close()
    assert [record.get("item_id") for record in sink.records] == [f"i{i}" for i in range(100)] + [None, None]
    assert [record["kind"] for record in sink.records[100:]] == ["served", "merged"]
    assert (written("event"), written("served")) == (before[0] + 100, before[1] + 1)
    assert sink.closed


async def test_full_buffer_drops_what_is_new_and_counts_it(sink):
    sink.gate.clear()
    journal, before = writer(sink, records=40), dropped("full")
    await journal.open()
    journal.events(events(32))
    sink.entered.wait(10)
    journal.events(events(8))
    journal.events(events(3))
    journal.served(LIST)
    assert dropped("full") == before + 4
    sink.gate.set()
    await journal.close()
    assert len(sink.records) == 40


async def test_the_buffer_is_bounded_in_bytes_too(sink):
    journal, before = writer(sink, bytes=400, linger_s=60), dropped("full")
    journal.events(events(3))
    journal.events(events(1, context={f"c{n}": n for n in range(10)}))
    assert dropped("full") == before + 1
    await journal.open()
    await journal.close()
    assert len(sink.records) == 3


async def test_half_full_buffer_is_written_at_once(sink):
    journal = writer(sink, records=40, linger_s=60)
    await journal.open()
    journal.events(events(21))
    assert sink.entered.wait(10)
    await journal.close()


async def test_an_erasure_always_finds_room_and_is_told_when_it_is_safe(sink):
    journal = writer(sink, records=1, linger_s=60)
    await journal.open()
    journal.events(events(1))
    assert await journal.erased("u")
    assert [record["kind"] for record in sink.records] == ["event", "erased"]
    assert sink.syncs == 1
    await journal.close()


async def test_an_erasure_that_cannot_be_written_says_so_and_is_written_later(sink):
    sink.failing = True
    journal = writer(sink, erased_s=0.05)
    await journal.open()
    assert not await journal.erased("u")
    sink.failing = False
    await journal.close()
    assert [record["kind"] for record in sink.records] == ["erased"]


async def test_disk_full_is_said_once_and_recovers_by_itself(sink, caplog):
    sink.failing = True
    journal, before = writer(sink, records=5), dropped("full")
    await journal.open()
    journal.events(events(5))
    for _ in range(3):
        sink.refused.clear()
        assert sink.refused.wait(10)
    journal.events(events(2))
    sink.failing = False
    await journal.close()
    assert len(sink.records) == 5
    assert dropped("full") == before + 2
    said = [record.getMessage() for record in caplog.records if record.name == "service.journal.writer"]
    assert said == [
        "a sink cannot be written: No space left on device",
        "a sink can be written again; 2 records found no room",
    ]


async def test_disk_full_at_the_end_is_counted_and_holds_nothing_up(sink):
    sink.failing = True
    journal, before = writer(sink, retry_s=60), dropped("closed")
    await journal.open()
    journal.events(events(100))
    await journal.close()
    assert dropped("closed") == before + 100
    journal.served(LIST)
    assert dropped("closed") == before + 101


async def test_a_sink_that_hangs_does_not_hold_up_the_end(sink, caplog):
    sink.gate.clear()
    journal, before = writer(sink, close_s=0.05), dropped("closed")
    await journal.open()
    journal.events(events(7))
    await journal.close()
    assert dropped("closed") == before + 7
    assert "7 records could not be written before the end" in caplog.text
    sink.gate.set()


async def test_what_no_json_can_hold_is_counted_and_the_rest_goes_on(sink):
    journal, before = writer(sink), dropped("invalid")
    await journal.open()
    journal.events([*events(1, context={"a": object()}), *events(2)])
    await journal.close()
    assert dropped("invalid") == before + 1
    assert len(sink.records) == 2


async def test_a_fault_of_a_sink_is_no_end_of_the_thread(sink, caplog):
    times = iter([RuntimeError("odd"), None])

    def tend():
        if error := next(times, None):
            raise error

    sink.tend = tend
    journal = writer(sink)
    await journal.open()
    journal.events(events(1))
    await journal.close()
    assert len(sink.records) == 1
    assert "RuntimeError: odd" in caplog.text


async def test_times_never_run_backwards(sink):
    clock = iter([NOW, NOW - 5, NOW + 1])
    journal = writer(sink, now=lambda: next(clock))
    await journal.open()
    for _ in range(3):
        journal.served(LIST)
    await journal.close()
    assert [record["time"] for record in sink.records] == [NOW, NOW, NOW + 1]


async def test_no_url_keeps_nothing():
    journal = open_journal("")
    assert isinstance(journal, NoJournal)
    await journal.open()
    journal.events(events(1))
    assert await journal.erased("u")
    await journal.close()


@pytest.mark.parametrize(
    "url",
    ["file://", "file:///", "ftp://x", "log", "redis-stream://host:6379/0", "redis-stream://host/x/name"],
)
def test_a_url_that_cannot_be_meant_is_refused(url):
    with pytest.raises(ConfigurationError, match="SEQUITUR_LOG"):
        open_journal(url)
