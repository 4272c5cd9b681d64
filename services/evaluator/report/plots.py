"""A report -> its plots, as SVG."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from searcher.contracts.question import SearchMode
from searcher.contracts.report import EvaluatedQuestion, Metrics, Report
from searcher.pages import hops_title
from searcher.pages.plots import Colour, Dots, bars, dots
from services.evaluator.report.tables import DRAWN, SCORES, is_measured

COLOURS = (Colour.SERIES_1, Colour.SERIES_2, Colour.SERIES_3, Colour.SERIES_4)
MEANING = "mean and 95 % interval"
MOST_SEARCHES_DRAWN = 12


@dataclass(frozen=True)
class Plot:
    title: str
    meaning: str
    svg: str


def plots(report: Report) -> list[Plot]:
    """A plot holds as many systems as there are colours; the tables hold all of them."""
    drawn = list(zip(report.systems, COLOURS, strict=False))
    which = f"{MEANING}; the first {len(COLOURS)} systems" if len(report.systems) > len(COLOURS) else MEANING
    hops = sorted({count for system, _ in drawn for count in system.by_hops}, key=int)
    benchmarks = list(dict.fromkeys(name for system, _ in drawn for name in system.by_benchmark))
    found = [_score_plot(report)]
    if len(benchmarks) > 1:
        series = [_dots(s.system.name, "f1", [s.by_benchmark.get(name) for name in benchmarks], c) for s, c in drawn]
        found.append(Plot("F1 by benchmark", which, dots(benchmarks, series, describe="F1 by benchmark")))
    if hops:
        series = [_dots(s.system.name, "f1", [s.by_hops.get(count) for count in hops], c) for s, c in drawn]
        found.append(
            Plot("F1 by number of hops", which, dots([hops_title(n) for n in hops], series, describe="F1 by hops"))
        )
    return found + [
        _search_plot(system.system.name, report.questions, colour)
        for system, colour in drawn
        if system.system.search is SearchMode.MULTI_TURN
    ]


def _score_plot(report: Report) -> Plot:
    overall = [system.overall for system in report.systems]
    lines = [line for line in SCORES if line.name in DRAWN and is_measured(line, overall)]
    series = [_dots(line.title, line.name, overall, colour) for line, colour in zip(lines, COLOURS, strict=False)]
    names = [system.system.name for system in report.systems]
    return Plot("Score", MEANING, dots(names, series, describe="Scores of each system"))


def _search_plot(system: str, rows: Iterable[EvaluatedQuestion], colour: Colour) -> Plot:
    counts = Counter(min(row.num_searches, MOST_SEARCHES_DRAWN) for row in rows if row.system == system)
    span = range(max(counts, default=0) + 1)
    labels = [f"{number}{'+' if number == MOST_SEARCHES_DRAWN else ''}" for number in span]
    meaning = "questions by number of searches"
    drawn = bars(
        labels,
        [counts[number] for number in span],
        describe=f"{system}: {meaning}",
        x_label="searches",
        digits=0,
        colour=colour,
    )
    return Plot(f"Searches: {system}", meaning, drawn)


def _dots(label: str, name: str, metrics: Sequence[Metrics | None], colour: Colour) -> Dots:
    intervals = [one.intervals.get(name) if one is not None else None for one in metrics]
    values = [None if one is None else getattr(one, name) for one in metrics]
    return Dots(label, values, [None if i is None else (i.low, i.high) for i in intervals], colour)
