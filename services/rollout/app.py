"""The HTTP side of rollout: trajectories on request, answers as they are written, the weights that engines hold."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass

from fastapi import FastAPI, Request
from fastapi.responses import Response, StreamingResponse
from redis.asyncio import Redis
from redis.exceptions import RedisError

from searcher.clients.engine import EngineClient
from searcher.clients.retriever import RetrieverClient
from searcher.clients.reward import RewardClient
from searcher.contracts.errors import Conflict, NotReady, Overloaded, SearcherError
from searcher.contracts.question import AskRequest, Question, RolloutPlan, RolloutRequest
from searcher.contracts.trajectory import AskEvent, AskEventKind, RolloutResponse, Trajectory
from searcher.contracts.weights import WeightsStatus
from searcher.servicekit.app import create_service
from searcher.servicekit.line import Line
from searcher.servicekit.streams import connect
from services.rollout.engines import Engines
from services.rollout.policy import Codec
from services.rollout.settings import RolloutSettings
from services.rollout.tasks import all_of, running
from services.rollout.trajectories import Sample, Sampler
from services.rollout.worker import Worker

UNKNOWN_ANSWER = "?"
"""Who asks does not know the answer, and a question without one cannot be written down."""


@dataclass
class Rollout:
    """Everything that lives as long as the process."""

    settings: RolloutSettings
    redis: Redis
    engines: Engines
    sampler: Sampler
    reward: RewardClient
    trajectories: asyncio.Semaphore
    num_requests: int = 0

    @contextmanager
    def request(self) -> Iterator[None]:
        """Raises Overloaded rather than queueing without end."""
        if self.num_requests >= self.settings.max_concurrent_requests:
            raise Overloaded(f"{self.num_requests} requests are being served; the limit is the same")
        self.num_requests += 1
        try:
            yield
        finally:
            self.num_requests -= 1

    async def sample(self, question: Question, plan: RolloutPlan, index: int) -> Sample:
        async with self.trajectories:
            return await self.sampler.trajectory(question, plan, sample=index, name=f"{question.id[:200]}.{index}")


@asynccontextmanager
async def open_rollout(settings: RolloutSettings) -> AsyncIterator[Rollout]:
    """Engines, clients and, for training, the worker: all running until the end."""
    async with AsyncExitStack() as stack:
        key = settings.shared.api_key
        codec = await asyncio.to_thread(Codec.open, settings.model_dir)
        redis = await stack.enter_async_context(connect(settings.shared.redis_url))
        clients = [await stack.enter_async_context(_engine_client(url, settings)) for url in settings.engine_urls]
        retriever = await stack.enter_async_context(
            RetrieverClient(settings.retriever_url, api_key=key, timeout_seconds=settings.retriever_seconds)
        )
        reward = await stack.enter_async_context(
            RewardClient(settings.reward_url, api_key=key, timeout_seconds=settings.reward_seconds)
        )
        engines = Engines(
            clients,
            redis,
            purpose=settings.purpose,
            reconcile_seconds=settings.reconcile_seconds,
            outage_seconds=settings.outage_seconds,
        )
        sampler = Sampler(engines, codec, retriever)
        await stack.enter_async_context(running(engines.run()))
        if settings.worker and settings.purpose == "training":
            worker = Worker(
                redis,
                sampler,
                reward,
                max_concurrent_questions=settings.max_concurrent_questions,
                lease_seconds=settings.lease_seconds,
            )
            await stack.enter_async_context(running(worker.run()))
            stack.push_async_callback(worker.stop, within_seconds=settings.shutdown_seconds)
        limit = asyncio.Semaphore(settings.max_concurrent_trajectories)
        yield Rollout(settings, redis, engines, sampler, reward, limit)


def _engine_client(url: str, settings: RolloutSettings) -> EngineClient:
    return EngineClient(
        url,
        api_key=settings.shared.api_key,
        turn_seconds=settings.turn_seconds,
        probe_seconds=settings.probe_seconds,
        update_seconds=settings.update_seconds,
    )


def create_app(settings: RolloutSettings) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_rollout(settings) as app.state.rollout:
            yield

    async def is_ready(app: FastAPI) -> None:
        rollout: Rollout = app.state.rollout
        if not rollout.engines.ready:
            states = ", ".join(f"{row.url} is {row.state}" for row in rollout.engines.status().engines)
            raise NotReady(f"no engine is ready: {states}")
        try:
            await rollout.redis.ping()
        except (RedisError, OSError) as error:
            raise NotReady(f"Redis at {settings.shared.redis_url} does not answer") from error

    app = create_service(
        "rollout",
        summary="questions → trajectories: think, search, read, answer",
        settings=settings,
        lifespan=lifespan,
        is_ready=is_ready,
    )
    _add_routes(app)
    return app


def _add_routes(app: FastAPI) -> None:
    @app.post("/v1/rollouts", responses={200: {"model": RolloutResponse}}, summary="Questions → trajectories")
    async def rollouts(http: Request, request: RolloutRequest) -> Response:
        rollout: Rollout = http.app.state.rollout
        with rollout.request(), Line(http.receive):  # its turns in the engines are free when its caller is gone
            response = await _rollouts(rollout, request)
        return Response(response.model_dump_json(), media_type="application/json")

    @app.post("/v1/ask", summary="A question → its answer and searches, as server-sent events")
    async def ask(http: Request, request: AskRequest) -> Response:
        rollout: Rollout = http.app.state.rollout
        events = _ask(rollout, request)
        with Line(http.receive):
            first = await anext(events)  # what goes wrong before it has an HTTP status
        return StreamingResponse(_stream(first, events), media_type="text/event-stream")

    @app.get("/v1/weights", summary="Each engine's weights")
    async def weights(http: Request) -> WeightsStatus:
        rollout: Rollout = http.app.state.rollout
        return rollout.engines.status()


async def _rollouts(rollout: Rollout, request: RolloutRequest) -> RolloutResponse:
    """Raises Conflict unless all tokens came from one version, and from the demanded one if there is one."""
    await rollout.engines.hold_named(request.weights)
    samples_QN = await all_of(_samples(rollout, request, question) for question in request.questions)
    versions = sorted({version for samples in samples_QN for sample in samples for version in sample.versions})
    if len(versions) > 1 or (request.weights is not None and versions not in ([], [request.weights])):
        raise Conflict(f"weights: they changed during the request ({', '.join(versions)}); ask again")
    groups_QN = [tuple(sample.trajectory for sample in samples) for samples in samples_QN]
    if request.rules is not None:
        groups_QN = await all_of(_scored(rollout, group, request.rules) for group in groups_QN)
    return RolloutResponse(groups=tuple(groups_QN), weights=versions[0] if versions else request.weights or "")


async def _samples(rollout: Rollout, request: RolloutRequest, question: Question) -> list[Sample]:
    return await all_of(rollout.sample(question, request.plan, index) for index in range(request.num_samples))


async def _scored(rollout: Rollout, group: tuple[Trajectory, ...], rules: str) -> tuple[Trajectory, ...]:
    scores = await rollout.reward.score(group, rules=rules)
    return tuple(t.model_copy(update={"score": score}) for t, score in zip(group, scores, strict=True))


async def _ask(rollout: Rollout, request: AskRequest) -> AsyncGenerator[AskEvent]:
    question = Question(id="ask", question=request.question, answers=(UNKNOWN_ANSWER,), corpus=request.corpus)
    session = rollout.engines.session()
    with rollout.request():
        async with (
            rollout.trajectories,
            aclosing(rollout.sampler.events(question, request.plan, sample=0, name="ask", session=session)) as events,
        ):
            async for event in events:
                yield event


async def _stream(first: AskEvent, rest: AsyncIterator[AskEvent]) -> AsyncIterator[str]:
    yield _as_sse(first)
    try:
        async for event in rest:
            yield _as_sse(event)
    except SearcherError as error:
        yield _as_sse(AskEvent(kind=AskEventKind.ERROR, text=error.detail))


def _as_sse(event: AskEvent) -> str:
    return f"event: {event.kind}\ndata: {event.model_dump_json()}\n\n"
