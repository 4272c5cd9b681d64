"""HTTP for services of thousands of small requests: direct routes are answered without ASGI.

    bytes --httptools--> request --> Direct.reply --> one write
                            \\--> uvicorn's own way through ASGI: every other route, and whatever is unusual

Per request that leaves out ASGI's messages and the objects that carry them, half of what a request costs that is
answered from memory; and uvicorn writes the head of a response before its body, for which every client wakes twice.
"""

import asyncio
import time
from http import HTTPStatus
from typing import Any

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from searcher.servicekit.call import Call, Reply
from searcher.servicekit.frame import Direct, Framed
from searcher.servicekit.line import HungUp


class DirectHttp(HttpToolsProtocol):
    """One connection to a Framed application."""

    app: Framed
    cycle: Any
    """What answers the newest request: an _Exchange, or uvicorn's own."""

    def on_headers_complete(self) -> None:
        exchange = self._exchange()
        if exchange is None:
            super().on_headers_complete()
        else:
            self.cycle = exchange

    def on_body(self, body: bytes) -> None:
        if isinstance(self.cycle, _Exchange):
            self.cycle.body += body
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if isinstance(self.cycle, _Exchange):
            self.cycle.start()
        else:
            super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        if isinstance(self.cycle, _Exchange):
            self.cycle.hang_up()
            self.cycle = None
        super().connection_lost(exc)

    def _exchange(self) -> "_Exchange | None":
        """None for what is left to uvicorn: other routes, refusals, and clients out of the ordinary, who send before
        the last request was answered, ask before they send a body, do not say its size or speak an older HTTP."""
        path, _, query = self.url.partition(b"?")
        direct = self.app.direct.get(path.decode("latin-1"))
        if direct is None or self.parser.get_method() != b"POST":
            return None
        if self.cycle is not None and not self.cycle.response_complete:
            return None
        if self.expect_100_continue or not any(name == b"content-length" for name, _ in self.headers):
            return None
        parser = self.parser
        if parser.get_http_version() != "1.1" or not parser.should_keep_alive() or parser.should_upgrade():
            return None
        scope: Scope = {"path": direct.path, "query_string": query, "headers": self.headers}
        return None if self.app.refusal(scope) else _Exchange(self, direct, scope)


class _Exchange:
    """One request and the reply to it. uvicorn takes it for one of its own, whose names these are."""

    response_complete = False
    keep_alive = True
    """False once the service is to end."""

    def __init__(self, http: DirectHttp, direct: Direct, scope: Scope) -> None:
        self._http, self._direct, self._scope = http, direct, scope
        self.body = bytearray()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = self._http.loop.create_task(self._answer())
        self._http.tasks.add(self._task)
        self._task.add_done_callback(self._http.tasks.discard)

    def hang_up(self) -> None:
        """The caller did."""
        if self._task is not None:
            self._task.cancel()

    async def _answer(self) -> None:
        metrics = self._http.app.metrics
        metrics.in_flight += 1
        started = time.perf_counter()
        status = HungUp.status
        try:
            reply = await self._direct.reply(Call(self._scope, bytes(self.body)))
            status = reply.status
            if self._http.flow.write_paused:
                await self._http.flow.drain()
            self._send(reply)
        finally:
            metrics.in_flight -= 1
            metrics.observe("POST", self._direct.path, status, time.perf_counter() - started)

    def _send(self, reply: Reply) -> None:
        http = self._http
        self.response_complete = True
        if http.cycle is self:
            http.cycle = None
        closes = _CLOSE in reply.headers
        headers = [*http.server_state.default_headers, *reply.headers]
        if not closes and (http.app.state.draining or not self.keep_alive):
            closes = True
            headers.append(_CLOSE)
        head = b"".join([b"%b: %b\r\n" % header for header in headers])
        http.transport.write(b"%b%b\r\n%b" % (_STATUS_LINES[reply.status], head, reply.content))
        if closes:
            http.transport.close()
        http.on_response_complete()


_CLOSE = (b"connection", b"close")
_STATUS_LINES = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}
