"""POST routes at little cost: bytes in, bytes out.

FastAPI documents them; what answers is an ASGI application of a few lines, found by its path before FastAPI routes. Per
request that leaves out its matching, its dependency solving, its exit stacks and its second pass over the JSON: more
than half of what a small search costs outside of the engine.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

from fastapi import FastAPI
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from searcher.contracts.errors import InvalidInput, SearcherError, TooLarge
from searcher.servicekit.app import error_response, explain

CALLER_HUNG_UP = 499
"""nginx' status for it. Nobody reads it; it tells metrics apart from our own errors."""
_TIMEOUT_HEADER = b"x-request-timeout"
_LONGEST_SECONDS = 3_600.0
_WATCHED_AFTER_SECONDS = 0.02
"""Most answers are there by then, and a watcher costs each of them more than it could save."""

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
    app: FastAPI, path: str, answer: Answer, *, body: type[BaseModel], response: Any, summary: str, **documentation: Any
) -> None:
    """Serve `answer` at `path`. `body` and `response` are what the documentation says of it."""

    async def documented(body: Any) -> Any:
        raise AssertionError("answered before FastAPI's routing")

    documented.__annotations__["body"] = body
    app.post(path, response_model=response, summary=summary, name=path, **documentation)(documented)
    route = app.router.routes[-1]
    assert isinstance(route, APIRoute)
    _endpoints(app)[path] = _Endpoint(route, answer)


def _endpoints(app: FastAPI) -> "dict[str, _Endpoint]":
    """By path; behind all of the service's own middleware, before FastAPI's."""
    if not hasattr(app.state, "fast_paths"):
        app.state.fast_paths = {}
        app.user_middleware.append(Middleware(_FastPaths, endpoints=app.state.fast_paths))
    return cast("dict[str, _Endpoint]", app.state.fast_paths)


class _FastPaths:
    def __init__(self, app: ASGIApp, *, endpoints: "dict[str, _Endpoint]") -> None:
        self.app, self.endpoints = app, endpoints

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] == "http" and scope["method"] == "POST" and (found := self.endpoints.get(scope["path"])):
            return found(scope, receive, send)
        return self.app(scope, receive, send)


class _Endpoint:
    def __init__(self, route: APIRoute, answer: Answer) -> None:
        self.route, self.answer = route, answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["route"] = self.route  # metrics are by route
        try:
            body = await _read(receive)
            if body is None:
                return
            content = await while_connected(receive, self.answer(Call(scope, body)))
        except HungUp:
            await send({"type": "http.response.start", "status": CALLER_HUNG_UP, "headers": []})
        except SearcherError as error:
            await error_response(error)(scope, receive, send)
        except HTTPException as error:  # the body is over the limit
            await error_response(TooLarge(error.detail))(scope, receive, send)
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


class HungUp(Exception):
    """Nobody waits for the answer."""


async def while_connected(receive: Receive, work: Awaitable[bytes]) -> bytes:
    """`work`, cancelled when the caller hangs up: nobody would read the answer, and others wait. Raises HungUp."""
    me = asyncio.current_task()
    assert me is not None
    watcher: asyncio.Task[None] | None = None
    hung_up = False

    def watch() -> None:
        nonlocal watcher
        watcher = asyncio.create_task(_hung_up(receive))
        watcher.add_done_callback(leave)

    def leave(watcher: asyncio.Task[None]) -> None:
        nonlocal hung_up
        if not watcher.cancelled():
            hung_up = True
            me.cancel()

    watched = asyncio.get_running_loop().call_later(_WATCHED_AFTER_SECONDS, watch)
    try:
        return await work
    except asyncio.CancelledError:
        if hung_up and me.uncancel() == 0:
            raise HungUp from None
        raise
    finally:
        watched.cancel()
        if watcher is not None:
            watcher.remove_done_callback(leave)
            watcher.cancel()


async def _hung_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
