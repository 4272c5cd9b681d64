import subprocess
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from searcher.cli import index
from searcher.cli.main import app
from searcher.contracts.errors import SearcherError
from services.retriever.building.__main__ import _parser
from services.retriever.building.request import KINDS

runner = CliRunner()


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The builders that would have been started; they succeed."""
    started: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        started.append(list(command))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run)
    return started


def test_every_option_reaches_the_builder_under_the_name_it_has_there(
    tmp_path: Path, commands: list[list[str]]
) -> None:
    arguments = [
        *("index", "build", str(tmp_path / "c.jsonl"), "--out", str(tmp_path / "out"), "--kind", "pqfs"),
        *("--encoder", "e5-base-v2", "--encoder-checkpoint", str(tmp_path), "--encoder-backend", "onnx"),
        *("--encoder-url", "http://e/v1", "--query-prefix", "q: ", "--max-tokens", "99"),
        *("--embeddings", str(tmp_path / "e"), "--hybrid", "--reranker", str(tmp_path / "r")),
        *("--refine-dtype", "float16", "--recall", "0.95", "--queries", str(tmp_path / "q.jsonl")),
        *("--skip-bad-lines", "--threads", "3"),
    ]

    outcome = runner.invoke(app, arguments)

    assert outcome.exit_code == 0, outcome.output
    ((_, _, module, *rest),) = commands
    built = _parser().parse_args(rest)
    assert module == "services.retriever.building"
    assert (built.kind, built.encoder, built.encoder_backend, built.encoder_url) == (
        "pqfs",
        "e5-base-v2",
        "onnx",
        "http://e/v1",
    )
    assert (built.query_prefix, built.max_tokens, built.hybrid, built.skip_bad_lines) == ("q: ", 99, True, True)
    assert (built.refine_dtype, built.recall, built.threads) == ("float16", 0.95, 3)
    assert (built.embeddings, built.reranker, built.queries) == (tmp_path / "e", tmp_path / "r", tmp_path / "q.jsonl")


def test_what_is_not_said_is_left_to_the_builder(tmp_path: Path, commands: list[list[str]]) -> None:
    outcome = runner.invoke(app, ["index", "build", str(tmp_path / "c.jsonl"), "--out", str(tmp_path / "out")])

    assert outcome.exit_code == 0, outcome.output
    built = _parser().parse_args(commands[0][3:])
    assert (built.kind, built.encoder, built.hybrid, built.threads, built.queries) == ("bm25", None, False, None, None)


def test_the_command_knows_the_kinds_that_the_builder_knows() -> None:
    assert index.KINDS == KINDS


def test_a_builder_that_fails_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 2))

    with pytest.raises(SearcherError, match="exit code 2"):
        index.build(tmp_path / "c.jsonl", tmp_path / "out", kind="bm25", encoder=None, more={})
