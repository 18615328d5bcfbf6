"""The compose stack as plain processes: Redis, the service, Prometheus and Locust, each by its container's command.

Only addresses and directories are replaced. The toy bundle stands in for the demo bundle: it loads at once.
"""

import json
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import yaml
from containers import DEPLOY, PATH, ROOT, Dockerfile, Process, binary, free_port, running

PROMETHEUS = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())


@pytest.mark.parametrize("arguments", [["check", "config", "prometheus.yml"], ["test", "rules", "alerts_test.yml"]])
def test_promtool_finds_nothing_wrong(arguments: list[str]) -> None:
    done = subprocess.run(
        [binary("promtool", "prometheus"), *arguments], cwd=DEPLOY, capture_output=True, text=True, env={"PATH": PATH}
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_unit_test_that_sees_it_fire() -> None:
    rules = yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"]
    seen = (DEPLOY / "alerts_test.yml").read_text()
    assert [rule["alert"] for group in rules for rule in group["rules"] if rule.get("alert", "") not in seen] == []


def test_the_configuration_with_a_key_is_the_other_one_and_a_key() -> None:
    keyed = yaml.safe_load((DEPLOY / "prometheus.keys.yml").read_text())
    key = keyed["scrape_configs"][0].pop("authorization")
    assert keyed == PROMETHEUS
    assert key == {"credentials_file": "/run/secrets/metrics_key"}


def test_prometheus_looks_for_the_services_of_the_compose_file_where_they_listen(stack: dict[str, Any]) -> None:
    (job,) = PROMETHEUS["scrape_configs"]
    (discovery,) = job["dns_sd_configs"]
    assert set(discovery["names"]) == {"service", "service-gpu"} <= set(stack["services"])
    assert str(discovery["port"]) == Dockerfile.read().last("serve", "EXPOSE")
    assert all("front" in stack["services"][name]["networks"] for name in ["prometheus", *discovery["names"]])


@dataclass(frozen=True)
class Stack:
    """The running processes, by the port of each."""

    service_port: int
    prometheus: Process
    prometheus_port: int

    def query(self, expression: str) -> list[dict[str, Any]]:
        """What Prometheus answers to an instant query."""
        status, body = get(self.prometheus_port, "/api/v1/query?" + urlencode({"query": expression}))
        answer = json.loads(body)
        assert (status, answer["status"]) == (200, "success"), answer
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found


def get(port: int, path: str) -> tuple[int, bytes]:
    """Status and body of one request to this machine; status 0 when nobody listens."""
    connection = HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except ConnectionError:
        return 0, b""
    finally:
        connection.close()


def is_healthy(test: list[str], port: int) -> bool:
    """Whether a health check's own command is content."""
    words = [word.replace("8000", str(port)) for word in test if word != "CMD"]
    return subprocess.run(words, env={"PATH": PATH}, capture_output=True).returncode == 0


@pytest.fixture(scope="module")
def live(stack: dict[str, Any], toy_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Redis, the service on the toy bundle, and a Prometheus that scrapes it."""
    for program, package in (("redis-server", "redis-server"), ("prometheus", "prometheus")):
        binary(program, package)
    folder = tmp_path_factory.mktemp("stack")
    services = stack["services"]
    redis_port, service_port, prometheus_port = free_port(), free_port(), free_port()

    config = folder / "prometheus.yml"
    (job,) = PROMETHEUS["scrape_configs"]
    scraped = {key: value for key, value in job.items() if key != "dns_sd_configs"}
    scraped["static_configs"] = [{"targets": [f"127.0.0.1:{service_port}"]}]
    config.write_text(yaml.safe_dump({**PROMETHEUS, "scrape_configs": [scraped]}))
    (folder / "alerts.yml").write_text((DEPLOY / "alerts.yml").read_text())

    conf = {"/etc/redis/redis.conf": str(DEPLOY / "redis.conf"), "/data": str(folder)}
    flags = {
        "/etc/prometheus/prometheus.yml": str(config),
        "path=/prometheus": f"path={folder / 'tsdb'}",
        "0.0.0.0:9090": f"127.0.0.1:{prometheus_port}",
    }
    commands = {
        "redis": [*swap(services["redis"]["command"], conf), "--bind", "127.0.0.1", "--port", str(redis_port)],
        "service": swap(Dockerfile.read().command("serve"), {"0.0.0.0": "127.0.0.1", "8000": str(service_port)}),
        "prometheus": ["prometheus", *swap(services["prometheus"]["command"], flags)],
    }
    environment = dict(services["service"]["environment"])
    environment["SEQUITUR_STORE"] = environment["SEQUITUR_STORE"].replace("redis:6379", f"127.0.0.1:{redis_port}")
    environment["SEQUITUR_BUNDLE"] = str(toy_bundle)
    environment["SEQUITUR_BUNDLES"] = str(toy_bundle.parent)
    environment["SEQUITUR_LOG"] = f"file://{folder / 'log'}"
    with ExitStack() as up:
        up.enter_context(running(commands["redis"], folder / "redis.log"))
        service = up.enter_context(running(commands["service"], folder / "service.log", **environment))
        prometheus = up.enter_context(running(commands["prometheus"], folder / "prometheus.log"))
        ready = services["service"]["healthcheck"]["test"]
        service.until(lambda: is_healthy(ready, service_port), "readiness")
        yield Stack(service_port, prometheus, prometheus_port)


def swap(words: list[str], replacements: dict[str, str]) -> list[str]:
    """The words of a command with parts replaced, each exactly once."""
    for old, new in replacements.items():
        assert sum(old in word for word in words) == 1, (old, words)
        words = [word.replace(old, new) for word in words]
    return words


@pytest.mark.redis
def test_the_running_service_satisfies_both_health_checks(live: Stack, stack: dict[str, Any]) -> None:
    of_image = Dockerfile.read().healthcheck("serve")
    assert is_healthy(of_image, live.service_port)
    assert is_healthy(stack["services"]["service"]["healthcheck"]["test"], live.service_port)
    assert not is_healthy(of_image, free_port())


@pytest.mark.redis
def test_a_real_prometheus_scrapes_the_running_service(live: Stack) -> None:
    status, body = get(live.service_port, "/v1/users/reader/recommendations?k=3")
    assert status == 200, body

    def has_scraped() -> bool:
        if get(live.prometheus_port, "/-/ready")[0] != 200:
            return False
        return bool(live.query('up{job="sequitur"} == 1') and live.query("sequitur_ready == 1"))

    live.prometheus.until(has_scraped, "scrape")
    (requests,) = live.query('sum(sequitur_requests_total{route=~"/v1/.*recommendations", code="200"})')
    assert float(requests["value"][1]) >= 1
    dashboard = json.loads((DEPLOY / "grafana/dashboards/sequitur.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            live.query(target["expr"].replace("$__rate_interval", "1m"))
    status, rules = get(live.prometheus_port, "/api/v1/rules")
    groups = json.loads(rules)["data"]["groups"]
    assert {rule["health"] for group in groups for rule in group["rules"]} <= {"ok", "unknown"}
    assert sum(len(group["rules"]) for group in groups) > 10


@pytest.mark.redis
def test_locust_starts_with_the_command_of_its_container(live: Stack, stack: dict[str, Any], tmp_path: Path) -> None:
    port = free_port()
    command = swap(
        stack["services"]["locust"]["command"],
        {"http://service:8000": f"http://127.0.0.1:{live.service_port}", "8089": str(port)},
    )
    command += ["--web-host", "127.0.0.1"]
    with running(command, tmp_path / "locust.log", PYTHONPATH=str(ROOT)) as locust:
        locust.until(lambda: get(port, "/")[0] == 200, "page of Locust")
