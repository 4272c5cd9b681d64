"""Toys that the tests of online search share: a server on loopback that says what a test wants, however wrong it is."""

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlsplit

HTML_ERROR = b"<html><body><h1>502 Bad Gateway</h1></body></html>"
NEVER = 3_600.0


@dataclass(frozen=True)
class Answer:
    """What is sent for one request. `body`: bytes as they are, anything else as JSON."""

    body: Any = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay_seconds: float = 0.0
    cut_after_bytes: int | None = None
    """Hang up in the middle of the body."""
    hang_up: bool = False
    """Before saying anything."""

    @property
    def content(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()

    @property
    def head(self) -> bytes:
        kind = "text/html" if isinstance(self.body, bytes) else "application/json"
        headers = {
            "Content-Type": kind,
            "Content-Length": str(len(self.content)),
            "Connection": "close",
            **self.headers,
        }
        lines = [f"HTTP/1.1 {self.status} whatever", *(f"{name}: {value}" for name, value in headers.items() if value)]
        return "\r\n".join([*lines, "", ""]).encode()


@dataclass(frozen=True)
class Received:
    method: str
    path: str
    parameters: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class ToyServer:
    """Answers a path with the next of its answers; the last one stays. Unknown paths are 404."""

    def __init__(self) -> None:
        self.received: list[Received] = []
        self._asked: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self.port = 0
        self._answers: dict[str, Iterator[Answer]] = {}
        self._last: dict[str, Answer] = {}
        self._talks: set[asyncio.Task[None]] = set()

    def says(self, path: str, *answers: Answer) -> str:
        """Returns the URL."""
        self._answers[path], self._last[path] = iter(answers), answers[-1]
        return self.url(path)

    def url(self, path: str = "/") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def asked(self, path: str) -> list[Received]:
        return [received for received in self.received if received.path == path]

    async def until_asked(self, path: str) -> None:
        await self._asked[path].wait()

    @property
    def num_asked(self) -> dict[str, int]:
        counts: dict[str, int] = defaultdict(int)
        for received in self.received:
            counts[received.path] += 1
        return dict(counts)

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._talks.add(task)
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await self._talk(reader, writer)
        finally:
            writer.close()
            self._talks.discard(task)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").strip().split("\r\n")
        method, target, _ = first.split(" ")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        parts = urlsplit(target)
        self.received.append(Received(method, parts.path, dict(parse_qsl(parts.query)), headers, body))
        self._asked[parts.path].set()
        answer = next(self._answers.get(parts.path, iter(())), self._last.get(parts.path, Answer(status=404)))
        await asyncio.sleep(answer.delay_seconds)
        if not answer.hang_up:
            writer.write(answer.head + answer.content[: answer.cut_after_bytes])
            await writer.drain()

    async def close(self) -> None:
        for task in list(self._talks):
            task.cancel()
        await asyncio.gather(*self._talks, return_exceptions=True)


@asynccontextmanager
async def toy_server() -> AsyncIterator[ToyServer]:
    toy = ToyServer()
    server = await asyncio.start_server(toy.talk, "127.0.0.1", 0)
    toy.port = server.sockets[0].getsockname()[1]
    try:
        yield toy
    finally:
        server.close()
        await toy.close()


class ToyTime:
    """A clock that moves only when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.slept: list[float] = []

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


# ---------------------------------------------------------------------------------------------------------------------
# One answer per provider, in its own words: the same two hits.

ROME = ("Rome", "https://en.wikipedia.org/wiki/Rome", "Rome is the capital of Italy.")
LAZIO = ("Lazio", "https://example.org/lazio", "Lazio is a region.")


def _rows(title: str, url: str, snippet: str) -> list[dict[str, str]]:
    return [dict(zip((title, url, snippet), hit, strict=True)) for hit in (ROME, LAZIO)]


SPOKEN: dict[str, dict[str, Any]] = {
    "serper": {"searchParameters": {"q": "x"}, "organic": _rows("title", "link", "snippet"), "credits": 1},
    "searxng": {"query": "x", "results": _rows("title", "url", "content"), "unresponsive_engines": []},
    "brave": {"type": "search", "query": {"original": "x"}, "web": {"results": _rows("title", "url", "description")}},
    "tavily": {"query": "x", "results": [{**row, "score": 0.5} for row in _rows("title", "url", "content")]},
    "exa": {
        "requestId": "1",
        "results": [{**row, "highlights": [row["highlights"]]} for row in _rows("title", "url", "highlights")],
        "costDollars": {"total": 0.007},
    },
    "serpapi": {"search_metadata": {"status": "Success"}, "organic_results": _rows("title", "link", "snippet")},
    "google": {"kind": "customsearch#search", "searchInformation": {}, "items": _rows("title", "link", "snippet")},
}
NOTHING_FOUND: dict[str, dict[str, Any]] = {
    "serper": {"searchParameters": {"q": "x"}, "organic": []},
    "searxng": {"query": "x", "results": [], "unresponsive_engines": []},
    "brave": {"type": "search", "query": {"original": "x"}},
    "tavily": {"query": "x", "results": []},
    "exa": {"requestId": "1", "results": []},
    "serpapi": {
        "search_metadata": {"status": "Success"},
        "error": "Google hasn't returned any results for this query.",
    },
    "google": {"kind": "customsearch#search", "searchInformation": {"totalResults": "0"}},
}
