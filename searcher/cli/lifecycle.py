"""up, down, status, logs: the embedded deployment from a terminal."""

import asyncio
import time
from contextlib import suppress
from pathlib import Path

from rich.table import Table

from searcher.cli.console import console, duration
from searcher.cli.embedded import logs
from searcher.cli.embedded.deployment import Deployment
from searcher.cli.progress import program_table, show_startup
from searcher.cli.settings import PROJECT_ROOT, CliSettings
from searcher.contracts.errors import InvalidInput, NotFound, SearcherError
from searcher.contracts.run import RunState, RunStatus
from searcher.contracts.weights import WeightsStatus

DEFAULT_RECIPE = "tiny"


def recipe_path(name: str) -> Path:
    """A path as it is, or the name of a recipe of this project."""
    known = PROJECT_ROOT / "recipes" / f"{name}.toml"
    return known if known.exists() and not Path(name).exists() else Path(name)


def existing(state_dir: Path | None) -> Deployment:
    """The deployment that other commands mean. Raises NotFound if there is none."""
    return Deployment.load(state_dir or CliSettings().state_dir)


def last_deployment(state_dir: Path | None) -> Deployment | None:
    """Likewise; None if there is none."""
    try:
        return existing(state_dir)
    except NotFound:
        return None


def up(recipe: str | None, state_dir: Path | None, port_offset: int | None) -> None:
    bring_up(_wanted(recipe, state_dir or CliSettings().state_dir, port_offset))


def bring_up(deployment: Deployment) -> None:
    """Start what does not run and wait, with a live table; on Ctrl-C or failure leave nothing half started."""
    was_up = deployment.is_up()
    started = time.monotonic()
    try:
        for build in deployment.missing_indexes():
            with console.status(f"building the {build.recipe.kind} index of corpus {build.corpus!r}"):
                build.run()
        changes = deployment.start()
        with show_startup(console) as on_progress:
            deployment.wait_ready(on_progress)
    except (KeyboardInterrupt, SearcherError):
        if not was_up:
            with console.status("stopping"):
                deployment.stop()
        raise
    console.print(program_table(deployment.status()))
    if was_up and not changes:
        console.print(f"already up with recipe [bold]{deployment.recipe.name}[/]; nothing to change")
    elif was_up:
        console.print(f"changed: {', '.join((*changes.started, *changes.restarted, *changes.stopped))}")
    else:
        console.print(f"up after {duration(time.monotonic() - started)} with recipe [bold]{deployment.recipe.name}[/]")


def down(state_dir: Path | None) -> None:
    deployment = existing(state_dir)
    started = time.monotonic()
    with console.status("stopping: work in hand is finished first"):
        stopped = deployment.stop()
    console.print(f"stopped after {duration(time.monotonic() - started)}" if stopped else "nothing was running")


def show_status(state_dir: Path | None) -> None:
    deployment = existing(state_dir)
    rows = deployment.status()
    console.print(program_table(rows))
    weights, runs = asyncio.run(_weights_and_runs(deployment, {row.name for row in rows if row.answers}))
    if weights is not None:
        console.print(_weights_table(weights))
    for run in runs:
        console.print(describe_run(run))
    console.print(f"recipe [bold]{deployment.recipe.name}[/], state in {deployment.state_dir}")


def show_logs(program: str | None, state_dir: Path | None, *, follow: bool, num_lines: int) -> None:
    deployment = existing(state_dir)
    names = [known.name for known in deployment.programs]
    if program is not None and program not in names:
        raise InvalidInput(f"{program!r} is not a program; one of {', '.join(names)}")
    paths = {name: deployment.log_path(name) for name in names if program in (None, name)}
    width = max(map(len, paths))
    shown_until = logs.sizes(paths)
    for name, path in paths.items():
        for line in logs.last_lines(path, num_lines):
            _print_line(name, width, line)
    if follow:
        with suppress(KeyboardInterrupt):
            for name, line in logs.new_lines(paths, shown_until):
                _print_line(name, width, line)


def describe_run(run: RunStatus) -> str:
    error = f": {run.error}" if run.error else ""
    return f"run [bold]{run.run_id}[/] {run.state.value}{error}, step {run.step} of at most {run.max_steps} {run.stage}"


def _wanted(recipe: str | None, state_dir: Path, port_offset: int | None) -> Deployment:
    """What is asked for; what is not asked for stays as it was the last time."""
    last = last_deployment(state_dir)
    offset = port_offset if port_offset is not None else last.port_offset if last else 0
    if recipe is None and last is not None:
        return Deployment.for_recipe(last.recipe, state_dir, offset)
    return Deployment.for_recipe(recipe_path(recipe or DEFAULT_RECIPE), state_dir, offset)


async def _weights_and_runs(
    deployment: Deployment, answering: set[str]
) -> tuple[WeightsStatus | None, list[RunStatus]]:
    """What the services say; one that does not answer stands in the table of programs already."""
    weights, runs = None, list[RunStatus]()
    if "rollout" in answering:
        async with deployment.rollout() as rollout:
            weights = await rollout.weights()
    if "trainer" in answering:
        async with deployment.trainer() as trainer:
            runs = [run for run in await trainer.runs() if run.state is RunState.RUNNING]
    return weights, runs


def _weights_table(weights: WeightsStatus) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("engine", "state", "weights", "in flight"):
        table.add_column(column)
    for engine in weights.engines:
        table.add_row(engine.url, engine.state.value, engine.version, str(engine.in_flight))
    return table


def _print_line(name: str, width: int, line: str) -> None:
    console.print(f"{name:<{width}} | {line}", markup=False, soft_wrap=True)
