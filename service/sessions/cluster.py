"""A Redis Cluster as the store talks to it: each command to the node that holds its slot.

Every node has its own connection, trips and time-out, so a node that hangs holds up nobody else. A node that says
where a slot went (`MOVED`, `ASK`) has not run the command, so it is sent on; one that broke off may have, so it is not.
The map of slots is asked for at the first call and again when it proves wrong or a node fails: a replica that was
promoted is found that way.
"""

import asyncio
from binascii import crc_hqx
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

from service.errors import StoreUnavailable
from service.sessions.address import Address
from service.sessions.coalescing import StoreFailure
from service.sessions.link import Command, Refusal
from service.sessions.node import Node

SLOTS = 16384
HOPS = 3  # that a command is sent on at once; two are the rule while a slot moves
AGAIN_S = 0.01  # between later ones, and between two tries at a user whose keys are on their way to another node
LEARN_EVERY_S = 0.1  # at most: a failed node must not make every call ask for the map


class Cluster:
    """The cluster that the servers at `seeds` belong to."""

    is_cluster = True

    def __init__(self, seeds: Sequence[Address], *, timeout_s: float, clock: Callable[[], float] = monotonic) -> None:
        self.address = seeds[0]
        self._seeds = seeds
        self._timeout_s = timeout_s
        self._clock = clock
        self._nodes: dict[tuple[str, int], Node] = {}
        self._slots: list[Node] = []
        self._learning: asyncio.Task[None] | None = None
        self._learn_at = 0.0
        self._is_closed = False

    async def call(self, commands: Sequence[Command], *, operation: str) -> list[Any]:
        """One reply for each command, in order; the commands may go to several nodes and are not one atomic step.

        Raises:
            StoreUnavailable: a node that is needed is away, frozen, or does not let us in.
        """
        if self._is_closed:
            raise StoreUnavailable(operation, "the session store is closed")
        try:
            async with asyncio.timeout(self._timeout_s):
                if not self._slots:
                    await self._learned()
                slots = [slot(command) for command in commands]
                nodes = [self._slots[each] for each in slots]
                if nodes.count(nodes[0]) == len(nodes):
                    replies = await self._ask(nodes[0], commands, operation)
                else:
                    replies = await self._spread(nodes, commands, operation)
                for i, reply in enumerate(replies):
                    if isinstance(reply, Refusal):
                        replies[i] = await self._send_on(commands[i], slots[i], nodes[i], reply, operation)
                return replies
        except StoreFailure as error:
            raise StoreUnavailable(operation, str(error)) from error
        except TimeoutError:
            self._doubt()
            raise StoreUnavailable(operation, f"no answer within {self._timeout_s:g} s") from None

    async def ping(self) -> None:
        """Return when every node can serve; raise `StoreUnavailable` with the reason when one cannot."""
        if not self._slots:
            await self.call([("PING",)], operation="ping")
        await asyncio.gather(*(node.ping() for node in set(self._slots)))

    async def close(self) -> None:
        """Serve whoever waits, refuse everyone after."""
        self._is_closed = True
        if self._learning is not None:
            self._learning.cancel()
            await asyncio.wait([self._learning])
        await asyncio.gather(*(node.close() for node in self._nodes.values()))

    async def _ask(self, node: Node, commands: Sequence[Command], operation: str) -> list[Any]:
        try:
            return await node.call(commands, operation=operation)
        except StoreUnavailable:
            self._doubt()
            raise

    async def _spread(self, nodes: Sequence[Node], commands: Sequence[Command], operation: str) -> list[Any]:
        places: dict[Node, list[int]] = {}
        for i, node in enumerate(nodes):
            places.setdefault(node, []).append(i)
        answers = await asyncio.gather(
            *(self._ask(node, [commands[i] for i in own], operation) for node, own in places.items()),
            return_exceptions=True,  # all have to be waited for
        )
        replies: list[Any] = [None] * len(commands)
        for own, answer in zip(places.values(), answers, strict=True):
            if isinstance(answer, BaseException):
                raise answer
            for i, reply in zip(own, answer, strict=True):
                replies[i] = reply
        return replies

    async def _send_on(self, command: Command, number: int, node: Node, reply: Any, operation: str) -> Any:
        hops = 0
        while True:  # ends with the time-out of the call
            hops += 1
            if hops > HOPS:
                await asyncio.sleep(AGAIN_S)
            word = reply.word if isinstance(reply, Refusal) else ""
            asking: tuple[Command, ...] = ()
            if word in ("MOVED", "ASK"):
                host, _, port = str(reply).split(" ")[2].rpartition(":")
                node = self._node(host or node.address.host, int(port))
                if word == "ASK":
                    asking = (("ASKING",),)
                else:
                    self._slots[number] = node
                    self._doubt()
            elif word == "TRYAGAIN":
                await asyncio.sleep(AGAIN_S)
                node = self._slots[number]
            else:
                if word in ("READONLY", "CLUSTERDOWN"):
                    self._doubt()
                return reply
            *_, reply = await self._ask(node, (*asking, command), operation)

    def _node(self, host: str, port: int) -> Node:
        node = self._nodes.get((host, port))
        if node is None:
            node = self._nodes[host, port] = Node(self.address.at(host, port), timeout_s=self._timeout_s)
        return node

    def _doubt(self) -> None:
        """The map may be out of date: ask for it in the background."""
        if self._learning is None and not self._is_closed and self._clock() >= self._learn_at:
            self._learn_at = self._clock() + LEARN_EVERY_S
            self._learning = asyncio.create_task(self._learn())
            self._learning.add_done_callback(self._learned_of)

    def _learned_of(self, task: asyncio.Task[None]) -> None:
        self._learning = None
        if not task.cancelled():
            task.exception()  # looked at; who needs the map hears of it in `_learned`

    async def _learned(self) -> None:
        """Return when there is a map."""
        if self._learning is None:
            self._learn_at = 0.0
            self._doubt()
        if self._learning is not None:
            await asyncio.shield(self._learning)

    async def _learn(self) -> None:
        """Ask every node that is known, and believe the first that answers."""
        for seed in self._seeds:
            self._node(seed.host, seed.port)
        asked = {
            asyncio.create_task(node.call([("CLUSTER", "SLOTS")], operation="open")): node
            for node in self._nodes.values()
        }
        waiting = set(asked)
        failed: StoreFailure | None = None
        try:
            while waiting:
                answered, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in answered:
                    try:
                        (reply,) = task.result()
                    except StoreUnavailable as error:
                        failed = StoreFailure(error.detail)
                        continue
                    if isinstance(reply, Refusal):
                        failed = StoreFailure(f"{asked[task].address} is no part of a cluster ({reply})")
                    elif reply:
                        await self._believe(reply, asked[task])
                        return
        finally:
            for task in waiting:
                task.cancel()
        raise failed or StoreFailure(f"{self.address}: no node of its cluster has any slot")

    async def _believe(self, ranges: Sequence[Any], teller: Node) -> None:
        slots = self._slots or [teller] * SLOTS  # of a slot that nobody holds each node says so
        for first, last, (host, port, *_), *_ in ranges:
            node = self._node(host.decode() if host else teller.address.host, port)
            slots[first : last + 1] = [node] * (last - first + 1)
        self._slots = slots
        used = set(slots)
        left = [self._nodes.pop(key) for key, node in list(self._nodes.items()) if node not in used]
        for node in left:
            await node.close()


def slot(command: Command) -> int:
    """The slot of a command's first key; a command without one goes to any node."""
    place = 3 if command[0] == "EVALSHA" else 1
    if len(command) <= place:
        return 0
    key = command[place]
    text = key.encode() if isinstance(key, str) else bytes(str(key), "ascii") if isinstance(key, int) else key
    return crc_hqx(text[text.index(b"{") + 1 : text.index(b"}")], 0) % SLOTS
