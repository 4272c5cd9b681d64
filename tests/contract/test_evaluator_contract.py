"""The real client against the real app; Celery's part is played by the test, rollout's by a toy."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from httpx import ASGITransport
from redis.asyncio import Redis

from searcher.clients.evaluator import EvaluatorClient
from searcher.clients.rollout import RolloutClient
from searcher.contracts.errors import Conflict, InvalidInput, NotFound, SearcherError, UpstreamUnavailable
from searcher.contracts.question import Question, RolloutRequest
from searcher.contracts.report import EvaluationRequest, EvaluationState, EvaluationStatus
from searcher.contracts.score import Score
from searcher.contracts.search import Passage
from searcher.contracts.trajectory import RolloutResponse, Search, Segment, Source, StopReason, Trajectory
from searcher.servicekit.settings import SharedSettings
from services.evaluator.answering import RolloutAnswers
from services.evaluator.app import create_app
from services.evaluator.jobs import Jobs
from services.evaluator.settings import EvaluatorSettings
from services.evaluator.worker import evaluate

pytestmark = pytest.mark.anyio

REQUEST = EvaluationRequest(
    id="held-out",
    title="Held-out world",
    questions=tuple(
        Question(id=f"q{i}", question=f"Who is {i}?", answers=("yes",), hops=1 + i % 2, gold_ids=("p1",))
        for i in range(5)
    ),
    weights="demo-1f0c9a2b-000020",
)


class ToyRollout:
    """Searches once and answers right; holds one weight version, and may be told to fail."""

    def __init__(self) -> None:
        self.weights = "demo-1f0c9a2b-000020"
        self.num_requests = 0
        self.error: SearcherError | None = None
        self.before_answer: Callable[[], None] = lambda: None
        self.app = FastAPI()
        self.app.post("/v1/rollouts")(self.rollouts)

    async def rollouts(self, request: RolloutRequest) -> JSONResponse:
        self.num_requests += 1
        self.before_answer()
        if self.error is None and request.weights not in (None, self.weights):
            self.error = Conflict(f"weights: the engines hold {self.weights}, not {request.weights}")
        if self.error is not None:
            error, self.error = self.error, None
            return JSONResponse(error.body().model_dump(), error.status)
        groups = tuple((_trajectory(question),) for question in request.questions)
        return JSONResponse(RolloutResponse(groups=groups, weights=self.weights).model_dump(mode="json"))

    def client(self) -> RolloutClient:
        return RolloutClient("http://rollout", transport=ASGITransport(self.app), attempts=1)


def _trajectory(question: Question) -> Trajectory:
    think = Segment(source=Source.POLICY, text="Hm.", token_ids=(1, 2), logprobs=(-0.1, -0.2), weight_steps=(20, 20))
    given = Segment(source=Source.DOCUMENTS, text="Docs.", token_ids=(3,), logprobs=(0.0,), weight_steps=(-1,))
    passage = Passage(id="p1", title="T", text="x", score=1.0)
    return Trajectory(
        id=question.id,
        question=question,
        prompt_text="?",
        prompt_ids=(0,),
        segments=(think, given, think),
        searches=(Search(query="who", passages=(passage,)),),
        stop_reason=StopReason.ANSWERED,
        score=Score(total=1.0, parts={"answer_f1": 1.0}, answer="yes", em=1.0, cover_em=1.0, f1=1.0, format_ok=True),
    )


@pytest.fixture
def settings(redis_url: str, tmp_path: Path) -> EvaluatorSettings:
    return EvaluatorSettings(
        data_dir=tmp_path,
        chunk_size=2,
        reconcile_seconds=0.05,
        weights_wait_seconds=0,
        shared=SharedSettings(redis_url=redis_url),
    )


@pytest.fixture
async def client(settings: EvaluatorSettings, anyio_backend: str) -> AsyncIterator[EvaluatorClient]:
    app = create_app(settings)
    async with (
        app.router.lifespan_context(app),
        EvaluatorClient("http://evaluator", transport=ASGITransport(app), attempts=1) as client,
    ):
        yield client


@pytest.fixture
def jobs(redis: Redis, settings: EvaluatorSettings) -> Jobs:
    return Jobs(redis, settings)


async def work(jobs: Jobs, rollout: ToyRollout, *, evaluation_id: str = REQUEST.id) -> None:
    """What workers do, once, for every chunk."""
    async with rollout.client() as client:
        for chunk in range(3):
            claim = await jobs.claim(evaluation_id, chunk, owner="worker")
            if claim is not None:
                await evaluate(jobs, claim, RolloutAnswers(client, jobs.settings.weights_wait_seconds))


async def status_once(client: EvaluatorClient, state: EvaluationState) -> EvaluationStatus:
    async with asyncio.timeout(10):
        while (status := await client.status(REQUEST.id)).state is not state:  # noqa: ASYNC110 (another process or task decides)
            await asyncio.sleep(0.01)
    return status


async def test_an_evaluation_becomes_a_report(client: EvaluatorClient, jobs: Jobs) -> None:
    status = await client.submit(REQUEST)
    assert (status.state, status.done, status.total) == (EvaluationState.QUEUED, 0, 5)

    await work(jobs, ToyRollout())
    report = await client.report(REQUEST.id)

    assert (await client.status(REQUEST.id)).state is EvaluationState.DONE
    assert (report.title, report.weights) == ("Held-out world", "demo-1f0c9a2b-000020")
    assert [row.id for row in report.questions] == ["q0", "q1", "q2", "q3", "q4"]
    assert (report.overall.f1, report.overall.evidence_rate, report.overall.searches_mean) == (1.0, 1.0, 1.0)
    assert {hops: group.num_questions for hops, group in report.by_hops.items()} == {"1": 3, "2": 2}
    assert (report.questions[0].num_tokens, report.questions[0].response) == (4, "Hm.Docs.Hm.")
    assert "Held-out world" in await client.report_html(REQUEST.id)


async def test_the_same_request_again_returns_the_evaluation_that_exists(client: EvaluatorClient, jobs: Jobs) -> None:
    rollout = ToyRollout()
    await client.submit(REQUEST)
    await work(jobs, rollout)

    status = await client.submit(REQUEST)
    await work(jobs, rollout)

    assert (status.state, status.done, rollout.num_requests) == (EvaluationState.DONE, 5, 3)


async def test_the_same_id_with_other_content_is_a_conflict(client: EvaluatorClient) -> None:
    await client.submit(REQUEST)

    with pytest.raises(Conflict, match="other content"):
        await client.submit(REQUEST.model_copy(update={"rules": "other"}))


async def test_a_report_outlives_redis(client: EvaluatorClient, jobs: Jobs) -> None:
    await client.submit(REQUEST)
    await work(jobs, ToyRollout())
    before = await client.report(REQUEST.id)

    await jobs.redis.flushall()

    assert await client.report(REQUEST.id) == before
    partial = (await client.status(REQUEST.id)).partial
    assert partial is not None and partial == before.overall.model_copy(update={"intervals": {}})
    assert (await client.submit(REQUEST)).state is EvaluationState.DONE
    with pytest.raises(Conflict):
        await client.submit(REQUEST.model_copy(update={"rules": "other"}))


async def test_a_finished_evaluation_is_closed_and_written_without_being_asked(
    client: EvaluatorClient, jobs: Jobs, settings: EvaluatorSettings
) -> None:
    await client.submit(REQUEST)
    await work(jobs, ToyRollout())

    async with asyncio.timeout(20):
        while await jobs.open_ids():  # noqa: ASYNC110 (another process or task decides)
            await asyncio.sleep(0.01)

    written = {path.name for path in (settings.data_dir / REQUEST.id).iterdir()}
    assert written == {"report.json", "report.html", "summary.json"}
    assert await jobs.redis.ttl("evaluation:held-out:results") > 0


async def test_a_report_is_refused_until_it_is_there(client: EvaluatorClient) -> None:
    await client.submit(REQUEST)

    with pytest.raises(Conflict, match="is queued"):
        await client.report(REQUEST.id)


async def test_an_unknown_evaluation_is_not_found(client: EvaluatorClient) -> None:
    with pytest.raises(NotFound):
        await client.status("nobody")
    with pytest.raises(NotFound):
        await client.report("nobody")
    with pytest.raises(InvalidInput):
        await client.status("..%2f..%2fetc")


async def test_questions_with_the_same_id_are_refused(client: EvaluatorClient) -> None:
    twice = REQUEST.model_copy(update={"questions": REQUEST.questions[:1] * 2})

    with pytest.raises(InvalidInput, match=r"questions\.1\.id: 'q0' is the id of questions\.0 already"):
        await client.submit(twice)


async def test_an_outage_of_rollout_is_waited_out(client: EvaluatorClient, jobs: Jobs) -> None:
    rollout = ToyRollout()
    rollout.error = UpstreamUnavailable("engines are down")
    await client.submit(REQUEST)
    await work(jobs, rollout)
    assert (await client.status(REQUEST.id)).done == 3  # chunk 0 was put back, the others are there

    await jobs.redis.zadd(f"evaluation:{REQUEST.id}:leases", {"0": 1})
    await work(jobs, rollout)

    assert (await client.report(REQUEST.id)).overall.num_questions == 5


async def test_engines_with_other_weights_fail_the_evaluation(client: EvaluatorClient, jobs: Jobs) -> None:
    rollout = ToyRollout()
    rollout.weights = "demo-1f0c9a2b-000040"
    await client.submit(REQUEST)

    await work(jobs, rollout)

    status = await status_once(client, EvaluationState.FAILED)
    assert status.error == "rollout: weights: the engines hold demo-1f0c9a2b-000040, not demo-1f0c9a2b-000020"
    with pytest.raises(Conflict, match="failed and has no report"):
        await client.report(REQUEST.id)


async def test_weights_that_are_being_loaded_are_waited_for(
    client: EvaluatorClient, redis: Redis, settings: EvaluatorSettings
) -> None:
    rollout = ToyRollout()
    rollout.error = Conflict("weights: still loading")
    await client.submit(REQUEST)

    await work(Jobs(redis, settings.model_copy(update={"weights_wait_seconds": 30.0})), rollout)

    assert (await client.report(REQUEST.id)).overall.num_questions == 5


async def test_a_refused_request_fails_the_evaluation_with_the_reason(client: EvaluatorClient, jobs: Jobs) -> None:
    rollout = ToyRollout()
    rollout.error = InvalidInput("rules: no rule set 'x'; known: searcher")
    await client.submit(REQUEST)

    await work(jobs, rollout)

    assert (await client.status(REQUEST.id)).error == "rollout: rules: no rule set 'x'; known: searcher"


async def test_a_worker_whose_evaluation_was_cancelled_stops_and_stores_nothing(
    client: EvaluatorClient, jobs: Jobs
) -> None:
    await client.submit(REQUEST)

    async def cancelled(evaluation_id: str) -> EvaluationStatus:
        return EvaluationStatus.model_validate(await client.post(f"/v1/evaluations/{evaluation_id}/cancel"))

    status = await cancelled(REQUEST.id)
    rollout = ToyRollout()
    await work(jobs, rollout)

    assert (status.state, status.error) == (EvaluationState.FAILED, "cancelled")
    assert rollout.num_requests == 0


async def test_evaluations_are_listed_newest_first(client: EvaluatorClient) -> None:
    await client.submit(REQUEST)
    await client.submit(REQUEST.model_copy(update={"id": "another"}))

    rows = [EvaluationStatus.model_validate(row) for row in await client.get("/v1/evaluations")]

    assert {row.id for row in rows} == {"held-out", "another"}


async def test_without_redis_the_service_says_so(settings: EvaluatorSettings) -> None:
    away = settings.model_copy(update={"shared": SharedSettings(redis_url="redis://127.0.0.1:1/0")})
    app = create_app(away)
    async with (
        app.router.lifespan_context(app),
        EvaluatorClient("http://evaluator", transport=ASGITransport(app), attempts=1) as client,
    ):
        assert not await client.is_ready()
        with pytest.raises(UpstreamUnavailable, match="Redis does not answer"):
            await client.submit(REQUEST)
