"""Whether a caller still waits."""

import asyncio
from types import TracebackType

from starlette.types import Receive

from searcher.contracts.errors import SearcherError

_WATCHED_AFTER_SECONDS = 0.02
"""Most answers are there by then, and a watcher costs each of them more than it could save."""


class HungUp(SearcherError):
    """Nobody waits for the answer, and nobody reads this one: its status, nginx' for it, tells metrics apart."""

    status = 499


class Line:
    """To a caller. The task that works inside of `with` is cancelled when the caller hangs up: nobody would read the
    answer, and others wait. Raises HungUp."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._watcher: asyncio.Task[None] | None = None
        self._hung_up = False
        self._due = asyncio.get_running_loop().call_later(_WATCHED_AFTER_SECONDS, self._watch)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._due.cancel()
        if self._watcher is not None:
            self._watcher.remove_done_callback(self._leave)
            self._watcher.cancel()
        if self._hung_up and isinstance(error, asyncio.CancelledError) and self._task.uncancel() == 0:
            raise HungUp from None

    def _watch(self) -> None:
        self._watcher = asyncio.create_task(_hung_up(self._receive))
        self._watcher.add_done_callback(self._leave)

    def _leave(self, watcher: asyncio.Task[None]) -> None:
        if not watcher.cancelled():
            self._hung_up = True
            self._task.cancel()


async def _hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
