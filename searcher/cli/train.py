"""recipe -> a run, submitted and watched; or, with --dry-run, its plan."""

import asyncio
import shlex
from collections.abc import Sequence
from pathlib import Path

from searcher.cli.console import console
from searcher.cli.embedded.deployment import Deployment
from searcher.cli.lifecycle import bring_up, describe_run, last_deployment, recipe_path
from searcher.cli.overrides import recipe_with
from searcher.cli.plan import missing_files, print_plan
from searcher.cli.progress import track_run
from searcher.cli.settings import CliSettings
from searcher.clients.trainer import TrainerClient
from searcher.contracts.errors import Conflict, InvalidInput, NotFound, SearcherError
from searcher.contracts.recipe import Recipe
from searcher.contracts.run import RunRequest, RunState, RunStatus
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
        _refuse_missing_files(recipe)
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
        command = _resuming(recipe_name, overrides, status.run_id)
        console.print(f"go on with: {command}", markup=False, soft_wrap=True)


def _resuming(recipe_name: str, overrides: Sequence[str], run_id: str) -> str:
    """The command that goes on with a stopped run."""
    changed = (word for override in overrides for word in ("--set", override))
    return shlex.join(("searcher", "train", recipe_name, *changed, "--run-id", run_id, "--resume"))


def _refuse_missing_files(recipe: Recipe) -> None:
    """Raises NotFound before anything starts."""
    missing = missing_files(recipe)
    if missing:
        raise NotFound(f"recipe {recipe.name} needs files that are not there: {', '.join(map(str, missing))}")


def _trainer(recipe: Recipe, state_dir: Path, port_offset: int | None) -> TrainerClient:
    """A trainer elsewhere if one is named, else the embedded one, brought up with this recipe."""
    url = CliSettings().trainer_url
    if url is not None:
        return TrainerClient(url, api_key=SharedSettings().api_key)
    if port_offset is None:
        last = last_deployment(state_dir)
        port_offset = last.port_offset if last else 0
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
