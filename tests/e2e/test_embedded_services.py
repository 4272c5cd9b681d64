"""The whole system on this machine: up, ask, train through kills, evaluate, down. One deployment for all tests here."""

import asyncio
import io
import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import zstandard
from rich.console import Console

from demo.world import write_worlds
from searcher.cli.embedded.deployment import Deployment
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
STEPS_PER_STAGE = 5


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """The demo's, ten steps long, with its worlds in a folder of this test's own."""
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
            "stages": tuple(
                stage.model_copy(update={"questions": questions, "max_steps": STEPS_PER_STAGE, "until": None})
                for stage in tiny.stages
            ),
            "evaluation": None,
            "checkpoint": tiny.checkpoint.model_copy(update={"every_steps": 2}),
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


VICTIMS = ("rollout", "redis", "reward", "retriever", "evaluator", "evaluator-worker", "trainer", "run", "engine-0")
"""Programs, and the training process itself."""


def kill(deployment: Deployment, victim: str) -> None:
    if victim != "run":
        kill_and_see_it_return(deployment, victim)
        return
    for process in psutil.Process(deployment.pid("trainer")).children(recursive=True):
        if "services.trainer.train" in process.cmdline():
            process.kill()


async def test_every_question_trains_once_whoever_is_killed(deployment: Deployment, recipe: Recipe) -> None:
    run_id = "through-kills"
    async with asyncio.timeout(DEADLINE_SECONDS), deployment.trainer() as trainer:
        await trainer.start(RunRequest(run_id=run_id, recipe=recipe))
        for num_killed, victim in enumerate(VICTIMS):
            while (await trainer.run(run_id)).step < num_killed:  # noqa: ASYNC110  (the step is behind HTTP)
                await asyncio.sleep(0.05)
            await asyncio.to_thread(kill, deployment, victim)
            await asyncio.to_thread(deployment.wait_ready, timeout_seconds=DEADLINE_SECONDS)
        status = await track_run(Console(quiet=True), trainer, run_id, recipe)
        lines = await trainer.metrics(run_id)

    assert status.state is RunState.DONE, status.error
    assert [line["step"] for line in lines] == list(range(1, recipe.max_steps + 1))
    trained = [trained_by_step(deployment.runs_dir / run_id, step) for step in range(1, recipe.max_steps + 1)]
    expected = [
        {
            f"{run_id}-s{step:06d}-q{slot:03d}-a0": recipe.samples_per_question
            for slot in range(recipe.questions_per_step)
        }
        for step in range(recipe.max_steps)
    ]
    assert [dict(Counter(group for group, _ in step)) for step in trained] == expected
    for stage in (trained[:STEPS_PER_STAGE], trained[STEPS_PER_STAGE:]):
        questions = {question for step in stage for _, question in step}
        assert len(questions) == STEPS_PER_STAGE * recipe.questions_per_step


def trained_by_step(run_dir: Path, step: int) -> list[tuple[str, str]]:
    """Group and question of every trajectory that the step was trained on."""
    path = run_dir / "trajectories" / f"step-{step:06d}.jsonl.zst"
    with path.open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as raw:
        rows = [json.loads(line) for line in io.TextIOWrapper(raw, encoding="utf-8")]
    return [(row["group_id"], row["question"]["id"]) for row in rows]


def test_after_stop_nothing_is_left(deployment: Deployment) -> None:
    supervisord = psutil.Process(deployment.supervisor.pid())
    family = [supervisord, *supervisord.children(recursive=True)]

    deployment.stop()

    assert not [process for process in family if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
