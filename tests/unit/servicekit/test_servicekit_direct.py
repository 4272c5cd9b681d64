"""Direct routes are answered without ASGI, and nobody can tell but by the time it takes."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI
from prometheus_client import REGISTRY

from searcher.contracts.errors import Overloaded
from searcher.contracts.search import SearchRequest
from searcher.servicekit.app import create_service
from searcher.servicekit.call import Call
from searcher.servicekit.direct import DirectHttp
from searcher.servicekit.frame import Framed
from searcher.servicekit.posts import add_post
from searcher.servicekit.settings import ServiceSettings, SharedSettings

pytestmark = pytest.mark.anyio

PATIENCE_SECONDS = 10.0


class ToySettings(ServiceSettings):
    port: int = 8999


class Toy:
    """Answers with the body, but for some bodies."""

    def __init__(self) -> None:
        self.begun, self.go_on, self.left = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def answer(self, call: Call) -> bytes:
        match call.body:
            case b"think":
                await self._think()
            case b"busy":
                raise Overloaded("9 queries wait", retry_after_seconds=2.5)
            case b"fault":
                raise KeyError("internals")
            case b"how":
                return json.dumps([call.query_string, call.deadline_seconds(1.0)]).encode()
        return call.body

    async def _think(self) -> None:
        self.begun.set()
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.left.set()
            raise


class Spy:
    """A transport that notes what is written at a time."""

    def __init__(self, transport: asyncio.Transport, written: list[bytes]) -> None:
        self._transport, self._written = transport, written

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        self._written.append(bytes(data))
        self._transport.write(data)


@dataclass
class Line:
    """A connection to the toy's service, and what both ends of it know."""

    toy: Toy
    app: Framed
    server: uvicorn.Server
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    written: list[bytes]

    def send(self, body: bytes, *headers: str, first: str = "POST /echo HTTP/1.1") -> None:
        lines = [first, "Host: s", *(headers or [f"Content-Length: {len(body)}"]), "", ""]
        self.writer.write("\r\n".join(lines).encode() + body)

    async def read(self) -> tuple[bytes, bytes]:
        """Status line with headers, in small letters, and body of the next response."""
        head = (await soon(self.reader.readuntil(b"\r\n\r\n"))).lower()
        length = int(head.partition(b"content-length: ")[2].partition(b"\r")[0])
        return head, await soon(self.reader.readexactly(length))

    async def ask(self, body: bytes, *headers: str, **request: str) -> tuple[bytes, bytes]:
        self.send(body, *headers, **request)
        return await self.read()


async def soon(awaited: Any) -> Any:
    return await asyncio.wait_for(awaited, PATIENCE_SECONDS)


@asynccontextmanager
async def connected(settings: ToySettings | None = None) -> AsyncIterator[Line]:
    toy, written = Toy(), list[bytes]()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield

    async def is_ready(app: FastAPI) -> None: ...

    class Spied(DirectHttp):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(Spy(transport, written))  # type: ignore[arg-type]

    app = create_service(
        "direct-toy", summary="", settings=settings or ToySettings(), lifespan=lifespan, is_ready=is_ready
    )
    add_post(app, "/echo", toy.answer, body=SearchRequest, response=Any, summary="Bytes in, bytes out")
    server = uvicorn.Server(
        uvicorn.Config(app, port=0, log_level="warning", http=Spied, proxy_headers=False, timeout_keep_alive=75)
    )
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    reader, writer = await asyncio.open_connection(*server.servers[0].sockets[0].getsockname())
    try:
        yield Line(toy, app, server, reader, writer, written)
    finally:
        writer.close()
        toy.go_on.set()
        server.should_exit = True
        await soon(serving)


def counted(status: int) -> float:
    labels = {"service": "direct-toy", "method": "POST", "route": "/echo", "code": str(status)}
    return REGISTRY.get_sample_value("searcher_http_requests_total", labels) or 0.0


async def test_requests_of_one_connection_are_answered_counted_and_written_at_once() -> None:
    before = counted(200)
    async with connected() as line:
        for body in (b"one", b"two", b"x" * 200_000):
            head, answered = await line.ask(body)
            assert head.startswith(b"http/1.1 200 ok\r\ndate: ")
            assert b"\r\ncontent-type: application/json\r\n" in head
            assert answered == body

    assert [data[-1:] for data in line.written] == [b"e", b"o", b"x"]
    assert counted(200) - before == 3
    assert line.app.metrics.in_flight == 0


async def test_what_the_request_says_beside_its_body_arrives() -> None:
    async with connected() as line:
        headers = ("Content-Length: 3", "X-Request-Timeout: 2.5")
        _, answered = await line.ask(b"how", *headers, first="POST /echo?corpus=news HTTP/1.1")

    assert json.loads(answered) == ["corpus=news", 2.5]


async def test_errors_say_the_same_as_elsewhere() -> None:
    async with connected() as line:
        busy, why = await line.ask(b"busy")
        fault, what = await line.ask(b"fault")
        over = await soon(line.reader.read())

    assert busy.startswith(b"http/1.1 503 service unavailable\r\n")
    assert b"\r\nretry-after: 3\r\n" in busy
    assert json.loads(why)["detail"] == "9 queries wait"
    assert fault.startswith(b"http/1.1 500 ")
    assert fault.count(b"connection: close") == 1
    assert json.loads(what) == {"error": "InternalError", "detail": "see the service's log"}
    assert over == b""


async def test_a_stranger_is_refused(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("token")
    async with connected(ToySettings(shared=SharedSettings(api_key_file=tmp_path / "key"))) as line:
        stranger, _ = await line.ask(b"one")
        known, answered = await line.ask(b"one", "Content-Length: 3", "Authorization: Bearer token")

    assert stranger.startswith(b"http/1.1 401 ")
    assert (known[:12], answered) == (b"http/1.1 200", b"one")


@pytest.mark.parametrize(
    ("header", "sent"),
    [("Content-Length: 1025", b""), ("Transfer-Encoding: chunked", b"401\r\n" + b"x" * 1025 + b"\r\n0\r\n\r\n")],
)
async def test_too_large_a_body_is_refused(header: str, sent: bytes) -> None:
    async with connected(ToySettings(max_body_bytes=1024)) as line:
        head, _ = await line.ask(sent, header)

    assert head.startswith(b"http/1.1 413 ")


@pytest.mark.parametrize(
    ("first", "headers", "sent", "is_last"),
    [
        ("POST /echo HTTP/1.1", ["Transfer-Encoding: chunked"], b"3\r\none\r\n0\r\n\r\n", False),
        ("POST /echo HTTP/1.1", ["Content-Length: 3", "Connection: close"], b"one", True),
        ("POST /echo HTTP/1.0", ["Content-Length: 3"], b"one", True),
        ("POST /echo HTTP/1.0", ["Content-Length: 3", "Connection: keep-alive"], b"one", True),
        ("POST /ech%6F HTTP/1.1", ["Content-Length: 3"], b"one", False),
    ],
)
async def test_unusual_requests_are_answered_too(first: str, headers: list[str], sent: bytes, is_last: bool) -> None:
    async with connected() as line:
        head, answered = await line.ask(sent, *headers, first=first)
        assert head.startswith(b"http/1.1 200 ")
        assert answered == b"one"
        if is_last:
            assert await soon(line.reader.read()) == b""
        else:
            assert (await line.ask(b"next"))[1] == b"next"


async def test_who_asks_whether_to_send_a_body_is_told_before_sending_it() -> None:
    async with connected() as line:
        line.send(b"", "Content-Length: 3", "Expect: 100-continue")
        assert await soon(line.reader.readuntil(b"\r\n\r\n")) == b"HTTP/1.1 100 Continue\r\n\r\n"
        line.writer.write(b"one")
        assert (await line.read())[1] == b"one"


async def test_requests_sent_before_the_last_was_answered_are_answered_in_order() -> None:
    async with connected() as line:
        for body in (b"think", b"two", b"three"):
            line.send(body)
        await soon(line.toy.begun.wait())
        line.toy.go_on.set()
        assert [(await line.read())[1] for _ in range(3)] == [b"think", b"two", b"three"]
        assert (await line.ask(b"four"))[1] == b"four"


async def test_other_routes_and_methods_are_those_of_fastapi() -> None:
    async with connected() as line:
        health, _ = await line.ask(b"", first="GET /healthz HTTP/1.1")
        method, _ = await line.ask(b"", first="GET /echo HTTP/1.1")
        unknown, _ = await line.ask(b"one", first="POST /nowhere HTTP/1.1")

    assert [head[9:12] for head in (health, method, unknown)] == [b"200", b"405", b"404"]


async def test_what_is_no_http_is_refused() -> None:
    async with connected() as line:
        line.writer.write(b"nonsense\r\n\r\n")
        assert (await soon(line.reader.read())).startswith(b"HTTP/1.1 400 ")


async def test_work_ends_when_its_caller_hangs_up() -> None:
    before = counted(499)
    async with connected() as line:
        line.send(b"think")
        await soon(line.toy.begun.wait())
        line.writer.transport.abort()
        await soon(line.toy.left.wait())

    assert counted(499) - before == 1
    assert line.app.metrics.in_flight == 0
    assert line.written == []


async def test_a_caller_who_hangs_up_before_the_end_of_its_body_asked_nothing() -> None:
    async with connected() as line:
        line.send(b"thi", "Content-Length: 5")
        await asyncio.sleep(0.05)
        line.writer.transport.abort()
        while line.server.server_state.connections:  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    assert not line.toy.begun.is_set()


async def test_a_service_that_drains_answers_and_asks_its_clients_to_connect_anew() -> None:
    async with connected() as line:
        line.app.state.draining = True
        head, answered = await line.ask(b"one")
        over = await soon(line.reader.read())

    assert b"\r\nconnection: close\r\n" in head
    assert answered == b"one"
    assert over == b""


async def test_a_service_that_ends_answers_what_it_has_in_hand() -> None:
    async with connected() as line:
        line.send(b"think")
        await soon(line.toy.begun.wait())
        line.server.should_exit = True
        while line.server.servers[0].is_serving():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        line.toy.go_on.set()
        head, answered = await line.read()

    assert b"\r\nconnection: close\r\n" in head
    assert answered == b"think"


async def test_who_does_not_read_is_not_written_to() -> None:
    async with connected() as line:
        (http,) = line.server.server_state.connections
        http.pause_writing()
        line.send(b"one")
        await asyncio.sleep(0.05)
        assert line.written == []
        http.resume_writing()
        assert (await line.read())[1] == b"one"
