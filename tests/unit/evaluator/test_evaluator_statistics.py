"""Means by hand, and systems against each other."""

from collections.abc import Callable

import pytest

from searcher.contracts.report import EvaluatedQuestion, Metrics, System
from services.evaluator.statistics import (
    FIGURES,
    compare,
    comparisons,
    figures,
    macro_average,
    metrics,
    summarise,
    system_reports,
)

Row = Callable[..., EvaluatedQuestion]


def test_figures_are_means_over_questions(row: Row) -> None:
    rows = [
        row("a", em=1.0, f1=1.0, cover_em=1.0, cover_em_strict=1.0, reward=1.0, num_searches=2, num_tokens=40),
        row("b", em=0.0, f1=0.5, cover_em=1.0, cover_em_strict=0.0, reward=-1.0, num_searches=1, format_ok=False),
        row("c", em=0.0, f1=0.0, cover_em=0.0, cover_em_strict=0.0, reward=0.0, num_tokens=0, answer=None),
        row("d", em=0.0, f1=0.0, cover_em=0.0, cover_em_strict=0.0, reward=0.0, num_tokens=30),
    ]

    result = summarise(rows)

    assert result.num_questions == 4
    assert (result.em, result.f1, result.cover_em, result.cover_em_strict) == (0.25, 0.375, 0.5, 0.25)
    assert (result.reward, result.search_rate, result.searches_mean) == (0.0, 0.5, 0.75)
    assert (result.format_rate, result.answered_rate, result.response_tokens_mean) == (0.75, 0.75, 20.0)


def test_evidence_counts_only_where_gold_passages_are_known(row: Row) -> None:
    rows = [
        row("a", evidence=True, evidence_recall=1.0, evidence_search=2),
        row("b", evidence=True, evidence_recall=1.0, evidence_search=1),
        row("c", evidence=False, evidence_recall=0.5),
        row("d", evidence=False, evidence_recall=0.0),
        row("e", evidence=None),
    ]

    result = summarise(rows)

    assert (result.evidence_rate, result.evidence_recall, result.evidence_search_mean) == (0.5, 0.625, 1.5)
    nothing = summarise(rows[4:])
    assert (nothing.evidence_rate, nothing.evidence_recall, nothing.evidence_search_mean) == (None, None, None)


def test_verdicts_and_support_count_only_where_there_are_any(row: Row) -> None:
    rows = [row("a", judge=True, supported=False), row("b", judge=False), row("c", judge=True), row("d")]

    result = summarise(rows)

    assert (result.judge, result.num_judged, result.supported_rate) == (pytest.approx(2 / 3), 3, 0.0)
    assert (summarise(rows[3:]).judge, summarise(rows[3:]).num_judged) == (None, 0)


def test_sums_of_parts_give_the_same_figures_as_the_whole(row: Row) -> None:
    rows = [row("a", f1=0.25, num_searches=3, judge=True), row("b", f1=0.75, answer=None, evidence=True)]
    first, second = map(figures, rows)

    added = metrics({name: first[name] + second[name] for name in first})

    assert added == summarise(rows).model_copy(update={"intervals": {}})


def test_every_mean_has_an_interval_around_it(row: Row) -> None:
    rows = [
        row(
            str(i), em=i % 2, cover_em=i % 2, cover_em_strict=i % 2, f1=i / 20, judge=i % 3 == 0, reward=i / 10 - 1,
            num_searches=i % 4, format_ok=i > 2, answer="yes" if i else None, evidence=i % 2 == 0,
            evidence_recall=i % 2, evidence_search=1 + i % 4 if i % 2 == 0 else None, supported=i % 5 == 0,
            num_tokens=i,
        )
        for i in range(20)
    ]  # fmt: skip

    result = summarise(rows)

    assert set(result.intervals) == set(FIGURES)
    assert set(FIGURES) == set(Metrics.model_fields) - {"num_questions", "num_judged", "intervals"}
    for name, interval in result.intervals.items():
        assert interval.low < getattr(result, name) < interval.high, name


def test_figures_nobody_measured_have_no_interval(row: Row) -> None:
    intervals = summarise([row("a"), row("b")]).intervals

    assert "judge" not in intervals and "evidence_rate" not in intervals
    assert "searches_mean" not in intervals  # twice 0: nothing is known about how it varies
    assert intervals["em"].low == pytest.approx(0.025**0.5)


def test_a_system_is_reported_in_all_and_by_benchmark_and_hops(row: Row) -> None:
    policy, naive = System(name="policy"), System(name="no search")
    rows = [
        row("a", hops=2, f1=1.0, benchmark="x"),
        row("b", hops=1, f1=0.5, benchmark="x"),
        row("a", hops=None, f1=0.0, benchmark="y"),
        row("a", hops=2, f1=0.25, benchmark="x", system="no search"),
    ]

    of_policy, of_naive = system_reports([policy, naive], rows)

    assert (of_policy.overall.f1, of_naive.overall.f1) == (0.5, 0.25)
    assert {name: part.f1 for name, part in of_policy.by_benchmark.items()} == {"x": 0.75, "y": 0.0}
    assert {hops: part.f1 for hops, part in of_policy.by_hops.items()} == {"1": 0.5, "2": 1.0}
    assert list(of_policy.by_hops) == ["1", "2"]
    assert of_policy.macro is not None and of_policy.macro.f1 == 0.375
    assert of_naive.macro is None


def test_questions_of_no_benchmark_have_no_benchmark_figures(row: Row) -> None:
    (only,) = system_reports([System(name="policy")], [row("a"), row("b")])

    assert (only.by_benchmark, only.macro) == ({}, None)


def test_a_small_benchmark_counts_as_much_as_a_large_one(row: Row) -> None:
    large = [row(str(i), em=0.0, judge=i == 0) for i in range(9)]
    small = [row("a", em=1.0)]

    result = macro_average({"large": large, "small": small})

    assert (result.num_questions, result.em) == (10, 0.5)
    assert (result.num_judged, result.judge) == (9, pytest.approx(1 / 9))  # of the one benchmark that was judged


def test_systems_are_compared_question_by_question(row: Row) -> None:
    a = [row(str(i), em=float(i < 2), f1=0.5, cover_em=1.0) for i in range(8)]
    b = [row(str(i), em=float(i < 7), f1=0.75, cover_em=1.0) for i in reversed(range(8))]

    by_metric = {found.metric: found for found in compare("before", a, "after", b)}

    assert set(by_metric) == {"em", "cover_em", "f1"}
    em, cover_em, f1 = by_metric["em"], by_metric["cover_em"], by_metric["f1"]
    assert (em.a, em.b, em.num_questions, em.difference) == ("before", "after", 8, 0.625)
    assert em.p_value == pytest.approx(2 / 2**5)
    assert em.interval.low < 0.625 < em.interval.high
    assert (f1.difference, f1.p_value) == (0.25, pytest.approx(2 / 2**8))
    assert (cover_em.difference, cover_em.p_value) == (0.0, 1.0)
    assert cover_em.interval.low < 0.0 < cover_em.interval.high


def test_verdicts_are_compared_where_both_were_judged(row: Row) -> None:
    a = [row("1", judge=True), row("2", judge=True), row("3", judge=None)]
    b = [row("1", judge=False), row("2", judge=None), row("3", judge=True)]

    (judge,) = [found for found in compare("a", a, "b", b) if found.metric == "judge"]

    assert (judge.num_questions, judge.difference) == (1, -1.0)


def test_only_shared_questions_are_compared(row: Row) -> None:
    a = [row("1", benchmark="x", em=0.0), row("2", benchmark="x", em=0.0)]
    b = [row("1", benchmark="x"), row("2", benchmark="y"), row("3", benchmark="x")]

    assert {found.num_questions for found in compare("a", a, "b", b)} == {1}
    assert compare("a", a, "b", b[1:]) == []


def test_differences_say_what_the_first_system_gains(row: Row) -> None:
    systems = [System(name="policy"), System(name="no search"), System(name="one search")]
    rows = [row("1", system="policy"), row("1", system="no search", em=0.0), row("1", system="one search", em=0.0)]

    found = [(one.a, one.b, one.difference) for one in comparisons(systems, rows) if one.metric == "em"]

    assert found == [("no search", "policy", 1.0), ("one search", "policy", 1.0), ("one search", "no search", 0.0)]


def test_a_report_without_questions_has_no_means() -> None:
    with pytest.raises((AssertionError, IndexError)):
        summarise([])
