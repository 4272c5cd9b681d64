"""Where log lines go."""

import pytest
import structlog

from searcher.servicekit.logging import configure_logging
from searcher.servicekit.settings import SharedSettings

log = structlog.get_logger()


def test_lines_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(SharedSettings(log_level="INFO"))

    log.info("first", answer=42)

    written = capsys.readouterr()
    assert "first" in written.err and "42" in written.err and written.out == ""


def test_a_logger_outlives_the_stderr_it_was_first_used_with(capsys: pytest.CaptureFixture[str]) -> None:
    log.info("second")

    assert "second" in capsys.readouterr().err
