"""Curves, durations and the view of a run."""

from typing import Any

import pytest
from rich.console import Console

from searcher.cli.console import duration, sparkline
from searcher.cli.progress import RunView
from searcher.contracts.recipe import Recipe
from searcher.contracts.run import RunState, RunStatus


@pytest.mark.parametrize(
    ("values", "curve"),
    [([], ""), ([2.0], "▁"), ([1.0, 1.0], "▁▁"), ([0.0, 0.5, 1.0], "▁▅█"), ([0.0, 0.0, 1.0, 1.0, 2.0, 2.0], "▁▅█")],
)
def test_a_sparkline_runs_from_the_lowest_to_the_highest(values: list[float], curve: str) -> None:
    assert sparkline(values, width=3) == curve


@pytest.mark.parametrize(("seconds", "text"), [(7.2, "7 s"), (185, "3:05"), (3723, "1:02:03")])
def test_a_duration_reads_like_a_clock(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.fixture
def view() -> RunView:
    stages = [
        {"name": "one", "questions": "q", "rules": "searcher", "max_steps": 10},
        {"name": "two", "questions": "q", "rules": "searcher", "max_steps": 4},
    ]
    return RunView(
        Recipe.model_validate(
            {
                "name": "toy",
                "model": {"path": "m"},
                "questions_per_step": 1,
                "samples_per_question": 2,
                "stages": stages,
            }
        )
    )


def status(stage: str, step: int) -> RunStatus:
    return RunStatus(run_id="toy", state=RunState.RUNNING, stage=stage, step=step, max_steps=14)


def row(step: int, stage: str) -> dict[str, Any]:
    return {"step": step, "stage": stage, "reward": float(step)}


def text_of(view: RunView) -> str:
    console = Console(width=120)
    with console.capture() as capture:
        console.print(view.render())
    return capture.get()


def test_a_stage_that_ended_before_its_last_step_says_so(view: RunView) -> None:
    view.add(status("two", 3), [row(1, "one"), row(2, "one"), row(3, "two")], live=False)

    text = text_of(view)

    assert "2/10" in text
    assert "ended early" in text
    assert "1/4" in text


def test_curves_are_drawn_for_what_the_metrics_hold(view: RunView) -> None:
    view.add(status("one", 2), [row(1, "one"), row(2, "one")], live=False)

    text = text_of(view)

    assert "reward" in text
    assert "▁█" in text
    assert "search rate" not in text


def test_steps_that_were_there_before_anyone_looked_say_nothing_about_the_speed(view: RunView) -> None:
    view.add(status("one", 2), [row(1, "one"), row(2, "one")], live=False)

    assert view.seconds_left() is None
