"""The compose file holds its promises: as docker-compose itself reads it, without a container engine."""

import re
from pathlib import Path
from typing import Any

import pytest
import redis
from containers import DEPLOY, ROOT, Dockerfile, binary, compose, free_port, running
from redis.backoff import NoBackoff
from redis.retry import Retry

from service.settings import CLOSE_S, PREFIX, STOP_S, Settings, read

OURS = {"service", "service-gpu"}


def test_the_default_stack_and_the_profiles(stack: dict[str, Any]) -> None:
    profiles = {name: tuple(spec.get("profiles", ())) for name, spec in stack["services"].items()}
    assert profiles == {
        "service": (),
        "redis": (),
        "prometheus": (),
        "grafana": (),
        "locust": ("load",),
        "service-gpu": ("gpu",),
    }


def test_every_container_is_hardened(stack: dict[str, Any]) -> None:
    for name, spec in stack["services"].items():
        assert spec["read_only"] is True, name
        assert spec["cap_drop"] == ["ALL"], name
        assert spec["security_opt"] == ["no-new-privileges:true"], name
        assert "cap_add" not in spec, name
        assert not spec.get("privileged"), name


def test_nothing_is_published_beyond_the_loopback_interface(stack: dict[str, Any]) -> None:
    ports = [str(port) for spec in stack["services"].values() for port in spec.get("ports", [])]
    assert ports
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []
    assert "ports" not in stack["services"]["redis"]


def test_redis_is_reached_by_the_service_alone(stack: dict[str, Any]) -> None:
    assert stack["networks"]["state"]["internal"] is True
    assert {name for name, spec in stack["services"].items() if "state" in spec["networks"]} == OURS | {"redis"}
    assert set(stack["services"]["redis"]["networks"]) == {"state"}


def test_every_image_carries_a_tag_that_does_not_move(stack: dict[str, Any]) -> None:
    foreign = [spec["image"] for spec in stack["services"].values() if "build" not in spec]
    foreign += re.findall(r"^ARG PYTHON=(\S+)", Dockerfile.read().text, re.M)
    assert len(foreign) == 4
    for image in foreign:
        assert re.search(r":v?\d+\.\d+\.\d+", image), f"{image}: name a version of three numbers"


def test_every_bind_mounted_path_exists(stack: dict[str, Any]) -> None:
    sources = [source for spec in stack["services"].values() for source, _, _ in mounts(spec) if source.startswith("/")]
    assert len(sources) >= 6
    assert [source for source in sources if not Path(source).exists()] == []


def test_what_is_mounted_from_the_host_is_read_only(stack: dict[str, Any]) -> None:
    for name, spec in stack["services"].items():
        for source, target, mode in mounts(spec):
            assert not source.startswith("/") or mode == "ro", f"{name}: {target}"


def test_the_demo_bundle_is_the_default_and_another_is_one_variable_away(stack: dict[str, Any]) -> None:
    assert (str(ROOT / "artifacts"), "/bundles", "ro") in mounts(stack["services"]["service"])
    assert (ROOT / "artifacts" / "demo").is_dir()
    other = compose(BUNDLES_DIR="/srv/models", BUNDLE="2026-03")["services"]["service"]
    assert ("/srv/models", "/bundles", "ro") in mounts(other)
    assert other["environment"]["SEQUITUR_BUNDLE"] == "/bundles/2026-03"


def test_the_durable_log_is_a_volume_that_can_be_left_out(stack: dict[str, Any]) -> None:
    for name in OURS:
        assert ("log", "/log", "rw") in mounts(stack["services"][name])
        assert read(stack["services"][name]["environment"], host="0.0.0.0").log == "file:///log"
    none = compose(EVENT_LOG="")["services"]["service"]["environment"]
    assert read(none, host="0.0.0.0").log == ""


def test_what_is_built_is_a_target_of_the_dockerfile(stack: dict[str, Any]) -> None:
    builds = {name: spec["build"] for name, spec in stack["services"].items() if "build" in spec}
    assert {name: build["target"] for name, build in builds.items()} == {
        "service": "serve",
        "service-gpu": "gpu",
        "locust": "load",
    }
    for build in builds.values():
        assert (Path(build["context"]), build["dockerfile"]) == (ROOT, "deploy/Dockerfile")
        assert build["target"] in Dockerfile.read().parents


def test_a_range_of_ports_lets_the_service_scale() -> None:
    assert compose(SERVICE_PORT="8000-8003")["services"]["service"]["ports"] == ["127.0.0.1:8000-8003:8000/tcp"]


def test_the_service_is_healthy_when_it_is_ready_and_waits_for_redis(stack: dict[str, Any]) -> None:
    for name in OURS:
        spec = stack["services"][name]
        assert "'/readyz'" in spec["healthcheck"]["test"][-1]
        assert spec["depends_on"] == {"redis": {"condition": "service_healthy"}}
        drain_s = read(spec["environment"], host="0.0.0.0").drain_s
        assert float(spec["stop_grace_period"].removesuffix("s")) >= drain_s + STOP_S + CLOSE_S + 5
    assert stack["services"]["locust"]["depends_on"] == {"service": {"condition": "service_healthy"}}


def test_the_gpu_service_reserves_a_device_and_refuses_to_go_without(stack: dict[str, Any]) -> None:
    spec = stack["services"]["service-gpu"]
    (device,) = spec["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia"
    assert device["capabilities"] == ["gpu"]
    assert spec["environment"]["SEQUITUR_DEVICE"] == "cuda"


def test_every_setting_in_the_compose_files_is_known_to_the_service() -> None:
    stack = compose("-f", "deploy/compose.keys.yml", API_KEYS_FILE="/dev/null", METRICS_KEY_FILE="/dev/null")
    used = {name for spec in stack["services"].values() for name in spec.get("environment", {})}
    used = {name for name in used if name.startswith(PREFIX)}
    assert len(used) >= 4
    assert used - {PREFIX + name.upper() for name in Settings.model_fields} == set()


def test_the_environment_of_each_service_is_one_it_starts_with(stack: dict[str, Any]) -> None:
    for name in OURS:
        settings = read(stack["services"][name]["environment"], host="0.0.0.0")
        assert settings.allow_anonymous, "beyond loopback and without keys it would refuse to start"
        assert settings.store == "redis://redis:6379/0"
        assert (settings.bundle_dir, settings.bundles_dir) == (Path("/bundles/demo"), Path("/bundles"))
        assert (settings.log_format, settings.traces, settings.workers) == ("json", "", 1)


def test_with_the_keys_file_nobody_is_anonymous() -> None:
    stack = compose("-f", "deploy/compose.keys.yml", API_KEYS_FILE="/dev/null", METRICS_KEY_FILE="/dev/null")
    for name in OURS:
        environment = stack["services"][name]["environment"]
        assert environment["SEQUITUR_ALLOW_ANONYMOUS"] == "false"
        assert environment["SEQUITUR_API_KEYS_FILE"] == "/run/secrets/api_keys"
        assert stack["services"][name]["secrets"] == [{"source": "api_keys"}]


@pytest.mark.redis
def test_redis_starts_with_its_file_evicts_only_what_expires_and_survives_a_restart(
    stack: dict[str, Any], tmp_path: Path
) -> None:
    binary("redis-server", "redis-server")
    port = free_port()
    here = {"/etc/redis/redis.conf": str(DEPLOY / "redis.conf"), "/data": str(tmp_path)}
    words = stack["services"]["redis"]["command"]
    assert set(here) == {target for _, target, _ in mounts(stack["services"]["redis"])} <= set(words)
    command = [here.get(word, word) for word in words] + ["--bind", "127.0.0.1", "--port", str(port)]

    with redis.Redis(port=port, retry=Retry(NoBackoff(), 0)) as client:

        def answers() -> bool:
            try:
                return bool(client.ping())
            except redis.ConnectionError:
                return False

        with running(command, tmp_path / "first.log") as process:
            process.until(answers, "answer from Redis")
            assert client.config_get("maxmemory") == {"maxmemory": str(256 * 2**20)}
            client.config_set("maxmemory", "8mb")
            client.set("kept", "no expiry, never evicted")
            for number in range(3000):
                client.set(f"history:{number}", b"x" * 4096, ex=3600)
            assert client.info("stats")["evicted_keys"] > 0
            assert client.exists("kept") == 1
        with running(command, tmp_path / "second.log") as process:
            process.until(answers, "answer from Redis")
            assert client.get("history:2999") == b"x" * 4096
            assert client.exists("kept") == 1


def mounts(spec: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Source, target and mode of every volume, from the long form or the short one."""
    found = []
    for volume in spec.get("volumes", []):
        if isinstance(volume, str):
            source, target, mode = volume.split(":")
        else:
            source, target = volume["source"], volume["target"]
            mode = "ro" if volume.get("read_only") else "rw"
        found.append((source, target, mode))
    return found
