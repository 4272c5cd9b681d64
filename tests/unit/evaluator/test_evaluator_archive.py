"""Reports on disk are whole or absent."""

from collections.abc import Callable
from pathlib import Path

import pytest

from searcher.contracts.question import RolloutPlan, SearchMode
from searcher.contracts.report import POLICY, EvaluatedQuestion, EvaluationState, Report, System
from services.evaluator.archive import Archive
from services.evaluator.statistics import system_reports

SEARCHLESS = System(name="no search", search=SearchMode.NONE)


@pytest.fixture
def report(row: Callable[..., EvaluatedQuestion]) -> Report:
    rows = (row("a", f1=1.0), row("b", f1=0.0), row("a", system="no search", f1=0.5))
    return Report(
        id="e",
        title="",
        weights="w",
        plan=RolloutPlan(),
        rules="searcher",
        created_at="2026-01-01T00:00:00+00:00",
        seconds=1.0,
        systems=system_reports([POLICY, SEARCHLESS], rows),
        questions=rows,
    )


def test_what_was_never_kept_is_not_there(tmp_path: Path) -> None:
    archive = Archive(tmp_path)

    assert archive.report("e") is None
    assert archive.page("e") is None
    assert archive.summary("e") is None


def test_a_kept_report_comes_back_with_the_status_of_all_its_systems(tmp_path: Path, report: Report) -> None:
    archive = Archive(tmp_path)
    archive.keep(report, digest="abc")
    archive.keep_page("e", "<p>")

    summary = archive.summary("e")

    assert Report.model_validate_json(archive.report("e") or "") == report
    assert archive.page("e") == "<p>"
    assert summary is not None and summary.digest == "abc"
    assert (summary.status.state, summary.status.done, summary.status.total) == (EvaluationState.DONE, 3, 3)
    assert summary.status.partial is not None and summary.status.partial.f1 == 0.5


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
