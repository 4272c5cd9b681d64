"""asyncio, where its own words are not enough.

redis-py awaits through `asyncio.wait_for`, and before Python 3.12 that swallows a cancellation which arrives together
with the result. So who cancels repeats it until it works, and a loop that calls Redis asks whether it was cancelled.
"""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

T = TypeVar("T")

REPEAT_SECONDS = 0.1


async def all_of(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """All results, in order. The first error cancels the rest and is raised as it is."""
    tasks = [asyncio.create_task(each) for each in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        await cancel(tasks)


@asynccontextmanager
async def running(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Runs beside the block and ends with it."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        await cancel([task])


async def cancel(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Return when all have ended. Their errors are not raised: nobody waits for their results any more."""
    pending = {task for task in tasks if not task.done()}
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=REPEAT_SECONDS)


def was_cancelled() -> bool:
    """Whether somebody has cancelled this task."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
