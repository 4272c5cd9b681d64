"""A report -> a self-contained HTML page, and Markdown with GitHub's tables. Fetching and storing is left to others."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from searcher.contracts.question import SearchMode
from searcher.contracts.report import Comparison, EvaluatedQuestion, Metrics, PublishedRow, Report, SystemReport
from searcher.pages import duration, environment, figure
from searcher.pages.plots import Colour, Dots, bars, dots
from searcher.qa.markup import Kind, pieces
from services.evaluator.evidence import stands_in

EXAMPLES_PER_KIND = 3
PUBLISHED_SHOWN = 6
"""The best; the others are folded away."""
MOST_SEARCHES_DRAWN = 12


@dataclass(frozen=True)
class Line:
    """One figure of a report's tables."""

    name: str
    """Its name in Metrics."""
    title: str
    digits: int = 3


SCORES = (
    Line("em", "EM"),
    Line("cover_em", "cover-EM"),
    Line("cover_em_strict", "cover-EM, words in a row"),
    Line("f1", "F1"),
    Line("judge", "judge"),
)
DRAWN = ("em", "cover_em", "f1", "judge")
SEARCHING = (
    Line("search_rate", "searched"),
    Line("searches_mean", "searches per question", 2),
    Line("answered_rate", "answered"),
    Line("format_rate", "format right"),
    Line("reward", "reward"),
    Line("response_tokens_mean", "tokens written", 0),
)
EVIDENCE = (
    Line("evidence_rate", "all gold passages retrieved"),
    Line("evidence_recall", "share of gold passages retrieved"),
    Line("evidence_search_mean", "search that brought the last one", 2),
    Line("supported_rate", "answer stands in what was read"),
)
TITLES = {line.name: line.title for line in (*SCORES, *SEARCHING, *EVIDENCE)}


@dataclass(frozen=True)
class Part:
    """A heading inside a table, and its rows: a title, and for each system its metrics and which of them is meant."""

    title: str
    rows: tuple[tuple[str, Line, tuple[Metrics | None, ...]], ...]


@dataclass(frozen=True)
class Examples:
    """Questions of one outcome, and a few of them to read."""

    title: str
    meaning: str
    count: int
    rows: tuple[EvaluatedQuestion, ...]


@dataclass(frozen=True)
class Plot:
    title: str
    meaning: str
    svg: str


def render(report: Report) -> str:
    """One HTML page that needs nothing from elsewhere."""
    from markupsafe import Markup

    shown = shown_system(report)
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
        published_figures=_published_figures(report.published),
        outcomes=found_and_right(report),
        examples=examples([row for row in report.questions if row.system == shown.system.name]),
        stop_reasons=Counter(
            row.stop_reason for row in report.questions if row.system == shown.system.name
        ).most_common(),
        plots=[Plot(plot.title, plot.meaning, Markup(plot.svg)) for plot in _plots(report)],
        certainty=certainty,
        num_questions=len({(row.benchmark, row.id) for row in report.questions}),
    )


def shown_system(report: Report) -> SystemReport:
    """Whose trajectories are worth reading: the first that may search as it wants, else the first."""
    free = (one for one in report.systems if one.system.search is SearchMode.MULTI_TURN)
    return next(free, report.systems[0])


# ---------------------------------------------------------------------------------------------------------------------
# What the tables hold


def parts(report: Report) -> list[Part]:
    """The figures over all questions, one column per system, without those that nobody measured."""
    found = []
    for title, lines in (("Score", SCORES), ("Searching", SEARCHING), ("Evidence", EVIDENCE)):
        everywhere = tuple(system.overall for system in report.systems)
        rows = tuple((line.title, line, everywhere) for line in lines if _is_measured(line, everywhere))
        if rows:
            found.append(Part(title, rows))
    return found


def group_parts(report: Report) -> list[Part]:
    """Scores by benchmark, where there are several, and F1 by hop count."""
    found = []
    benchmarks = list(dict.fromkeys(name for system in report.systems for name in system.by_benchmark))
    if len(benchmarks) > 1:
        for line in SCORES:
            columns = {name: tuple(system.by_benchmark.get(name) for system in report.systems) for name in benchmarks}
            columns["mean of the benchmarks"] = tuple(system.macro for system in report.systems)
            rows = tuple(
                (f"{name}{_count(metrics)}", line, metrics)
                for name, metrics in columns.items()
                if _is_measured(line, metrics)
            )
            if rows:
                found.append(Part(f"{line.title} by benchmark", rows))
    hops = sorted({count for system in report.systems for count in system.by_hops}, key=int)
    if hops:
        rows = tuple(
            (f"{hop_title(count)}{_count(metrics)}", SCORES[3], metrics)
            for count in hops
            for metrics in [tuple(system.by_hops.get(count) for system in report.systems)]
        )
        found.append(Part("F1 by number of hops", rows))
    return found


def hop_title(count: str) -> str:
    return f"{count} hop" if count == "1" else f"{count} hops"


def _count(metrics: Sequence[Metrics | None]) -> str:
    counts = {one.num_questions for one in metrics if one is not None}
    return f" ({counts.pop():,})" if len(counts) == 1 else ""


def _is_measured(line: Line, metrics: Iterable[Metrics | None]) -> bool:
    return any(one is not None and getattr(one, line.name) is not None for one in metrics)


def found_and_right(report: Report) -> list[tuple[str, int, float, int, float]]:
    """Per system: how many questions had all their evidence retrieved, cover-EM of those; the same of the others."""
    outcomes = []
    for system in report.systems:
        rows = [row for row in report.questions if row.system == system.system.name and row.evidence is not None]
        found, lost = [[row.cover_em for row in rows if row.evidence is found] for found in (True, False)]
        if found or lost:
            outcomes.append((system.system.name, len(found), _mean(found), len(lost), _mean(lost)))
    return outcomes


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def facts(report: Report) -> dict[str, str]:
    """What the figures depend on besides the questions."""
    plan = report.plan
    decoding = "greedy" if plan.temperature == 0 else f"temperature {plan.temperature:g}, top-p {plan.top_p:g}"
    corpora = ", ".join(f"{name} ({index[:12]})" if index else name for name, index in report.corpora.items())
    models = {
        system.system.name: f"{system.system.model.model} at {system.system.model.base_url}"
        for system in report.systems
        if system.system.model is not None
    }
    return {
        "weights": report.weights or "of no rollout service",
        **{f"model of {name}": text for name, text in models.items()},
        "corpus (index)": corpora or "not told",
        "documents per search (k)": str(plan.documents_per_search),
        "searches at most": str(plan.max_searches),
        "decoding": decoding,
        "tokens per turn, in all": f"{plan.max_tokens_per_turn:,}, {plan.max_context_tokens:,}",
        "prompt template": plan.template,
        "rules (reward, format)": report.rules,
        "evaluated": f"{report.created_at}, in {duration(report.seconds)}",
        "evaluation": report.id,
    }


def certainty(metrics: Metrics, line: Line) -> str:
    """The interval of a figure, e.g. 0.54–0.62; "" if it has none."""
    interval = metrics.intervals.get(line.name)
    if interval is None:
        return ""
    return (
        f"{figure(interval.low, line.digits)}{'–' if interval.low >= 0 else ' to '}{figure(interval.high, line.digits)}"
    )


def _published_figures(rows: Iterable[PublishedRow]) -> list[str]:
    named = {name for row in rows for name in row.figures}
    return [line.name for line in SCORES if line.name in named]


# ---------------------------------------------------------------------------------------------------------------------
# Trajectories to read


def examples(rows: Iterable[EvaluatedQuestion]) -> list[Examples]:
    """Instructive outcomes, each question under the first that fits; within one, the most searches come first."""
    left = sorted(rows, key=lambda row: -row.num_searches)
    kinds = []
    for title, meaning, fits in _KINDS:
        fitting = tuple(row for row in left if fits(row))
        left = [row for row in left if not fits(row)]
        if fitting:
            kinds.append(Examples(title, meaning, len(fitting), fitting[:EXAMPLES_PER_KIND]))
    return kinds


def _is_right(row: EvaluatedQuestion) -> bool:
    return row.cover_em == 1.0 or row.judge is True


def _searched_and_right(row: EvaluatedQuestion) -> bool:
    return row.num_searches > 0 and _is_right(row) and row.supported is not False


def _right_without_support(row: EvaluatedQuestion) -> bool:
    return row.num_searches > 0 and _is_right(row)


def _no_answer(row: EvaluatedQuestion) -> bool:
    return row.num_searches > 0 and row.answer is None


def _retrieved_but_missed(row: EvaluatedQuestion) -> bool:
    """By the gold passages; where the data names none, by an accepted answer that stands in the documents."""
    if row.num_searches == 0 or _is_right(row):
        return False
    return row.evidence if row.evidence is not None else _read_the_answer(row)


def _read_the_answer(row: EvaluatedQuestion) -> bool:
    read = [piece.text for piece in pieces(row.response) if piece.kind is Kind.DOCUMENTS]
    return any(stands_in(answer, read) for answer in row.answers)


def _searched_and_wrong(row: EvaluatedQuestion) -> bool:
    return row.num_searches > 0


_KINDS: tuple[tuple[str, str, Callable[[EvaluatedQuestion], bool]], ...] = (
    ("Searched and right", "asked, read, and gave the right answer", _searched_and_right),
    (
        "Right, but not from what was read",
        "the right answer stands in no passage: remembered, concluded, or guessed",
        _right_without_support,
    ),
    ("No answer", "searched, and ended without an answer", _no_answer),
    (
        "Retrieved, but missed",
        "what was needed was retrieved (all gold passages, or the accepted answer where none are named), and the "
        "answer is wrong",
        _retrieved_but_missed,
    ),
    ("Searched and wrong", "the evidence was not retrieved, and the answer is wrong", _searched_and_wrong),
    ("Did not search", "answered from memory, or not at all", lambda row: True),
)


# ---------------------------------------------------------------------------------------------------------------------
# Plots


COLOURS = (Colour.SERIES_1, Colour.SERIES_2, Colour.SERIES_3, Colour.SERIES_4)
MEANING = "mean and 95 % interval"


def _plots(report: Report) -> list[Plot]:
    """A plot holds as many systems as there are colours; the tables hold all of them."""
    drawn = list(zip(report.systems, COLOURS, strict=False))
    which = f"{MEANING}; the first {len(COLOURS)} systems" if len(report.systems) > len(COLOURS) else MEANING
    hops = sorted({count for system, _ in drawn for count in system.by_hops}, key=int)
    benchmarks = list(dict.fromkeys(name for system, _ in drawn for name in system.by_benchmark))
    plots = [_score_plot(report)]
    if len(benchmarks) > 1:
        series = [_dots(s.system.name, "f1", [s.by_benchmark.get(name) for name in benchmarks], c) for s, c in drawn]
        plots.append(Plot("F1 by benchmark", which, dots(benchmarks, series, describe="F1 by benchmark")))
    if hops:
        series = [_dots(s.system.name, "f1", [s.by_hops.get(count) for count in hops], c) for s, c in drawn]
        plots.append(
            Plot("F1 by number of hops", which, dots([hop_title(n) for n in hops], series, describe="F1 by hops"))
        )
    return plots + [
        _search_plot(system.system.name, report.questions, colour)
        for system, colour in drawn
        if system.system.search is SearchMode.MULTI_TURN
    ]


def _score_plot(report: Report) -> Plot:
    overall = [system.overall for system in report.systems]
    lines = [line for line in SCORES if line.name in DRAWN and _is_measured(line, overall)]
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


# ---------------------------------------------------------------------------------------------------------------------
# Markdown

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~])")


def render_markdown(report: Report) -> str:
    """Tables as GitHub draws them. Whatever was written by a model or a file is text in it, never markup."""
    names = [system.system.name for system in report.systems]
    sections = [f"# {_text(report.title or report.id)}", _markdown_summary(report)]
    sections += [f"> **Missing:** {_text(note)}" for note in report.missing]
    for title, found in (("Figures", parts(report)), ("By group", group_parts(report))):
        if found:
            sections += [f"## {title}", _markdown_parts(names, found)]
    if outcomes := found_and_right(report):
        rows = [(_text(name), f"{n:,}", figure(x, 3), f"{m:,}", figure(y, 3)) for name, n, x, m, y in outcomes]
        header = ("system", "all evidence retrieved", "cover-EM of these", "not all", "cover-EM of these")
        sections += ["## What came of the evidence", _table(header, rows)]
    if report.comparisons:
        columns = ("a", "b", "figure", "questions", "b − a", "95 % interval", "p")
        sections += ["## Compared on the same questions", _table(columns, map(_comparison_cells, report.comparisons))]
    if report.published:
        sections += ["## Published", *_markdown_published(report)]
    for kind in examples([row for row in report.questions if row.system == shown_system(report).system.name]):
        if kind.title == "Retrieved, but missed":
            sections += [f"## {kind.title}: {kind.count}", "\n".join(_markdown_example(row) for row in kind.rows)]
    sections += ["## Facts", _table(("", ""), ((_text(name), _text(value)) for name, value in facts(report).items()))]
    sections.append(CERTAINTY)
    return "\n\n".join(sections) + "\n"


CERTAINTY = (
    "Small numbers are 95 % intervals: percentile bootstrap over questions, wider for few of them; where all questions "
    "agree, the exact binomial bound. Comparisons are paired; p is two-sided, by sign flips of the questions' "
    "differences, and not corrected for the number of comparisons."
)


def _markdown_summary(report: Report) -> str:
    one = report.systems[0]
    scores = ", ".join(
        f"{line.title} **{figure(getattr(one.overall, line.name), 3)}**"
        + (f" ({certainty(one.overall, line)})" if certainty(one.overall, line) else "")
        for line in SCORES
        if line.name in DRAWN and getattr(one.overall, line.name) is not None
    )
    return f"{_text(one.system.name)}, {one.overall.num_questions:,} questions: {scores}."


def _markdown_parts(names: Sequence[str], found: Sequence[Part]) -> str:
    rows: list[Sequence[str]] = []
    for part in found:
        rows.append((f"**{part.title}**", *("" for _ in names)))
        rows += [(_text(title), *(_markdown_cell(one, line) for one in metrics)) for title, line, metrics in part.rows]
    return _table(("", *map(_text, names)), rows)


def _markdown_cell(metrics: Metrics | None, line: Line) -> str:
    if metrics is None:
        return "–"
    interval = certainty(metrics, line)
    return figure(getattr(metrics, line.name), line.digits) + (f" <sub>{interval}</sub>" if interval else "")


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


def p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _markdown_published(report: Report) -> list[str]:
    rows = [row for row in report.published if row.comparable]
    named = _published_figures(rows)
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


def _markdown_example(row: EvaluatedQuestion) -> str:
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
