"""recipe -> a run, submitted and watched; or, with --dry-run, its plan."""

import asyncio
import shlex
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from searcher.cli.console import console
from searcher.cli.embedded.deployment import Deployment
from searcher.cli.lifecycle import bring_up, describe_run, recipe_path
from searcher.cli.plan import Plan, StagePlan, missing_files, numbers_of, plan_of
from searcher.cli.progress import track_run
from searcher.cli.settings import CliSettings
from searcher.clients.trainer import TrainerClient
from searcher.contracts.errors import Conflict, InvalidInput, NotFound, SearcherError
from searcher.contracts.recipe import Recipe
from searcher.contracts.run import RunRequest, RunState, RunStatus
from searcher.recipes import parse_recipe
from searcher.servicekit.settings import SharedSettings


def train(
    recipe_name: str,
    *,
    overrides: Sequence[str],
    run_id: str | None,
    dry_run: bool,
    resume: bool,
    fresh: bool,
    state_dir: Path | None,
    port_offset: int | None,
) -> None:
    if resume and fresh:
        raise InvalidInput("--resume and --fresh exclude each other")
    recipe = recipe_with(recipe_path(recipe_name), overrides)
    if dry_run:
        print_plan(recipe)
        return
    if CliSettings().trainer_url is None:  # else the files are where that trainer is
        refuse_missing_files(recipe)
    trainer = _trainer(recipe, state_dir or CliSettings().state_dir, port_offset)
    try:
        status = asyncio.run(_submit_and_watch(trainer, recipe, run_id or recipe.name, resume=resume, fresh=fresh))
    except KeyboardInterrupt:
        console.print("\nno longer watching; the run goes on, and `searcher status` shows it", markup=False)
        raise
    console.print(describe_run(status))
    if status.state is RunState.FAILED:
        raise SearcherError(f"run {status.run_id} failed: {status.error}")
    if status.state is RunState.STOPPED:
        changed = (word for override in overrides for word in ("--set", override))
        command = ("searcher", "train", recipe_name, *changed, "--run-id", status.run_id, "--resume")
        console.print(f"go on with: {shlex.join(command)}", markup=False, soft_wrap=True)


def recipe_with(path: Path, overrides: Sequence[str]) -> Recipe:
    """The recipe with single values replaced: `trainer.learning_rate=1e-5`, `stages.0.max_steps=5`."""
    try:
        table = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise NotFound(f"{path}: no such recipe; see `ls recipes/`") from None
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput(f"{path}: not valid TOML: {error}") from None
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise InvalidInput(f"--set {override}: write it as KEY=VALUE, e.g. trainer.learning_rate=1e-5")
        _replace(table, key.split("."), _value(value), override)
    return parse_recipe(table, source=str(path), base=path.parent)


def refuse_missing_files(recipe: Recipe) -> None:
    """Raises NotFound before anything starts."""
    missing = missing_files(recipe)
    if missing:
        raise NotFound(f"recipe {recipe.name} needs files that are not there: {', '.join(map(str, missing))}")


def print_plan(recipe: Recipe) -> None:
    plan = plan_of(recipe)
    console.print(f"[bold]{recipe.name}[/] {recipe.description}")
    console.print(_table(numbers_of(recipe)))
    console.print("\n[bold]what follows from it[/]")
    console.print(_table(_consequences(recipe, plan)))


def _consequences(recipe: Recipe, plan: Plan) -> list[tuple[str, str]]:
    rows = [
        (
            "trajectories per step",
            f"{recipe.questions_per_step} x {recipe.samples_per_question} = {plan.trajectories_per_step:,}",
        ),
        ("trajectories at most", f"{plan.max_trajectories:,}"),
        ("optimiser updates at most", f"{plan.optimizer_updates:,}"),
    ]
    rows += [(f"stage {stage.name}", _describe_stage(stage)) for stage in plan.stages]
    rows += [
        ("policy tokens per trajectory at most", f"{plan.max_policy_tokens_per_trajectory:,}"),
        ("tokens per step at most", f"{plan.max_tokens_per_step:,}"),
    ]
    memory = plan.memory
    if memory is None:
        return [*rows, ("memory", f"unknown: no *.safetensors in {recipe.model.path}")]
    return [
        *rows,
        ("parameters", f"{memory.num_parameters:,}"),
        ("trainer process: weights", f"{memory.weights_gib:.2f} GiB"),
        ("trainer process: gradients", f"{memory.gradients_gib:.2f} GiB"),
        ("trainer process: optimiser", f"{memory.optimizer_gib:.2f} GiB"),
        ("engine: weights and KV cache", f"{memory.engine_gib:.2f} GiB"),
    ]


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


def _trainer(recipe: Recipe, state_dir: Path, port_offset: int | None) -> TrainerClient:
    """A trainer elsewhere if one is named, else the embedded one, brought up with this recipe."""
    url = CliSettings().trainer_url
    if url is not None:
        return TrainerClient(url, api_key=SharedSettings().api_key)
    if port_offset is None:
        try:
            port_offset = Deployment.load(state_dir).port_offset
        except NotFound:
            port_offset = 0
    deployment = Deployment.for_recipe(recipe, state_dir, port_offset)
    bring_up(deployment)
    return deployment.trainer()


async def _submit_and_watch(
    trainer: TrainerClient, recipe: Recipe, run_id: str, *, resume: bool, fresh: bool
) -> RunStatus:
    async with trainer:
        known = {run.run_id: run for run in await trainer.runs()}
        if fresh:
            run_id = _unused(run_id, known)
        elif run_id in known and known[run_id].state is not RunState.RUNNING and not resume:
            raise Conflict(
                f"run {run_id} exists ({known[run_id].state.value}, step {known[run_id].step}); "
                "add --resume to go on, --fresh to start another, or give it a --run-id"
            )
        if run_id not in known or known[run_id].state is not RunState.RUNNING:
            await trainer.start(RunRequest(run_id=run_id, recipe=recipe, resume=run_id in known))
        return await track_run(console, trainer, run_id, recipe)


def _unused(run_id: str, known: dict[str, RunStatus]) -> str:
    names = (run_id, *(f"{run_id}-{number}" for number in range(2, len(known) + 3)))
    return next(name for name in names if name not in known)


def _replace(table: dict[str, Any], keys: Sequence[str], value: Any, override: str) -> None:
    """Set a value in nested tables and lists; which keys exist, and which values fit, the contract decides."""
    here: Any = table
    for position, key in enumerate(keys):
        is_last = position == len(keys) - 1
        if isinstance(here, list):
            if not key.isdigit() or int(key) >= len(here):
                raise InvalidInput(f"--set {override}: {key!r} is not one of the list's positions 0 to {len(here) - 1}")
            if is_last:
                here[int(key)] = value
            else:
                here = here[int(key)]
        elif isinstance(here, dict):
            if is_last:
                here[key] = value
            else:
                here = here.setdefault(key, {})
        else:
            raise InvalidInput(f"--set {override}: {'.'.join(keys[:position])} is a single value")


def _value(text: str) -> Any:
    """As TOML reads it; what is no TOML value is a string (`--set model.path=/models/mine`)."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
