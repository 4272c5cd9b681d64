"""Real API, real Celery workers, real Redis: workers are killed at the worst moments, and every answer counts once."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI, Request
from rollout_toys import PASSAGES, retriever_app, reward_app, served

from searcher.clients.evaluator import EvaluatorClient
from searcher.contracts.question import Question, RolloutRequest, SearchMode
from searcher.contracts.report import BASELINES, POLICY, EvaluationRequest, OpenAIModel, Report, System
from searcher.contracts.score import Score
from searcher.contracts.trajectory import RolloutResponse, Search, Segment, Source, StopReason, Trajectory

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]

Start = Callable[..., subprocess.Popen[bytes]]
WORKER = ("-m", "celery", "-A", "services.evaluator.worker", "worker", "--without-gossip", "--without-mingle")
QUESTIONS = tuple(Question(id=f"q{i}", question=f"Who is {i}?", answers=("yes",)) for i in range(40))


class ToyRollout:
    """Answers at once, except for questions that wait at the gate."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.held: frozenset[str] = frozenset()
        self.arrived, self.gate = threading.Event(), threading.Event()
        self.app = FastAPI()
        self.app.post("/v1/rollouts")(self.rollouts)

    def rollouts(self, request: RolloutRequest) -> RolloutResponse:
        ids = {question.id for question in request.questions}
        self.asked.update(ids)
        if ids & self.held and not self.gate.is_set():
            self.arrived.set()
            self.gate.wait(60)
        mode = request.plan.search
        return RolloutResponse(groups=tuple((_trajectory(one, mode),) for one in request.questions), weights="w")


def _trajectory(question: Question, search: SearchMode) -> Trajectory:
    searches = (Search(query=question.question, passages=PASSAGES),) if search is SearchMode.ONCE else ()
    text = Segment(source=Source.POLICY, text="Hm.", token_ids=(1,), logprobs=(-0.1,), weight_steps=(0,))
    return Trajectory(
        id=question.id,
        question=question,
        prompt_text="?",
        prompt_ids=(0,),
        segments=(text,),
        searches=searches,
        stop_reason=StopReason.ANSWERED,
        score=Score(total=1.0, parts={}, answer="yes", em=1.0, cover_em=1.0, f1=1.0, format_ok=True),
    )


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture
def rollout() -> Iterator[tuple[ToyRollout, str]]:
    toy, port = ToyRollout(), _free_port()
    server = uvicorn.Server(uvicorn.Config(toy.app, port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    yield toy, f"http://127.0.0.1:{port}"
    toy.gate.set()
    server.should_exit = True
    thread.join()


def _corpora_and_search() -> FastAPI:
    app = retriever_app()

    @app.get("/v1/corpora")
    def corpora() -> list[dict[str, str]]:
        return [{"name": "default", "index": "toy"}]

    return app


def _chat(reply: Callable[[str], str]) -> FastAPI:
    """OpenAI's route on a function of the conversation's last message."""
    app = FastAPI()

    @app.post("/v1/chat/completions")
    async def complete(http: Request) -> dict[str, Any]:
        messages = (await http.json())["messages"]
        return {"choices": [{"message": {"content": reply(messages[-1]["content"])}, "finish_reason": "stop"}]}

    return app


def _asks_once(message: str) -> str:
    return "So. </think> <answer> yes </answer>" if "begin_of_documents" in message else "<|begin_of_query|> who "


@pytest.fixture
def neighbours() -> Iterator[str]:
    """Retriever, reward, a model behind an API, and a judge."""
    with served(
        retriever=_corpora_and_search(),
        reward=reward_app(),
        model=_chat(_asks_once),
        judge=_chat(lambda message: "True"),
    ) as url:
        yield url


@pytest.fixture
def port() -> int:
    return _free_port()


@pytest.fixture
def start(
    redis_url: str, rollout: tuple[ToyRollout, str], neighbours: str, port: int, tmp_path: Path
) -> Iterator[Start]:
    """Start a Python process with the evaluator's environment; it is killed at the end."""
    started: list[subprocess.Popen[bytes]] = []
    env = os.environ | {
        "SEARCHER_REDIS_URL": redis_url,
        "EVALUATOR_ROLLOUT_URL": rollout[1],
        "EVALUATOR_RETRIEVER_URL": f"{neighbours}/retriever",
        "EVALUATOR_REWARD_URL": f"{neighbours}/reward",
        "EVALUATOR_MODEL_URLS": f"http://elsewhere/v1, {neighbours}/model/v1",
        "EVALUATOR_JUDGE_URL": f"{neighbours}/judge/v1",
        "EVALUATOR_PORT": str(port),
        "EVALUATOR_DATA_DIR": str(tmp_path),
        "EVALUATOR_CHUNK_SIZE": "4",
        "EVALUATOR_WORKER_CONCURRENCY": "2",
        "EVALUATOR_LEASE_SECONDS": "1",
        "EVALUATOR_RECONCILE_SECONDS": "0.2",
    }

    def run(*arguments: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([sys.executable, *arguments], env=env)
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def api(start: Start) -> subprocess.Popen[bytes]:
    return start("-m", "services.evaluator")


@pytest.fixture
async def client(api: subprocess.Popen[bytes], port: int, anyio_backend: str) -> AsyncIterator[EvaluatorClient]:
    async with EvaluatorClient(f"http://127.0.0.1:{port}") as client:
        await ready(client)
        yield client


async def ready(client: EvaluatorClient) -> None:
    async with asyncio.timeout(60):
        while not await client.is_ready():  # noqa: ASYNC110 (another process or task decides)
            await asyncio.sleep(0.1)


def request(evaluation_id: str) -> EvaluationRequest:
    return EvaluationRequest(id=evaluation_id, questions=QUESTIONS)


def assert_every_answer_counts_once(report: Report) -> None:
    assert [row.id for row in report.questions] == [question.id for question in QUESTIONS]
    assert report.overall.num_questions == len(QUESTIONS)


async def test_a_worker_killed_in_the_middle_loses_nothing(
    client: EvaluatorClient, start: Start, rollout: tuple[ToyRollout, str]
) -> None:
    toy, _ = rollout
    toy.held = frozenset({"q5", "q30"})
    worker = start(*WORKER)
    await client.submit(request("killed"))
    assert toy.arrived.wait(60)

    worker.kill()
    worker.wait()
    toy.gate.set()
    start(*WORKER)
    report = await client.run(request("killed"))
    status = await client.status("killed")

    assert_every_answer_counts_once(report)
    assert (status.done, status.total) == (len(QUESTIONS), len(QUESTIONS))
    assert toy.asked["q5"] == 2  # by the dead worker, and by its successor


async def test_policy_baselines_and_a_model_behind_an_api_meet_in_one_judged_report(
    client: EvaluatorClient, start: Start, neighbours: str
) -> None:
    """Every setting comes from the environment, every service answers over a socket."""
    model = OpenAIModel(base_url=f"{neighbours}/model/v1", model="toy")
    asked = EvaluationRequest(
        id="systems",
        questions=QUESTIONS[:6],
        systems=(POLICY, *BASELINES, System(name="toy", model=model)),
        judge=True,
    )
    start(*WORKER)

    report = await client.run(asked)

    assert [one.system.name for one in report.systems] == ["policy", "no search", "one search", "toy"]
    assert Counter(row.system for row in report.questions) == dict.fromkeys(
        ("policy", "no search", "one search", "toy"), 6
    )
    assert {row.num_searches for row in report.questions if row.system == "toy"} == {1}
    assert {one.system.name: one.overall.judge for one in report.systems} == {
        "policy": 1.0,
        "no search": 1.0,
        "one search": 1.0,
        "toy": 0.0,  # the reward stand-in finds no answer in what it wrote
    }
    assert (report.weights, report.corpora, report.missing) == ("w", {"default": "toy"}, ())


async def test_a_task_that_celery_lost_is_sent_again(client: EvaluatorClient, start: Start) -> None:
    """A worker that is frozen while it waits for a task takes the task with it when it dies."""
    worker = start(*WORKER)
    await client.run(request("warm-up"))
    worker.send_signal(signal.SIGSTOP)
    await client.submit(request("lost"))

    worker.kill()
    worker.wait()
    start(*WORKER)

    assert_every_answer_counts_once(await client.run(request("lost")))


async def test_a_frozen_worker_that_wakes_up_late_counts_nothing_twice(
    client: EvaluatorClient, start: Start, rollout: tuple[ToyRollout, str]
) -> None:
    toy, _ = rollout
    toy.held = frozenset({"q0"})
    frozen = start(*WORKER)
    await client.submit(request("frozen"))
    assert toy.arrived.wait(60)

    frozen.send_signal(signal.SIGSTOP)
    toy.gate.set()
    start(*WORKER)
    report = await client.run(request("frozen"))
    frozen.send_signal(signal.SIGCONT)
    frozen.terminate()
    frozen.wait()

    assert_every_answer_counts_once(report)
    assert await client.report("frozen") == report


async def test_api_and_worker_killed_together_lose_nothing(
    api: subprocess.Popen[bytes], client: EvaluatorClient, start: Start, rollout: tuple[ToyRollout, str]
) -> None:
    """The record was written before the first task was sent, so a second API process knows all of it."""
    toy, _ = rollout
    toy.held = frozenset({"q0"})
    worker = start(*WORKER)
    await client.submit(request("restarted"))
    assert toy.arrived.wait(60)

    for process in (api, worker):
        process.kill()
        process.wait()
    toy.gate.set()
    start(*WORKER)
    start("-m", "services.evaluator")
    await ready(client)

    assert_every_answer_counts_once(await client.run(request("restarted")))
