import json
import logging

import pytest

from service import logs


def record(**extra):
    made = logging.LogRecord("service.x", logging.INFO, "x.py", 1, "request %s", ("done",), None)
    made.created = 0.25
    made.__dict__.update(extra)
    return made


def test_text_is_one_line_with_its_fields():
    line = logs.TextFormatter().format(record(fields={"code": 200}))
    assert line == "00:00:00.250 INFO service.x request done code=200"


def test_json_is_one_object_with_its_fields():
    entry = json.loads(logs.JsonFormatter().format(record(fields={"code": 200, "odd": {1}})))
    assert entry["message"] == "request done"
    assert (entry["level"], entry["code"], entry["odd"]) == ("info", 200, "{1}")


@pytest.mark.parametrize("formatter", [logs.TextFormatter(), logs.JsonFormatter()])
def test_a_failure_shows_its_trace(formatter):
    try:
        raise KeyError("why")
    except KeyError as error:
        made = record(exc_info=(KeyError, error, error.__traceback__))
    assert "KeyError: 'why'" in formatter.format(made)


def test_configuring_twice_logs_once(capsys):
    for _ in range(2):
        logs.configure(level="info", form="json")
    logging.getLogger("service.x").info("said")
    logging.getLogger("service.x").debug("not said")
    assert [json.loads(line)["message"] for line in capsys.readouterr().err.splitlines()] == ["said"]


@pytest.mark.parametrize(
    ("status", "seconds", "degraded", "is_said"),
    [
        (200, 0.01, False, False),
        (200, 0.2, False, True),  # slow
        (200, 0.01, True, True),
        (404, 0.01, False, True),
        (503, 0.01, False, True),
    ],
)
def test_sampled_out_is_only_what_has_nothing_to_say(status, seconds, degraded, is_said, caplog):
    caplog.set_level(logging.INFO, logger="service.requests")
    lines = logs.RequestLines(share=0.1, slow_s=0.1, chance=lambda: 0.5)
    assert (lines.level(status, seconds, {"degraded": degraded}) is not None) is is_said
    assert (lines.level(status, seconds, None) is not None) is (is_said and not degraded)


def test_a_share_of_the_rest_is_kept(caplog):
    caplog.set_level(logging.INFO, logger="service.requests")
    chances = iter((0.05, 0.1, 0.5, 0.09))
    lines = logs.RequestLines(share=0.1, chance=lambda: next(chances))
    assert [lines.level(200, 0.01, None) is not None for _ in range(4)] == [True, False, False, True]
    assert logs.RequestLines(share=0.0).level(200, 0.01, None) is None


def test_quiet_calls_speak_when_they_fail(caplog):
    caplog.set_level(logging.INFO, logger="service.requests")
    assert logs.RequestLines().level(200, 0.01, None, is_quiet=True) is None
    assert logs.RequestLines().level(503, 0.01, None, is_quiet=True) == logging.INFO
