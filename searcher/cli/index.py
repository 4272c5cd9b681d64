"""A corpus file -> an index directory, by the retriever's own builder in a process of its own."""

import subprocess
from pathlib import Path

from searcher.cli.embedded import build_index_command
from searcher.cli.settings import PROJECT_ROOT
from searcher.contracts.errors import InvalidInput, SearcherError


def build(corpus: Path, out: Path, *, kind: str, encoder: str | None) -> None:
    if kind not in ("bm25", "flat"):
        raise InvalidInput(f"--kind: {kind!r} is not one of bm25, flat")
    command = build_index_command(corpus.resolve(), out.resolve(), kind=kind, encoder=encoder)
    outcome = subprocess.run(command, cwd=PROJECT_ROOT, check=False)
    if outcome.returncode != 0:
        raise SearcherError(f"the builder ended with exit code {outcome.returncode}; its words stand above")
