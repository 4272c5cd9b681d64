"""What the first process of a run does for all: asks questions, collects experience, publishes, evaluates, records."""

import asyncio
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import zstandard
from redis.asyncio import Redis
from redis.exceptions import RedisError
from torch import Tensor

from searcher.clients.evaluator import EvaluatorClient
from searcher.clients.retriever import RetrieverClient
from searcher.contracts.errors import InvalidInput
from searcher.contracts.experience import ScoredGroup
from searcher.contracts.question import Question
from searcher.contracts.recipe import Recipe
from searcher.contracts.weights import WeightVersion
from searcher.recipes import balanced_sample, load_questions
from searcher.servicekit import streams
from searcher.servicekit.streams import ExperienceStream, QuestionStream
from services.trainer.checkpoint import CheckpointStore, Found
from services.trainer.collect import Collector, StopRequested, outlast
from services.trainer.curriculum import Curriculum
from services.trainer.engine import StepReport
from services.trainer.evaluations import Evaluations
from services.trainer.figures import batch_figures, format_rate, num_tokens, report_figures, search_rate
from services.trainer.indexes import SearchedIndexes
from services.trainer.publish import Publisher
from services.trainer.rundir import Outcome, RunDirectory
from services.trainer.settings import TrainerSettings
from services.trainer.tensorboard import TensorBoard


class Office:
    def __init__(
        self,
        directory: RunDirectory,
        recipe: Recipe,
        settings: TrainerSettings,
        *,
        redis: Redis,
        evaluator: EvaluatorClient | None,
        retriever: RetrieverClient | None,
        stop: asyncio.Event,
    ) -> None:
        self.directory, self.recipe, self.settings = directory, recipe, settings
        self.redis, self.stop = redis, stop
        run_id = directory.run_id
        questions = stage_questions(recipe)
        self.curriculum = Curriculum(recipe, questions, run_id)
        searched = {question.corpus for stage in questions.values() for question in stage}
        self.indexes = SearchedIndexes(directory, searched, retriever)
        self.evaluations = Evaluations(
            directory,
            recipe,
            evaluation_questions(recipe),
            evaluator,
            timeout_seconds=settings.evaluation_timeout_seconds,
            stop=stop,
        )
        self.questions = QuestionStream(redis, run_id)
        self.experience = ExperienceStream(redis, run_id)
        self.collector = Collector(self.curriculum, self.questions, self.experience, stop, on_silence=self._announce)
        self.publisher = Publisher(
            settings.weights_dir or directory.path / "weights",
            run_id,
            public_url=settings.public_url,
            keep=settings.keep_weights,
        )
        self.tensorboard = TensorBoard(directory.path / "tensorboard")
        self.weights: WeightVersion | None = None
        self._stage = ""

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def find_checkpoint(self) -> Found | None:
        store = CheckpointStore(self.directory.checkpoints)
        found = store.newest(lambda path, why: self.directory.event("checkpoint_damaged", path=str(path), why=why))
        if found is None and store.paths():
            raise InvalidInput(
                f"run {self.directory.run_id}: every checkpoint is damaged (see events.jsonl), and what was learned "
                "from is gone; start again under another run_id"
            )
        if found is None:
            self.directory.forget_after(-1)
            return None
        written_by = found.state["num_processes"]
        if written_by != self.recipe.trainer.num_processes:
            raise InvalidInput(
                f"trainer.num_processes: {found.path.name} was written by {written_by} processes; as many must read it"
            )
        return found

    def restore(self, found: Found) -> None:
        self.curriculum.restore(found.state["curriculum"])
        self.collector.cursor = found.state["position"]
        self.directory.forget_after(found.step)
        self.evaluations.resume(found.step)
        self.directory.event("resumed", step=found.step)

    def state(self) -> dict[str, Any]:
        return {
            "curriculum": self.curriculum.state(),
            "position": self.collector.position,
            "num_processes": self.recipe.trainer.num_processes,
        }

    async def checkpointed(self, path: Path, store: CheckpointStore, *, seconds: float) -> None:
        """Experience that even the oldest kept checkpoint is past will not be asked for again."""
        self.directory.event("checkpoint_saved", path=str(path), seconds=round(seconds, 3))
        await self.indexes.note()
        try:
            await self.experience.trim(store.oldest_state()["position"])
        except RedisError as error:  # the next checkpoint trims it too
            self.directory.event("trim_skipped", why=str(error))

    # -- one step ------------------------------------------------------------------------------------------------------

    async def publish(self, weights: Mapping[str, Tensor], *, step: int) -> None:
        """Announce the weights, then ask what may be asked now that engines will hold them."""
        self.weights = self.publisher.write(weights, step=step)
        try:
            await self._announce()
            await self.collector.ask(self.weights, up_to_batch=step + self.recipe.max_staleness)
        except StopRequested:  # Redis is away and somebody wants to stop: collect() will end the run
            return
        self.publisher.prune(self.weights, in_use=self.evaluations.weights_in_use)

    async def collect(self, batch: int) -> list[ScoredGroup] | None:
        """None when the curriculum has no such batch."""
        if self.stop.is_set():
            raise StopRequested
        if not self.curriculum.has(batch):
            return None
        assert self.weights is not None
        self._stage = self.curriculum.stage_name(batch)
        return await self.collector.collect(batch, self.weights)

    def learned(self, batch: int, groups: Sequence[ScoredGroup]) -> None:
        self.curriculum.trained(batch, search_rate=search_rate(groups), format_rate=format_rate(groups))

    def record(
        self, step: int, groups: Sequence[ScoredGroup], report: StepReport, seconds: Mapping[str, float]
    ) -> None:
        """Trajectories first: a step that has a line has its trajectories."""
        self._write_trajectories(step, groups)
        busy_seconds = sum(seconds.get(phase, 0.0) for phase in ("collect", "train", "publish"))
        trained = sum(len(group.trajectories) for group in groups)
        figures = {
            **batch_figures(groups, step=step - 1),
            **report_figures(report),
            "step_time": busy_seconds,
            **{f"time/{phase}": value for phase, value in seconds.items()},
            "tokens_per_second": num_tokens(groups) / max(busy_seconds, 1e-9),
            "trajectories_per_second": trained / max(busy_seconds, 1e-9),
            "num_tokens": num_tokens(groups),
            **{f"dropped/{reason}": float(count) for reason, count in self.collector.take_dropped().items()},
            **self.indexes.figures(),
            **self.evaluations.take(),
        }
        self._write_line(step, figures)

    # -- evaluation ----------------------------------------------------------------------------------------------------

    def evaluation_is_due(self, step: int) -> bool:
        """Every so many steps, the start included; not again for a step that has its line (after a resume)."""
        evaluation = self.recipe.evaluation
        if evaluation is None or self.stop.is_set():
            return False
        is_last = not self.curriculum.has(step)
        is_known = self._has_line(step) or self.evaluations.has(step)
        return (step % evaluation.every_steps == 0 or is_last) and not is_known

    async def evaluate(self, step: int) -> None:
        """Ask the evaluator about the newest weights."""
        assert self.weights is not None
        await self.evaluations.evaluate(step, self.weights)
        if step == 0 and (figures := self.evaluations.take()):  # there is no training step to share a line with
            self._write_line(0, figures)

    # -- the end -------------------------------------------------------------------------------------------------------

    @property
    def base_model(self) -> Path:
        return Path(self.recipe.model.path)

    def export_path(self, step: int) -> Path:
        return self.directory.path / "export" / f"step-{step:06d}"

    def exported(self, path: Path) -> None:
        self.directory.event("exported", path=str(path))

    async def close(self, outcome: Outcome) -> None:
        """Workers shall look elsewhere; a stopped run keeps its streams."""
        await self.evaluations.settle()
        if figures := self.evaluations.take():  # of an evaluation alongside the last steps: no line comes after them
            self._write_line(int(figures["eval/step"]), figures)
        await self.evaluations.close()
        forget = streams.forget if outcome is Outcome.DONE else streams.deactivate
        try:
            await forget(self.redis, self.directory.run_id)
        except RedisError as error:
            self.directory.event("streams_left", why=str(error))
        self.tensorboard.close()

    # ------------------------------------------------------------------------------------------------------------------

    async def _announce(self) -> None:
        version = self.weights
        assert version is not None
        await outlast(lambda: streams.announce_weights(self.redis, version), self.stop)
        await outlast(self.questions.open, self.stop)
        await outlast(lambda: streams.activate(self.redis, self.directory.run_id), self.stop)

    def _has_line(self, step: int) -> bool:
        return bool(self.directory.last_metrics().get("step", -1) >= step)

    def _write_line(self, step: int, figures: Mapping[str, float]) -> None:
        line = {name: round(value, 8) for name, value in figures.items()}
        self.directory.write_metrics({"step": step, "stage": self._stage, **line})
        self.tensorboard.write(step, line)

    def _write_trajectories(self, step: int, groups: Sequence[ScoredGroup]) -> None:
        folder = self.directory.path / "trajectories"
        folder.mkdir(exist_ok=True)
        partial = folder / f".step-{step:06d}.partial"
        with partial.open("wb") as file, zstandard.ZstdCompressor(level=3).stream_writer(file) as compressed:
            lines = io.TextIOWrapper(compressed, encoding="utf-8", write_through=True)
            for group in groups:
                for trajectory in group.trajectories:
                    row = {"group_id": group.group_id, "stage": group.stage, **trajectory.model_dump(mode="json")}
                    lines.write(json.dumps(row, ensure_ascii=False) + "\n")
            lines.detach()
        partial.replace(folder / f"step-{step:06d}.jsonl.zst")


def stage_questions(recipe: Recipe) -> dict[str, list[Question]]:
    """Raises InvalidInput that names file and line."""
    return {stage.name: load_questions(Path(stage.questions), corpus=stage.corpus) for stage in recipe.stages}


def evaluation_questions(recipe: Recipe) -> list[Question]:
    evaluation = recipe.evaluation
    if evaluation is None:
        return []
    questions = load_questions(Path(evaluation.questions), corpus=evaluation.corpus)
    return balanced_sample(questions, evaluation.num_questions, seed=recipe.seed)
