"""A process that appends events one by one and prints each as soon as it is acknowledged.

python session_writer.py URL USER PREFIX COUNT
"""

import asyncio
import sys

from service.sessions import StoredEvent, open_store


async def main(url: str, user_id: str, prefix: str, count: int) -> None:
    store = open_store(url, cap=10_000, timeout_s=20)
    await store.open()
    for i in range(count):
        item_id = f"{prefix}{i}"
        result = await store.append(user_id, [StoredEvent(item_id, "view", None, float(i), item_id)])
        assert result.outcomes == ("accepted",)
        print(item_id, flush=True)  # noqa: T201
    await store.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))
