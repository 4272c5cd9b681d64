"""The whole system on this machine: up, ask, train through kills, evaluate, down. One deployment for all tests here."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from demo.world import write_worlds
from searcher.cli.embedded import Deployment
from searcher.cli.progress import track_run
from searcher.contracts.question import AskRequest
from searcher.contracts.recipe import Recipe
from searcher.contracts.report import EvaluationRequest
from searcher.contracts.run import RunRequest, RunState
from searcher.contracts.trajectory import AskEventKind
from searcher.recipes import load_questions, load_recipe

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]

ROOT = Path(__file__).parents[2]
PORT_OFFSET = 9_700
DEADLINE_SECONDS = 900.0


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """The demo's, four steps long, with its worlds in a folder of this test's own."""
    worlds = tmp_path_factory.mktemp("worlds")
    write_worlds(worlds)
    tiny = load_recipe(ROOT / "recipes" / "tiny.toml")
    questions = str(worlds / "train" / "questions.jsonl")
    return tiny.model_copy(
        update={
            "name": "e2e",
            "questions_per_step": 4,
            "samples_per_question": 4,
            "corpora": {
                "train": tiny.corpora["train"].model_copy(update={"source": str(worlds / "train/corpus.jsonl")})
            },
            "stages": tuple(s.model_copy(update={"questions": questions, "max_steps": 2}) for s in tiny.stages),
            "evaluation": None,
            "checkpoint": tiny.checkpoint.model_copy(update={"every_steps": 1}),
        }
    )


@pytest.fixture(scope="module")
def deployment(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("deployment")
    deployment = Deployment.for_recipe(recipe, folder / "state", PORT_OFFSET, runs_dir=folder / "runs")
    with deployment.running(timeout_seconds=DEADLINE_SECONDS):
        yield deployment


def kill_and_see_it_return(deployment: Deployment, program: str) -> None:
    """kill -9; supervisord starts it anew."""
    old, deadline = deployment.kill(program), time.monotonic() + DEADLINE_SECONDS
    while not any(row.name == program and row.pid not in (None, old) for row in deployment.status()):
        assert time.monotonic() < deadline, program
        time.sleep(0.1)


async def test_a_question_is_answered_with_its_searches(deployment: Deployment, recipe: Recipe) -> None:
    question = load_questions(Path(recipe.stages[0].questions), limit=1)[0]
    request = AskRequest(question=question.question, corpus="train", plan=recipe.evaluation_plan)

    async with deployment.rollout() as rollout:
        events = [event async for event in rollout.ask(request)]

    assert events[0].kind is AskEventKind.THINK
    assert events[-1].kind is AskEventKind.DONE
    assert events[-1].trajectory is not None


async def test_each_question_of_an_evaluation_is_answered_once(deployment: Deployment, recipe: Recipe) -> None:
    questions = tuple(load_questions(Path(recipe.stages[0].questions), corpus="train", limit=6))

    async with deployment.evaluator() as evaluator:
        report = await evaluator.run(EvaluationRequest(id="e2e", questions=questions, plan=recipe.evaluation_plan))

    assert [row.id for row in report.questions] == [question.id for question in questions]
    assert report.overall.num_questions == 6


async def test_a_run_goes_on_through_kills_of_every_service(deployment: Deployment, recipe: Recipe) -> None:
    victims = ("rollout", "redis", "reward", "retriever", "evaluator", "evaluator-worker", "trainer", "engine-0")
    async with asyncio.timeout(DEADLINE_SECONDS), deployment.trainer() as trainer:
        await trainer.start(RunRequest(run_id="through-kills", recipe=recipe))
        for victim in victims:
            await asyncio.to_thread(kill_and_see_it_return, deployment, victim)
        await asyncio.to_thread(deployment.wait_ready, timeout_seconds=DEADLINE_SECONDS)
        status = await track_run(Console(quiet=True), trainer, "through-kills", recipe)
        lines = await trainer.metrics("through-kills")

    assert status.state is RunState.DONE, status.error
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert [line["stage"] for line in lines] == ["stage1", "stage1", "stage2", "stage2"]


def test_after_stop_nothing_is_left(deployment: Deployment) -> None:
    supervisord = psutil.Process(deployment.supervisor.pid())
    family = [supervisord, *supervisord.children(recursive=True)]

    deployment.stop()

    assert not [process for process in family if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
