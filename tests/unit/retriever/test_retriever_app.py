import asyncio

import pytest
from fastapi import HTTPException, Request
from starlette.types import Message

from services.retriever.app import CALLER_HUNG_UP, _while_connected

pytestmark = pytest.mark.anyio


class Caller:
    """Stays on the line until it hangs up."""

    def __init__(self) -> None:
        self.hung_up = asyncio.Event()
        self.request = Request({"type": "http"}, self.receive)

    async def receive(self) -> Message:
        await self.hung_up.wait()
        return {"type": "http.disconnect"}


async def test_work_is_cancelled_when_its_caller_hangs_up() -> None:
    caller, work = Caller(), asyncio.get_running_loop().create_future()
    waiting = asyncio.create_task(_while_connected(caller.request, work))

    caller.hung_up.set()

    with pytest.raises(HTTPException) as refused:
        await waiting
    assert refused.value.status_code == CALLER_HUNG_UP
    assert work.cancelled()


async def test_work_that_is_done_is_handed_over() -> None:
    async def work() -> str:
        return "found"

    assert await _while_connected(Caller().request, work()) == "found"


async def test_an_error_of_the_work_is_the_callers() -> None:
    async def work() -> str:
        raise LookupError("gone")

    with pytest.raises(LookupError, match="gone"):
        await _while_connected(Caller().request, work())
