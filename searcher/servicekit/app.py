"""The HTTP frame that every service shares: health, readiness, metrics, auth, errors, graceful shutdown.

A service brings its routes, a lifespan that opens and closes what it holds, and a readiness check.
"""

import asyncio
import hmac
import math
import signal
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from types import FrameType
from typing import Any

import structlog
import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.types import ASGIApp, Receive, Scope, Send

from searcher import __version__
from searcher.contracts.errors import ErrorBody, InvalidInput, NotReady, SearcherError, Unauthorized, Unavailable
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
        max_body_size=settings.max_body_bytes,
        responses={"4XX": {"model": ErrorBody}, "503": {"model": ErrorBody}},
    )
    app.state.draining = False
    _render_errors(app)
    _add_probes(app, is_ready)
    if settings.shared.api_key is not None:
        app.add_middleware(_TokenMiddleware, api_key=settings.shared.api_key)
    app.add_middleware(MetricsMiddleware, service=name)
    return app


def serve(app: FastAPI, settings: ServiceSettings) -> None:
    """Run until SIGTERM or SIGINT: readiness drops first, work in hand finishes, exit 0."""
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=settings.shutdown_seconds,
        timeout_keep_alive=75,
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

    def __init__(self, app: ASGIApp, *, api_key: str) -> None:
        self.app, self.expected = app, f"Bearer {api_key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS or self._is_ours(scope):
            await self.app(scope, receive, send)
            return
        error = Unauthorized("send the token of SEARCHER_API_KEY_FILE as 'Authorization: Bearer …'")
        await _response(error, {"WWW-Authenticate": "Bearer"})(scope, receive, send)

    def _is_ours(self, scope: Scope) -> bool:
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        return hmac.compare_digest(given, self.expected)


def _render_errors(app: FastAPI) -> None:
    @app.exception_handler(SearcherError)
    async def known(request: Request, error: SearcherError) -> Response:
        if isinstance(error, Unavailable):
            return _response(error, {"Retry-After": str(max(1, math.ceil(error.retry_after_seconds)))})
        return _response(error, {})

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return _response(InvalidInput("; ".join(_explain(problem) for problem in error.errors())), {})

    @app.exception_handler(Exception)
    async def unknown(request: Request, error: Exception) -> Response:
        log.error("unhandled", path=request.url.path, exc_info=error)
        return JSONResponse(ErrorBody(error="InternalError", detail="see the service's log").model_dump(), 500)


def _explain(problem: dict[str, Any]) -> str:
    """`body.queries.0: String should have at least 1 character (got '')`"""
    given = repr(problem.get("input"))
    given = given if len(given) <= 80 else given[:77] + "…"
    return f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']} (got {given})"


def _response(error: SearcherError, headers: dict[str, str]) -> JSONResponse:
    return JSONResponse(error.body().model_dump(), error.status, headers)
