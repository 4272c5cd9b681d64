"""A report -> one HTML page that needs nothing from elsewhere. Its template is report.html.j2."""

from collections import Counter
from pathlib import Path

from searcher.contracts.report import Report
from searcher.pages import environment, p_value
from services.evaluator.report.examples import examples, shown_system
from services.evaluator.report.plots import Plot, plots
from services.evaluator.report.tables import (
    SCORES,
    TITLES,
    certainty,
    facts,
    found_and_right,
    group_parts,
    parts,
    published_figures,
)

PUBLISHED_SHOWN = 6
"""The best; the others are folded away."""


def render(report: Report) -> str:
    """Whatever was written by a model or a file is escaped."""
    from markupsafe import Markup

    shown = shown_system(report)
    rows = [row for row in report.questions if row.system == shown.system.name]
    template = environment(Path(__file__).parent).get_template("report.html.j2")
    return template.render(
        report=report,
        shown=shown,
        scores=SCORES,
        parts=parts(report),
        groups=group_parts(report),
        facts=facts(report),
        titles=TITLES,
        p_value=p_value,
        comparable=[row for row in report.published if row.comparable],
        not_comparable=[row for row in report.published if not row.comparable],
        published_shown=PUBLISHED_SHOWN,
        published_figures=published_figures(report.published),
        outcomes=found_and_right(report),
        examples=examples(rows),
        stop_reasons=Counter(row.stop_reason for row in rows).most_common(),
        plots=[Plot(plot.title, plot.meaning, Markup(plot.svg)) for plot in plots(report)],
        certainty=certainty,
        num_questions=len({(row.benchmark, row.id) for row in report.questions}),
    )
