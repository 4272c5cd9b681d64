"""Untrusted text on a page is text, and pages need nothing from elsewhere."""

import datetime as dt
import re
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from searcher.contracts.question import RolloutPlan
from searcher.contracts.report import BASELINES, POLICY, EvaluatedQuestion, PublishedRow, Report, System
from searcher.pages.plots import Colour, Curve, Dots, Mark, bars, curves, dots
from searcher.qa.markup import Kind, Piece, mark_up, pieces
from searcher.qa.tags import TAGS
from services.evaluator.report.examples import examples
from services.evaluator.report.markdown import render_markdown
from services.evaluator.report.page import render
from services.evaluator.report.tables import found_and_right
from services.evaluator.statistics import comparisons, system_reports

Row = Callable[..., EvaluatedQuestion]

RESPONSE = (
    "I need it. <|begin_of_query|> Iron Crown <|end_of_query|>"
    "\n\n<|begin_of_documents|>\n(1)Title: Iron Crown. A film.\n(2)Title: Crown.\n<|end_of_documents|>\n\n"
    "So it is. </think>\n\n<answer> yes </answer>"
)


def report(
    *rows: EvaluatedQuestion,
    systems: tuple[System, ...] = (POLICY,),
    published: tuple[PublishedRow, ...] = (),
    missing: tuple[str, ...] = (),
) -> Report:
    return Report(
        id="e",
        title="Held-out <world>",
        weights="demo-1f0c9a2b-000042",
        plan=RolloutPlan(temperature=0.0),
        rules="searcher",
        created_at=dt.datetime(2026, 1, 1, tzinfo=dt.UTC).isoformat(),
        seconds=1.5,
        corpora={"wiki": "0123456789abcdef"},
        systems=system_reports(systems, rows),
        comparisons=comparisons(systems, rows),
        published=published,
        missing=missing,
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
    wrong = {"em": 0.0, "cover_em": 0.0}
    read_it = "x\n\n<|begin_of_documents|>\n(1)The crown is old gold.\n<|end_of_documents|>\n\n</think>"
    rows = (
        row("right", num_searches=1, supported=True),
        row("yes", num_searches=1, supported=None),
        row("remembered", num_searches=1, supported=False),
        row("judged", num_searches=2, judge=True, supported=False, **wrong),
        row("silent", num_searches=1, answer=None, evidence=True, **wrong),
        row("missed", num_searches=1, evidence=True, **wrong),
        row("read", num_searches=1, answers=("Old gold",), response=read_it, **wrong),
        row("wrong", num_searches=1, evidence=False, answers=("Old gold",), response=read_it, **wrong),
        row("idle", num_searches=0, **wrong),
    )

    assert {kind.title: [found.id for found in kind.rows] for kind in examples(rows)} == {
        "Searched and right": ["right", "yes"],
        "Right, but not from what was read": ["judged", "remembered"],
        "No answer": ["silent"],
        "Retrieved, but missed": ["missed", "read"],
        "Searched and wrong": ["wrong"],
        "Did not search": ["idle"],
    }


def test_dots_have_whiskers_only_where_there_is_an_interval() -> None:
    series = [
        Dots("F1", [0.5, None], [(0.25, 0.75), None], Colour.SERIES_1),
        Dots("EM", [0.5, 0.1], [None, None], Colour.SERIES_2),
    ]

    svg = dots(["policy", "a system with quite a long name"], series, describe="Scores")

    assert ">policy<" in svg and ">a system with quite a…<" in svg and ">EM<" in svg
    assert 'aria-label="Scores"' in svg


def test_the_evidence_is_set_against_what_came_of_it(row: Row) -> None:
    rows = [
        row("a", evidence=True),
        row("b", evidence=True, cover_em=0.0),
        row("c", evidence=False, cover_em=0.0),
        row("d", evidence=None),
    ]

    assert found_and_right(report(*rows)) == [("policy", 2, 0.5, 1, 0.0)]
    assert found_and_right(report(rows[3])) == []


def whole_report(row: Row) -> Report:
    systems = (POLICY, *BASELINES)
    rows = [
        row(
            f"{name}{i}",
            benchmark=name,
            system=system.name,
            hops=1 + i,
            em=float(i == place),
            f1=float(i == place),
            cover_em=float(i == place),
            num_searches=i if system is POLICY else 0,
            evidence=i == 0,
            evidence_recall=0.5,
            judge=i == 0,
            response=RESPONSE,
        )
        for place, system in enumerate(systems)
        for name in ("hotpotqa", "musique")
        for i in range(3)
    ]
    stands = PublishedRow(
        benchmark="hotpotqa",
        method="IRCoT | *GPT*",
        source="A paper, Table 2",
        figures={"cover_em": 0.434},
        comparable=True,
    )
    differs = PublishedRow(
        benchmark="musique",
        method="all methods",
        source="A paper",
        figures={},
        comparable=False,
        why_not="k is 3, published 5",
    )
    return report(*rows, systems=systems, published=(stands, differs), missing=("The judge's verdict on 2 answers.",))


def test_a_page_holds_everything_a_report_says(row: Row) -> None:
    page = " ".join(render(whole_report(row)).split())

    for text in (
        "The judge&#39;s verdict on 2 answers.",
        "F1 by benchmark",
        "F1 by number of hops",
        "mean of the benchmarks",
        "policy − no search, 6 questions",
        "What came of the evidence",
        "IRCoT | *GPT*",
        "policy (here)",
        "the figures of A paper may not stand beside these. K is 3, published 5.",
        "wiki (0123456789ab)",
    ):
        assert text in page, text
    assert page.count("Searches: ") == 1  # the baselines have no choice


def test_markdown_holds_everything_a_report_says(row: Row) -> None:
    text = render_markdown(whole_report(row))

    lines = text.splitlines()
    assert lines[0] == "# Held-out &lt;world&gt;"
    for line in (
        "> **Missing:** The judge's verdict on 2 answers.",
        "|  | policy | no search | one search |",
        "| **Score** |  |  |  |",
        "## What came of the evidence",
        "| hotpotqa | IRCoT \\| \\*GPT\\* | 0.434 | A paper, Table 2 |  |",
        "- musique: A paper may not stand beside these figures: k is 3, published 5.",
        "| corpus (index) | wiki (0123456789ab) |",
    ):
        assert line in lines, line
    assert "| no search | policy | F1 | 6 | +0.000 |" in text
    assert re.search(r"^\| EM \| 0\.333 <sub>0\.\d{3}–0\.\d{3}</sub> \|", text, re.MULTILINE)


def test_every_markdown_table_is_rectangular(row: Row) -> None:
    tables = re.findall(r"(?:^\|.*\n)+", render_markdown(whole_report(row)) + "\n", re.MULTILINE)

    assert len(tables) == 6
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1, table


def test_untrusted_text_is_text_in_markdown(row: Row) -> None:
    evil = "<b>[x](http://y)</b> | `a` *b*\n# c"

    text = render_markdown(report(row("a", question=evil, answers=(evil,), answer=evil, num_searches=1, evidence=True,
                                      em=0.0, cover_em=0.0, queries=(evil,))))  # fmt: skip

    safe = "&lt;b&gt;\\[x\\](http://y)&lt;/b&gt; \\| \\`a\\` \\*b\\* \\# c"
    assert f"- {safe} Answered {safe}; accepted: {safe}. Asked: {safe}." in text
