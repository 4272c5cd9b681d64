"""POST routes at little cost: bytes in, bytes out.

FastAPI documents them; what answers is an ASGI application of a few lines, found by its path. Per request that leaves
out FastAPI's middleware, its matching, its dependency solving, its exit stacks and its second pass over the JSON: more
than half of what a small request costs outside of its work.
"""

from collections.abc import Awaitable, Callable
from typing import Any

from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute
from starlette.types import Receive, Scope, Send

from searcher.contracts.errors import InvalidInput, SearcherError, TooLarge
from searcher.servicekit.errors import error_response, explain, unhandled
from searcher.servicekit.frame import Framed
from searcher.servicekit.line import Line

_TIMEOUT_HEADER = b"x-request-timeout"
_LONGEST_SECONDS = 3_600.0

Answer = Callable[["Call"], Awaitable[bytes]]
"""Body of the request -> JSON of the response. Errors are raised."""


class Call:
    """One request."""

    def __init__(self, scope: Scope, body: bytes) -> None:
        self._scope, self.body = scope, body

    @property
    def query_string(self) -> str:
        return str(self._scope["query_string"], "latin-1")

    @property
    def has_deadline(self) -> bool:
        """Whether the caller says how long it waits."""
        return any(name == _TIMEOUT_HEADER for name, _ in self._scope["headers"])

    def deadline_seconds(self, default: float) -> float:
        """What the caller allows: the header X-Request-Timeout, in seconds. Raises InvalidInput."""
        for name, value in self._scope["headers"]:
            if name == _TIMEOUT_HEADER:
                return _seconds(value)
        return default


def _seconds(value: bytes) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = float("nan")
    if not 0.0 < seconds <= _LONGEST_SECONDS:
        raise InvalidInput(
            f"header.X-Request-Timeout: {value.decode('latin-1')!r} is not a number of seconds above 0 and up to 3600"
        )
    return seconds


def invalid_body(error: ValidationError) -> InvalidInput:
    """The fields that were wrong, as FastAPI would name them."""
    return InvalidInput(explain({**problem, "loc": ("body", *problem["loc"])} for problem in error.errors()))


def add_post(
    app: Framed, path: str, answer: Answer, *, body: type[BaseModel], response: Any, summary: str, **documentation: Any
) -> None:
    """Serve `answer` at `path`. `body` and `response` are what the documentation says of it."""

    async def documented(body: Any) -> Any:
        raise AssertionError("answered without FastAPI")

    documented.__annotations__["body"] = body
    app.post(path, response_model=response, summary=summary, name=path, **documentation)(documented)
    app.direct[path] = _Endpoint(app.router.routes[-1], answer)


class _Endpoint:
    def __init__(self, route: BaseRoute, answer: Answer) -> None:
        self.route, self.answer = route, answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["route"] = self.route  # metrics are by route
        try:
            body = await _read(receive)
            if body is None:
                return
            with Line(receive):
                content = await self.answer(Call(scope, body))
        except SearcherError as error:
            await error_response(error)(scope, receive, send)
        except HTTPException as error:  # the body is over the limit
            await error_response(TooLarge(error.detail))(scope, receive, send)
        except Exception as error:
            await unhandled(scope["path"], error)(scope, receive, send)
        else:
            length = str(len(content)).encode()
            headers = [(b"content-type", b"application/json"), (b"content-length", length)]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": content})


async def _read(receive: Receive) -> bytes | None:
    """None if the caller hung up before the end."""
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body", False):
        return bytes(message["body"])
    parts = []
    while message["type"] == "http.request":
        parts.append(message["body"])
        if not message.get("more_body", False):
            return b"".join(parts)
        message = await receive()
    return None
