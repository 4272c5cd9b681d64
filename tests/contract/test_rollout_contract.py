"""The rollout client against the rollout service, with toys for the services behind it."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from redis.asyncio import Redis
from rollout_toys import (
    ANSWERS,
    ASKS,
    PASSAGES,
    PLAN,
    QUESTION,
    ToyEngine,
    ToyTokenizer,
    retriever_app,
    reward_app,
    served,
    until,
    weights,
)

from searcher.clients.rollout import RolloutClient
from searcher.contracts.errors import Conflict, InvalidInput, UpstreamUnavailable
from searcher.contracts.question import AskRequest, RolloutRequest
from searcher.contracts.trajectory import AskEventKind, StopReason
from searcher.contracts.weights import EngineState
from searcher.servicekit.settings import SharedSettings
from searcher.servicekit.streams import announce_weights
from services.rollout.app import create_app
from services.rollout.policy import Codec
from services.rollout.settings import RolloutSettings

pytestmark = pytest.mark.anyio


@pytest.fixture
def engine() -> ToyEngine:
    return ToyEngine()


@pytest.fixture
def upstream(engine: ToyEngine) -> Iterator[str]:
    with served(engine=engine.app, retriever=retriever_app(), reward=reward_app()) as url:
        yield url


@pytest.fixture
def settings(upstream: str, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> RolloutSettings:
    monkeypatch.setattr(Codec, "open", lambda model_dir: Codec(ToyTokenizer()))
    return RolloutSettings(
        model_dir=Path("toy"),
        engines=f"{upstream}/engine",
        retriever_url=f"{upstream}/retriever",
        reward_url=f"{upstream}/reward",
        reconcile_seconds=0.01,
        outage_seconds=5.0,
        shared=SharedSettings(redis_url=redis_url),
    )


@asynccontextmanager
async def running(settings: RolloutSettings) -> AsyncIterator[tuple[FastAPI, RolloutClient]]:
    app = create_app(settings)
    async with (
        app.router.lifespan_context(app),
        RolloutClient("http://rollout", transport=httpx.ASGITransport(app), attempts=1) as client,
    ):
        await until(lambda: bool(app.state.rollout.engines.ready))
        yield app, client


async def test_questions_become_groups_in_the_order_asked(settings: RolloutSettings) -> None:
    other = QUESTION.model_copy(update={"id": "q2", "question": "Where was Bob born?"})
    async with running(settings) as (_, client):
        response = await client.rollouts(RolloutRequest(questions=(QUESTION, other), num_samples=2, plan=PLAN))

    assert [[t.question.id for t in group] for group in response.groups] == [["q1", "q1"], ["q2", "q2"]]
    assert response.weights == "default"
    for trajectory in (trajectory for group in response.groups for trajectory in group):
        assert trajectory.stop_reason is StopReason.ANSWERED
        assert [search.passages for search in trajectory.searches] == [PASSAGES]
        assert trajectory.score is None


async def test_trajectories_are_scored_if_rules_are_given(settings: RolloutSettings) -> None:
    async with running(settings) as (_, client):
        response = await client.rollouts(RolloutRequest(questions=(QUESTION,), plan=PLAN, rules="searcher"))

    assert response.groups[0][0].score is not None
    assert response.groups[0][0].score.total == 1.0


async def test_demanded_weights_are_the_ones_that_sample(settings: RolloutSettings, redis: Redis) -> None:
    await announce_weights(redis, weights(3))
    async with running(settings) as (_, client):
        response = await client.rollouts(RolloutRequest(questions=(QUESTION,), plan=PLAN, weights=weights(3).name))
        with pytest.raises(Conflict, match="weights"):
            await client.rollouts(RolloutRequest(questions=(QUESTION,), plan=PLAN, weights=weights(2).name))

    assert response.weights == weights(3).name


async def test_a_report_is_of_one_version(settings: RolloutSettings, engine: ToyEngine) -> None:
    replies = iter([ASKS, ANSWERS])

    def changes_in_between(prompt: str) -> str:
        engine.version = f"demo-aaaaaaaa-{len(engine.turns):06d}"
        return next(replies)

    engine.reply = changes_in_between
    async with running(settings) as (_, client):
        with pytest.raises(Conflict, match="changed during the request"):
            await client.rollouts(RolloutRequest(questions=(QUESTION,), plan=PLAN))


async def test_a_question_is_answered_as_it_is_thought_about(settings: RolloutSettings) -> None:
    async with running(settings) as (_, client):
        events = [event async for event in client.ask(AskRequest(question="Where was Ada born?"))]

    assert [event.kind for event in events] == [
        AskEventKind.THINK,
        AskEventKind.SEARCH,
        AskEventKind.THINK,
        AskEventKind.DONE,
    ]
    assert events[1].search is not None
    assert events[1].search.query == "Ada birthplace"
    assert events[-1].answer == "London"


async def test_events_have_a_kind_and_json(settings: RolloutSettings) -> None:
    async with (
        running(settings) as (app, _),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://rollout") as http,
    ):
        response = await http.post("/v1/ask", json={"question": "Who?"})

    first = response.text.split("\n\n")[0].splitlines()
    assert response.headers["content-type"].startswith("text/event-stream")
    assert first[0] == "event: think"
    assert json.loads(first[1].removeprefix("data:"))["text"] == ASKS


async def test_what_goes_wrong_in_the_middle_is_the_last_event(settings: RolloutSettings, upstream: str) -> None:
    nowhere = settings.model_copy(update={"retriever_url": f"{upstream}/nowhere"})
    async with running(nowhere) as (_, client):
        events = [event async for event in client.ask(AskRequest(question="Who?"))]

    assert [event.kind for event in events] == [AskEventKind.THINK, AskEventKind.ERROR]
    assert "retriever" in events[-1].text


async def test_the_weights_of_every_engine_are_told(settings: RolloutSettings, redis: Redis) -> None:
    await announce_weights(redis, weights(3))
    async with running(settings) as (_, client):
        status = await client.weights()

    assert status.wanted == weights(3)
    assert [(row.state, row.version) for row in status.engines] == [(EngineState.READY, weights(3).name)]


async def test_a_template_that_does_not_fit_is_the_callers_error(settings: RolloutSettings) -> None:
    plan = PLAN.model_copy(update={"template": "r1-searcher-chat"})
    async with running(settings) as (_, client):
        with pytest.raises(InvalidInput, match="chat template"):
            await client.rollouts(RolloutRequest(questions=(QUESTION,), plan=plan))
        with pytest.raises(InvalidInput, match="chat template"):
            await anext(client.ask(AskRequest(question="Who?", plan=plan)))


async def test_requests_beyond_the_limit_are_told_to_come_back(settings: RolloutSettings, engine: ToyEngine) -> None:
    async with running(settings.model_copy(update={"max_concurrent_requests": 1})) as (app, client):
        with app.state.rollout.request(), pytest.raises(UpstreamUnavailable, match="limit"):
            await client.rollouts(RolloutRequest(questions=(QUESTION,), plan=PLAN))


async def test_without_an_engine_the_service_is_alive_and_not_ready(settings: RolloutSettings, upstream: str) -> None:
    app = create_app(settings.model_copy(update={"engines": f"{upstream}/nowhere"}))
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://rollout") as http,
    ):
        alive, ready = await http.get("/healthz"), await http.get("/readyz")

    assert alive.status_code == 200
    assert ready.status_code == 503
    assert "no engine is ready" in ready.json()["detail"]


async def test_with_an_engine_the_service_is_ready(settings: RolloutSettings) -> None:
    async with running(settings) as (_, client):
        assert await client.is_ready()


async def test_a_client_that_goes_away_takes_its_turns_along(settings: RolloutSettings, engine: ToyEngine) -> None:
    engine.reply = lambda prompt: ASKS  # would go on searching
    body = RolloutRequest(questions=(QUESTION,), num_samples=2, plan=PLAN).model_dump_json().encode()
    gone = asyncio.Event()
    received = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> dict[str, Any]:
        if message := next(received, None):
            return message
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        return None

    async with running(settings) as (app, _):
        rollout = app.state.rollout
        rollout.trajectories = asyncio.Semaphore(0)  # it gets no further than waiting
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/rollouts",
            "raw_path": b"/v1/rollouts",
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
        }
        request = asyncio.create_task(app(scope, receive, send))
        await until(lambda: rollout.num_requests == 1)
        gone.set()
        await asyncio.wait_for(request, 10)

        assert rollout.num_requests == 0
