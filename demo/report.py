"""A finished demo -> one page that tells what happened: the curves, before and after, and a few trajectories to read.

Running the demo, and judging the model, are left to others: this reads what they wrote.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

from searcher.contracts.report import EvaluatedQuestion, Report
from searcher.pages import environment
from searcher.pages.plots import Colour, Curve, Mark, bars, curves

Figures = Mapping[str, float]
Row = Mapping[str, Any]
"""A line of metrics.jsonl: `step`, `stage` and figures."""

NEIGHBOURS = 4
"""On either side of a step, for the smoothed curves."""

ROWS = {
    "F1": "f1",
    "F1, 1 hop": "f1_1hop",
    "F1, 2 hops": "f1_2hop",
    "search rate": "search_rate",
    "format rate": "format_rate",
    "searches per 1-hop question": "searches_per_1hop",
    "searches per 2-hop question": "searches_per_2hop",
}
COLUMNS = ("before", "after", "before_sampled", "after_sampled")


@dataclass(frozen=True)
class Pair:
    """The same held-out question, before and after training."""

    heading: str
    before: EvaluatedQuestion
    after: EvaluatedQuestion


@dataclass(frozen=True)
class Plot:
    title: str
    meaning: str
    svg: str


def render(run_dir: Path, before: Report, after: Report, summary: Mapping[str, Figures], out: Path) -> None:
    """Write the page to `out`.

    `before` and `after` are the greedy reports; `summary` holds the figures of all four evaluations under their names,
    and `seconds` per phase; the curves come from `metrics.jsonl` of the run.
    """
    from markupsafe import Markup

    rows = read_metrics(run_dir / "metrics.jsonl")
    template = environment(Path(__file__).parent).get_template("report.html.j2")
    page = template.render(
        num_steps=len(rows),
        before=before,
        after=after,
        summary=summary,
        rows=ROWS,
        columns=COLUMNS,
        plots=[Plot(plot.title, plot.meaning, Markup(plot.svg)) for plot in learning_curves(rows)],
        searches=Markup(_searches_after(after)),
        pairs=instructive_pairs(before, after),
        seconds=summary["seconds"],
    )
    out.write_text(page, encoding="utf-8")


def read_metrics(path: Path) -> list[Row]:
    """One row per step, in order. A step that was repeated after a crash counts as it was the last time."""
    rows: dict[int, Row] = {}
    for line in path.read_text().splitlines():
        row = json.loads(line)
        rows[row["step"]] = row
    return [rows[step] for step in sorted(rows)]


def instructive_pairs(before: Report, after: Report) -> list[Pair]:
    """One question of one hop and two of two hops that training turned from wrong to right, and one still wrong.

    Fewer where there are none. Among equals the first in the order asked is taken, so the choice is not by hand.
    """
    earlier = {row.id: row for row in before.questions}
    candidates = [Pair("", earlier[row.id], row) for row in after.questions if row.id in earlier]
    chosen = _first(candidates, "One hop: one fact to find", lambda p: _turned_right(p) and p.after.hops == 1, count=1)
    two_hops = "Two hops: the second search needs what the first one found"
    chosen += _first(candidates, two_hops, lambda p: _turned_right(p) and p.after.hops == 2, count=2)
    chosen += _first(candidates, "Still wrong", lambda p: p.after.f1 < 0.5, count=1)
    return chosen


def _turned_right(pair: Pair) -> bool:
    """Every fact searched for, and not by luck."""
    return pair.after.em == 1.0 and pair.before.f1 < 0.5 and pair.after.num_searches == pair.after.hops


def _first(candidates: Sequence[Pair], heading: str, fits: Callable[[Pair], bool], *, count: int) -> list[Pair]:
    fitting = [Pair(heading, pair.before, pair.after) for pair in candidates if fits(pair)]
    # Two questions of one kind teach less than two of different kinds.
    kinds = {pair.after.question.partition(" of ")[0]: pair for pair in reversed(fitting)}
    return sorted(kinds.values(), key=fitting.index)[:count]


def learning_curves(rows: Sequence[Row]) -> list[Plot]:
    marks, blue, orange = _stages(rows), Colour.SERIES_1, Colour.SERIES_2

    def plot(title: str, meaning: str, *series: list[Curve], y_range: tuple[float, float] | None = None) -> Plot:
        flat = [curve for curves_of_one in series for curve in curves_of_one]
        return Plot(title, meaning, curves(flat, describe=f"{title} over steps", y_range=y_range, marks=marks))

    rate = (0.0, 1.0)
    return [
        plot("Reward", "mean of the step's samples; each stage has its own rules", smoothed(rows, "reward", blue)),
        plot(
            "Search and format",
            "share of samples that searched, and that kept the format",
            smoothed(rows, "search_rate", blue, label="searched"),
            smoothed(rows, "format_rate", Colour.SERIES_3, label="format right"),
            y_range=rate,
        ),
        plot(
            "F1 in training",
            "sampled answers to questions of the training world",
            smoothed(rows, "f1_1hop", blue, label="1 hop"),
            smoothed(rows, "f1_2hop", orange, label="2 hops"),
            y_range=rate,
        ),
        plot(
            "F1 on the held-out world",
            "greedy answers about a world that shares no name with training",
            _points(rows, "eval/f1_1hop", blue, label="1 hop"),
            _points(rows, "eval/f1_2hop", orange, label="2 hops"),
            y_range=rate,
        ),
        plot(
            "Searches per question",
            "two-hop questions need two",
            smoothed(rows, "searches_1hop", blue, label="1 hop"),
            smoothed(rows, "searches_2hop", orange, label="2 hops"),
            [] if any("searches_2hop" in row for row in rows) else smoothed(rows, "searches_per_question", blue),
        ),
    ]


def _stages(rows: Sequence[Row]) -> list[Mark]:
    """Where a stage begins, without the first."""
    return [
        Mark(row["step"], str(row["stage"]))
        for previous, row in pairwise(rows)
        if row.get("stage") != previous.get("stage")
    ]


def smoothed(rows: Sequence[Row], name: str, colour: Colour, *, label: str = "") -> list[Curve]:
    """What was measured, faint, and the mean over its neighbours in the same stage. [] if nothing was measured."""
    measured = [row for row in rows if row.get(name) is not None]
    if not measured:
        return []
    steps: list[float] = []
    values: list[float] = []
    means: list[float] = []
    for these in [list(stage) for _, stage in groupby(measured, key=lambda row: row.get("stage"))]:
        inside = [row[name] for row in these]
        windows = [inside[max(0, i - NEIGHBOURS) : i + NEIGHBOURS + 1] for i in range(len(inside))]
        # Rewards of two stages are two measures, so there is a gap between them.
        steps += [*(row["step"] for row in these), math.nan]
        values += [*inside, math.nan]
        means += [*(fmean(window) for window in windows), math.nan]
    return [Curve(label, steps, values, colour, "faint"), Curve(label, steps, means, colour)]


def _points(rows: Sequence[Row], name: str, colour: Colour, *, label: str) -> list[Curve]:
    """Evaluations happen at some steps only. [] if there was none."""
    measured = [row for row in rows if row.get(name) is not None]
    steps, values = [row["step"] for row in measured], [row[name] for row in measured]
    return [Curve(label, steps, values, colour, "points")] if measured else []


def _searches_after(after: Report) -> str:
    counts = [row.num_searches for row in after.questions]
    span = range(max(counts) + 1)
    return bars(
        [str(number) for number in span],
        [counts.count(number) for number in span],
        describe="Held-out questions by number of searches after training",
        x_label="searches",
        digits=0,
        colour=Colour.SERIES_4,
    )
