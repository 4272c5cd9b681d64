"""recipe -> the plan of its run: every number, and what follows from them. Starts nothing, of models reads headers."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from searcher.cli.console import console
from searcher.contracts.recipe import Recipe, Stage
from searcher.recipes import load_questions

GIB = 1024**3


@dataclass(frozen=True)
class StagePlan:
    name: str
    max_steps: int
    num_questions: int | None
    """None where the file is not there yet."""
    epochs: float | None
    """How often a question is asked on average, if the stage runs to its last step."""


@dataclass(frozen=True)
class MemoryPlan:
    """What one training process holds besides activations, and what an engine holds."""

    num_parameters: int
    weights_gib: float
    gradients_gib: float
    optimizer_gib: float
    """fp32 master weights and two moments, divided over the processes where ZeRO does so."""
    engine_gib: float
    """Weights in the engine's type and its KV cache, per replica."""


@dataclass(frozen=True)
class Plan:
    stages: tuple[StagePlan, ...]
    trajectories_per_step: int
    max_trajectories: int
    optimizer_updates: int
    max_policy_tokens_per_trajectory: int
    max_tokens_per_step: int
    """Prompt and response of every trajectory at the context limit: an upper bound, rarely reached."""
    memory: MemoryPlan | None
    """None where the model's files are not there to be measured."""


def print_plan(recipe: Recipe) -> None:
    plan = plan_of(recipe)
    console.print(f"[bold]{recipe.name}[/] {recipe.description}")
    console.print(_table(numbers_of(recipe)))
    console.print("\n[bold]what follows from it[/]")
    console.print(_table(_consequences(recipe, plan)))


def plan_of(recipe: Recipe) -> Plan:
    """Raises InvalidInput for a questions file that is malformed."""
    rollout = recipe.rollout
    context = rollout.max_context_tokens
    return Plan(
        stages=tuple(_stage(stage, recipe.questions_per_step) for stage in recipe.stages),
        trajectories_per_step=recipe.trajectories_per_step,
        max_trajectories=recipe.max_steps * recipe.trajectories_per_step,
        optimizer_updates=recipe.max_steps * recipe.trainer.updates_per_step,
        max_policy_tokens_per_trajectory=min((rollout.max_searches + 1) * rollout.max_tokens_per_turn, context),
        max_tokens_per_step=recipe.trajectories_per_step * context,
        memory=_memory(recipe),
    )


def numbers_of(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Every value of a recipe with its full key, defaults included, in the order of the contract."""
    yield from _flatten("", recipe.model_dump(mode="json"))


def missing_files(recipe: Recipe) -> list[Path]:
    """What the recipe names and this machine does not hold."""
    named = [recipe.model.path, *(corpus.source for corpus in recipe.corpora.values())]
    named += [stage.questions for stage in recipe.stages]
    named += [recipe.evaluation.questions] if recipe.evaluation else []
    return [path for path in map(Path, dict.fromkeys(named)) if not path.exists()]


def _stage(stage: Stage, questions_per_step: int) -> StagePlan:
    path = Path(stage.questions)
    if not path.exists():
        return StagePlan(stage.name, stage.max_steps, num_questions=None, epochs=None)
    count = len(load_questions(path))
    return StagePlan(stage.name, stage.max_steps, count, epochs=stage.max_steps * questions_per_step / count)


def _flatten(prefix: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flatten(f"{prefix}.{key}" if prefix else str(key), inner)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for index, inner in enumerate(value):
            yield from _flatten(f"{prefix}.{index}", inner)
    else:
        yield prefix, "none" if value is None else json.dumps(value) if isinstance(value, list | dict) else str(value)


def _memory(recipe: Recipe) -> MemoryPlan | None:
    num_parameters = sum(math.prod(shape) for shape in _tensor_shapes(Path(recipe.model.path)))
    if num_parameters == 0:
        return None
    bytes_each = 4 if recipe.model.dtype == "float32" else 2
    trainer, shards = recipe.trainer, recipe.trainer.num_processes
    weights = num_parameters * bytes_each
    optimizer = num_parameters * 12 / (shards if trainer.zero_stage >= 1 else 1)
    return MemoryPlan(
        num_parameters=num_parameters,
        weights_gib=weights / (shards if trainer.zero_stage == 3 else 1) / GIB,
        gradients_gib=weights / (shards if trainer.zero_stage >= 2 else 1) / GIB,
        optimizer_gib=optimizer / GIB,
        engine_gib=weights / recipe.engine.tensor_parallel_size / GIB + (recipe.engine.kv_cache_gib or 0.0),
    )


def _tensor_shapes(model_dir: Path) -> Iterator[list[int]]:
    """From the headers of the safetensors files; nothing if there are none."""
    for path in sorted(model_dir.glob("*.safetensors")):
        with path.open("rb") as file:
            header: Mapping[str, Any] = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        yield from (entry["shape"] for name, entry in header.items() if name != "__metadata__")


def _consequences(recipe: Recipe, plan: Plan) -> Iterator[tuple[str, str]]:
    product = f"{recipe.questions_per_step} x {recipe.samples_per_question}"
    yield "trajectories per step", f"{product} = {plan.trajectories_per_step:,}"
    yield "trajectories at most", f"{plan.max_trajectories:,}"
    yield "optimiser updates at most", f"{plan.optimizer_updates:,}"
    for stage in plan.stages:
        yield f"stage {stage.name}", _describe_stage(stage)
    yield "policy tokens per trajectory at most", f"{plan.max_policy_tokens_per_trajectory:,}"
    yield "tokens per step at most", f"{plan.max_tokens_per_step:,}"
    if plan.memory is None:
        yield "memory", f"unknown: no *.safetensors in {recipe.model.path}"
        return
    yield "parameters", f"{plan.memory.num_parameters:,}"
    yield "trainer process: weights", f"{plan.memory.weights_gib:.2f} GiB"
    yield "trainer process: gradients", f"{plan.memory.gradients_gib:.2f} GiB"
    yield "trainer process: optimiser", f"{plan.memory.optimizer_gib:.2f} GiB"
    yield "engine: weights and KV cache", f"{plan.memory.engine_gib:.2f} GiB"


def _describe_stage(stage: StagePlan) -> str:
    if stage.num_questions is None:
        return f"at most {stage.max_steps} steps, questions not there yet"
    return f"at most {stage.max_steps} steps, {stage.num_questions:,} questions, {stage.epochs:.2f} epochs"


def _table(rows: Iterable[tuple[str, str]]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in rows:
        table.add_row(f"  {key}", value)
    return table
