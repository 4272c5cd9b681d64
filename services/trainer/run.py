"""One training run as its processes see it: where it stands, and the way to the outside through the first of them."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import Tensor

from searcher.contracts.experience import ScoredGroup
from searcher.contracts.recipe import Recipe
from services.trainer.checkpoint import CheckpointStore, load_randomness, save_randomness
from services.trainer.collect import StopRequested
from services.trainer.engine import StepReport, TrainingEngine
from services.trainer.office import Office
from services.trainer.processes import Processes
from services.trainer.publish import export_model
from services.trainer.rundir import Outcome, RunDirectory


class Clock:
    """Seconds per phase since the last step was recorded."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def measure(self, phase: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - started

    def take(self) -> dict[str, float]:
        seconds, self.seconds = self.seconds, {}
        return seconds


class Run:
    """`office` is what the first process has and the others have not: Redis, the run's files, the evaluator."""

    def __init__(
        self,
        directory: RunDirectory,
        recipe: Recipe,
        engine: TrainingEngine,
        processes: Processes,
        office: Office | None,
    ) -> None:
        self.directory, self.recipe, self.engine = directory, recipe, engine
        self.processes, self.office = processes, office
        self.clock = Clock()
        self.step = 0
        """Optimiser steps taken; the batch to train next has the same number."""
        self.outcome = Outcome.DONE
        self._checkpoints = CheckpointStore(directory.checkpoints, keep=recipe.checkpoint.keep)
        self._saved_step = -1

    def resume(self) -> None:
        """Continue from the newest checkpoint that verifies, if there is one."""
        found = self.office.find_checkpoint() if self.office else None
        step = self.processes.share(str(found.step).encode() if found else None)
        if step is None:
            return
        self.step = self._saved_step = int(step)
        path = self._checkpoints.final(self.step)
        self.engine.load(path)
        load_randomness(path / f"randomness-{self.processes.part.index}.pt")
        if self.office and found:
            self.office.restore(found)

    async def begin(self, weights: Mapping[str, Tensor]) -> None:
        """Engines get the weights that this process starts with."""
        await self.publish(weights)
        await self.evaluate_if_due()
        self.clock.take()

    async def publish(self, weights: Mapping[str, Tensor]) -> None:
        """Make these weights the wanted ones, and ask what may be asked now."""
        if self.office:
            await self.office.publish(weights, step=self.step)

    async def collect(self) -> list[ScoredGroup] | None:
        """The groups of the next batch, the same on every process; None when the run ends here."""
        groups = None
        if self.office:
            try:
                with self.clock.measure("collect"):
                    groups = await self.office.collect(self.step)
            except StopRequested:
                self.outcome = Outcome.STOPPED
        return self.processes.share_groups(groups)

    def learned(self, groups: Sequence[ScoredGroup]) -> None:
        if self.office:
            self.office.learned(self.step, groups)
        self.step += 1

    async def evaluate_if_due(self) -> None:
        if self.office and self.office.evaluation_is_due(self.step):
            with self.clock.measure("evaluate"):
                await self.office.evaluate(self.step)

    def record(self, groups: Sequence[ScoredGroup], report: StepReport) -> None:
        if self.office:
            self.office.record(self.step, groups, report, self.clock.take())

    async def checkpoint_if_due(self) -> None:
        if self.step % self.recipe.checkpoint.every_steps == 0:
            await self._checkpoint()

    async def finish(self) -> None:
        """Leave a checkpoint and an exported model."""
        if self.step != self._saved_step:
            await self._checkpoint()
        weights = self.engine.weights()
        if self.office:
            self.office.exported(export_model(weights, self.office.base_model, self.office.export_path(self.step)))
            await self.office.close(self.outcome)

    async def _checkpoint(self) -> None:
        started = time.perf_counter()
        partial = self._checkpoints.partial(self.step)
        if self.office:
            self._checkpoints.begin(self.step)
        self.processes.wait_for_all()
        self.engine.save(partial)
        save_randomness(partial / f"randomness-{self.processes.part.index}.pt")
        self.processes.wait_for_all()
        if self.office:
            path = self._checkpoints.commit(self.step, self.office.state())
            await self.office.checkpointed(path, self._checkpoints, seconds=time.perf_counter() - started)
        self._saved_step = self.step
