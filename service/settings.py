"""Where to run and how much to use: the only file that reads the environment. What to serve is in the bundle.

Every field is one variable with the prefix `SEQUITUR_`. A variable with that prefix and an unknown name is refused:
a misspelt limit that silently does nothing is worse than a service that does not start.

There is one dial, the request deadline. The limits that follow from it do so by the fractions below.
"""

import difflib
import os
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.errors import ConfigurationError

PREFIX = "SEQUITUR_"
# Tests and Kubernetes (service links: SEQUITUR_SERVICE_HOST, SEQUITUR_PORT_8000_TCP) write names of their own.
FOREIGN = ("SEQUITUR_TEST_", "SEQUITUR_PROPERTY_", "SEQUITUR_SERVICE_", "SEQUITUR_PORT_")

STORE_SHARE = 0.4  # of the deadline: how long the session store may take before its answer is done without
GENERATIVE_SHARE = (
    0.7  # of what is left then, less the reserve: how long a generator may take before the encoder has to
)
RANKING_SHARE = 0.8  # of what is left when ranking begins: the rest is for the rules, and for a wrong estimate
WAIT_SHARE = 0.08  # of the deadline: how long a request may stand in a line before fewer are let in
QUEUE_SHARE = 0.4  # of the deadline: how long a request may have to wait for the model; beyond it there is no room
BATCH_SHARE = 0.2  # of the deadline: how long a batch may take, so that those behind it have a chance
INLINE_SHARE = 0.02  # of the deadline: how long the model may keep the event loop where there is one core
RESERVE_SHARE = 0.2  # of the deadline: kept for answering from the popular list when the recommender is not back

KEEP_ALIVE_S = (
    75  # an idle connection: longer than load balancers keep theirs, who would ask on one that is just closed
)

# When a process is told to stop it drains for `drain_s`; then come:
STOP_S = 10.0  # the longest that requests under way may take, once nothing is accepted any more
CLOSE_S = 10.0  # the longest that flushing and closing may take after that


class Settings(BaseModel):
    """One frozen object, read once and passed on from `create_app`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bundle: Path | None = Field(
        None, description="Bundle directory; unset: artifacts/current where it exists, else artifacts/demo."
    )
    bundles: Path | None = Field(
        None, description="Directory whose bundles may be activated; unset: the one that the served bundle is in."
    )
    variants: Path | None = Field(
        None, description="TOML file of variants, experiments and shadow traffic; read once, at the start."
    )
    placements: Path | None = Field(
        None, description="TOML file of placements: goals, rules and defaults by name; read once, at the start."
    )
    store: str = Field(
        "sqlite:///.state/sessions.sqlite",
        repr=False,  # it may hold a password
        description="Session store: sqlite:///path, redis://, redis+cluster://, rediss:// or memory://.",
    )
    log: str = Field(
        "",
        repr=False,  # as above
        description="Durable log of events and served lists: file://dir, redis-stream://host:port/db/name; empty: off.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where the model runs; auto prefers cuda.")
    deadline_ms: float = Field(
        100.0, gt=0, le=60_000, description="Whole-request budget in milliseconds; other limits follow from it."
    )
    store_timeout_ms: float | None = Field(
        None, gt=0, description="Longest wait for the session store in milliseconds; unset: 0.4 of the deadline."
    )
    api_keys_file: Path | None = Field(
        None, description="File of API keys, one `name:scope,scope:sha256` a line; read again when it changes."
    )
    allow_anonymous: bool = Field(False, description="Serve beyond loopback without API keys.")
    rate_limit: float = Field(
        0.0, ge=0, le=1e6, description="Requests per second and API key, shared by the workers; 0: no limit."
    )
    query_budget: int = Field(
        0, ge=0, description="Distinct query sequences per API key and day (UTC), over all workers; 0: no limit."
    )
    cores: int | None = Field(None, ge=1, description="Cores to use in all; unset: those this process may run on.")
    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65_535, description="Port to listen on; 0 takes a free one.")
    workers: int = Field(1, ge=1, le=64, description="Processes; each loads the bundle and takes its share of cores.")
    max_in_flight: int = Field(256, ge=1, description="Requests at work at once per process; more are refused.")
    max_batch: int = Field(64, ge=1, le=1024, description="Largest batch that goes through the model at once.")
    queue_limit: int = Field(256, ge=1, description="Requests that may wait for the model; more are refused.")
    batch_wait_ms: float = Field(
        0.0, ge=0, description="Longest wait for a batch to fill in milliseconds; 0: go when the model is free."
    )
    frozen_items: int = Field(
        100, ge=0, le=500, description="Length of lists that further pages are cut from, the first included; 0: none."
    )
    history_cap: int = Field(1_000, ge=1, le=10_000, description="Newest events kept per user.")
    history_ttl_s: float = Field(
        90 * 86_400.0, gt=0, description="Seconds after its newest event when a history is forgotten."
    )
    dedup_ttl_s: float = Field(86_400.0, gt=0, description="Seconds for which an event_id is remembered.")
    drain_s: float = Field(
        1.0, ge=0, le=600, description="Seconds between being unready and accepting nothing, once told to stop."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least level that is logged.")
    log_format: Literal["text", "json"] = Field("text", description="One line per request, for people or machines.")
    log_sample: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Share of requests with nothing to say that are logged; failed, degraded and slow: all.",
    )
    traces: str = Field(
        "", description="Where traces go: http://collector:4318 (OTLP) or file:///path; empty: nowhere."
    )

    @property
    def bundle_dir(self) -> Path:
        """The bundle to serve."""
        if self.bundle is not None:
            return self.bundle
        current = Path("artifacts/current")
        return current if current.exists() else Path("artifacts/demo")

    @property
    def bundles_dir(self) -> Path:
        """Where the bundles lie that may be brought into service."""
        return (self.bundles or self.bundle_dir.resolve().parent).resolve()

    @property
    def deadline_s(self) -> float:
        """The whole-request budget."""
        return self.deadline_ms / 1000

    @property
    def store_timeout_s(self) -> float:
        """How long the session store may take."""
        if self.store_timeout_ms is not None:
            return self.store_timeout_ms / 1000
        return STORE_SHARE * self.deadline_s

    @property
    def threads(self) -> int:
        """Cores that one worker process may use."""
        return max(1, (self.cores or available_cores()) // self.workers)

    @property
    def is_loopback(self) -> bool:
        """Whether nobody but this machine can reach the address."""
        if self.host == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False


def available_cores(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Cores that this process may run on; a container's quota counts, which the affinity does not know."""
    allowed = len(os.sched_getaffinity(0))
    try:
        limit, period = quota.read_text().split()
        return max(1, min(allowed, int(limit) // int(period)))
    except (OSError, ValueError):  # no quota: the file is absent or says `max`
        return allowed


def read(environment: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
    """Settings from the environment, with what the command line says instead.

    Raises:
        ConfigurationError: an unknown variable, or a value outside its range.
    """
    names = os.environ if environment is None else environment
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    for name in names:
        if name.startswith(PREFIX) and name not in known and not name.startswith(FOREIGN):
            near = difflib.get_close_matches(name, known, n=1, cutoff=0)[0]
            raise ConfigurationError(f"there is no setting {name}; did you mean {near}? Unset it or rename it")
    # Compose files write `NAME: ${NAME:-}`: an empty variable is an unset one.
    given = {name.removeprefix(PREFIX).lower(): value for name, value in names.items() if name in known and value}
    try:
        return Settings(**{**given, **overrides})
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0])
        raise ConfigurationError(
            f"{PREFIX}{field.upper()}={first['input']!r} is refused: {first['msg']}. "
            f"It means: {Settings.model_fields[field].description}"
        ) from error


def environment(settings: Settings, **more: str) -> dict[str, str]:
    """The environment of a process that is to read the same settings again."""
    said = settings.model_dump(mode="json", exclude_none=True)
    return {**os.environ, **{PREFIX + name.upper(): str(value) for name, value in said.items()}, **more}
