"""Runs and the one training process: start, watch, restart after a crash, stop, and pick up where it was after our own.

What must survive is in each run's run.json; this process can be killed at any moment. The training process dies with
it (kernel), its successor starts the unfinished run again, and training continues from the newest checkpoint.
"""

import asyncio
import contextlib
import fcntl
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from searcher.contracts.errors import Conflict, InvalidInput, NotFound, UpstreamUnavailable
from searcher.contracts.run import Checkpoint, RunRequest, RunState, RunStatus
from searcher.qa.prompt import template_named
from searcher.recipes import load_questions, refuse_training_on_evaluation
from searcher.servicekit import streams
from services.trainer.checkpoint import CheckpointStore
from services.trainer.rundir import Outcome, RunDirectory
from services.trainer.settings import TrainerSettings

log = structlog.get_logger()

MAX_RUN_ID = 96
"""Group ids and version names are longer by a suffix, and names end at 128 characters."""


LAUNCH = (sys.executable, "-m", "services.trainer.launch")


class Controller:
    def __init__(self, settings: TrainerSettings, redis: Redis, *, launch: Sequence[str] = LAUNCH) -> None:
        self.settings, self.redis, self.launch = settings, redis, launch
        self._lock: TextIO | None = None
        self._active: RunDirectory | None = None
        self._supervision: asyncio.Task[None] | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._closing = False
        self._hurry = asyncio.Event()
        """Somebody wants the supervision to end: no use in waiting before a restart."""

    # -- life ----------------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Take the runs folder and start again what was running. Raises Conflict if another trainer has it."""
        self.settings.runs_dir.mkdir(parents=True, exist_ok=True)
        self._lock = (self.settings.runs_dir / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise Conflict(f"TRAINER_RUNS_DIR: {self.settings.runs_dir} is in use by another trainer") from None
        for run in self._directories():
            if run.record.state is RunState.RUNNING and self._active is None:
                run.event("picked_up")
                self._supervise(run)

    async def close(self) -> None:
        """Let the training process checkpoint and end. Its run stays `running`: the next trainer picks it up."""
        self._closing = True
        await self._wind_down()
        if self._lock:
            self._lock.close()

    # -- what clients ask ----------------------------------------------------------------------------------------------

    def runs(self) -> list[RunStatus]:
        """Newest first."""
        runs = sorted(self._directories(), key=lambda run: run.record.created_at, reverse=True)
        return [self.status(run.run_id) for run in runs]

    def status(self, run_id: str) -> RunStatus:
        run = self.directory(run_id)
        record, newest = run.record, run.last_metrics()
        return RunStatus(
            run_id=run_id,
            state=record.state,
            stage=newest.get("stage", ""),
            step=newest.get("step", 0),
            max_steps=run.recipe.max_steps,
            restarts=record.restarts,
            error=record.error,
            metrics={name: value for name, value in newest.items() if isinstance(value, int | float)},
        )

    def newest(self) -> RunDirectory | None:
        """The run that is being trained, else the one created last."""
        return self._active or max(self._directories(), key=lambda run: run.record.created_at, default=None)

    def directory(self, run_id: str) -> RunDirectory:
        run = RunDirectory(self.settings.runs_dir / run_id)
        if not run.exists:
            raise NotFound(f"no run {run_id!r}; GET /v1/runs lists them")
        return run

    def checkpoints(self, run_id: str) -> list[Checkpoint]:
        return CheckpointStore(self.directory(run_id).checkpoints).rows()

    def weights_file(self, version: str) -> Path:
        run_id = version.rsplit("-", 2)[0]
        folder = self.settings.weights_dir or self.settings.runs_dir / run_id / "weights"
        file = folder / version / "model.safetensors"
        if not file.is_file():
            raise NotFound(f"no weights {version!r}: never published, or replaced by newer ones")
        return file

    async def start(self, request: RunRequest) -> RunStatus:
        run = RunDirectory(self.settings.runs_dir / request.run_id)
        if run.exists:
            if not request.resume:
                raise Conflict(
                    f"run {request.run_id!r} exists; send resume = true to continue it, or choose another run_id"
                )
            if run.recipe != request.recipe:
                raise Conflict(f"run {request.run_id!r} has another recipe; a run keeps the recipe it was started with")
            return await self.resume(request.run_id)
        check(request)
        await self._make_room(run)
        try:
            await streams.forget(self.redis, request.run_id)
        except RedisError as error:
            raise UpstreamUnavailable(f"Redis did not answer: {error}") from error
        run.create(request.recipe)
        run.event("created", recipe=request.recipe.name)
        self._supervise(run)
        return self.status(run.run_id)

    async def resume(self, run_id: str) -> RunStatus:
        """Of a run that is running already: nothing happens."""
        run = self.directory(run_id)
        record = run.record
        if record.state is RunState.DONE:
            raise Conflict(f"run {run_id!r} is done; its model is in {run.path / 'export'}")
        if record.state is not RunState.RUNNING:
            await self._make_room(run)
            run.record = record.model_copy(update={"state": RunState.RUNNING, "error": None})
            self._supervise(run)
        return self.status(run_id)

    async def stop(self, run_id: str) -> RunStatus:
        """At once in the record; the process finishes its step and leaves a checkpoint and an export."""
        run = self.directory(run_id)
        record = run.record
        if record.state is RunState.RUNNING:
            run.record = record.model_copy(update={"state": RunState.STOPPED})
            self._signal(run)
        return self.status(run_id)

    # -- the training process ------------------------------------------------------------------------------------------

    async def _make_room(self, run: RunDirectory) -> None:
        """One training process at a time. A run that was told to stop is waited for."""
        if self._active is None:
            return
        if self._active.record.state is RunState.RUNNING:
            raise Conflict(f"run {self._active.run_id!r} is being trained; stop it before {run.run_id!r} can start")
        await self._wind_down()

    def _supervise(self, run: RunDirectory) -> None:
        self._active = run
        self._hurry.clear()
        self._supervision = asyncio.create_task(self._keep_running(run))

    async def _keep_running(self, run: RunDirectory) -> None:
        """Until the run ends by itself, was stopped, or crashed too often without a new step."""
        crashes, best_step = 0, -1
        try:
            while self._is_wanted(run):
                code = await self._train(run)
                ending = run.ending
                if ending is not None and ending.outcome is not Outcome.STOPPED:
                    await self._end(
                        run, RunState.DONE if ending.outcome is Outcome.DONE else RunState.FAILED, ending.error
                    )
                    return
                if not self._is_wanted(run):
                    return
                step = run.last_metrics().get("step", -1)
                crashes, best_step = (1, step) if step > best_step else (crashes + 1, best_step)
                run.event("crashed", exit_code=code, crashes_in_a_row=crashes, step=step)
                if crashes > self.settings.max_restarts:
                    why = f"crashed {crashes} times without a new step, last with exit code {code}; see the log"
                    await self._end(run, RunState.FAILED, why)
                    return
                run.record = run.record.model_copy(update={"restarts": run.record.restarts + 1})
                delay_seconds = min(60.0, self.settings.restart_backoff_seconds * 2 ** (crashes - 1))
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._hurry.wait(), delay_seconds)
        finally:
            self._active = self._process = None

    def _is_wanted(self, run: RunDirectory) -> bool:
        return not self._closing and run.record.state is RunState.RUNNING

    async def _train(self, run: RunDirectory) -> int:
        """One life of the training process, in its own process group; nothing of it is left afterwards."""
        run.ending = None
        run.clear_process_id()
        self._process = process = await asyncio.create_subprocess_exec(
            *self.launch,
            str(run.path.absolute()),
            str(run.recipe.trainer.num_processes),
            str(os.getpid()),
            env={**os.environ, **self.settings.environment()},
            start_new_session=True,
        )
        if not self._is_wanted(run):  # asked while it was being started
            process.terminate()
        try:
            return await process.wait()
        finally:
            self._process = None
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def _signal(self, run: RunDirectory) -> None:
        """SIGTERM to the process that talks to Redis; before there is one, to whatever is starting it."""
        if self._active is None or self._active.run_id != run.run_id:
            return
        self._hurry.set()
        if self._process is None:
            return
        process_id = run.process_id() or self._process.pid
        with contextlib.suppress(ProcessLookupError):
            os.kill(process_id, signal.SIGTERM)

    async def _wind_down(self) -> None:
        """SIGTERM, patience, SIGKILL."""
        if self._active is None or self._supervision is None:
            return
        self._signal(self._active)
        done, _ = await asyncio.wait({self._supervision}, timeout=self.settings.stop_seconds)
        if not done:
            self._active.event("killed", why=f"did not end within {self.settings.stop_seconds} s")
            if self._process is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._process.pid, signal.SIGKILL)
            await asyncio.wait({self._supervision})

    async def _end(self, run: RunDirectory, state: RunState, error: str | None) -> None:
        run.record = run.record.model_copy(update={"state": state, "error": error})
        run.event(state.value, error=error)
        with contextlib.suppress(RedisError):
            await streams.deactivate(self.redis, run.run_id)

    def _directories(self) -> list[RunDirectory]:
        return [RunDirectory(file.parent) for file in self.settings.runs_dir.glob("*/run.json")]


def check(request: RunRequest) -> None:
    """What can be known to fail before a process is started. Raises InvalidInput naming the field."""
    recipe = request.recipe
    if len(request.run_id) > MAX_RUN_ID:
        raise InvalidInput(f"run_id: at most {MAX_RUN_ID} characters (got {len(request.run_id)})")
    model = Path(recipe.model.path)
    if not (model / "config.json").is_file() or not any(model.glob("*.safetensors")):
        raise InvalidInput(f"model.path: {model} is not a model folder (config.json and *.safetensors)")
    template_named(recipe.rollout.template)
    for stage in recipe.stages:
        load_questions(Path(stage.questions))
    if recipe.evaluation:
        load_questions(Path(recipe.evaluation.questions))
    refuse_training_on_evaluation(recipe)
    if recipe.model.dtype == "bfloat16" and recipe.trainer.zero_stage == 0:
        raise InvalidInput("trainer.zero_stage: bfloat16 needs 1 or more, which keeps the weights in float32 besides")
    if recipe.trainer.device == "cpu" and recipe.trainer.offload_optimizer:
        raise InvalidInput("trainer.offload_optimizer: there is nothing to offload from with trainer.device = 'cpu'")
