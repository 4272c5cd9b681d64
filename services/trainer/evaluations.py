"""Weights of a step -> figures about them: at once, or some steps later when evaluations run alongside training.

    wait:       ask --> report --> the step's line
    alongside:  ask --> step-000020.asked.json          training goes on; the version stays published
                        step-000020.json <-- report     the figures join the next line, under the step they are about

What was asked is on disk until its report is there, so a run that is resumed still gets it.
"""

import asyncio
from collections.abc import Awaitable, Sequence
from pathlib import Path

from searcher.clients.evaluator import EvaluatorClient
from searcher.contracts.base import Contract
from searcher.contracts.errors import SearcherError
from searcher.contracts.question import Question
from searcher.contracts.recipe import Recipe
from searcher.contracts.report import EvaluationRequest, Report
from searcher.contracts.weights import WeightVersion
from services.trainer.evaluate import evaluation_request
from services.trainer.figures import Figures, evaluation_figures
from services.trainer.rundir import RunDirectory, write_atomically


class Asked(Contract):
    """An evaluation whose report is not there yet."""

    id: str
    step: int
    weights: str
    """Name of the version, which must stay published until then."""


class Evaluations:
    def __init__(
        self,
        directory: RunDirectory,
        recipe: Recipe,
        questions: Sequence[Question],
        evaluator: EvaluatorClient | None,
        *,
        timeout_seconds: float,
        stop: asyncio.Event,
    ) -> None:
        self.directory, self.recipe, self.questions = directory, recipe, questions
        self.evaluator, self.timeout_seconds, self.stop = evaluator, timeout_seconds, stop
        self.folder = directory.path / "evaluations"
        self._waiting: dict[int, asyncio.Task[None]] = {}
        self._arrived: Figures = {}

    @property
    def alongside(self) -> bool:
        return self.recipe.evaluation is not None and self.recipe.evaluation.alongside

    @property
    def weights_in_use(self) -> frozenset[str]:
        """Versions that an evaluation still needs."""
        return frozenset(asked.weights for asked in self._asked())

    def has(self, step: int) -> bool:
        """Whether it is there, or asked for already."""
        return (self.folder / f"step-{step:06d}.json").exists() or self._asked_file(step).exists()

    def take(self) -> Figures:
        """Figures that came since the last call."""
        figures, self._arrived = self._arrived, {}
        return figures

    def resume(self, from_step: int) -> None:
        """Wait again for what a predecessor of this process asked for; later steps are about to happen again."""
        for file in self.folder.glob("step-*.json"):
            if int(file.name.split("-")[1][:6]) > from_step:
                file.unlink()
        for asked in self._asked():
            self._wait_for(asked)

    async def evaluate(self, step: int, weights: WeightVersion) -> None:
        """An outage of the evaluator costs the figures, never the run."""
        if self.evaluator is None:
            self._skipped(step, "TRAINER_EVALUATOR_URL is not set")
            return
        request = evaluation_request(self.recipe, weights, self.questions)
        if not self.alongside:
            await self._until_stopped(self._evaluate(self.evaluator, step, request))
            return
        try:
            await self.evaluator.submit(request)
        except SearcherError as error:
            self._skipped(step, str(error))
            return
        asked = Asked(id=request.id, step=step, weights=weights.name)
        self.folder.mkdir(exist_ok=True)
        write_atomically(self._asked_file(step), asked.model_dump_json())
        self._wait_for(asked)

    async def settle(self) -> None:
        """Wait for everything that was asked for, unless the run is to stop; what is left then is for its successor."""
        if self._waiting:
            await self._until_stopped(asyncio.gather(*self._waiting.values()))

    async def close(self) -> None:
        for task in self._waiting.values():
            task.cancel()
        await asyncio.gather(*self._waiting.values(), return_exceptions=True)

    # ------------------------------------------------------------------------------------------------------------------

    async def _evaluate(self, evaluator: EvaluatorClient, step: int, request: EvaluationRequest) -> None:
        try:
            async with asyncio.timeout(self.timeout_seconds):
                report = await evaluator.run(request)
        except (SearcherError, TimeoutError) as error:
            self._skipped(step, str(error) or "took too long")
            return
        self._keep(step, report)

    def _wait_for(self, asked: Asked) -> None:
        self._waiting[asked.step] = asyncio.create_task(self._report_of(asked))

    async def _report_of(self, asked: Asked) -> None:
        assert self.evaluator is not None
        try:
            async with asyncio.timeout(self.timeout_seconds):
                report = await self.evaluator.finished(asked.id)
        except (SearcherError, TimeoutError) as error:
            self._skipped(asked.step, str(error) or "took too long")
        else:
            self._keep(asked.step, report)
        self._asked_file(asked.step).unlink(missing_ok=True)
        del self._waiting[asked.step]

    async def _until_stopped(self, work: Awaitable[object]) -> None:
        evaluating = asyncio.ensure_future(work)
        stopping = asyncio.ensure_future(self.stop.wait())
        try:
            await asyncio.wait({evaluating, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if evaluating.done():
                evaluating.result()
        finally:
            evaluating.cancel()
            stopping.cancel()

    def _keep(self, step: int, report: Report) -> None:
        self.folder.mkdir(exist_ok=True)
        write_atomically(self.folder / f"step-{step:06d}.json", report.model_dump_json(indent=1))
        self._arrived = evaluation_figures(report) | ({"eval/step": float(step)} if self.alongside else {})
        self.directory.event("evaluated", step=step, **self._arrived)

    def _skipped(self, step: int, why: str) -> None:
        self.directory.event("evaluation_skipped", step=step, why=why)

    def _asked(self) -> list[Asked]:
        files = sorted(self.folder.glob("step-*.asked.json")) if self.folder.is_dir() else []
        return [Asked.model_validate_json(file.read_text()) for file in files]

    def _asked_file(self, step: int) -> Path:
        return self.folder / f"step-{step:06d}.asked.json"
