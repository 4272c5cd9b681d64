"""One HTTP request -> one response, bounded in bytes and in seconds. No retries, no redirects, no proxy, no cookies.

What is asked of whom, and what a failure means, is decided by upstream.py and pages.py.
"""

import asyncio
import zlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import httpcore

_GZIP_STARTS = b"\x1f"
_GZIP_ADDS_BYTES = 65_536
"""What compression may add to a body that is as large as it may be; a stream of empty members would be endless."""


@dataclass(frozen=True)
class Request:
    method: str
    url: str = field(repr=False)
    """ASCII. Some providers take the key as a parameter, so it is never shown or logged."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    content: bytes = field(default=b"", repr=False)


@dataclass(frozen=True)
class Response:
    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    content: bytes
    """Decompressed."""


class NoResponse(StrEnum):
    """Why there is none."""

    UNREACHABLE = "unreachable"
    """No connection: nothing was asked."""
    TIMEOUT = "timeout"
    """Asked, but not answered whole in time."""
    GARBLED = "garbled"
    """Not HTTP, cut off in the middle, or not the compression it says."""
    TOO_LARGE = "too_large"
    """More bytes than asked for, before or after decompression."""


class ExchangeFailed(Exception):
    def __init__(self, why: NoResponse, detail: str) -> None:
        super().__init__(detail)
        self.why = why


class Exchanger:
    """`backend` decides who may be connected to; None: anybody. How many at a time is the callers' business."""

    def __init__(self, *, backend: httpcore.AsyncNetworkBackend | None = None) -> None:
        self._pool = httpcore.AsyncConnectionPool(
            max_connections=None, max_keepalive_connections=8, keepalive_expiry=5.0, network_backend=backend
        )

    async def close(self) -> None:
        await self._pool.aclose()

    async def exchange(self, request: Request, *, max_bytes: int, seconds: float) -> Response:
        """Raises ExchangeFailed, and whatever the backend raises to refuse an address."""
        headers = {"Accept-Encoding": "gzip", **request.headers}
        each = {"timeout": dict.fromkeys(("connect", "read", "write", "pool"), seconds)}
        try:
            async with (
                asyncio.timeout(seconds),
                self._pool.stream(
                    request.method, request.url, headers=_encoded(headers), content=request.content, extensions=each
                ) as response,
            ):
                answered = {name.decode().lower(): value.decode("latin-1") for name, value in response.headers}
                content = await _read(response.aiter_stream(), answered.get("content-encoding", ""), max_bytes)
                return Response(response.status, answered, content)
        except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
            raise ExchangeFailed(NoResponse.UNREACHABLE, _named(error)) from error
        except (TimeoutError, httpcore.TimeoutException) as error:
            raise ExchangeFailed(NoResponse.TIMEOUT, f"no whole answer within {seconds:g} s") from error
        except (httpcore.NetworkError, httpcore.ProtocolError) as error:
            raise ExchangeFailed(NoResponse.GARBLED, _named(error)) from error


def _encoded(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("ascii"), value.encode("latin-1")) for name, value in headers.items()]


async def _read(chunks: AsyncIterator[bytes], encoding: str, max_bytes: int) -> bytes:
    """The whole body. A bomb is never unpacked further than one byte above the limit."""
    if encoding.lower() not in ("", "identity", "gzip"):
        raise ExchangeFailed(NoResponse.GARBLED, f"answered in {encoding!r}; only gzip was offered")
    members = _GzipMembers() if encoding.lower() == "gzip" else None
    content, num_received = bytearray(), 0
    async for chunk in chunks:
        num_received += len(chunk)
        content += chunk if members is None else members.unpacked(chunk, max_bytes - len(content) + 1)
        if len(content) > max_bytes or num_received > max_bytes + _GZIP_ADDS_BYTES:
            raise ExchangeFailed(NoResponse.TOO_LARGE, f"more than {max_bytes} bytes")
    if members is not None and content and not members.are_whole:
        raise ExchangeFailed(NoResponse.GARBLED, "the gzip stream ends in the middle")
    return bytes(content)


class _GzipMembers:
    """A gzip stream is any number of members, one after the other: who compresses piece by piece sends many."""

    def __init__(self) -> None:
        self._member = zlib.decompressobj(wbits=31)
        self._is_over = False

    @property
    def are_whole(self) -> bool:
        return self._member.eof

    def unpacked(self, chunk: bytes, max_bytes: int) -> bytes:
        """What the chunk adds, and no more than `max_bytes` of it. Raises ExchangeFailed for what is not gzip."""
        content = bytearray()
        try:
            while len(content) < max_bytes and (chunk := self._of_a_member(chunk)):
                content += self._member.decompress(chunk, max_bytes - len(content))
                chunk = self._member.unused_data
        except zlib.error as error:
            raise ExchangeFailed(NoResponse.GARBLED, f"not gzip: {error}") from error
        return bytes(content)

    def _of_a_member(self, chunk: bytes) -> bytes:
        """What goes on with the member in hand, or starts the next. Padding after the last is ignored, as by gzip."""
        if not self._member.eof:
            return chunk
        chunk = chunk.lstrip(b"\0")
        if not chunk or self._is_over:
            return b""
        if not chunk.startswith(_GZIP_STARTS):
            self._is_over = True
            return b""
        self._member = zlib.decompressobj(wbits=31)
        return chunk


def _named(error: Exception) -> str:
    return f"{type(error).__name__} {error}".rstrip()
