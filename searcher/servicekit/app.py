"""The HTTP frame that every service shares: health, readiness, metrics, auth, errors, graceful shutdown.

A service brings its routes, a lifespan that opens and closes what it holds, and a readiness check.
"""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from types import FrameType

import structlog
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from searcher import __version__
from searcher.contracts.errors import ErrorBody, NotReady, Unauthorized
from searcher.servicekit.errors import render_errors
from searcher.servicekit.frame import Framed, holds_token
from searcher.servicekit.logging import configure_logging
from searcher.servicekit.settings import ServiceSettings

log = structlog.get_logger()

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]
ReadinessCheck = Callable[[FastAPI], Awaitable[None]]
"""Raises NotReady (or any SearcherError) with the reason; returns when the service can serve."""


def create_service(
    name: str, *, summary: str, settings: ServiceSettings, lifespan: Lifespan, is_ready: ReadinessCheck
) -> Framed:
    """A FastAPI app with everything that is alike in all services. Add routes to what comes back."""
    configure_logging(settings.shared)
    keys = [settings.shared.api_key, settings.shared.admin_key] if settings.shared.api_key is not None else []
    app = Framed(
        service=name,
        keys=[key for key in keys if key is not None],
        max_body_bytes=settings.max_body_bytes,
        title=f"Searcher {name}",
        summary=summary,
        version=__version__,
        lifespan=lifespan,
        redoc_url=None,
        responses={"4XX": {"model": ErrorBody}, "503": {"model": ErrorBody}},
        # Prometheus it is, and asking OpenTelemetry costs every request more than the frame does.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    render_errors(app)
    _add_probes(app, is_ready)
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
        proxy_headers=False,  # nobody asks where a request came from, and DirectHttp needs the bare application
        timeout_graceful_shutdown=settings.shutdown_seconds,
        timeout_keep_alive=75,
        loop="uvloop" if native_loop else "asyncio",
        http="searcher.servicekit.direct:DirectHttp" if native_loop else "h11",
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


def require_admin(request: Request, settings: ServiceSettings) -> None:
    """For routes that change what a service serves. Raises Unauthorized."""
    key = settings.shared.admin_key
    if key is None:
        raise Unauthorized("nobody may do this: SEARCHER_ADMIN_KEY_FILE is not set; name a file with a token there")
    if not holds_token(request.scope, [key]):
        raise Unauthorized("send the token of SEARCHER_ADMIN_KEY_FILE as 'Authorization: Bearer …'")
