"""One Redis server as the store talks to it: calls share trips, scripts are loaded when they are missing.

It answers with what Redis replied, refusals included: what to make of those is for whoever asked.
"""

from collections.abc import Sequence
from typing import Any

from service.errors import StoreUnavailable
from service.sessions.address import Address
from service.sessions.coalescing import Coalescer, StoreFailure
from service.sessions.link import Command, Link, Refusal
from service.sessions.scripts import BY_DIGEST

STALL_SHARE = 0.5  # of the time-out: a trip under way for longer says that others need not wait for the next

# What an error from Redis says, and what helps.
REMEDIES = {
    "OOM": "it is full; raise its maxmemory or set an eviction policy",
    "READONLY": "it is a read-only replica; point SEQUITUR_STORE to the primary",
    "LOADING": "it is still loading its data; wait",
    "MISCONF": "it cannot write its own disk and refuses changes; free space there",
    "WRONGPASS": "it wants another password; write redis://user:password@host:port/db",
    "NOAUTH": "it wants another password; write redis://user:password@host:port/db",
    "AUTH": "it wants another password; write redis://user:password@host:port/db",
    "NOPERM": "its user may not run this; allow @read, @write, @scripting, PING and CLUSTER on {sequitur:*",
    "LAYOUT": "a newer version of the service has written here; upgrade this one, or use another database",
    "WRONGTYPE": "a key under {sequitur: belongs to something else; use another database number",
    "MOVED": "it is a cluster; write redis+cluster://host:port",
    "CLUSTERDOWN": "its cluster does not cover all keys; look for a failed node without a replica",
    "TRYAGAIN": "a slot of its cluster is being moved; wait",
}


class Node:
    """The server at `address`. It may be away: calls fail at once, and work again when it is back."""

    is_cluster = False

    def __init__(self, address: Address, *, timeout_s: float) -> None:
        self.address = address
        self._link = Link(address, timeout_s=timeout_s)
        self._calls: Coalescer[Sequence[Command], list[Any]] = Coalescer(
            self._together, timeout_s=timeout_s, stall_s=timeout_s * STALL_SHARE
        )

    async def call(self, commands: Sequence[Command], *, operation: str) -> list[Any]:
        """One reply for each command, in order.

        Raises:
            StoreUnavailable: the server is away, frozen, or does not let us in.
        """
        return await self._calls.call(commands, operation=operation)

    async def ping(self) -> None:
        """Return when the server can serve; raise `StoreUnavailable` with the reason when it cannot."""
        (reply,) = await self.call([("PING",)], operation="ping")
        if isinstance(reply, Refusal):
            raise StoreUnavailable("ping", str(failure(self.address, reply)))

    async def close(self) -> None:
        """Serve whoever waits, refuse everyone after."""
        await self._calls.close()
        self._link.close()

    async def _together(self, calls: Sequence[Sequence[Command]]) -> list[list[Any]]:
        commands = [command for call in calls for command in call]
        try:
            replies = await self._link.trip(commands)
            unknown = [i for i, reply in enumerate(replies) if isinstance(reply, Refusal) and reply.word == "NOSCRIPT"]
            if unknown:  # a new, restarted or flushed Redis; these commands have not run
                sources = {BY_DIGEST[str(commands[i][1])].source for i in unknown}
                loads: list[Command] = [("SCRIPT", "LOAD", source) for source in sources]
                again = await self._link.trip([*loads, *(commands[i] for i in unknown)])
                for i, reply in zip(unknown, again[len(loads) :], strict=True):
                    replies[i] = reply
        except (OSError, Refusal) as error:  # a time-out is an OSError
            raise failure(self.address, error) from error
        if len(calls) == 1:
            return [replies]
        answers, start = [], 0
        for call in calls:
            answers.append(replies[start : start + len(call)])
            start += len(call)
        return answers


def failure(address: Address, error: Exception) -> StoreFailure:
    """What an error of a server means, and what helps."""
    said = f"{type(error).__name__}: {error}"
    otherwise = "it refused" if isinstance(error, Refusal) else "it does not answer; is it running there?"
    remedy = next((text for word, text in REMEDIES.items() if word in said), otherwise)
    return StoreFailure(f"{address}: {remedy} ({said})")
