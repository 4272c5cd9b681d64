"""Where log lines go."""

import pytest

from searcher.servicekit.logging import CurrentStderr


def test_lines_go_to_whatever_stderr_is_at_that_time(capsys: pytest.CaptureFixture[str]) -> None:
    stream = CurrentStderr()

    stream.write("a line")
    stream.flush()

    assert capsys.readouterr().err == "a line"
