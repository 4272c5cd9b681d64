import asyncio
from collections.abc import Awaitable

import pytest
from starlette.types import Message

from searcher.contracts.errors import InvalidInput
from searcher.servicekit.call import Call
from searcher.servicekit.line import HungUp, Line

pytestmark = pytest.mark.anyio


class Caller:
    """Stays on the line until it hangs up."""

    def __init__(self) -> None:
        self.hung_up = asyncio.Event()

    async def receive(self) -> Message:
        await self.hung_up.wait()
        return {"type": "http.disconnect"}


async def while_connected(caller: Caller, work: Awaitable[bytes]) -> bytes:
    with Line(caller.receive):
        return await work


async def test_work_is_cancelled_when_its_caller_hangs_up() -> None:
    caller, work = Caller(), asyncio.get_running_loop().create_future()
    waiting = asyncio.create_task(while_connected(caller, work))
    await asyncio.sleep(0)

    caller.hung_up.set()

    with pytest.raises(HungUp):
        await waiting
    assert work.cancelled()


async def test_a_service_that_stops_is_no_caller_that_hung_up() -> None:
    waiting = asyncio.create_task(while_connected(Caller(), asyncio.get_running_loop().create_future()))
    await asyncio.sleep(0)

    waiting.cancel()

    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_work_that_is_done_is_handed_over() -> None:
    async def work() -> bytes:
        return b"found"

    assert await while_connected(Caller(), work()) == b"found"


async def test_an_error_of_the_work_is_the_callers() -> None:
    async def work() -> bytes:
        raise LookupError("gone")

    with pytest.raises(LookupError, match="gone"):
        await while_connected(Caller(), work())


def test_a_deadline_is_the_callers_or_else_the_services() -> None:
    header = (b"x-request-timeout", b"2.5")

    assert Call({"headers": [header]}, b"").deadline_seconds(25.0) == 2.5
    assert Call({"headers": []}, b"").deadline_seconds(25.0) == 25.0


@pytest.mark.parametrize("value", [b"", b"soon", b"0", b"-1", b"nan", b"inf", b"3601"])
def test_a_deadline_that_is_none_is_refused(value: bytes) -> None:
    with pytest.raises(InvalidInput, match="X-Request-Timeout"):
        Call({"headers": [(b"x-request-timeout", value)]}, b"").deadline_seconds(25.0)
