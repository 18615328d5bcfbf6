"""Late, in time, cancelled, and all of it at once."""

import asyncio

import pytest

from service.within import Within

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_in_time_nothing_happens_and_nothing_is_left_behind():
    with Within(0.01):
        await asyncio.sleep(0)
    await asyncio.sleep(0.03)
    assert asyncio.current_task().cancelling() == 0


@pytest.mark.parametrize("limit_s", [0.01, 0.0, -1.0])
async def test_late_is_a_timeout_and_the_task_goes_on(limit_s):
    with pytest.raises(TimeoutError), Within(limit_s):
        await asyncio.Event().wait()
    await asyncio.sleep(0)
    assert asyncio.current_task().cancelling() == 0


async def test_late_with_an_error_of_its_own_is_that_error():
    async def work():
        with Within(0.0):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                raise KeyError from None

    with pytest.raises(KeyError):
        await work()


async def test_cancelled_from_outside_is_no_timeout():
    async def work():
        with Within(10):
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_cancelled_and_late_at_once_is_cancelled():
    async def work():
        with Within(0.0):
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_later(0, task.cancel)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_the_inner_limit_is_not_the_outer_one():
    with Within(10), pytest.raises(TimeoutError), Within(0.0):
        await asyncio.Event().wait()
    with pytest.raises(TimeoutError), Within(0.0), Within(10):
        await asyncio.Event().wait()
