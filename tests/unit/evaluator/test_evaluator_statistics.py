"""Means by hand."""

from collections.abc import Callable

import pytest

from searcher.contracts.report import EvaluatedQuestion
from services.evaluator.statistics import figures, metrics, summarise, summarise_by_hops

Row = Callable[..., EvaluatedQuestion]


def test_figures_are_means_over_questions(row: Row) -> None:
    rows = [
        row("a", em=1.0, f1=1.0, cover_em=1.0, reward=1.0, num_searches=2, num_tokens=40),
        row("b", em=0.0, f1=0.5, cover_em=1.0, reward=-1.0, num_searches=1, num_tokens=20, format_ok=False),
        row("c", em=0.0, f1=0.0, cover_em=0.0, reward=0.0, num_searches=0, num_tokens=0, answer=None),
        row("d", em=0.0, f1=0.0, cover_em=0.0, reward=0.0, num_searches=0, num_tokens=20),
    ]

    result = summarise(rows)

    assert result.num_questions == 4
    assert (result.em, result.f1, result.cover_em, result.reward) == (0.25, 0.375, 0.5, 0.0)
    assert (result.search_rate, result.searches_mean) == (0.5, 0.75)
    assert (result.format_rate, result.answered_rate, result.response_tokens_mean) == (0.75, 0.75, 20.0)


def test_evidence_counts_only_where_gold_passages_are_known(row: Row) -> None:
    rows = [row("a", evidence=True), row("b", evidence=False), row("c", evidence=None)]

    assert summarise(rows).evidence_rate == 0.5
    assert summarise(rows[2:]).evidence_rate is None


def test_questions_without_a_hop_count_belong_to_no_hop_group(row: Row) -> None:
    groups = summarise_by_hops([row("a", hops=2, f1=1.0), row("b", hops=1, f1=0.5), row("c", hops=None, f1=0.0)])

    assert {hops: group.f1 for hops, group in groups.items()} == {"1": 0.5, "2": 1.0}
    assert list(groups) == ["1", "2"]


def test_sums_of_parts_give_the_same_figures_as_the_whole(row: Row) -> None:
    first, second = figures(row("a", f1=0.25, num_searches=3)), figures(row("b", f1=0.75, answer=None))

    added = metrics({name: first[name] + second[name] for name in first})

    assert added == summarise([row("a", f1=0.25, num_searches=3), row("b", f1=0.75, answer=None)])


def test_a_report_without_questions_has_no_means(row: Row) -> None:
    with pytest.raises((AssertionError, IndexError)):
        summarise([])
