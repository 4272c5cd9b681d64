"""A corpus file -> an index directory, by the retriever's own builder in a process of its own."""

import subprocess
from collections.abc import Mapping
from pathlib import Path

from searcher.cli.embedded.indexes import build_index_command
from searcher.cli.settings import PROJECT_ROOT
from searcher.contracts.errors import InvalidInput, SearcherError

KINDS = ("bm25", "flat", "fp16", "pqfs", "rabitq", "ivf", "auto")


def build(corpus: Path, out: Path, *, kind: str, encoder: str | None, more: Mapping[str, object]) -> None:
    """`more` are the builder's other options by name: None and False are left away, True is a flag.

    Paths are made absolute: the builder runs in another folder.
    """
    if kind not in KINDS:
        raise InvalidInput(f"--kind: {kind!r} is not one of {', '.join(KINDS)}")
    if encoder and Path(encoder).is_dir():
        encoder = str(Path(encoder).resolve())
    command = [*build_index_command(corpus.resolve(), out.resolve(), kind=kind, encoder=encoder)]
    for name, value in more.items():
        if value is True:
            command.append(name)
        elif value is not None and value is not False:
            command += [name, str(value.resolve() if isinstance(value, Path) else value)]
    outcome = subprocess.run(command, cwd=PROJECT_ROOT, check=False)
    if outcome.returncode != 0:
        raise SearcherError(f"the builder ended with exit code {outcome.returncode}; its words stand above")
