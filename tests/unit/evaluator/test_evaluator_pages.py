"""Untrusted text on a page is text, and pages need nothing from elsewhere."""

import datetime as dt
import re
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from searcher.contracts.question import RolloutPlan
from searcher.contracts.report import EvaluatedQuestion, Report
from searcher.pages.plots import Colour, Curve, Mark, bars, curves
from searcher.qa.markup import Kind, Piece, mark_up, pieces
from searcher.qa.tags import TAGS
from services.evaluator.report import examples, render
from services.evaluator.statistics import summarise, summarise_by_hops

Row = Callable[..., EvaluatedQuestion]

RESPONSE = (
    "I need it. <|begin_of_query|> Iron Crown <|end_of_query|>"
    "\n\n<|begin_of_documents|>\n(1)Title: Iron Crown. A film.\n(2)Title: Crown.\n<|end_of_documents|>\n\n"
    "So it is. </think>\n\n<answer> yes </answer>"
)


def report(*rows: EvaluatedQuestion) -> Report:
    return Report(
        id="e",
        title="Held-out <world>",
        weights="demo-1f0c9a2b-000042",
        plan=RolloutPlan(temperature=0.0),
        rules="searcher",
        created_at=dt.datetime(2026, 1, 1, tzinfo=dt.UTC).isoformat(),
        seconds=1.5,
        overall=summarise(rows),
        by_hops=summarise_by_hops(rows),
        questions=rows,
    )


def test_a_response_is_cut_where_its_tags_are() -> None:
    assert [piece.kind for piece in pieces(RESPONSE)] == [
        Kind.THINK,
        Kind.QUERY,
        Kind.THINK,
        Kind.DOCUMENTS,
        Kind.THINK,
        Kind.ANSWER,
    ]


def test_a_query_that_is_never_closed_reaches_the_next_tag_that_opens() -> None:
    found = pieces("a <|begin_of_query|> b <answer> c </answer> d")

    assert found == [
        Piece(Kind.THINK, "a "),
        Piece(Kind.QUERY, "<|begin_of_query|> b "),
        Piece(Kind.ANSWER, "<answer> c </answer>"),
        Piece(Kind.THINK, " d"),
    ]


@given(st.lists(st.sampled_from([*TAGS, "text", "<script>", "\n\n", "&amp;", '"'])))
def test_nothing_is_lost_and_everything_is_escaped(parts: list[str]) -> None:
    response = "".join(parts)

    html = mark_up(response)

    assert "".join(piece.text for piece in pieces(response)) == response
    assert not re.search(r"<(?!/?(span|i)\b)", html)
    assert html.count("<span") == html.count("</span>")


def test_a_plot_takes_its_colours_and_its_font_from_the_page() -> None:
    line = Curve("reward", [0, 1, 2], [0.0, 0.5, 1.0], Colour.SERIES_1)

    svg = curves([line], describe='Reward "over" steps', marks=[Mark(1, "stage 2")], y_range=(0, 1))

    assert "var(--series-1)" in svg and "stage 2" in svg
    assert 'aria-label="Reward &quot;over&quot; steps"' in svg
    assert "#0000" not in svg and "DejaVu" not in svg and "http" not in svg.replace("http://www.w3.org", "")


def test_bars_carry_their_values() -> None:
    svg = bars(["1 hop", "2 hops"], [0.25, 1.0], describe="F1", y_range=(0, 1))

    assert ">0.25<" in svg and ">1.00<" in svg


def test_a_page_shows_untrusted_text_as_text(row: Row) -> None:
    evil = "<script>alert(1)</script><img src=x onerror=y>"

    page = render(report(row("a", question=evil, answer=evil, answers=(evil,), response=evil, stop_reason="answered")))

    assert "<script" not in page and "<img" not in page
    assert "Held-out &lt;world&gt;" in page


def test_a_page_needs_nothing_from_elsewhere(row: Row) -> None:
    page = render(report(row("a", num_searches=2, hops=2, response=RESPONSE), row("b", hops=1)))

    addresses = set(re.findall(r"https?://[^\"' )]+", page))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert not re.search(r"<(script|link|iframe)\b", page)


def test_every_outcome_is_shown_and_counted_once(row: Row) -> None:
    rows = (
        row("right", num_searches=1),
        row("missed", num_searches=1, evidence=True, em=0.0, cover_em=0.0),
        row("wrong", num_searches=1, evidence=False, em=0.0, cover_em=0.0),
        row("idle", num_searches=0, em=0.0, cover_em=0.0),
    )

    assert {kind.title: [found.id for found in kind.rows] for kind in examples(rows)} == {
        "Searched and right": ["right"],
        "Retrieved, but missed": ["missed"],
        "Searched and wrong": ["wrong"],
        "Did not search": ["idle"],
    }
