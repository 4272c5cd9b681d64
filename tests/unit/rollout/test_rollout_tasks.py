"""Doing several things at once, and stopping."""

import asyncio

import pytest

from services.rollout.tasks import all_of, cancel, running, was_cancelled

pytestmark = pytest.mark.anyio


async def value(number: int) -> int:
    await asyncio.sleep(0)
    return number


async def test_results_come_in_the_order_asked() -> None:
    assert await all_of(value(number) for number in range(3)) == [0, 1, 2]


async def test_the_first_error_cancels_the_rest_and_is_raised_as_it_is() -> None:
    ended = asyncio.Event()

    async def forever() -> int:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return 0

    async def fails() -> int:
        raise LookupError("no")

    with pytest.raises(LookupError):
        await all_of([forever(), fails()])
    assert ended.is_set()


async def test_a_swallowed_cancellation_is_repeated() -> None:
    async def swallows_one() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.Event().wait()

    task = asyncio.create_task(swallows_one())
    await asyncio.sleep(0)
    await cancel([task])

    assert task.cancelled()


async def test_a_loop_can_see_that_it_was_cancelled() -> None:
    seen = []

    async def swallows() -> None:
        while not was_cancelled():
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                seen.append(was_cancelled())

    async with running(swallows()):
        await asyncio.sleep(0)

    assert seen == [True]
