"""The demo: a tiny base model learns to search a fictional world, on this machine, through the real services.

    python -m demo.run            resume an unfinished demo, or start a new one
    python -m demo.run --fresh    start a new one

worlds -> services up -> evaluate before -> train (stage 1, stage 2) -> evaluate after -> services down -> report.
Leaves `summary.json` and `report.html` in the run's directory.
"""

import argparse
import asyncio
import json
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from demo.report import render
from demo.world import write_worlds
from searcher.cli.embedded.deployment import Deployment
from searcher.cli.overrides import recipe_with
from searcher.cli.progress import show_startup, track_evaluation, track_run
from searcher.contracts.errors import InvalidInput, SearcherError
from searcher.contracts.recipe import Recipe
from searcher.contracts.report import EvaluationRequest, Report
from searcher.contracts.run import RunRequest, RunState
from searcher.recipes import balanced_sample, load_questions

PROJECT = Path(__file__).resolve().parents[1]
RUN_ID = "training"
NUM_QUESTIONS = 256
"""Held-out questions, half of them with one hop and half with two."""

NEXT_COMMANDS = (
    "searcher up recipes/tiny.toml",
    "searcher train recipes/tiny.toml --run-id mine",
    "searcher ask 'Who is the mother of the founder of Torco Works?' --corpus train",
    "searcher down",
)

console = Console()


class Phases:
    """Seconds per phase, kept on disk so that a resumed demo reports its whole time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seconds: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.monotonic() - started, 1)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps(self.seconds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fresh", action="store_true", help="start anew, even if an unfinished demo could go on")
    parser.add_argument("--recipe", type=Path, default=PROJECT / "recipes" / "tiny.toml")
    parser.add_argument("--name", default="demo", help="directory under runs/")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a number of the recipe")
    parser.add_argument("--only-stage", metavar="NAME", help="leave the other stages out")
    parser.add_argument("--port-offset", type=int, default=0, help="added to every port, if the usual ones are taken")
    arguments = parser.parse_args()
    try:
        recipe = recipe_with(arguments.recipe, arguments.set)
        if arguments.only_stage:
            recipe = only_stage(recipe, arguments.only_stage)
        run_demo(recipe, arguments.name, arguments.port_offset, fresh=arguments.fresh)
    except SearcherError as error:
        console.print(f"[red]{error.detail}[/red]")
        sys.exit(1)
    except KeyboardInterrupt:
        console.print(
            "\nStopped; nothing is left running. Go on with [bold]make demo[/bold], or [bold]make demo FRESH=1[/bold]."
        )
        sys.exit(130)


def only_stage(recipe: Recipe, name: str) -> Recipe:
    """Raises InvalidInput if the recipe has no such stage."""
    stages = tuple(stage for stage in recipe.stages if stage.name == name)
    if not stages:
        raise InvalidInput(f"--only-stage: {name!r} is not one of {', '.join(s.name for s in recipe.stages)}")
    return recipe.model_copy(update={"stages": stages})


def run_demo(recipe: Recipe, name: str, port_offset: int, *, fresh: bool) -> None:
    started = time.monotonic()
    demo_dir, state_dir = PROJECT / "runs" / name, PROJECT / ".searcher" / name
    if fresh or (demo_dir / "summary.json").exists():
        shutil.rmtree(demo_dir, ignore_errors=True)
        shutil.rmtree(state_dir, ignore_errors=True)
    phases = Phases(demo_dir / "phases.json")
    with phases.timed("world"):
        write_worlds(PROJECT / "build" / "tiny-world")
    deployment = Deployment.for_recipe(recipe, state_dir, port_offset, runs_dir=demo_dir)
    try:
        with phases.timed("services"), show_startup(console) as on_progress:
            deployment.start(die_with_parent=True)
            deployment.wait_ready(on_progress)
        reports = asyncio.run(before_train_after(deployment, recipe, phases))
    finally:
        with phases.timed("shutdown"):
            deployment.stop()
    summary = summarise(reports, phases.seconds)
    (demo_dir / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    render(demo_dir / RUN_ID, reports["before"], reports["after"], summary, demo_dir / "report.html")
    show(summary, demo_dir, time.monotonic() - started)


async def before_train_after(deployment: Deployment, recipe: Recipe, phases: Phases) -> dict[str, Report]:
    """Greedy and sampled reports, before and after training."""
    with phases.timed("evaluate before"):
        reports = {
            "before": await evaluate(deployment, recipe, "before", temperature=0.0),
            "before_sampled": await evaluate(deployment, recipe, "before-sampled", temperature=1.0),
        }
    with phases.timed("train"):
        await train(deployment, recipe)
    with phases.timed("evaluate after"):
        return reports | {
            "after": await evaluate(deployment, recipe, "after", temperature=0.0),
            "after_sampled": await evaluate(deployment, recipe, "after-sampled", temperature=1.0),
        }


async def evaluate(deployment: Deployment, recipe: Recipe, name: str, *, temperature: float) -> Report:
    """On the held-out world. Asking for an evaluation that exists gives its report at once."""
    assert recipe.evaluation is not None
    questions = load_questions(Path(recipe.evaluation.questions), corpus=recipe.evaluation.corpus)
    request = EvaluationRequest(
        id=name,
        title=name,
        questions=tuple(balanced_sample(questions, NUM_QUESTIONS, seed=0)),
        plan=recipe.evaluation_plan.model_copy(update={"temperature": temperature, "seed": 0}),
    )
    async with deployment.evaluator() as evaluator:
        return await track_evaluation(console, evaluator, request)


async def train(deployment: Deployment, recipe: Recipe) -> None:
    """Raises SearcherError if the run fails; a run that is done already is left alone."""
    async with deployment.trainer() as trainer:
        known = {run.run_id: run for run in await trainer.runs()}
        if RUN_ID in known and known[RUN_ID].state is RunState.DONE:
            return
        if RUN_ID not in known or known[RUN_ID].state is not RunState.RUNNING:
            await trainer.start(RunRequest(run_id=RUN_ID, recipe=recipe, resume=RUN_ID in known))
        status = await track_run(console, trainer, RUN_ID, recipe)
    if status.state is RunState.STOPPED:  # Ctrl-C, which the view turns into a stop after the current step
        raise KeyboardInterrupt
    if status.state is not RunState.DONE:
        raise SearcherError(f"run {RUN_ID} is {status.state.value}: {status.error or 'see its events.jsonl'}")


def summarise(reports: dict[str, Report], seconds: dict[str, float]) -> dict[str, Any]:
    return {**{name: figures(report) for name, report in reports.items()}, "seconds": seconds}


def figures(report: Report) -> dict[str, float]:
    one, two, overall = report.by_hops["1"], report.by_hops["2"], report.overall
    return {
        "f1": overall.f1,
        "f1_1hop": one.f1,
        "f1_2hop": two.f1,
        "search_rate": overall.search_rate,
        "format_rate": overall.format_rate,
        "searches_per_1hop": one.searches_mean,
        "searches_per_2hop": two.searches_mean,
        "num_questions": overall.num_questions,
    }


def show(summary: dict[str, Any], demo_dir: Path, seconds: float) -> None:
    rows = {
        "F1": "f1",
        "F1, 1 hop": "f1_1hop",
        "F1, 2 hops": "f1_2hop",
        "search rate": "search_rate",
        "format right": "format_rate",
        "searches per 2-hop question": "searches_per_2hop",
    }
    columns = {
        "before": "before",
        "after": "after",
        "before, sampled": "before_sampled",
        "after, sampled": "after_sampled",
    }
    table = Table(title="A held-out world: no name of it was seen in training", title_justify="left")
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    for label, key in rows.items():
        table.add_row(label, *(f"{summary[name][key]:.2f}" for name in columns.values()))
    console.print(table)
    console.print(f"{seconds / 60:.1f} minutes. Report: [bold]{demo_dir / 'report.html'}[/bold]")
    console.print("Next, with [bold]. .venv/bin/activate[/bold]:")
    for command in NEXT_COMMANDS:
        console.print(f"  [bold]{command}[/bold]", highlight=False)


if __name__ == "__main__":
    main()
