"""Finished reports on disk, where they outlive Redis. A file is there whole or not at all."""

import os
import tempfile
from pathlib import Path

from pydantic import ValidationError

from searcher.contracts.base import Contract
from searcher.contracts.report import EvaluationState, EvaluationStatus, Report
from services.evaluator.statistics import added_up, metrics


class Summary(Contract):
    """What is asked more often than the report itself."""

    digest: str
    """Of the request, so that the same id with other content is still recognised."""
    status: EvaluationStatus


class Archive:
    """`<folder>/<id>/{report.json, report.html, summary.json}`; the summary is written last of what a status needs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def open(self) -> None:
        """Raises OSError if reports cannot be written here."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self.folder):
            pass

    def keep(self, report: Report, *, digest: str) -> None:
        count = len(report.questions)
        # As a running evaluation tells them: all systems together, without intervals.
        partial = metrics(added_up(report.questions)) if count else None
        status = EvaluationStatus(id=report.id, state=EvaluationState.DONE, done=count, total=count, partial=partial)
        _write(self._path(report.id, "report.json"), report.model_dump_json())
        _write(self._path(report.id, "summary.json"), Summary(digest=digest, status=status).model_dump_json())

    def keep_page(self, evaluation_id: str, page: str) -> None:
        _write(self._path(evaluation_id, "report.html"), page)

    def summary(self, evaluation_id: str) -> Summary | None:
        """None if there is none that can be read; the caller then asks Redis."""
        try:
            return Summary.model_validate_json(self._path(evaluation_id, "summary.json").read_text())
        except (FileNotFoundError, ValidationError):
            return None

    def report(self, evaluation_id: str) -> str | None:
        return _read(self._path(evaluation_id, "report.json"))

    def page(self, evaluation_id: str) -> str | None:
        return _read(self._path(evaluation_id, "report.html"))

    def _path(self, evaluation_id: str, name: str) -> Path:
        return self.folder / evaluation_id / name


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".", delete=False, encoding="utf-8") as file:
        try:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
