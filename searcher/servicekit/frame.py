"""What every request passes around its route: counted, timed, refused without a token or over the limit.

    caller --> Framed: metrics --> token --> announced size --> direct route, or FastAPI's --> caller

It is one object and not a stack of middleware: each layer of a stack is entered several times per request, which small
requests notice.
"""

import binascii
import hmac
import time
from base64 import b64decode
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope, Send

from searcher.contracts.errors import TooLarge, Unauthorized
from searcher.servicekit.call import Call, Reply
from searcher.servicekit.errors import error_response
from searcher.servicekit.metrics import RequestMetrics

OPEN_PATHS = frozenset({"/healthz", "/readyz", "/metrics", "/openapi.json", "/docs", "/docs/oauth2-redirect"})


class Direct(Protocol):
    """What answers at one path."""

    path: str

    async def reply(self, call: Call) -> Reply:
        """Errors are replies too."""
        ...

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The same as an ASGI application."""
        ...


class Framed(FastAPI):
    """A FastAPI application whose requests pass the frame. `state.draining` is true from SIGTERM on."""

    def __init__(self, *, service: str, keys: Sequence[str], max_body_bytes: int, **fastapi: Any) -> None:
        """Without `keys`, everybody may ask."""
        super().__init__(**fastapi)
        self.state.draining = False
        self.direct: dict[str, Direct] = {}
        """By path: what answers POST requests in place of the route that documents it."""
        self._keys, self._max_body_bytes = keys, max_body_bytes
        self.metrics = RequestMetrics(service)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await super().__call__(scope, receive, send)
            return
        passing = _Passing(self, self._max_body_bytes, receive, send)
        self.metrics.in_flight += 1
        started = time.perf_counter()
        try:
            if refusal := self.refusal(scope):
                await refusal(scope, receive, passing.send)
            elif scope["method"] == "POST" and (direct := self.direct.get(scope["path"])):
                await direct(scope, passing.receive, passing.send)
            else:
                await super().__call__(scope, passing.receive, passing.send)
        finally:
            self.metrics.in_flight -= 1
            route = getattr(scope.get("route"), "path", "unmatched")
            self.metrics.observe(scope["method"], route, passing.code, time.perf_counter() - started)

    def refusal(self, scope: Scope) -> JSONResponse | None:
        """For what can be told before the body is read."""
        if self._keys and scope["path"] not in OPEN_PATHS and not holds_token(scope, self._keys):
            error = Unauthorized("send the token of SEARCHER_API_KEY_FILE as 'Authorization: Bearer …'")
            return error_response(error, {"WWW-Authenticate": "Bearer"})
        for name, value in scope["headers"]:
            if name == b"content-length" and value.isdigit() and int(value) > self._max_body_bytes:
                return error_response(TooLarge(_too_large(self._max_body_bytes)), {"Connection": "close"})
        return None


class _Passing:
    """One request's messages."""

    __slots__ = ("_app", "_max_bytes", "_receive", "_received", "_send", "code")

    def __init__(self, app: Framed, max_bytes: int, receive: Receive, send: Send) -> None:
        self._app, self._max_bytes, self._receive, self._send = app, max_bytes, receive, send
        self._received, self.code = 0, 500

    async def receive(self) -> Message:
        """Raises HTTPException once the body is over the limit: what FastAPI lets through while it reads."""
        message = await self._receive()
        if message["type"] == "http.request":
            self._received += len(message.get("body", b""))
            if self._received > self._max_bytes:
                raise HTTPException(413, _too_large(self._max_bytes))
        return message

    async def send(self, message: Message) -> None:
        """While draining, every response asks its client to connect anew, which leads it elsewhere: a kept connection
        would break when the service ends."""
        if message["type"] == "http.response.start":
            self.code = message["status"]
            if self._app.state.draining:
                message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
        await self._send(message)


def _too_large(max_bytes: int) -> str:
    return f"body: more than {max_bytes} bytes; send less at once"


def holds_token(scope: Scope, keys: Iterable[str]) -> bool:
    """Whether a request carries one of `keys`: as bearer token, or as the password of an address
    (`http://any:token@host`), which is all that clients can send who know of no tokens."""
    given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
    scheme, _, token = given.partition(b" ")
    if scheme.lower() == b"basic":
        try:
            token = b64decode(token, validate=True).partition(b":")[2]
        except binascii.Error:
            return False
    elif scheme.lower() != b"bearer":
        return False
    return any(hmac.compare_digest(token, key.encode()) for key in keys)
