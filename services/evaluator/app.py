"""HTTP -> evaluations. The API process also reconciles: it re-sends lost chunks and closes finished evaluations."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Annotated, Literal

import structlog
from celery import Celery
from fastapi import FastAPI, Path, Query, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from searcher.clients.retriever import RetrieverClient
from searcher.clients.reward import RewardClient
from searcher.contracts.base import Name
from searcher.contracts.errors import Conflict, NotFound, NotReady, UpstreamUnavailable
from searcher.contracts.report import EvaluationRequest, EvaluationState, EvaluationStatus, Report
from searcher.servicekit.app import create_service
from searcher.servicekit.streams import connect
from services.evaluator.archive import Archive
from services.evaluator.assembly import assemble
from services.evaluator.benchmarks import BenchmarkFacts, available
from services.evaluator.chunks import digest
from services.evaluator.dispatch import create_celery, dispatch
from services.evaluator.intake import Intake, uploaded
from services.evaluator.jobs import Jobs
from services.evaluator.metrics import FINISHED, IDLE_SECONDS, OPEN
from services.evaluator.report import render, render_markdown
from services.evaluator.settings import EvaluatorSettings

log = structlog.get_logger()

EvaluationId = Annotated[Name, Path(alias="id")]
ASK_SECONDS = 2.0
"""For what the retriever and the reward service tell about themselves; a request does not wait for them for longer."""
UPLOAD = {"requestBody": {"required": True, "content": {"application/octet-stream": {"schema": {"type": "string"}}}}}
PAGE_HEADERS = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:"}


@dataclass(frozen=True)
class Evaluator:
    """Everything that lives as long as the process."""

    jobs: Jobs
    celery: Celery
    archive: Archive
    intake: Intake


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
            app.state.evaluator = Evaluator(Jobs(redis, settings), celery, archive, intake)
            stop = asyncio.Event()
            reconciler = asyncio.create_task(reconcile_until(stop, app.state.evaluator))
            yield
            stop.set()  # no round is cut in two
            await reconciler

    async def is_ready(app: FastAPI) -> None:
        try:
            await jobs().redis.ping()
        except RedisError as error:
            raise NotReady(f"Redis at SEARCHER_REDIS_URL does not answer: {error}") from error

    app = create_service(
        "evaluator", summary="Weights x benchmark -> a report.", settings=settings, lifespan=lifespan, is_ready=is_ready
    )
    app.add_exception_handler(RedisConnectionError, _redis_is_away)
    app.add_exception_handler(RedisTimeoutError, _redis_is_away)

    def evaluator() -> Evaluator:
        known: Evaluator = app.state.evaluator
        return known

    def jobs() -> Jobs:
        return evaluator().jobs

    @app.get("/v1/benchmarks", tags=["benchmarks"])
    def benchmarks() -> tuple[BenchmarkFacts, ...]:
        """Every benchmark by name: its file and how many questions it has, or the command that fetches it."""
        return available(settings.benchmarks_dir)

    @app.post("/v1/evaluations", tags=["evaluations"])
    async def submit(request: EvaluationRequest) -> EvaluationStatus:
        """Start an evaluation, or get the one that exists under this id."""
        kept = archive.summary(request.id)
        known = kept.digest if kept else await jobs().digest(request.id)
        if known is None:
            questions, indexes = await evaluator().intake.questions(request)
            await jobs().create(request, questions, indexes=indexes)
            await dispatch(jobs(), celery, request.id)
        elif known != digest(request):
            raise Conflict(f"id: evaluation {request.id!r} exists with other content; choose another id")
        return await status(request.id)

    @app.post("/v1/evaluations/upload", tags=["evaluations"], openapi_extra=UPLOAD)
    async def upload(http: Request, request: Annotated[str, Query(max_length=65_536)]) -> EvaluationStatus:
        """The same for a question file as people have it (JSONL, JSON, CSV, TSV; plain or gzipped), sent as the body.
        `request` is the rest, as JSON."""
        return await submit(await asyncio.to_thread(uploaded, request, await http.body()))

    @app.get("/v1/evaluations", tags=["evaluations"])
    async def newest(limit: Annotated[int, Query(ge=1, le=1_000)] = 100) -> list[EvaluationStatus]:
        """The newest evaluations that Redis remembers, newest first."""
        return await jobs().newest(limit)

    @app.get("/v1/evaluations/{id}", tags=["evaluations"])
    async def status(evaluation_id: EvaluationId) -> EvaluationStatus:
        """How far it is, with the figures over the questions answered so far."""
        try:
            return await jobs().status(evaluation_id)
        except NotFound:
            kept = archive.summary(evaluation_id)
            if kept is None:
                raise
            return kept.status

    @app.post("/v1/evaluations/{id}/cancel", tags=["evaluations"])
    async def cancel(evaluation_id: EvaluationId) -> EvaluationStatus:
        """Stop it; it then counts as failed. Nothing happens to one that is done."""
        await jobs().fail(evaluation_id, reason="cancelled")
        return await status(evaluation_id)

    @app.post("/v1/evaluations/{id}/resume", tags=["evaluations"])
    async def resume(evaluation_id: EvaluationId) -> EvaluationStatus:
        """Take up one that failed or was cancelled, or ask again for verdicts that a report misses. What was answered
        stays; nothing happens to one that goes on anyway."""
        try:
            await jobs().resume(evaluation_id)
        except NotFound as error:
            if archive.summary(evaluation_id) is None:
                raise
            raise Conflict(f"evaluation {evaluation_id!r} is done, and Redis has forgotten its answers") from error
        await dispatch(jobs(), celery, evaluation_id)
        return await status(evaluation_id)

    @app.get(
        "/v1/evaluations/{id}/report",
        tags=["evaluations"],
        response_class=Response,
        responses={200: {"model": Report, "content": {"text/html": {}, "text/markdown": {}}}},
    )
    async def report(evaluation_id: EvaluationId, format: Literal["json", "md", "html"] = "json") -> Response:
        """The report of an evaluation that is done; 409 before that."""
        text, page = archive.report(evaluation_id), archive.page(evaluation_id)
        if text is None or await is_taken_up(evaluation_id):
            _refuse_unfinished(await jobs().status(evaluation_id))
            text, page = (await keep_report(evaluator(), evaluation_id)).model_dump_json(), None
        if format == "json":
            return Response(text, media_type="application/json")
        if format == "md":
            markdown = await asyncio.to_thread(render_markdown, Report.model_validate_json(text))
            return Response(markdown, media_type="text/markdown; charset=utf-8")
        if page is None:
            page = await asyncio.to_thread(keep_page, archive, Report.model_validate_json(text))
        return HTMLResponse(page, headers=PAGE_HEADERS)

    async def is_taken_up(evaluation_id: str) -> bool:
        """Whether there is, or soon will be, a newer report than the one on disk, which needs no Redis."""
        try:
            return await jobs().is_open(evaluation_id)
        except RedisError:
            return False

    return app


async def reconcile_until(stop: asyncio.Event, evaluator: Evaluator) -> None:
    while not stop.is_set():
        try:
            await reconcile(evaluator)
        except RedisError as error:
            log.warning("not reconciled", error=str(error))
        except Exception as error:  # nobody else re-sends lost chunks: this loop goes on
            log.error("not reconciled", exc_info=error)
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), timeout=evaluator.jobs.settings.reconcile_seconds)


async def reconcile(evaluator: Evaluator) -> None:
    """Look once at every open evaluation: send what is due, close what has come to its end."""
    jobs = evaluator.jobs
    states: Counter[EvaluationState] = Counter()
    idle_seconds = 0.0
    for evaluation_id in await jobs.open_ids():
        await dispatch(jobs, evaluator.celery, evaluation_id)
        try:
            state = (await jobs.status(evaluation_id)).state
        except NotFound:  # Redis lost its memory, but not all of it
            await jobs.close(evaluation_id)
            continue
        if state in (EvaluationState.DONE, EvaluationState.FAILED):
            await close(evaluator, evaluation_id, state)
        else:
            states[state] += 1
            idle_seconds = max(idle_seconds, await jobs.idle_seconds(evaluation_id))
    for state in (EvaluationState.QUEUED, EvaluationState.RUNNING):
        OPEN.labels(state).set(states[state])
    IDLE_SECONDS.set(idle_seconds)


async def close(evaluator: Evaluator, evaluation_id: str, state: EvaluationState) -> None:
    """Bring the report to disk, then let Redis forget. What fails here (a full disk) is tried again next round."""
    if state is EvaluationState.DONE:
        try:
            report = await keep_report(evaluator, evaluation_id)
            await asyncio.to_thread(keep_page, evaluator.archive, report)
        except RedisError:
            raise
        except Exception as error:  # whatever is wrong with one report, the other evaluations go on
            log.error("report not written", evaluation=evaluation_id, exc_info=error)
            return
    await evaluator.jobs.close(evaluation_id)
    FINISHED.labels(state).inc()
    log.info("closed", evaluation=evaluation_id, state=state.value)


async def keep_report(evaluator: Evaluator, evaluation_id: str) -> Report:
    answered = await evaluator.jobs.answered(evaluation_id)
    known = await evaluator.jobs.digest(evaluation_id) or ""
    indexes = await evaluator.intake.indexes() if answered.outline.corpora else None
    # Intervals take a second: other requests go on meanwhile.
    judge = evaluator.jobs.settings.judge_model
    report = await asyncio.to_thread(assemble, answered, indexes=indexes or {}, judge=judge)
    await asyncio.to_thread(evaluator.archive.keep, report, digest=known)
    return report


def keep_page(archive: Archive, report: Report) -> str:
    page = render(report)
    archive.keep_page(report.id, page)
    return page


def _refuse_unfinished(status: EvaluationStatus) -> None:
    if status.state is EvaluationState.FAILED:
        raise Conflict(f"evaluation {status.id!r} failed and has no report: {status.error}")
    if status.state is not EvaluationState.DONE:
        raise Conflict(
            f"evaluation {status.id!r} is {status.state.value} ({status.done} of {status.total}); wait for it"
        )


async def _redis_is_away(request: Request, error: Exception) -> Response:
    unavailable = UpstreamUnavailable(f"Redis does not answer: {error}")
    return JSONResponse(unavailable.body().model_dump(), unavailable.status, {"Retry-After": "1"})
