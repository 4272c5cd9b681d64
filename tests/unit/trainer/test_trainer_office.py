"""The first process's dealings with the outside: what it asks the evaluator, and what it leaves in the run's folder."""

import asyncio
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import zstandard
from redis.asyncio import Redis
from trainer_toys import group, make_recipe, policy, trajectory

from searcher.contracts.errors import InvalidInput, SearcherError, UpstreamUnavailable
from searcher.contracts.recipe import Recipe
from searcher.contracts.report import POLICY, EvaluationRequest, Metrics, Report, SystemReport
from searcher.servicekit import streams
from services.trainer.checkpoint import CheckpointStore
from services.trainer.engine import StepReport
from services.trainer.loss import LossReport
from services.trainer.office import Office
from services.trainer.rundir import Outcome, RunDirectory, read_lines
from services.trainer.settings import TrainerSettings

pytestmark = pytest.mark.anyio

WEIGHTS = {"w": torch.zeros(2)}
REPORT = StepReport((LossReport(0.1, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 4),), (0.5,), 1e-3)


def metrics(f1: float) -> Metrics:
    return Metrics(
        num_questions=4,
        em=f1,
        cover_em=f1,
        cover_em_strict=f1,
        f1=f1,
        reward=f1,
        search_rate=1.0,
        searches_mean=1.5,
        format_rate=1.0,
        answered_rate=1.0,
        response_tokens_mean=9.0,
    )


class ToyEvaluator:
    """Answers at once, unless told what to do instead."""

    def __init__(self) -> None:
        self.asked: list[EvaluationRequest] = []
        self.instead: Callable[[], None] | None = None
        self.never = False

    async def run(self, request: EvaluationRequest) -> Report:
        await self.submit(request)
        return await self.finished(request.id)

    async def submit(self, request: EvaluationRequest) -> None:
        self.asked.append(request)
        if self.instead:
            self.instead()

    async def finished(self, evaluation_id: str) -> Report:
        if self.never:
            await asyncio.Event().wait()
        (request,) = (asked for asked in self.asked if asked.id == evaluation_id)
        return Report(
            id=request.id,
            title=request.title,
            weights=request.weights or "",
            plan=request.plan,
            rules=request.rules,
            created_at="now",
            seconds=1.0,
            systems=(
                SystemReport(
                    system=POLICY,
                    overall=metrics(0.5),
                    by_benchmark={},
                    by_hops={"1": metrics(0.75), "2": metrics(0.25)},
                ),
            ),
            questions=(),
        )


class Desk:
    def __init__(self, folder: Path, redis: Redis) -> None:
        self.folder, self.redis = folder, redis
        self.alongside = False
        (folder / "model").mkdir()
        self.evaluator, self.stop = ToyEvaluator(), asyncio.Event()
        self.run = RunDirectory(folder / "runs" / "toy")
        self.run.create(self.recipe())

    def recipe(self) -> Recipe:
        evaluation = {
            "questions": str(self.folder / "questions.jsonl"),
            "every_steps": 2,
            "num_questions": 4,
            "alongside": self.alongside,
        }
        return make_recipe(self.folder, evaluation=evaluation, rollout={"template": "bare", "max_searches": 4})

    def office(self, *, evaluator: bool = True, timeout_seconds: float = 60.0) -> Office:
        settings = TrainerSettings(evaluation_timeout_seconds=timeout_seconds)
        toy = self.evaluator if evaluator else None
        return Office(
            self.run, self.recipe(), settings, redis=self.redis, evaluator=toy, retriever=None, stop=self.stop
        )  # type: ignore[arg-type]

    def published(self) -> list[str]:
        return [path.name for path in (self.run.path / "weights").iterdir()]

    def events(self, name: str) -> list[dict]:
        return [event for event in read_lines(self.run.events_file) if event["event"] == name]


@pytest.fixture
def desk(tmp_path: Path, redis: Redis) -> Desk:
    return Desk(tmp_path, redis)


BATCH = [group([trajectory([1], [policy([2, 3])], reward=r) for r in (0.0, 1.0)], group_id="toy-s000000-q000-a0")]


async def test_published_weights_are_announced_and_the_next_questions_asked(desk: Desk) -> None:
    office = desk.office()

    await office.publish(WEIGHTS, step=0)

    wanted = await streams.wanted_weights(desk.redis)
    assert wanted is not None and (wanted.run_id, wanted.step) == ("toy", 0)
    assert desk.published() == [wanted.name]
    assert await streams.active_runs(desk.redis) == ["toy"]
    assert await office.questions.backlog() == 2


async def test_the_evaluator_is_asked_about_these_weights_greedily_with_a_balanced_sample(desk: Desk) -> None:
    office = desk.office()
    await office.publish(WEIGHTS, step=0)

    await office.evaluate(0)

    (request,) = desk.evaluator.asked
    assert request.weights is not None and request.weights.startswith("toy-") and request.weights.endswith("-000000")
    assert (request.plan.temperature, request.plan.stop_at_answer, request.plan.max_searches) == (0.0, True, 4)
    assert sorted(question.hops or 0 for question in request.questions) == [1, 1, 2, 2]


async def test_figures_of_an_evaluation_are_in_its_steps_line_and_its_report_in_a_file(desk: Desk) -> None:
    office = desk.office()
    await office.publish(WEIGHTS, step=2)

    await office.evaluate(2)
    office.record(2, BATCH, REPORT, {"collect": 1.0, "train": 1.0})

    line = desk.run.last_metrics()
    assert (line["step"], line["eval/f1"], line["eval/f1_1hop"], line["eval/f1_2hop"]) == (2, 0.5, 0.75, 0.25)
    report = json.loads((desk.run.path / "evaluations" / "step-000002.json").read_text())
    assert report["systems"][0]["overall"]["f1"] == 0.5


async def test_the_evaluation_before_training_has_a_line_of_its_own(desk: Desk) -> None:
    office = desk.office()
    await office.publish(WEIGHTS, step=0)

    await office.evaluate(0)

    assert desk.run.last_metrics()["step"] == 0
    assert not office.evaluation_is_due(0)


@pytest.mark.parametrize(("step", "is_due"), [(0, True), (1, False), (2, True), (3, False), (4, True)])
async def test_evaluations_are_due_at_the_start_every_so_often_and_at_the_end(
    desk: Desk, step: int, is_due: bool
) -> None:
    office = desk.office()
    office.curriculum.plan(100)

    assert office.evaluation_is_due(step) is is_due


def raising(error: Exception) -> Callable[[], None]:
    def instead() -> None:
        raise error

    return instead


@pytest.mark.parametrize("error", [UpstreamUnavailable("evaluator did not answer"), SearcherError("engines left")])
async def test_an_evaluator_outage_costs_the_figures_not_the_run(desk: Desk, error: SearcherError) -> None:
    office = desk.office()
    desk.evaluator.instead = raising(error)
    await office.publish(WEIGHTS, step=2)

    await office.evaluate(2)
    office.record(2, BATCH, REPORT, {})

    assert "eval/f1" not in desk.run.last_metrics()
    assert [event["why"] for event in desk.events("evaluation_skipped")] == [str(error)]


async def test_an_evaluation_that_takes_too_long_is_skipped(desk: Desk) -> None:
    office = desk.office(timeout_seconds=0.01)
    desk.evaluator.never = True
    await office.publish(WEIGHTS, step=2)

    await office.evaluate(2)

    assert [event["why"] for event in desk.events("evaluation_skipped")] == ["took too long"]


async def settled() -> None:
    """Let every task that can go on do so."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_an_evaluation_alongside_gives_its_figures_to_a_later_line_under_its_own_step(desk: Desk) -> None:
    desk.alongside = True
    office = desk.office()
    await office.publish(WEIGHTS, step=2)

    await office.evaluate(2)
    office.record(2, BATCH, REPORT, {})
    await settled()
    office.record(3, BATCH, REPORT, {})

    first, second = desk.run.metrics()
    assert "eval/f1" not in first
    assert (second["step"], second["eval/step"], second["eval/f1"]) == (3, 2, 0.5)
    (request,) = desk.evaluator.asked
    assert request.version == office.weights and request.version.name == request.weights


async def test_the_last_evaluation_alongside_is_waited_for_and_has_a_line_of_its_own(desk: Desk) -> None:
    desk.alongside = True
    office = desk.office()
    await office.publish(WEIGHTS, step=4)
    await office.evaluate(4)
    office.record(4, BATCH, REPORT, {})

    await office.close(Outcome.DONE)

    *_, last = desk.run.metrics()
    assert (last["step"], last["eval/step"], last["eval/f1"]) == (4, 4, 0.5)


async def test_weights_stay_published_until_their_evaluation_alongside_is_there(desk: Desk) -> None:
    desk.alongside, desk.evaluator.never = True, True
    office = desk.office()
    await office.publish(WEIGHTS, step=0)
    await office.evaluate(0)
    evaluated = office.weights
    assert evaluated is not None

    for step in range(1, 6):
        await office.publish({"w": torch.full((2,), float(step))}, step=step)
    assert evaluated.name in desk.published()

    await office.evaluations.close()


async def test_a_successor_gets_the_evaluation_that_its_predecessor_asked_for(desk: Desk) -> None:
    desk.alongside, desk.evaluator.never = True, True
    killed = desk.office()
    await killed.publish(WEIGHTS, step=2)
    await killed.evaluate(2)
    await settled()
    await killed.evaluations.close()

    desk.evaluator.never = False
    successor = desk.office()
    successor.evaluations.resume(2)
    assert not successor.evaluation_is_due(2)
    await successor.evaluations.settle()

    assert (desk.run.path / "evaluations" / "step-000002.json").exists()
    assert len(desk.evaluator.asked) == 1
    assert successor.evaluations.weights_in_use == frozenset()


async def test_a_stop_does_not_wait_for_an_evaluation(desk: Desk) -> None:
    office = desk.office()
    desk.evaluator.instead, desk.evaluator.never = desk.stop.set, True
    await office.publish(WEIGHTS, step=2)

    await office.evaluate(2)

    assert not (desk.run.path / "evaluations").exists()


async def test_without_an_evaluator_training_says_so(desk: Desk) -> None:
    office = desk.office(evaluator=False)
    await office.publish(WEIGHTS, step=2)

    await office.evaluate(2)

    assert len(desk.events("evaluation_skipped")) == 1


async def test_with_every_checkpoint_damaged_a_run_is_refused_not_restarted(desk: Desk) -> None:
    (desk.run.checkpoints / "step-000002").mkdir(parents=True)

    with pytest.raises(InvalidInput, match="every checkpoint is damaged"):
        desk.office().find_checkpoint()
    assert len(desk.events("checkpoint_damaged")) == 1


async def test_as_many_processes_must_read_a_checkpoint_as_wrote_it(desk: Desk) -> None:
    store = CheckpointStore(desk.run.checkpoints)
    store.begin(2)
    store.commit(2, {**desk.office().state(), "num_processes": 4})

    with pytest.raises(InvalidInput, match="was written by 4 processes"):
        desk.office().find_checkpoint()


async def test_trajectories_of_a_step_can_be_read_back(desk: Desk) -> None:
    desk.office().record(1, BATCH, REPORT, {"collect": 0.5})

    with (desk.run.path / "trajectories" / "step-000001.jsonl.zst").open("rb") as file:
        lines = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(file), encoding="utf-8").readlines()
    rows = [json.loads(line) for line in lines]
    assert [row["score"]["total"] for row in rows] == [0.0, 1.0]
    assert {row["group_id"] for row in rows} == {"toy-s000000-q000-a0"}


async def test_a_stopped_run_keeps_its_streams_and_a_finished_one_does_not(desk: Desk) -> None:
    office = desk.office()
    await office.publish(WEIGHTS, step=0)

    await office.close(Outcome.STOPPED)
    assert await office.questions.backlog() == 2
    assert await streams.active_runs(desk.redis) == []

    await office.close(Outcome.DONE)
    assert await office.questions.backlog() == 0
