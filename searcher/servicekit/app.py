"""The HTTP frame that every service shares: health, readiness, metrics, auth, errors, graceful shutdown.

A service brings its routes, a lifespan that opens and closes what it holds, and a readiness check.
"""

import asyncio
import binascii
import hmac
import math
import signal
from base64 import b64decode
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from types import FrameType
from typing import Any

import structlog
import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from searcher import __version__
from searcher.contracts.errors import (
    ErrorBody,
    InvalidInput,
    NotFound,
    NotReady,
    SearcherError,
    TooLarge,
    Unauthorized,
    Unavailable,
)
from searcher.servicekit.logging import configure_logging
from searcher.servicekit.metrics import MetricsMiddleware
from searcher.servicekit.settings import ServiceSettings

log = structlog.get_logger()

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]
ReadinessCheck = Callable[[FastAPI], Awaitable[None]]
"""Raises NotReady (or any SearcherError) with the reason; returns when the service can serve."""

OPEN_PATHS = frozenset({"/healthz", "/readyz", "/metrics", "/openapi.json", "/docs", "/docs/oauth2-redirect"})


def create_service(
    name: str, *, summary: str, settings: ServiceSettings, lifespan: Lifespan, is_ready: ReadinessCheck
) -> FastAPI:
    """A FastAPI app with everything that is alike in all services. Add routes to what comes back."""
    configure_logging(settings.shared)
    app = FastAPI(
        title=f"Searcher {name}",
        summary=summary,
        version=__version__,
        lifespan=lifespan,
        redoc_url=None,
        responses={"4XX": {"model": ErrorBody}, "503": {"model": ErrorBody}},
        # Prometheus it is, and asking OpenTelemetry costs every request more than our own middleware does.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.draining = False
    _render_errors(app)
    _add_probes(app, is_ready)
    app.add_middleware(_BodyLimitMiddleware, max_bytes=settings.max_body_bytes)
    if settings.shared.api_key is not None:
        keys = [key for key in (settings.shared.api_key, settings.shared.admin_key) if key is not None]
        app.add_middleware(_TokenMiddleware, keys=keys)
    app.add_middleware(_DrainMiddleware, state=app.state)
    app.add_middleware(MetricsMiddleware, service=name)
    return app


def serve(app: FastAPI, settings: ServiceSettings, *, native_loop: bool = False) -> None:
    """Run until SIGTERM or SIGINT: readiness drops first, work in hand finishes, exit 0.

    `native_loop`: event loop and HTTP parser in C, for services that answer thousands of small requests.
    """
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,  # nobody asks where a request came from, and looking costs each of them
        timeout_graceful_shutdown=settings.shutdown_seconds,
        timeout_keep_alive=75,
        loop="uvloop" if native_loop else "asyncio",
        http="httptools" if native_loop else "h11",
    )
    _DrainingServer(config, app, settings.drain_seconds).run()


class _DrainingServer(uvicorn.Server):
    """uvicorn stops at once on SIGTERM and re-raises the signal at the end; we drain first and exit 0."""

    def __init__(self, config: uvicorn.Config, app: FastAPI, drain_seconds: float) -> None:
        super().__init__(config)
        self.app, self.drain_seconds = app, drain_seconds

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.app.state.draining:  # a second signal: do not wait for anything
            self.force_exit = self.should_exit = True
            return
        self.app.state.draining = True
        log.info("draining", signal=signal.Signals(sig).name, seconds=self.drain_seconds)
        try:
            asyncio.get_running_loop().call_later(self.drain_seconds, self._stop)
        except RuntimeError:  # the signal came outside of the loop's own thread of control
            self._stop()

    def _stop(self) -> None:
        self.should_exit = True


def _add_probes(app: FastAPI, is_ready: ReadinessCheck) -> None:
    @app.get("/healthz", tags=["probes"], summary="The process lives (asks no dependency)")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz", tags=["probes"], summary="The service can serve")
    async def readyz() -> dict[str, str]:
        if app.state.draining:
            raise NotReady("shutting down")
        await is_ready(app)
        return {"status": "ready"}

    @app.get("/metrics", tags=["probes"], summary="Prometheus metrics", response_class=Response)
    def metrics() -> Response:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)


class _TokenMiddleware:
    """Every path but the open ones needs the bearer token."""

    def __init__(self, app: ASGIApp, *, keys: list[str]) -> None:
        self.app, self.keys = app, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS or holds_token(scope, self.keys):
            await self.app(scope, receive, send)
            return
        error = Unauthorized("send the token of SEARCHER_API_KEY_FILE as 'Authorization: Bearer …'")
        await error_response(error, {"WWW-Authenticate": "Bearer"})(scope, receive, send)


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


def require_admin(request: Request, settings: ServiceSettings) -> None:
    """For routes that change what a service serves. Raises Unauthorized."""
    key = settings.shared.admin_key
    if key is None:
        raise Unauthorized("nobody may do this: SEARCHER_ADMIN_KEY_FILE is not set; name a file with a token there")
    if not holds_token(request.scope, [key]):
        raise Unauthorized("send the token of SEARCHER_ADMIN_KEY_FILE as 'Authorization: Bearer …'")


class _BodyLimitMiddleware:
    """A body over the limit is refused with our error: at once if its length is announced, else while it is read."""

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self.app, self.max_bytes = app, max_bytes
        self.detail = f"body: more than {max_bytes} bytes; send less at once"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        announced = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if announced.isdigit() and int(announced) > self.max_bytes:
            await error_response(TooLarge(self.detail), {"Connection": "close"})(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                if received > self.max_bytes:
                    raise HTTPException(413, self.detail)  # the one kind that FastAPI lets through while it reads
            return message

        await self.app(scope, counted, send)


class _DrainMiddleware:
    """While draining, every response asks its client to connect anew, which leads it elsewhere: a kept connection
    would break when the service ends."""

    def __init__(self, app: ASGIApp, *, state: Any) -> None:
        self.app, self.state = app, state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def say_goodbye(message: Message) -> None:
            if self.state.draining and message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            await send(message)

        await self.app(scope, receive, say_goodbye if scope["type"] == "http" else send)


def _render_errors(app: FastAPI) -> None:
    @app.exception_handler(SearcherError)
    async def known(request: Request, error: SearcherError) -> Response:
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return error_response(InvalidInput(explain(error.errors())))

    @app.exception_handler(HTTPException)
    async def plain(request: Request, error: HTTPException) -> Response:
        kind = {413: TooLarge, 404: NotFound}.get(error.status_code, InvalidInput)
        detail = error.detail if error.status_code == 413 else f"{request.method} {request.url.path}: {error.detail}"
        return JSONResponse(kind(detail).body().model_dump(), error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def unknown(request: Request, error: Exception) -> Response:
        log.error("unhandled", path=request.url.path, exc_info=error)
        body = ErrorBody(error="InternalError", detail="see the service's log").model_dump()
        return JSONResponse(body, 500, {"Connection": "close"})  # uvicorn closes it in any case


def explain(problems: Iterable[Any]) -> str:
    """What pydantic found, in one line."""
    return "; ".join(_explain(problem) for problem in problems)


def _explain(problem: dict[str, Any]) -> str:
    """`body.queries.0: String should have at least 1 character (got '')`"""
    given = repr(problem.get("input"))
    given = given if len(given) <= 80 else given[:77] + "…"
    return f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']} (got {given})"


def error_response(error: SearcherError, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """What a caller gets to read."""
    headers = dict(headers or {})
    if isinstance(error, Unavailable):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_seconds)))
    return JSONResponse(error.body().model_dump(), error.status, headers)
