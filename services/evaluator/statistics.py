"""Evaluated questions -> means over them: by system, benchmark and hop count; and systems against each other.

A question's figures are sums of values and of ones, so partial results can be added up where they are stored.
Intervals and tests need every question, so a report has them and a running evaluation does not.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TypeVar

import numpy as np

from searcher.contracts.report import Comparison, EvaluatedQuestion, Interval, Metrics, System, SystemReport
from services.evaluator.resampling import Values, mean_intervals, mean_of_means_interval, sign_flip_p_value

Key = TypeVar("Key")

RATE = (0.0, 1.0)
COMPARED = ("em", "cover_em", "f1", "judge")
"""Figures that systems are compared by; the judge's where both systems were judged."""


@dataclass(frozen=True)
class Figure:
    of: Callable[[EvaluatedQuestion], float | None]
    """What a question says about it; None if it says nothing, and then it does not count in the mean."""
    bounds: tuple[float, float] | None = RATE
    """What one question can say at least and at most, where that is known."""
    of_some: bool = False
    """Whether there are questions that say nothing about it."""


def _number(value: bool | int | None) -> float | None:
    return None if value is None else float(value)


FIGURES: Mapping[str, Figure] = {
    "em": Figure(lambda row: row.em),
    "cover_em": Figure(lambda row: row.cover_em),
    "cover_em_strict": Figure(lambda row: row.cover_em_strict),
    "f1": Figure(lambda row: row.f1),
    "judge": Figure(lambda row: _number(row.judge), of_some=True),
    "reward": Figure(lambda row: row.reward, bounds=None),
    "search_rate": Figure(lambda row: float(row.num_searches > 0)),
    "searches_mean": Figure(lambda row: float(row.num_searches), bounds=None),
    "format_rate": Figure(lambda row: float(row.format_ok)),
    "answered_rate": Figure(lambda row: float(row.answer is not None)),
    "evidence_rate": Figure(lambda row: _number(row.evidence), of_some=True),
    "evidence_recall": Figure(lambda row: row.evidence_recall, of_some=True),
    "evidence_search_mean": Figure(lambda row: _number(row.evidence_search), bounds=None, of_some=True),
    "supported_rate": Figure(lambda row: _number(row.supported), of_some=True),
    "response_tokens_mean": Figure(lambda row: float(row.num_tokens), bounds=None),
}
"""Named as in Metrics."""


def figures(row: EvaluatedQuestion) -> dict[str, float]:
    """What one question adds to the sums that `metrics` divides. The same names in the same order for every row."""
    sums = {"num_questions": 1.0}
    for name, figure in FIGURES.items():
        value = figure.of(row)
        sums[name] = value or 0.0
        if figure.of_some:
            sums[_known(name)] = float(value is not None)
    return sums


def added_up(rows: Sequence[EvaluatedQuestion]) -> dict[str, float]:
    """The figures of at least one row -> the sums that `metrics` divides."""
    table = [figures(row) for row in rows]
    return {name: math.fsum(row[name] for row in table) for name in table[0]}


def metrics(sums: Mapping[str, float]) -> Metrics:
    """Sums over at least one question -> means, without intervals."""
    assert sums["num_questions"] > 0, sums
    means = {name: sums[name] / sums[_known(name)] if sums[_known(name)] else None for name in FIGURES}
    counts = {"num_questions": round(sums["num_questions"]), "num_judged": round(sums[_known("judge")])}
    return Metrics.model_validate({**counts, **means})


def summarise(rows: Sequence[EvaluatedQuestion]) -> Metrics:
    """At least one row -> means with their intervals."""
    return metrics(added_up(rows)).model_copy(update={"intervals": _intervals(rows)})


def macro_average(groups: Mapping[str, Sequence[EvaluatedQuestion]]) -> Metrics:
    """Mean over groups of their means: a small benchmark counts as much as a large one."""
    parts = [metrics(added_up(rows)) for rows in groups.values()]
    means: dict[str, float] = {}
    intervals: dict[str, Interval] = {}
    for name, figure in FIGURES.items():
        values = [values_of(rows, name) for rows in groups.values()]
        known = [group for group in values if len(group)]
        if known:
            means[name] = math.fsum(float(group.mean()) for group in known) / len(known)
            if interval := mean_of_means_interval(known, figure.bounds):
                intervals[name] = interval
    counts = {name: sum(getattr(part, name) for part in parts) for name in ("num_questions", "num_judged")}
    return Metrics.model_validate({**counts, **means, "intervals": intervals})


def values_of(rows: Iterable[EvaluatedQuestion], name: str) -> Values:
    """One figure of those questions that say something about it."""
    values = (FIGURES[name].of(row) for row in rows)
    return np.array([value for value in values if value is not None], dtype=np.float64)


def system_reports(systems: Sequence[System], rows: Sequence[EvaluatedQuestion]) -> tuple[SystemReport, ...]:
    """One per system, in the order asked."""
    return tuple(_system_report(system, [row for row in rows if row.system == system.name]) for system in systems)


def comparisons(systems: Sequence[System], rows: Sequence[EvaluatedQuestion]) -> tuple[Comparison, ...]:
    """Every two systems on the questions that both answered; the one that was asked for first is `b`.

    The first is the policy, as a rule, so differences say what it gains over the others.
    """
    by_system = {system.name: [row for row in rows if row.system == system.name] for system in systems}
    return tuple(
        comparison
        for first, second in combinations(by_system, 2)
        for comparison in compare(second, by_system[second], first, by_system[first])
    )


def compare(
    a: str, a_rows: Iterable[EvaluatedQuestion], b: str, b_rows: Iterable[EvaluatedQuestion]
) -> list[Comparison]:
    """One row per figure, over the questions that both answered; [] if there are none."""
    before = {(row.benchmark, row.id): row for row in a_rows}
    pairs = [(before[key], row) for row in b_rows if (key := (row.benchmark, row.id)) in before]
    found = (_comparison(a, b, name, pairs) for name in COMPARED)
    return [comparison for comparison in found if comparison is not None]


def _comparison(
    a: str, b: str, name: str, pairs: Sequence[tuple[EvaluatedQuestion, EvaluatedQuestion]]
) -> Comparison | None:
    """None where no question was measured for both."""
    figure = FIGURES[name]
    values = [(figure.of(before), figure.of(after)) for before, after in pairs]
    differences_Q = np.array([y - x for x, y in values if x is not None and y is not None], dtype=np.float64)
    if not len(differences_Q):
        return None
    (interval,) = mean_intervals(differences_Q[:, None], [(-1.0, 1.0)])
    assert interval is not None, name
    return Comparison(
        a=a,
        b=b,
        metric=name,
        num_questions=len(differences_Q),
        difference=float(differences_Q.mean()),
        interval=interval,
        p_value=sign_flip_p_value(differences_Q),
    )


def _system_report(system: System, rows: Sequence[EvaluatedQuestion]) -> SystemReport:
    by_benchmark = _grouped((row.benchmark, row) for row in rows if row.benchmark)
    by_hops = _grouped((row.hops, row) for row in rows if row.hops is not None)
    return SystemReport(
        system=system,
        overall=summarise(rows),
        by_benchmark={name: summarise(group) for name, group in by_benchmark.items()},
        by_hops={str(hops): summarise(by_hops[hops]) for hops in sorted(by_hops)},
        macro=macro_average(by_benchmark) if len(by_benchmark) > 1 else None,
    )


def _grouped(rows: Iterable[tuple[Key, EvaluatedQuestion]]) -> dict[Key, list[EvaluatedQuestion]]:
    groups: dict[Key, list[EvaluatedQuestion]] = {}
    for key, row in rows:
        groups.setdefault(key, []).append(row)
    return groups


def _intervals(rows: Sequence[EvaluatedQuestion]) -> dict[str, Interval]:
    """Of the figures that have one. Figures that the same questions speak about share their resamples."""
    by_rows: dict[tuple[bool, ...], list[tuple[str, list[float]]]] = {}
    for name, figure in FIGURES.items():
        values = [figure.of(row) for row in rows]
        known = tuple(value is not None for value in values)
        by_rows.setdefault(known, []).append((name, [value for value in values if value is not None]))
    found: dict[str, Interval | None] = {}
    for known, columns in by_rows.items():
        if any(known):
            names = [name for name, _ in columns]
            values_QF = np.array([values for _, values in columns], dtype=np.float64).T
            found |= zip(names, mean_intervals(values_QF, [FIGURES[name].bounds for name in names]), strict=True)
    return {name: interval for name in FIGURES if (interval := found.get(name)) is not None}


def _known(name: str) -> str:
    """Which sum holds the number of questions that say something about the figure."""
    return f"{name}:known" if FIGURES[name].of_some else "num_questions"
