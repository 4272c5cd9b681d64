"""A report -> Markdown, with tables as GitHub draws them."""

import re
from collections.abc import Iterable, Sequence

from searcher.contracts.report import Comparison, EvaluatedQuestion, Metrics, Report
from searcher.pages import figure, p_value
from services.evaluator.report.examples import MISSED, examples, shown_system
from services.evaluator.report.tables import (
    DRAWN,
    SCORES,
    TITLES,
    Line,
    Outcome,
    Part,
    certainty,
    facts,
    found_and_right,
    group_parts,
    parts,
    published_figures,
)

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~])")
CERTAINTY = (
    "Small numbers are 95 % intervals: percentile bootstrap over questions, wider for few of them; where all questions "
    "agree, the exact binomial bound. Comparisons are paired; p is two-sided, by sign flips of the questions' "
    "differences, and not corrected for the number of comparisons."
)


def render_markdown(report: Report) -> str:
    """Whatever was written by a model or a file is text in it, never markup."""
    names = [system.system.name for system in report.systems]
    sections = [f"# {_text(report.title or report.id)}", _summary(report)]
    sections += [f"> **Missing:** {_text(note)}" for note in report.missing]
    for title, found in (("Figures", parts(report)), ("By group", group_parts(report))):
        if found:
            sections += [f"## {title}", _parts(names, found)]
    if outcomes := found_and_right(report):
        header = ("system", "all evidence retrieved", "cover-EM of these", "not all", "cover-EM of these")
        sections += ["## What came of the evidence", _table(header, map(_outcome_cells, outcomes))]
    if report.comparisons:
        columns = ("a", "b", "figure", "questions", "b − a", "95 % interval", "p")
        sections += ["## Compared on the same questions", _table(columns, map(_comparison_cells, report.comparisons))]
    if report.published:
        sections += ["## Published", *_published(report)]
    for kind in examples([row for row in report.questions if row.system == shown_system(report).system.name]):
        if kind.title == MISSED:
            sections += [f"## {kind.title}: {kind.count}", "\n".join(_example(row) for row in kind.rows)]
    sections += ["## Facts", _table(("", ""), ((_text(name), _text(value)) for name, value in facts(report).items()))]
    sections.append(CERTAINTY)
    return "\n\n".join(sections) + "\n"


def _summary(report: Report) -> str:
    one = report.systems[0]
    scores = ", ".join(
        f"{line.title} **{figure(getattr(one.overall, line.name), 3)}**"
        + (f" ({certainty(one.overall, line)})" if certainty(one.overall, line) else "")
        for line in SCORES
        if line.name in DRAWN and getattr(one.overall, line.name) is not None
    )
    return f"{_text(one.system.name)}, {one.overall.num_questions:,} questions: {scores}."


def _parts(names: Sequence[str], found: Sequence[Part]) -> str:
    rows: list[Sequence[str]] = []
    for part in found:
        rows.append((f"**{part.title}**", *("" for _ in names)))
        rows += [(_text(row.title), *(_cell(one, row.line) for one in row.columns)) for row in part.rows]
    return _table(("", *map(_text, names)), rows)


def _cell(metrics: Metrics | None, line: Line) -> str:
    if metrics is None:
        return "–"
    interval = certainty(metrics, line)
    return figure(getattr(metrics, line.name), line.digits) + (f" <sub>{interval}</sub>" if interval else "")


def _outcome_cells(one: Outcome) -> tuple[str, ...]:
    return (
        _text(one.system),
        f"{one.num_found:,}",
        figure(one.cover_em_found, 3),
        f"{one.num_lost:,}",
        figure(one.cover_em_lost, 3),
    )


def _comparison_cells(one: Comparison) -> tuple[str, ...]:
    return (
        _text(one.a),
        _text(one.b),
        TITLES[one.metric],
        f"{one.num_questions:,}",
        f"{one.difference:+.3f}",
        f"{one.interval.low:+.3f} to {one.interval.high:+.3f}",
        p_value(one.p_value),
    )


def _published(report: Report) -> list[str]:
    rows = [row for row in report.published if row.comparable]
    named = published_figures(rows)
    sections = [
        f"- {_text(row.benchmark)}: {_text(row.source)} may not stand beside these figures: {_text(row.why_not)}."
        for row in report.published
        if not row.comparable
    ]
    if rows:
        header = ("benchmark", "method", *(TITLES[name] for name in named), "source", "note")
        cells = (
            (row.benchmark, row.method, *(figure(row.figures.get(name), 3) for name in named), row.source, row.why_not)
            for row in rows
        )
        sections.append(_table(header, ([_text(cell) for cell in line] for line in cells)))
    return sections


def _example(row: EvaluatedQuestion) -> str:
    asked = "; ".join(_text(query) for query in row.queries)
    return (
        f"- {_text(row.question)} Answered {_text(row.answer or 'nothing')}; "
        f"accepted: {_text(' / '.join(row.answers))}. Asked: {asked or 'nothing'}."
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---", *("---:" for _ in header[1:])], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(value: str) -> str:
    """On one line, and with nothing in it that Markdown or HTML would read."""
    return _SPECIAL.sub(r"\\\1", " ".join(value.split())).replace("\\<", "&lt;").replace("\\>", "&gt;")
