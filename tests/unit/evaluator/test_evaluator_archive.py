"""Reports on disk are whole or absent."""

from pathlib import Path

import pytest

from searcher.contracts.question import RolloutPlan
from searcher.contracts.report import POLICY, EvaluationState, Metrics, Report, SystemReport
from services.evaluator.archive import Archive

METRICS = Metrics(
    num_questions=0,
    em=0,
    cover_em=0,
    cover_em_strict=0,
    f1=0.5,
    reward=0,
    search_rate=0,
    searches_mean=0,
    format_rate=0,
    answered_rate=0,
    response_tokens_mean=0,
)
REPORT = Report(
    id="e",
    title="",
    weights="w",
    plan=RolloutPlan(),
    rules="searcher",
    created_at="2026-01-01T00:00:00+00:00",
    seconds=1.0,
    systems=(SystemReport(system=POLICY, overall=METRICS, by_benchmark={}, by_hops={}),),
    questions=(),
)


def test_what_was_never_kept_is_not_there(tmp_path: Path) -> None:
    archive = Archive(tmp_path)

    assert archive.report("e") is None
    assert archive.page("e") is None
    assert archive.summary("e") is None


def test_a_kept_report_comes_back_with_its_status(tmp_path: Path) -> None:
    archive = Archive(tmp_path)
    archive.keep(REPORT, digest="abc")
    archive.keep_page("e", "<p>")

    summary = archive.summary("e")

    assert Report.model_validate_json(archive.report("e") or "") == REPORT
    assert archive.page("e") == "<p>"
    assert summary is not None and summary.digest == "abc"
    assert summary.status.state is EvaluationState.DONE
    assert summary.status.partial == METRICS


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path: Path) -> None:
    archive = Archive(tmp_path)
    archive.keep_page("e", "old")

    with pytest.raises(UnicodeEncodeError):
        archive.keep_page("e", "broken \ud800")

    assert archive.page("e") == "old"
    assert [path.name for path in (tmp_path / "e").iterdir()] == ["report.html"]


def test_a_folder_that_cannot_be_written_is_refused_at_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(OSError, match="file"):
        Archive(tmp_path / "file").open()
