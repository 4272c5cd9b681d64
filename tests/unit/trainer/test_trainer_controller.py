"""The controller against toy training programs: real processes that crash, end or wait as told."""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis
from trainer_toys import make_questions, make_recipe

from searcher.contracts.errors import Conflict, InvalidInput, NotFound
from searcher.contracts.recipe import Recipe
from searcher.contracts.run import RunRequest, RunState
from searcher.servicekit import streams
from services.trainer.controller import Controller
from services.trainer.rundir import RunDirectory, read_lines
from services.trainer.settings import TrainerSettings

pytestmark = pytest.mark.anyio

PROGRAM = """
import json, os, pathlib, signal, sys, time
run = pathlib.Path(sys.argv[1])
lives = run / "lives.txt"
life = len(lives.read_text().split()) if lives.exists() else 0
lives.open("a").write(f"{os.getpid()} ")
deeds = json.loads((run.parent / "deeds.json").read_text())
deed = deeds[min(life, len(deeds) - 1)]

def end(outcome, error=None):
    (run / "ending.json").write_text(json.dumps({"outcome": outcome, "error": error}))
    sys.exit(0 if error is None else 2)

if deed.startswith("step "):
    (run / "metrics.jsonl").open("a").write(json.dumps({"step": int(deed[5:]), "stage": "only", "reward": 0.5}) + "\\n")
    os.kill(os.getpid(), signal.SIGKILL)
if deed == "wait":
    signal.signal(signal.SIGTERM, lambda *_: end("stopped"))
    (run / "waiting").touch()
    while True:
        time.sleep(0.01)
if deed == "ignore":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    (run / "waiting").touch()
    time.sleep(600)
if deed == "crash":
    sys.exit(7)
end(deed, "no such model" if deed == "refused" else None)
"""


class Place:
    """A runs folder and what its training processes are going to do, life by life."""

    def __init__(self, folder: Path, redis: Redis, redis_url: str) -> None:
        self.folder, self.redis, self.redis_url = folder, redis, redis_url
        self.runs = folder / "runs"
        self.runs.mkdir()
        (folder / "program.py").write_text(PROGRAM)
        (folder / "model").mkdir()
        (folder / "model" / "config.json").write_text("{}")
        (folder / "model" / "model.safetensors").write_bytes(b"")

    def will(self, *deeds: str) -> None:
        (self.runs / "deeds.json").write_text(json.dumps(deeds))

    def controller(self, **changes: object) -> Controller:
        fields = {"max_restarts": 2, "restart_backoff_seconds": 0.0, "stop_seconds": 30.0, **changes}
        settings = TrainerSettings.model_validate({"runs_dir": self.runs, **fields})
        return Controller(settings, self.redis, launch=(sys.executable, str(self.folder / "program.py")))

    def recipe(self, **changes: object) -> Recipe:
        return make_recipe(self.folder, **changes)

    def request(self, run_id: str = "toy", *, resume: bool = False) -> RunRequest:
        return RunRequest(run_id=run_id, recipe=self.recipe(), resume=resume)

    def run(self, run_id: str = "toy") -> RunDirectory:
        return RunDirectory(self.runs / run_id)

    def lives(self, run_id: str = "toy") -> list[int]:
        """Process ids of this run's training processes so far."""
        return [int(pid) for pid in (self.run(run_id).path / "lives.txt").read_text().split()]


@pytest.fixture
def place(tmp_path: Path, redis: Redis, redis_url: str) -> Place:
    return Place(tmp_path, redis, redis_url)


@contextlib.asynccontextmanager
async def opened(controller: Controller) -> AsyncIterator[Controller]:
    controller.open()
    try:
        yield controller
    finally:
        await controller.close()


async def until_idle(controller: Controller) -> None:
    if controller._supervision is not None:
        await controller._supervision


async def until_waiting(place: Place, run_id: str = "toy") -> None:
    event = place.run(run_id).path / "waiting"
    for _ in range(2_000):
        if event.exists():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("the toy did not start")


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_a_run_that_ends_is_done(place: Place) -> None:
    place.will("done")
    async with opened(place.controller()) as controller:
        started = await controller.start(place.request())
        await until_idle(controller)

        assert started.state is RunState.RUNNING
        assert controller.status("toy").state is RunState.DONE


async def test_a_crash_is_followed_by_a_restart(place: Place) -> None:
    place.will("crash", "crash", "done")
    async with opened(place.controller()) as controller:
        await controller.start(place.request())
        await until_idle(controller)

        status = controller.status("toy")
        assert (status.state, status.restarts) == (RunState.DONE, 2)


async def test_crashes_in_a_row_use_up_the_budget(place: Place) -> None:
    place.will("crash")
    async with opened(place.controller(max_restarts=2)) as controller:
        await controller.start(place.request())
        await until_idle(controller)

        status = controller.status("toy")
        assert status.state is RunState.FAILED
        assert status.error is not None and "crashed 3 times" in status.error and "exit code 7" in status.error
        assert await streams.active_runs(place.redis) == []


async def test_progress_refills_the_budget(place: Place) -> None:
    place.will("step 1", "crash", "step 2", "crash", "step 3", "crash", "done")
    async with opened(place.controller(max_restarts=2)) as controller:
        await controller.start(place.request())
        await until_idle(controller)

        status = controller.status("toy")
        assert (status.state, status.restarts, status.step) == (RunState.DONE, 6, 3)
        assert status.metrics["reward"] == 0.5


async def test_a_refused_recipe_is_not_tried_again(place: Place) -> None:
    place.will("refused")
    async with opened(place.controller()) as controller:
        await controller.start(place.request())
        await until_idle(controller)

        status = controller.status("toy")
        assert (status.state, status.restarts, status.error) == (RunState.FAILED, 0, "no such model")


async def test_stopping_lets_the_process_end_in_peace(place: Place) -> None:
    place.will("wait")
    async with opened(place.controller()) as controller:
        await controller.start(place.request())
        await until_waiting(place)

        status = await controller.stop("toy")
        await until_idle(controller)

        assert status.state is RunState.STOPPED
        assert place.run().ending is not None
        assert len(place.lives()) == 1


async def test_a_stopped_run_can_be_resumed(place: Place) -> None:
    place.will("wait", "done")
    async with opened(place.controller()) as controller:
        await controller.start(place.request())
        await until_waiting(place)
        await controller.stop("toy")

        resumed = await controller.resume("toy")
        await until_idle(controller)

        assert resumed.state is RunState.RUNNING
        assert controller.status("toy").state is RunState.DONE


async def test_a_process_that_does_not_listen_is_killed(place: Place) -> None:
    place.will("ignore")
    controller = place.controller(stop_seconds=0.1)
    async with opened(controller):
        await controller.start(place.request())
        await until_waiting(place)

    assert not is_alive(place.lives()[0])
    assert read_lines(place.run().events_file)[-1]["event"] == "killed"


async def test_somebody_elses_signal_is_not_a_stop(place: Place) -> None:
    place.will("wait", "done")
    async with opened(place.controller()) as controller:
        await controller.start(place.request())
        await until_waiting(place)
        os.kill(place.lives()[0], 15)
        await until_idle(controller)

        assert controller.status("toy").state is RunState.DONE


async def test_a_run_goes_on_after_the_controller_was_replaced(place: Place) -> None:
    place.will("wait", "done")
    async with opened(place.controller()) as first:
        await first.start(place.request())
        await until_waiting(place)
    assert place.run().record.state is RunState.RUNNING

    async with opened(place.controller()) as second:
        await until_idle(second)

        assert second.status("toy").state is RunState.DONE


async def test_two_controllers_cannot_share_a_folder(place: Place) -> None:
    async with opened(place.controller()):
        with pytest.raises(Conflict, match="in use by another trainer"):
            place.controller().open()


async def test_one_run_trains_at_a_time(place: Place) -> None:
    place.will("wait")
    async with opened(place.controller()) as controller:
        await controller.start(place.request("first"))

        with pytest.raises(Conflict, match="'first' is being trained"):
            await controller.start(place.request("second"))


async def test_the_next_run_waits_for_one_that_is_being_stopped(place: Place) -> None:
    place.will("wait")
    async with opened(place.controller()) as controller:
        await controller.start(place.request("first"))
        await until_waiting(place, "first")
        await controller.stop("first")

        await controller.start(place.request("second"))

        assert not is_alive(place.lives("first")[0])


async def test_a_run_is_not_started_twice_by_accident(place: Place) -> None:
    place.will("done")
    async with opened(place.controller()) as controller:
        await controller.start(place.request())
        await until_idle(controller)

        with pytest.raises(Conflict, match="resume = true"):
            await controller.start(place.request())
        with pytest.raises(Conflict, match="is done"):
            await controller.start(place.request(resume=True))


async def test_a_run_keeps_its_recipe(place: Place) -> None:
    place.will("wait")
    other = RunRequest(run_id="toy", recipe=place.recipe(seed=7), resume=True)
    async with opened(place.controller()) as controller:
        await controller.start(place.request())

        with pytest.raises(Conflict, match="another recipe"):
            await controller.start(other)


async def test_asking_again_to_resume_a_running_run_changes_nothing(place: Place) -> None:
    place.will("wait")
    async with opened(place.controller()) as controller:
        await controller.start(place.request())
        await until_waiting(place)

        status = await controller.start(place.request(resume=True))

        assert status.state is RunState.RUNNING
        assert len(place.lives()) == 1


async def test_a_new_run_does_not_inherit_the_streams_of_a_deleted_one(place: Place) -> None:
    place.will("done")
    await place.redis.sadd("questions:toy:sent", "toy-s000000-q000-a0")
    async with opened(place.controller()) as controller:
        await controller.start(place.request())

    assert not await place.redis.exists("questions:toy:sent")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"path": "nowhere"}}, "model.path: nowhere is not a model folder"),
        ({"rollout": {"template": "fancy"}}, "rollout.template"),
        (
            {"stages": [{"name": "a", "questions": "gone.jsonl", "rules": "r", "max_steps": 1}]},
            "gone.jsonl: no such file",
        ),
        ({"evaluation": {"questions": "gone.jsonl"}}, "gone.jsonl: no such file"),
        ({"trainer": {"offload_optimizer": True}}, "trainer.offload_optimizer"),
    ],
)
async def test_what_cannot_work_is_refused_before_a_process_starts(place: Place, changes: dict, message: str) -> None:
    request = RunRequest(run_id="toy", recipe=place.recipe(**changes))
    async with opened(place.controller()) as controller:
        with pytest.raises(InvalidInput, match=message):
            await controller.start(request)

    assert not place.run().exists


async def test_training_on_evaluation_questions_is_refused_before_a_process_starts(place: Place) -> None:
    recipe = place.recipe(evaluation={"questions": str(place.folder / "questions.jsonl")})
    async with opened(place.controller()) as controller:
        with pytest.raises(InvalidInput, match=r"shares 12 of its questions .* evaluation\.allow_overlap = true"):
            await controller.start(RunRequest(run_id="toy", recipe=recipe))

    assert not place.run().exists


async def test_bfloat16_weights_need_a_float32_copy_to_learn_on(place: Place) -> None:
    model = {"path": str(place.folder / "model"), "dtype": "bfloat16"}
    request = RunRequest(run_id="toy", recipe=place.recipe(model=model, trainer={"zero_stage": 0}))
    async with opened(place.controller()) as controller:
        with pytest.raises(InvalidInput, match=r"trainer\.zero_stage"):
            await controller.start(request)


async def test_a_run_id_leaves_room_for_what_is_named_after_it(place: Place) -> None:
    async with opened(place.controller()) as controller:
        with pytest.raises(InvalidInput, match="at most 96 characters"):
            await controller.start(place.request("x" * 97))


async def test_unknown_runs_and_weights_are_not_found(place: Place) -> None:
    make_questions(place.folder / "questions.jsonl")
    async with opened(place.controller()) as controller:
        with pytest.raises(NotFound, match="no run 'nobody'"):
            controller.status("nobody")
        with pytest.raises(NotFound, match="no weights"):
            controller.weights_file("toy-1f0c9a2b-000042")
