"""POST routes at little cost: bytes in, bytes out.

FastAPI documents them; what answers is found by its path. Per request that leaves out FastAPI's middleware, its
matching, its dependency solving, its exit stacks and its second pass over the JSON: more than half of what a small
request costs outside of its work. Where `direct` speaks HTTP, ASGI is left out as well.
"""

from collections.abc import Awaitable, Callable
from typing import Any, cast

from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from searcher.contracts.errors import InvalidInput, SearcherError, TooLarge
from searcher.servicekit.call import Call, Reply
from searcher.servicekit.errors import error_response, explain, unhandled
from searcher.servicekit.frame import Framed
from searcher.servicekit.line import HungUp, Line

Answer = Callable[[Call], Awaitable[bytes]]
"""Body of the request -> JSON of the response. Errors are raised."""


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
    app.direct[path] = Endpoint(cast(APIRoute, app.router.routes[-1]), answer)


class Endpoint:
    """What answers at one path."""

    def __init__(self, route: APIRoute, answer: Answer) -> None:
        self._route, self._answer = route, answer
        self.path = route.path

    async def reply(self, call: Call) -> Reply:
        """Errors are replies too."""
        try:
            content = await self._answer(call)
        except SearcherError as error:
            return _reply(error_response(error))
        except Exception as error:
            return _reply(unhandled(self.path, error))
        length = b"%d" % len(content)
        return Reply(200, ((b"content-type", b"application/json"), (b"content-length", length)), content)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As an ASGI application."""
        scope["route"] = self._route  # metrics are by route
        try:
            body = await _read(receive)
            if body is None:
                return
            with Line(receive):
                reply = await self.reply(Call(scope, body))
        except HTTPException as error:  # the body is over the limit
            reply = _reply(error_response(TooLarge(error.detail)))
        except HungUp as error:
            reply = _reply(error_response(error))
        await send({"type": "http.response.start", "status": reply.status, "headers": reply.headers})
        await send({"type": "http.response.body", "body": reply.content})


def _reply(response: Response) -> Reply:
    return Reply(response.status_code, response.raw_headers, bytes(response.body))


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
