"""A response leaves in one packet, and whatever is no whole response leaves as it did."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from searcher.servicekit.whole import WholeResponses

pytestmark = pytest.mark.anyio

PATIENCE_SECONDS = 10.0


class Spy:
    """A transport that notes what is written at a time."""

    def __init__(self, transport: asyncio.Transport, written: list[bytes]) -> None:
        self._transport, self._written = transport, written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        self._written.append(bytes(data))
        self._transport.write(data)


class Told:
    """When the second part of a stream may come."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()


@asynccontextmanager
async def served(told: Told) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter, list[bytes]]]:
    written: list[bytes] = []

    class Spied(WholeResponses):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(Spy(transport, written))  # type: ignore[arg-type]

    async def echo(request: Request) -> Response:
        return PlainTextResponse(await request.body())

    async def stream(request: Request) -> Response:
        async def parts() -> AsyncIterator[bytes]:
            await told.go_on.wait()
            yield b"late"

        return StreamingResponse(parts())

    app = Starlette(routes=[Route("/echo", echo, methods=["GET", "POST"]), Route("/stream", stream)])
    config = uvicorn.Config(app, port=0, log_level="warning", http=Spied, lifespan="off")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    reader, writer = await asyncio.open_connection(*server.servers[0].sockets[0].getsockname())
    try:
        yield reader, writer, written
    finally:
        writer.close()
        server.should_exit = True
        await serving


async def read_until(reader: asyncio.StreamReader, end: bytes) -> bytes:
    return await asyncio.wait_for(reader.readuntil(end), PATIENCE_SECONDS)


async def test_head_and_body_are_written_at_once() -> None:
    async with served(Told()) as (reader, writer, written):
        for text in (b"one", b"two"):
            writer.write(b"POST /echo HTTP/1.1\r\nHost: s\r\nContent-Length: 3\r\n\r\n" + text)
            assert (await read_until(reader, text)).startswith(b"HTTP/1.1 200 OK\r\n")

    assert [data[-3:] for data in written] == [b"one", b"two"]


async def test_the_head_of_a_stream_does_not_wait_for_its_first_part() -> None:
    told = Told()
    async with served(told) as (reader, writer, _):
        writer.write(b"GET /stream HTTP/1.1\r\nHost: s\r\n\r\n")
        assert b"chunked" in await read_until(reader, b"\r\n\r\n")
        told.go_on.set()
        assert b"late" in await read_until(reader, b"0\r\n\r\n")


async def test_who_asks_whether_to_send_a_body_is_told_before_sending_it() -> None:
    async with served(Told()) as (reader, writer, _):
        writer.write(b"POST /echo HTTP/1.1\r\nHost: s\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
        assert await read_until(reader, b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"one")
        assert (await read_until(reader, b"one")).startswith(b"HTTP/1.1 200 OK\r\n")


async def test_a_response_without_a_body_and_one_that_closes_are_whole() -> None:
    async with served(Told()) as (reader, writer, _):
        writer.write(b"HEAD /echo HTTP/1.1\r\nHost: s\r\nConnection: close\r\n\r\n")
        answered = await asyncio.wait_for(reader.read(), PATIENCE_SECONDS)

    assert answered.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answered.endswith(b"\r\n\r\n")


async def test_what_is_no_http_is_refused() -> None:
    async with served(Told()) as (reader, writer, _):
        writer.write(b"nonsense\r\n\r\n")
        assert (await asyncio.wait_for(reader.read(), PATIENCE_SECONDS)).startswith(b"HTTP/1.1 400 ")
