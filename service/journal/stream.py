"""Lines in a Redis stream, for replicas without a disk of their own; `drain` brings them into files.

Each line is an entry with one field. The stream keeps about the newest `maxlen` entries (`?maxlen=` of the URL): it is
a pipe and no archive, and must not fill Redis while nobody drains it. Entries that push older ones out are counted as
dropped. Where the reply to a write is lost the lines are written again, so an entry may be there twice.
"""

from typing import NamedTuple
from urllib.parse import parse_qs, quote, unquote, urlsplit

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from service import metrics
from service.errors import ConfigurationError
from service.journal.writer import SinkFailure

FIELD = b"line"
MAXLEN = 250_000  # entries; some 250 MB of lists of twenty
TIMEOUT_S = 2.0


class Address(NamedTuple):
    """Where a stream is: the URL of its Redis, its key, and how long it may get."""

    redis: str
    name: str
    maxlen: int
    where: str


class Stream:
    """The stream that `url` names."""

    def __init__(self, url: str, *, timeout_s: float = TIMEOUT_S) -> None:
        self._address = address(url)
        self.where = self._address.where
        self._redis = connect(self._address, timeout_s=timeout_s)

    def write(self, lines: list[bytes]) -> None:
        _, name, maxlen, _ = self._address
        try:
            with self._redis.pipeline(transaction=False) as pipeline:
                for line in lines:
                    pipeline.execute_command("XADD", name, "MAXLEN", "~", maxlen, "*", FIELD, line)  # type: ignore[no-untyped-call]
                pipeline.execute_command("XLEN", name)  # type: ignore[no-untyped-call]
                *replies, length = pipeline.execute(raise_on_error=False)
        except (RedisError, OSError) as error:
            raise SinkFailure(f"{type(error).__name__}: {error}; is Redis running there?") from error
        failed = [reply for reply in replies if isinstance(reply, Exception)]
        if isinstance(length, int) and length > maxlen:
            # Redis trims by whole nodes; over time, one goes for each that comes.
            metrics.JOURNAL_DROPPED.labels("trimmed").inc(len(lines) - len(failed))
        lines[:] = [line for line, reply in zip(lines, replies, strict=True) if isinstance(reply, Exception)]
        if failed:
            raise SinkFailure(f"Redis refuses: {failed[0]}")

    def sync(self) -> None:
        """Nothing: how durable a stream is, Redis's own settings say."""

    def tend(self) -> None: ...

    def close(self) -> None:
        self._redis.close()


def address(url: str) -> Address:
    """The parts of a stream's URL.

    Raises:
        ConfigurationError: it has no host or no name, or says what nobody understands.
    """
    parts = urlsplit(url)
    database, _, name = parts.path.strip("/").partition("/")
    options = parse_qs(parts.query)
    said = options.pop("maxlen", [str(MAXLEN)])[-1]
    if not parts.hostname or not database.isdecimal() or not name or options or not said.isdecimal() or int(said) < 1:
        raise ConfigurationError(
            "SEQUITUR_LOG: a stream reads redis-stream://host:port/db/name, with ?maxlen= if need be"
        )
    scheme = "rediss" if parts.scheme == "rediss-stream" else "redis"
    name = unquote(name)
    where = f"stream {name} of Redis at {parts.hostname}:{parts.port or 6379}"
    return Address(f"{scheme}://{parts.netloc}/{quote(database)}", name, int(said), where)


def connect(where: Address, *, timeout_s: float = TIMEOUT_S) -> Redis:
    """A client that connects with its first command and repeats none."""
    try:
        return Redis.from_url(
            where.redis,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
        )
    except ValueError as error:
        raise ConfigurationError(f"SEQUITUR_LOG: {error}") from error
