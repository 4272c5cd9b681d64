"""A report -> what its tables hold, for the page and for Markdown alike. How they are drawn is left to those two."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from searcher.contracts.report import Metrics, PublishedRow, Report
from searcher.pages import duration, figure, hops_title


@dataclass(frozen=True)
class Line:
    """One figure of a report's tables."""

    name: str
    """Its name in Metrics."""
    title: str
    digits: int = 3


F1 = Line("f1", "F1")
SCORES = (
    Line("em", "EM"),
    Line("cover_em", "cover-EM"),
    Line("cover_em_strict", "cover-EM, words in a row"),
    F1,
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


class Row(NamedTuple):
    """One figure of all systems."""

    title: str
    line: Line
    """Which of the metrics is meant."""
    columns: tuple[Metrics | None, ...]
    """One per system; None where it has none."""


@dataclass(frozen=True)
class Part:
    """A heading inside a table, and what stands under it."""

    title: str
    rows: tuple[Row, ...]


class Outcome(NamedTuple):
    """What became of a system's questions, by whether all their evidence was retrieved."""

    system: str
    num_found: int
    cover_em_found: float
    num_lost: int
    cover_em_lost: float


def parts(report: Report) -> list[Part]:
    """The figures over all questions, one column per system, without those that nobody measured."""
    found = []
    for title, lines in (("Score", SCORES), ("Searching", SEARCHING), ("Evidence", EVIDENCE)):
        everywhere = tuple(system.overall for system in report.systems)
        rows = tuple(Row(line.title, line, everywhere) for line in lines if is_measured(line, everywhere))
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
                Row(f"{name}{_count(metrics)}", line, metrics)
                for name, metrics in columns.items()
                if is_measured(line, metrics)
            )
            if rows:
                found.append(Part(f"{line.title} by benchmark", rows))
    hops = sorted({count for system in report.systems for count in system.by_hops}, key=int)
    if hops:
        rows = tuple(
            Row(f"{hops_title(count)}{_count(metrics)}", F1, metrics)
            for count in hops
            for metrics in [tuple(system.by_hops.get(count) for system in report.systems)]
        )
        found.append(Part("F1 by number of hops", rows))
    return found


def _count(metrics: Sequence[Metrics | None]) -> str:
    counts = {one.num_questions for one in metrics if one is not None}
    return f" ({counts.pop():,})" if len(counts) == 1 else ""


def is_measured(line: Line, metrics: Iterable[Metrics | None]) -> bool:
    return any(one is not None and getattr(one, line.name) is not None for one in metrics)


def found_and_right(report: Report) -> list[Outcome]:
    """Per system whose questions name their evidence."""
    outcomes = []
    for system in report.systems:
        rows = [row for row in report.questions if row.system == system.system.name and row.evidence is not None]
        found, lost = [[row.cover_em for row in rows if row.evidence is found] for found in (True, False)]
        if found or lost:
            outcomes.append(Outcome(system.system.name, len(found), _mean(found), len(lost), _mean(lost)))
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


def published_figures(rows: Iterable[PublishedRow]) -> list[str]:
    """Names of those that any row has, in the order of our own."""
    named = {name for row in rows for name in row.figures}
    return [line.name for line in SCORES if line.name in named]
