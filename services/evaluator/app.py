"""HTTP -> evaluations. What comes of a request is said in evaluations.py; what happens without one, in reconcile.py."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import FastAPI, Path, Query, Request
from fastapi.responses import JSONResponse, Response
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from searcher.clients.retriever import RetrieverClient
from searcher.clients.reward import RewardClient
from searcher.contracts.base import Name
from searcher.contracts.errors import NotReady, UpstreamUnavailable
from searcher.contracts.report import EvaluationRequest, EvaluationStatus, Report
from searcher.servicekit.app import create_service
from searcher.servicekit.streams import connect
from services.evaluator.archive import Archive
from services.evaluator.benchmarks import BenchmarkFacts, available
from services.evaluator.dispatch import create_celery
from services.evaluator.evaluations import Evaluations, Format
from services.evaluator.intake import Intake, uploaded
from services.evaluator.jobs import Jobs
from services.evaluator.reconcile import reconcile_until
from services.evaluator.settings import EvaluatorSettings

EvaluationId = Annotated[Name, Path(alias="id")]
ASK_SECONDS = 2.0
"""For what the retriever and the reward service tell about themselves; a request does not wait for them for longer."""
UPLOAD = {"requestBody": {"required": True, "content": {"application/octet-stream": {"schema": {"type": "string"}}}}}
MEDIA_TYPES: dict[Format, str] = {"json": "application/json", "md": "text/markdown", "html": "text/html"}
PAGE_HEADERS = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:"}


def create_app(settings: EvaluatorSettings) -> FastAPI:
    archive, celery = Archive(settings.data_dir), create_celery(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        archive.open()
        key = settings.shared.api_key
        async with (
            connect(settings.shared.redis_url) as redis,
            RetrieverClient(settings.retriever_url, api_key=key, timeout_seconds=ASK_SECONDS, attempts=1) as retriever,
            RewardClient(settings.reward_url, api_key=key, timeout_seconds=ASK_SECONDS, attempts=1) as reward,
        ):
            intake = Intake(settings, retriever, reward)
            app.state.evaluations = Evaluations(Jobs(redis, settings), archive, intake, celery)
            stop = asyncio.Event()
            reconciler = asyncio.create_task(reconcile_until(stop, app.state.evaluations))
            yield
            stop.set()  # no round is cut in two
            await reconciler

    async def is_ready(app: FastAPI) -> None:
        try:
            await app.state.evaluations.jobs.redis.ping()
        except RedisError as error:
            raise NotReady(f"Redis at SEARCHER_REDIS_URL does not answer: {error}") from error

    app = create_service(
        "evaluator", summary="Weights x benchmark -> a report.", settings=settings, lifespan=lifespan, is_ready=is_ready
    )
    app.add_exception_handler(RedisConnectionError, _redis_is_away)
    app.add_exception_handler(RedisTimeoutError, _redis_is_away)
    _add_benchmarks(app, settings)
    _add_evaluations(app)
    return app


def _add_benchmarks(app: FastAPI, settings: EvaluatorSettings) -> None:
    @app.get("/v1/benchmarks", tags=["benchmarks"])
    def benchmarks() -> tuple[BenchmarkFacts, ...]:
        """Every benchmark by name: its file and how many questions it has, or the command that fetches it."""
        return available(settings.benchmarks_dir)


def _add_evaluations(app: FastAPI) -> None:
    def evaluations() -> Evaluations:
        held: Evaluations = app.state.evaluations
        return held

    @app.post("/v1/evaluations", tags=["evaluations"])
    async def submit(request: EvaluationRequest) -> EvaluationStatus:
        """Start an evaluation, or get the one that exists under this id."""
        return await evaluations().submit(request)

    @app.post("/v1/evaluations/upload", tags=["evaluations"], openapi_extra=UPLOAD)
    async def upload(http: Request, request: Annotated[str, Query(max_length=65_536)]) -> EvaluationStatus:
        """The same for a question file as people have it (JSONL, JSON, CSV, TSV; plain or gzipped), sent as the body.
        `request` is the rest, as JSON."""
        return await evaluations().submit(await asyncio.to_thread(uploaded, request, await http.body()))

    @app.get("/v1/evaluations", tags=["evaluations"])
    async def newest(limit: Annotated[int, Query(ge=1, le=1_000)] = 100) -> list[EvaluationStatus]:
        """The newest evaluations that Redis remembers, newest first."""
        return await evaluations().jobs.newest(limit)

    @app.get("/v1/evaluations/{id}", tags=["evaluations"])
    async def status(evaluation_id: EvaluationId) -> EvaluationStatus:
        """How far it is, with the figures over the questions answered so far."""
        return await evaluations().status(evaluation_id)

    @app.post("/v1/evaluations/{id}/cancel", tags=["evaluations"])
    async def cancel(evaluation_id: EvaluationId) -> EvaluationStatus:
        """Stop it; it then counts as failed. Nothing happens to one that is done."""
        return await evaluations().cancel(evaluation_id)

    @app.post("/v1/evaluations/{id}/resume", tags=["evaluations"])
    async def resume(evaluation_id: EvaluationId) -> EvaluationStatus:
        """Take up one that failed or was cancelled, or ask again for verdicts that a report misses. What was answered
        stays; nothing happens to one that goes on anyway."""
        return await evaluations().resume(evaluation_id)

    @app.get(
        "/v1/evaluations/{id}/report",
        tags=["evaluations"],
        response_class=Response,
        responses={200: {"model": Report, "content": {"text/html": {}, "text/markdown": {}}}},
    )
    async def report(evaluation_id: EvaluationId, format: Format = "json") -> Response:
        """The report of an evaluation that is done; 409 before that."""
        text = await evaluations().report(evaluation_id, format)
        return Response(text, media_type=MEDIA_TYPES[format], headers=PAGE_HEADERS if format == "html" else None)


async def _redis_is_away(request: Request, error: Exception) -> Response:
    unavailable = UpstreamUnavailable(f"Redis does not answer: {error}")
    return JSONResponse(unavailable.body().model_dump(), unavailable.status, {"Retry-After": "1"})
