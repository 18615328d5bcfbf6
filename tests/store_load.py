"""Load on a session store by callers who leave: what is answered must be the caller's own."""

import asyncio
import random
from collections import Counter
from collections.abc import Sequence

from service.errors import StoreUnavailable
from service.sessions import AppendResult, SessionStore, StoredEvent

USERS = 100
AT_ONCE = 50
LEAVING = 0.4  # of the callers, within a time in which some are answered and some are not
LEAVING_WITHIN_S = 0.003


async def loaded(store: SessionStore, *, calls: int, seed: int = 3) -> Counter[str]:
    """Make calls, many at once, cancel some at any moment; how many ended in which way.

    Raises:
        AssertionError: an answer that belongs to somebody else.
    """
    chance = random.Random(seed)
    await store.append_many(
        {f"load-{n}": [StoredEvent(f"load-{n}", "view", None, float(n), "once")] for n in range(USERS)}
    )
    ended: Counter[str] = Counter()

    async def ask(users: Sequence[str], kind: float) -> dict[str, list[StoredEvent]]:
        if kind < 0.6:
            return {users[0]: await store.history(users[0])}
        found: dict[str, AppendResult] = dict(await store.append_many({user: [] for user in users[: 1 + (kind > 0.8)]}))
        return {user: result.history for user, result in found.items()}

    async def shop() -> None:
        for _ in range(calls // AT_ONCE):
            call = asyncio.ensure_future(ask([f"load-{n}" for n in chance.sample(range(USERS), 2)], chance.random()))
            leaving = None
            if chance.random() < LEAVING:
                leaving = asyncio.get_running_loop().call_later(chance.random() * LEAVING_WITHIN_S, call.cancel)
            try:
                for owner, history in (await call).items():
                    assert [stored.item_id for stored in history] == [owner]
                ended["answered"] += 1
            except asyncio.CancelledError:
                ended["cancelled"] += 1
            except StoreUnavailable:
                ended["unavailable"] += 1
                await asyncio.sleep(0.001)  # as whoever is refused would
            if leaving is not None:
                leaving.cancel()

    await asyncio.gather(*(shop() for _ in range(AT_ONCE)))
    return ended
