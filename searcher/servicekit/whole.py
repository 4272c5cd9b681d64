"""Responses that leave in one packet."""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class WholeResponses(HttpToolsProtocol):
    """uvicorn writes the head of a response before its body, and uvloop sends at once what is written: two packets, for
    which a client wakes twice."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(_HeadsWait(transport, self.loop))  # type: ignore[arg-type]


class _HeadsWait:
    """A transport. The head of a response is sent with what is written next, or when the loop comes round without."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._head = b""
        self._round: asyncio.Handle | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if self._head:
            data = self._taken() + data
        elif data.startswith(b"HTTP/1.1 ") and data.endswith(b"\r\n\r\n"):
            self._head = data
            self._round = self._loop.call_soon(self._send_head)
            return
        self._transport.write(data)

    def close(self) -> None:
        self._send_head()
        self._transport.close()

    def _send_head(self) -> None:
        if self._head:
            self._transport.write(self._taken())

    def _taken(self) -> bytes:
        assert self._round is not None
        self._round.cancel()
        head, self._head = self._head, b""
        return head
