"""HTTP -> runs. Light: no torch here; training is a process of its own (controller.py starts and watches it)."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import FastAPI, Path, Query
from fastapi.responses import FileResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from redis.exceptions import RedisError

from searcher.contracts.errors import NotReady
from searcher.contracts.run import Checkpoint, RunRequest, RunState, RunStatus
from searcher.servicekit.app import create_service
from searcher.servicekit.streams import connect
from services.trainer.controller import Controller
from services.trainer.metrics import RunCollector
from services.trainer.rundir import RunDirectory, read_lines
from services.trainer.settings import TrainerSettings

RunId = Annotated[str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
POLL_SECONDS = 0.5


def create_app(settings: TrainerSettings) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        redis = connect(settings.shared.redis_url)
        controller = Controller(settings, redis)
        controller.open()
        app.state.controller = controller
        collector = RunCollector(controller.newest)
        collector.register()
        try:
            yield
        finally:
            collector.unregister()
            await controller.close()
            await redis.aclose()

    async def is_ready(app: FastAPI) -> None:
        try:
            await app.state.controller.redis.ping()
        except RedisError as error:
            raise NotReady(f"Redis at {settings.shared.redis_url} does not answer: {error}") from error

    app = create_service(
        "trainer",
        summary="Trains a policy from scored trajectories and publishes its weights",
        settings=settings,
        lifespan=lifespan,
        is_ready=is_ready,
    )
    _add_routes(app)
    return app


def _add_routes(app: FastAPI) -> None:
    def controller() -> Controller:
        held: Controller = app.state.controller
        return held

    @app.post("/v1/runs", tags=["runs"], summary="Start a run, or continue it with resume = true", status_code=201)
    async def start(request: RunRequest) -> RunStatus:
        return await controller().start(request)

    @app.get("/v1/runs", tags=["runs"], summary="All runs, newest first")
    def runs() -> list[RunStatus]:
        return controller().runs()

    @app.get("/v1/runs/{run_id}", tags=["runs"], summary="State, step and newest figures of a run")
    def run(run_id: RunId) -> RunStatus:
        return controller().status(run_id)

    @app.post("/v1/runs/{run_id}/stop", tags=["runs"], summary="Finish the step, checkpoint, export, end")
    async def stop(run_id: RunId) -> RunStatus:
        return await controller().stop(run_id)

    @app.post("/v1/runs/{run_id}/resume", tags=["runs"], summary="Continue from the newest checkpoint")
    async def resume(run_id: RunId) -> RunStatus:
        return await controller().resume(run_id)

    @app.get("/v1/runs/{run_id}/metrics", tags=["runs"], summary="Lines of metrics.jsonl with a step above after_step")
    def metrics(run_id: RunId, after_step: Annotated[int, Query(ge=-1)] = 0) -> list[dict[str, Any]]:
        return controller().directory(run_id).metrics(after_step=after_step)

    @app.get("/v1/runs/{run_id}/checkpoints", tags=["runs"], summary="Checkpoints on disk, oldest first")
    def checkpoints(run_id: RunId) -> list[Checkpoint]:
        return controller().checkpoints(run_id)

    @app.get(
        "/v1/runs/{run_id}/events",
        tags=["runs"],
        summary="Server-sent events `metrics` (a line of metrics.jsonl) and `event` (a line of events.jsonl), from the "
        "first on, until the run ends",
        response_class=EventSourceResponse,
    )
    async def events(run_id: RunId) -> AsyncIterator[ServerSentEvent]:
        async for event in follow(app, controller().directory(run_id)):
            yield event

    @app.get(
        "/v1/weights/{version}/model.safetensors",
        tags=["weights"],
        summary="A published version, for engines that do not share our disk",
        response_class=FileResponse,
    )
    def weights(version: RunId) -> FileResponse:
        return FileResponse(controller().weights_file(version), media_type="application/octet-stream")


async def follow(app: FastAPI, run: RunDirectory) -> AsyncIterator[ServerSentEvent]:
    """Everything recorded so far, then everything new. A step repeated after a crash is not sent twice."""
    num_events, last_step = 0, -1
    while True:
        is_over = run.record.state is not RunState.RUNNING or app.state.draining
        new_events = read_lines(run.events_file)[num_events:]
        for line in new_events:
            yield ServerSentEvent(event="event", data=line)
        num_events += len(new_events)
        for line in run.metrics(after_step=last_step):
            last_step = line["step"]
            yield ServerSentEvent(event="metrics", data=line, id=str(last_step))
        if is_over:
            return
        await asyncio.sleep(POLL_SECONDS)
