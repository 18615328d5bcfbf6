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
