"""The real client against the real app; Celery's part is played by the test, rollout's by a toy."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from httpx import ASGITransport
from redis.asyncio import Redis
from rollout_toys import served

from searcher.clients.evaluator import EvaluatorClient
from searcher.clients.rollout import RolloutClient
from searcher.contracts.errors import Conflict, InvalidInput, NotFound, SearcherError, UpstreamUnavailable
from searcher.contracts.question import Question, RolloutPlan, RolloutRequest, SearchMode
from searcher.contracts.report import (
    BASELINES,
    POLICY,
    EvaluationRequest,
    EvaluationState,
    EvaluationStatus,
    OpenAIModel,
    Sample,
    System,
)
from searcher.contracts.score import RuleSet, Score
from searcher.contracts.search import Passage
from searcher.contracts.trajectory import RolloutResponse, Search, Segment, Source, StopReason, Trajectory
from searcher.contracts.weights import WeightVersion
from searcher.qa.tags import document_block
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


PASSAGE = Passage(id="p1", title="T", text="x", score=1.0)


class ToyRollout:
    """Searches once and answers right; holds one weight version, and may be told to fail."""

    def __init__(self) -> None:
        self.weights = "demo-1f0c9a2b-000020"
        self.num_requests = 0
        self.modes: list[SearchMode] = []
        self.error: SearcherError | None = None
        self.before_answer: Callable[[], None] = lambda: None
        self.app = FastAPI()
        self.app.post("/v1/rollouts")(self.rollouts)

    async def rollouts(self, request: RolloutRequest) -> JSONResponse:
        self.num_requests += 1
        self.modes.append(request.plan.search)
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
    return Trajectory(
        id=question.id,
        question=question,
        prompt_text="?",
        prompt_ids=(0,),
        segments=(think, given, think),
        searches=(Search(query="who", passages=(PASSAGE,)),),
        stop_reason=StopReason.ANSWERED,
        score=Score(total=1.0, parts={"answer_f1": 1.0}, answer="yes", em=1.0, cover_em=1.0, f1=1.0, format_ok=True),
    )


def reward_app() -> FastAPI:
    app = FastAPI()

    @app.get("/v1/rules")
    def rules() -> list[RuleSet]:
        return [RuleSet(name=name, description="", parts=()) for name in ("searcher", "other")]

    return app


def corpora_app(index: str = "sha-1") -> FastAPI:
    app = FastAPI()

    @app.get("/v1/corpora")
    def corpora() -> list[dict[str, object]]:
        return [{"name": name, "kind": "flat", "num_passages": 1, "index": index} for name in ("default", "wiki")]

    return app


@pytest.fixture(scope="session")
def neighbours() -> Iterator[str]:
    """A retriever and a reward service that tell about themselves."""
    with served(retriever=corpora_app(), reward=reward_app()) as url:
        yield url


@pytest.fixture
def settings(redis_url: str, tmp_path: Path, neighbours: str) -> EvaluatorSettings:
    return EvaluatorSettings(
        data_dir=tmp_path / "evaluations",
        benchmarks_dir=tmp_path / "benchmarks",
        retriever_url=f"{neighbours}/retriever",
        reward_url=f"{neighbours}/reward",
        model_urls=("http://models/v1",),
        judge_url="http://judge/v1",
        max_answers=1_000,
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


async def work(
    jobs: Jobs, rollout: ToyRollout, *, evaluation_id: str = REQUEST.id, judge: "ToyJudge | None" = None
) -> None:
    """What workers do, once, for every chunk that may be in flight."""
    async with rollout.client() as client:
        for chunk in range(16):
            claim = await jobs.claim(evaluation_id, chunk, owner="worker")
            if claim is not None:
                answerer = RolloutAnswers(client, jobs.settings.weights_wait_seconds)
                await evaluate(jobs, claim, answerer, judge)  # type: ignore[arg-type]
                await jobs.take_due(evaluation_id)


class ToyJudge:
    """Takes every answer for right, unless it is away."""

    def __init__(self) -> None:
        self.away, self.num_asked = False, 0

    async def verdict(self, question: str, golds: object, prediction: str) -> bool:
        self.num_asked += 1
        if self.away:
            raise UpstreamUnavailable("judge at http://judge/v1 did not answer")
        return True


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
    assert "# Held-out world" in await client.report_markdown(REQUEST.id)


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


async def test_baselines_are_columns_of_the_same_report(client: EvaluatorClient, jobs: Jobs) -> None:
    rollout = ToyRollout()
    await client.submit(REQUEST.model_copy(update={"systems": (POLICY, *BASELINES)}))

    await work(jobs, rollout)
    report = await client.report(REQUEST.id)

    assert [one.system.name for one in report.systems] == ["policy", "no search", "one search"]
    assert [one.overall.num_questions for one in report.systems] == [5, 5, 5]
    assert len(report.questions) == 15
    assert rollout.modes == [SearchMode.MULTI_TURN] * 3 + [SearchMode.NONE] * 3 + [SearchMode.ONCE] * 3
    (read,) = {row.response for row in report.questions if row.system == "one search"}
    assert read.startswith(document_block([PASSAGE]))


async def test_the_report_names_the_index_that_answered(client: EvaluatorClient, jobs: Jobs) -> None:
    await client.submit(REQUEST)
    await work(jobs, ToyRollout())

    report = await client.report(REQUEST.id)

    assert (report.corpora, report.missing) == ({"default": "sha-1"}, ())


async def test_an_index_that_is_replaced_meanwhile_is_told(
    client: EvaluatorClient, jobs: Jobs, settings: EvaluatorSettings
) -> None:
    await jobs.create(REQUEST, {"": REQUEST.questions}, indexes={"default": "sha-0"})
    await jobs.take_due(REQUEST.id)
    await work(jobs, ToyRollout())

    report = await client.report(REQUEST.id)

    assert report.corpora == {"default": "sha-0"}
    assert report.missing == ("One index behind all answers: that of the corpus 'default' was replaced, by sha-1.",)


async def test_benchmarks_are_asked_by_name(client: EvaluatorClient, jobs: Jobs, settings: EvaluatorSettings) -> None:
    settings.benchmarks_dir.mkdir()
    rows = [f'{{"id": "b{number}", "question": "Who is {number}?", "answer": "yes"}}\n' for number in range(20)]
    (settings.benchmarks_dir / "bamboogle.jsonl").write_text("".join(rows))
    request = EvaluationRequest(id=REQUEST.id, benchmarks=("bamboogle",), sample=Sample(size=3), corpus="wiki")

    facts = {row["name"]: row for row in await client.get("/v1/benchmarks")}
    status = await client.submit(request)
    await work(jobs, ToyRollout())
    report = await client.report(REQUEST.id)

    assert (facts["bamboogle"]["num_questions"], facts["nq"]["file"], status.total) == (20, None, 3)
    assert "curl" in facts["nq"]["fetch"]
    assert report.systems[0].by_benchmark["bamboogle"].num_questions == 3
    assert report.corpora == {"wiki": "sha-1"}
    assert [row.benchmark for row in report.questions] == ["bamboogle"] * 3
    assert report.published and not any(row.comparable for row in report.published)


MODEL = System(name="gpt", model=OpenAIModel(base_url="http://elsewhere/v1", model="gpt"))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"rules": "mine"}, r"rules: no rule set 'mine'; known: other, searcher"),
        ({"corpus": "kilt"}, r"corpus: the retriever has no corpus 'kilt'; it has default, wiki"),
        ({"plan": RolloutPlan(template="mine")}, r"template: 'mine' is not one of"),
        ({"systems": (MODEL,)}, r"systems\.0\.model\.base_url: 'http://elsewhere/v1' is not in EVALUATOR_MODEL_URLS"),
        ({"version": WeightVersion(run_id="r", step=1, location="file:///w", sha256="a" * 64, num_bytes=1)},
         "EVALUATOR_VERSIONS_ROLLOUT_URL is not set"),
        ({"questions": (REQUEST.questions[0], Question(id="x", question="Who?", answers=(" ",)))},
         r"questions\.1\.answers\.0: is blank"),
        ({"questions": (Question(id="x", question="Who?", answers=("a",), corpus="kilt"),)},
         r"questions\.0\.corpus: the retriever has no corpus 'kilt'"),
        ({"questions": (), "benchmarks": ("squad",)}, "'squad' is not one of hotpotqa"),
        ({"questions": (), "benchmarks": ("nq",)}, "Fetch it: curl"),
        ({"questions": tuple(Question(id=str(at), question="?", answers=("a",)) for at in range(1_001))},
         r"sample: 1001 answers are asked for, and 1000 are allowed"),
    ],
)  # fmt: skip
async def test_what_cannot_be_evaluated_is_refused_at_once(
    client: EvaluatorClient, change: dict[str, object], complaint: str
) -> None:
    with pytest.raises(InvalidInput, match=complaint):
        await client.submit(REQUEST.model_copy(update=change))


async def uploaded(client: EvaluatorClient, file: bytes, **request: object) -> httpx.Response:
    query = {"request": json.dumps({"id": "file", **request})}
    return await client._http.post("/v1/evaluations/upload", params=query, content=file)


async def test_a_question_file_is_uploaded_as_it_is(client: EvaluatorClient) -> None:
    file = b'\xef\xbb\xbf{"question": "Who?", "golden_answers": ["Ada"]}\n{"question": "Where?", "answer": true}\n'

    response = await uploaded(
        client, gzip.compress(file), systems=[{"name": "policy"}, {"name": "b", "search": "once"}]
    )

    assert response.status_code == 200
    assert EvaluationStatus.model_validate(response.json()).total == 4


@pytest.mark.parametrize(
    ("file", "request_fields", "complaint"),
    [
        (b"", {}, "body: is empty"),
        (b'{"question": "Who?", "answer": "a"}\n{"question": "", "answer": "a"}\n', {}, "body:2: question: is blank"),
        (b'{"question": "Who?", "answer": {}}\n', {}, "body:1: answer: "),
        ('{"question": "Wo?", "answer": "K\u00f6ln"}'.encode("latin-1"), {}, "body"),
        (b'{"question": "Who?", "answer": "a"}\n', {"jugde": True}, "jugde"),
    ],
)
async def test_a_bad_upload_is_refused_with_the_line_and_the_field(
    client: EvaluatorClient, file: bytes, request_fields: dict[str, object], complaint: str
) -> None:
    response = await uploaded(client, file, **request_fields)

    assert response.status_code == 422
    assert complaint in response.json()["detail"]


async def test_nobody_is_judged_where_there_is_no_judge(settings: EvaluatorSettings) -> None:
    app = create_app(settings.model_copy(update={"judge_url": None}))
    async with (
        app.router.lifespan_context(app),
        EvaluatorClient("http://evaluator", transport=ASGITransport(app), attempts=1) as client,
    ):
        with pytest.raises(InvalidInput, match="judge: EVALUATOR_JUDGE_URL is not set"):
            await client.submit(REQUEST.model_copy(update={"judge": True}))


async def test_services_that_do_not_tell_stop_nobody(settings: EvaluatorSettings, jobs: Jobs) -> None:
    nowhere = {"retriever_url": "http://127.0.0.1:1", "reward_url": "http://127.0.0.1:1"}
    app = create_app(settings.model_copy(update=nowhere))
    async with (
        app.router.lifespan_context(app),
        EvaluatorClient("http://evaluator", transport=ASGITransport(app), attempts=1) as client,
    ):
        await client.submit(REQUEST)
        await work(jobs, ToyRollout())
        report = await client.report(REQUEST.id)

    assert report.overall.num_questions == 5
    assert report.missing == ("Which index answered for the corpus 'default': the retriever did not tell.",)


async def test_a_judge_that_is_away_costs_verdicts_only_and_they_come_later(
    client: EvaluatorClient, jobs: Jobs
) -> None:
    rollout, judge = ToyRollout(), ToyJudge()
    judge.away = True
    await client.submit(REQUEST.model_copy(update={"judge": True}))
    await work(jobs, rollout, judge=judge)
    before = await client.report(REQUEST.id)

    judge.away = False
    await client.resume(REQUEST.id)
    await work(jobs, rollout, judge=judge)
    after = await client.report(REQUEST.id)

    (missing,) = before.missing
    assert missing.startswith("The judge's verdict on 5 of 5 answers: judge at http://judge/v1 did not answer")
    assert (before.overall.judge, before.overall.num_judged, before.overall.f1) == (None, 0, 1.0)
    assert (after.overall.judge, after.overall.num_judged, after.missing) == (1.0, 5, ())
    assert [row.response for row in after.questions] == [row.response for row in before.questions]
    assert rollout.num_requests == 3  # nothing was asked again
    with pytest.raises(Conflict, match="nothing is left to do"):
        await client.resume(REQUEST.id)


async def test_a_cancelled_evaluation_can_be_taken_up_again(client: EvaluatorClient, jobs: Jobs) -> None:
    rollout = ToyRollout()
    rollout.error = UpstreamUnavailable("engines are down")  # chunk 0 is put back
    await client.submit(REQUEST)
    await work(jobs, rollout)
    await client.cancel(REQUEST.id)
    assert (await client.submit(REQUEST)).error == "cancelled"  # sending it again changes nothing

    status = await client.resume(REQUEST.id)
    await work(jobs, rollout)

    assert (status.state, status.done) == (EvaluationState.QUEUED, 3)
    assert (await client.report(REQUEST.id)).overall.num_questions == 5
    assert rollout.num_requests == 4


async def test_what_redis_has_forgotten_cannot_be_taken_up_again(client: EvaluatorClient, jobs: Jobs) -> None:
    await client.submit(REQUEST)
    await work(jobs, ToyRollout())
    await client.report(REQUEST.id)
    await jobs.redis.flushall()

    with pytest.raises(Conflict, match="Redis has forgotten"):
        await client.resume(REQUEST.id)
    with pytest.raises(NotFound):
        await client.resume("nobody")


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

    status = await client.cancel(REQUEST.id)
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
