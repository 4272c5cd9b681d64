"""What the demo's page shows, and that it shows it as text."""

import json
import math
from pathlib import Path
from typing import Any

from demo.report import COLUMNS, ROWS, instructive_pairs, read_metrics, render, smoothed
from searcher.contracts.question import RolloutPlan
from searcher.contracts.report import POLICY, EvaluatedQuestion, Metrics, Report, SystemReport
from searcher.pages.plots import Colour

METRICS = Metrics(
    num_questions=4,
    em=0,
    cover_em=0,
    cover_em_strict=0,
    f1=0,
    reward=0,
    search_rate=0,
    searches_mean=0,
    format_rate=0,
    answered_rate=0,
    response_tokens_mean=0,
)


def question(question_id: str, *, hops: int, f1: float, num_searches: int, text: str = "") -> EvaluatedQuestion:
    return EvaluatedQuestion(
        id=question_id,
        question=text or f"Who is {question_id}?",
        answers=("yes",),
        hops=hops,
        answer="yes",
        em=f1,
        cover_em=f1,
        cover_em_strict=f1,
        f1=f1,
        reward=f1,
        format_ok=True,
        num_searches=num_searches,
        queries=(),
        evidence=None,
        num_tokens=1,
        stop_reason="answered",
        response="<script>alert(1)</script> <|begin_of_query|> who <|end_of_query|>",
    )


def report(*questions: EvaluatedQuestion) -> Report:
    return Report(
        id="r",
        title="",
        weights="w",
        plan=RolloutPlan(),
        rules="searcher",
        created_at="",
        seconds=1,
        systems=(SystemReport(system=POLICY, overall=METRICS, by_benchmark={}, by_hops={}),),
        questions=questions,
    )


BEFORE = report(*(question(name, hops=len(name), f1=0.0, num_searches=0) for name in ("a", "b", "cc", "dd", "ee")))
AFTER = report(
    question("a", hops=1, f1=0.0, num_searches=1),
    question("b", hops=1, f1=1.0, num_searches=1),
    question("cc", hops=2, f1=1.0, num_searches=1),
    question("dd", hops=2, f1=1.0, num_searches=2, text="Who is the mother of X?"),
    question("ee", hops=2, f1=1.0, num_searches=2, text="Who is the mayor of Y?"),
)


def test_pairs_show_what_was_learned_and_what_was_not() -> None:
    pairs = instructive_pairs(BEFORE, AFTER)

    assert [pair.after.id for pair in pairs] == ["b", "dd", "ee", "a"]
    assert all(pair.before.id == pair.after.id for pair in pairs)
    assert pairs[-1].heading == "Still wrong"


def test_a_repeated_step_counts_as_it_was_the_last_time(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ({"step": 1}, {"step": 2}, {"step": 2, "reward": 1.0})))

    assert read_metrics(path) == [{"step": 1}, {"step": 2, "reward": 1.0}]


def test_a_page_is_written_from_a_run_and_its_reports(tmp_path: Path) -> None:
    rows = [
        {"step": step, "stage": "stage1" if step < 5 else "stage2", "reward": step / 10, "f1_1hop": 0.1}
        | ({"eval/f1_1hop": 0.2} if step == 5 else {})
        for step in range(1, 11)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    figures = dict.fromkeys(ROWS.values(), 0.5)
    summary: dict[str, Any] = {**dict.fromkeys(COLUMNS, figures), "seconds": {"train": 75.0}}

    render(tmp_path, BEFORE, AFTER, summary, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()

    assert "<script" not in page and "&lt;script&gt;" in page
    assert "stage2" in page and "1 min 15 s" in page and "Still wrong" in page


def test_curves_of_two_stages_are_not_averaged_with_each_other() -> None:
    rows = [{"step": step, "stage": "one" if step < 3 else "two", "reward": float(step < 3)} for step in range(6)]

    _, mean = smoothed(rows, "reward", Colour.SERIES_1)

    assert list(mean.y[:3]) == [1.0, 1.0, 1.0]
    assert math.isnan(mean.y[3])
    assert list(mean.y[4:7]) == [0.0, 0.0, 0.0]
