"""A report -> one self-contained HTML page. Fetching and storing it is left to others."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from searcher.contracts.report import EvaluatedQuestion, Report
from searcher.pages import environment

EXAMPLES_PER_KIND = 3


@dataclass(frozen=True)
class Examples:
    """Questions of one outcome, and a few of them to read."""

    title: str
    meaning: str
    count: int
    rows: tuple[EvaluatedQuestion, ...]


def render(report: Report) -> str:
    from markupsafe import Markup

    template = environment(Path(__file__).parent).get_template("report.html.j2")
    return template.render(
        report=report,
        examples=examples(report.questions),
        stop_reasons=Counter(row.stop_reason for row in report.questions).most_common(),
        plots={name: Markup(svg) for name, svg in _plots(report).items()},
    )


def examples(rows: tuple[EvaluatedQuestion, ...]) -> list[Examples]:
    """Instructive outcomes, each question under the first that fits; within one, the most searches come first."""
    left = sorted(rows, key=lambda row: -row.num_searches)
    kinds = []
    for title, meaning, fits in (
        ("Searched and right", "asked, read, and gave the exact answer", _searched_and_right),
        ("Retrieved, but missed", "all evidence was retrieved, and the answer is wrong", _retrieved_but_missed),
        ("Searched and wrong", "asked, and the answer is wrong", _searched_and_wrong),
        ("Did not search", "answered from memory, or not at all", lambda row: row.num_searches == 0),
    ):
        fitting = tuple(row for row in left if fits(row))
        left = [row for row in left if not fits(row)]
        if fitting:
            kinds.append(Examples(title, meaning, len(fitting), fitting[:EXAMPLES_PER_KIND]))
    return kinds


def _searched_and_right(row: EvaluatedQuestion) -> bool:
    return row.num_searches > 0 and row.em == 1.0


def _retrieved_but_missed(row: EvaluatedQuestion) -> bool:
    return row.evidence is True and row.cover_em == 0.0


def _searched_and_wrong(row: EvaluatedQuestion) -> bool:
    return row.num_searches > 0 and row.cover_em == 0.0


def _plots(report: Report) -> dict[str, str]:
    from searcher.pages.plots import Colour, bars

    searches = Counter(row.num_searches for row in report.questions)
    span = range(max(searches) + 1)
    plots = {
        "searches": bars(
            [str(number) for number in span],
            [searches[number] for number in span],
            describe="Questions by number of searches",
            x_label="searches",
            digits=0,
            colour=Colour.SERIES_2,
        )
    }
    if report.by_hops:
        plots["hops"] = bars(
            [f"{hops} hop" if hops == "1" else f"{hops} hops" for hops in report.by_hops],
            [group.f1 for group in report.by_hops.values()],
            describe="F1 by number of hops",
            y_range=(0.0, 1.0),
        )
    return plots
