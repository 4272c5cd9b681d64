"""Long work -> something to look at: services that start, a run that learns, an evaluation that fills its table."""

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.progress_bar import ProgressBar
from rich.table import Table

from searcher.cli.console import duration, sparkline
from searcher.cli.embedded.readiness import ProgramStatus
from searcher.clients.evaluator import EvaluatorClient
from searcher.clients.trainer import TrainerClient
from searcher.contracts.errors import Unavailable
from searcher.contracts.recipe import Recipe
from searcher.contracts.report import EvaluationRequest, EvaluationStatus, Metrics, Report
from searcher.contracts.run import RunState, RunStatus

T = TypeVar("T")

CURVE_WIDTH = 48
POLL_SECONDS = 0.5
OUTAGE_SECONDS = 120.0
"""A trainer that is being restarted is waited for this long."""
SPEED_STEPS = 10
"""The remaining time is told from this many of the newest steps: trajectories grow longer as the policy learns."""

SHARE = (0.0, 1.0)
CURVES: dict[str, tuple[str, tuple[float, float] | None]] = {
    "reward": ("reward", None),
    "search rate": ("search_rate", SHARE),
    "format right": ("format_rate", SHARE),
    "F1": ("f1", SHARE),
    "F1, 1 hop": ("f1_1hop", SHARE),
    "F1, 2 hops": ("f1_2hop", SHARE),
    "searches per question": ("searches_per_question", None),
    "tokens per second": ("tokens_per_second", None),
    "evaluation F1": ("eval/f1", SHARE),
}
"""What is drawn, its name in metrics.jsonl, and its scale where that is fixed."""


@contextmanager
def show_startup(console: Console) -> Iterator[Callable[[list[ProgramStatus]], None]]:
    """A table of programs that turn ready. Yields what `Deployment.wait_ready` reports to."""
    with Live(console=console, refresh_per_second=8, transient=True) as live:
        yield lambda rows: live.update(program_table(rows))


def program_table(rows: Sequence[ProgramStatus]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("program", "pid", "uptime", "url"):
        table.add_column(column, no_wrap=True)
    table.add_column("state", overflow="fold")
    for row in rows:
        state = "[green]ready[/]" if row.ready else f"[yellow]{row.reason or row.state.lower()}[/]"
        table.add_row(row.name, str(row.pid or ""), duration(row.uptime_seconds), row.url or "", state)
    return table


async def track_evaluation(console: Console, evaluator: EvaluatorClient, request: EvaluationRequest) -> Report:
    """Submit, draw a bar and the figures so far until it is done, return the report."""
    progress = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[left]}"),
        console=console,
    )
    with progress:
        name = request.title or request.id
        task = progress.add_task(name, total=None, left="")

        def show(status: EvaluationStatus) -> None:
            left = "" if status.eta_seconds is None else f"{duration(status.eta_seconds)} left"
            description = f"{name}{so_far(status.partial)}"
            progress.update(task, completed=status.done, total=status.total, description=description, left=left)

        return await evaluator.run(request, on_progress=show)


def so_far(partial: Metrics | None) -> str:
    if partial is None:
        return ""
    judge = "" if partial.judge is None else f", judge {partial.judge:.3f}"
    return f"  EM {partial.em:.3f}, F1 {partial.f1:.3f}{judge}, {partial.searches_mean:.2f} searches"


async def track_run(console: Console, trainer: TrainerClient, run_id: str, recipe: Recipe) -> RunStatus:
    """Draw a run until it ends; return how it ended.

    The first Ctrl-C asks the run to stop after its current step and goes on watching. The second raises
    KeyboardInterrupt and leaves the run to itself.
    """
    view, first_look = RunView(recipe), True
    with Live(console=console, refresh_per_second=4) as live, _ctrl_c() as interrupted:
        while True:
            status = await _answer(lambda: trainer.run(run_id))
            view.add(status, await _answer(lambda: trainer.metrics(run_id, after_step=view.step)), live=not first_look)
            live.update(view.render())
            first_look = False
            if status.state is not RunState.RUNNING:
                return status
            if interrupted.is_set() and not view.stopping:
                view.stopping = True
                await _answer(lambda: trainer.stop(run_id))
            await asyncio.sleep(POLL_SECONDS)


@dataclass
class RunView:
    """What is known of a run: its newest status and all lines of its metrics."""

    recipe: Recipe
    status: RunStatus | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)
    arrivals: list[tuple[int, float]] = field(default_factory=list)
    """When steps were seen to end, for the speed."""
    stopping: bool = False

    @property
    def step(self) -> int:
        """The newest one with a line; -1 before any. Step 0 is the evaluation of the model as it came."""
        return int(self.rows[-1]["step"]) if self.rows else -1

    def add(self, status: RunStatus, rows: list[dict[str, Any]], *, live: bool) -> None:
        """`live` is false for lines that were there before anyone looked: they say nothing about the speed."""
        self.status = status
        self.rows += rows
        if (rows and live) or not self.arrivals:
            self.arrivals = [*self.arrivals, (self.step, time.monotonic())][-SPEED_STEPS:]

    def seconds_left(self) -> float | None:
        if len(self.arrivals) < 2 or self.status is None:
            return None
        (first_step, first_time), (last_step, last_time) = self.arrivals[0], self.arrivals[-1]
        return (self.recipe.max_steps - max(last_step, 0)) * (last_time - first_time) / max(last_step - first_step, 1)

    def render(self) -> RenderableType:
        return Group(self._stages(), "", self._curves(), self._last_line())

    def _stages(self) -> Table:
        table, left = Table.grid(padding=(0, 2)), self.seconds_left()
        done_by_stage = self._steps_by_stage()
        for stage in self.recipe.stages:
            done = done_by_stage[stage.name]
            is_current = self.status is not None and self.status.stage == stage.name
            ended = bool(done) and not is_current
            remaining = f"at most {duration(left)} left" if is_current and left is not None else ""
            table.add_row(
                f"[bold]{stage.name}[/]" if is_current else stage.name,
                ProgressBar(total=done if ended else stage.max_steps, completed=done, width=30),
                f"{done}/{stage.max_steps}",
                "ended early" if ended and done < stage.max_steps else remaining,
            )
        return table

    def _steps_by_stage(self) -> Counter[str]:
        return Counter(str(row["stage"]) for row in self.rows if row["step"] > 0)

    def _curves(self) -> Table:
        table = Table.grid(padding=(0, 2))
        for title, (name, scale) in CURVES.items():
            values = [float(row[name]) for row in self.rows if name in row]
            if values:
                curve = sparkline(values, width=CURVE_WIDTH, scale=scale)
                table.add_row(
                    title, f"[cyan]{curve}[/]", f"{values[-1]:,.0f}" if values[-1] >= 100 else f"{values[-1]:.2f}"
                )
        return table

    def _last_line(self) -> str:
        if self.status is None or self.status.state is not RunState.RUNNING:
            return ""
        restarts = f", {self.status.restarts} restarts" if self.status.restarts else ""
        if self.stopping:
            return "[yellow]stopping after this step; Ctrl-C again leaves the run to itself[/]"
        return f"[dim]{self.status.run_id} {self.status.state.value}{restarts}; Ctrl-C stops after the current step[/]"


@contextmanager
def _ctrl_c() -> Iterator[asyncio.Event]:
    """The first Ctrl-C sets the event, the second is an ordinary KeyboardInterrupt."""
    loop, pressed = asyncio.get_running_loop(), asyncio.Event()

    def first() -> None:
        pressed.set()
        loop.remove_signal_handler(signal.SIGINT)

    loop.add_signal_handler(signal.SIGINT, first)
    try:
        yield pressed
    finally:
        with suppress(ValueError):
            loop.remove_signal_handler(signal.SIGINT)


async def _answer(ask: Callable[[], Awaitable[T]]) -> T:
    """Of a trainer that may be restarting: an outage shorter than OUTAGE_SECONDS is no news."""
    deadline = time.monotonic() + OUTAGE_SECONDS
    while True:
        try:
            return await ask()
        except Unavailable:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(POLL_SECONDS)
