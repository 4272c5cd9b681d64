"""The recipe's corpora -> the indexes that are missing, each built by the retriever's own builder.

Beside an index stands a stamp: from which state of its source, and how, it was built.
"""

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from searcher.cli.embedded import logs
from searcher.cli.embedded.layout import Layout
from searcher.contracts.errors import NotFound, SearcherError
from searcher.contracts.recipe import CorpusRecipe


@dataclass(frozen=True)
class IndexBuild:
    """How to make one index that the recipe needs."""

    corpus: str
    recipe: CorpusRecipe
    directory: Path
    log: Path
    stamp_path: Path
    fingerprint: str
    """Of the source as it was when the build was planned."""
    root: Path
    """Where the builder runs."""

    @property
    def command(self) -> tuple[str, ...]:
        return build_index_command(
            Path(self.recipe.source), self.directory, kind=self.recipe.kind, encoder=self.recipe.encoder
        )

    def is_done(self) -> bool:
        """False too for an index that was built from another source or by another method."""
        stamped = self.stamp_path.read_text() if self.stamp_path.exists() else None
        return stamped == self.fingerprint and self.directory.is_dir()

    def run(self) -> None:
        """In a process of its own. Raises SearcherError with the end of the builder's log."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.directory.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log:
            outcome = subprocess.run(self.command, cwd=self.root, stdout=log, stderr=subprocess.STDOUT, check=False)
        if outcome.returncode != 0:
            raise SearcherError(f"the index of corpus {self.corpus!r} could not be built:\n{logs.tail(self.log)}")
        self.stamp()

    def stamp(self) -> None:
        """Note that the index stands, and from which state of its source."""
        self.stamp_path.parent.mkdir(parents=True, exist_ok=True)
        self.stamp_path.write_text(self.fingerprint)


def index_builds(layout: Layout) -> Iterator[IndexBuild]:
    """One per corpus of the recipe, done or not. Raises NotFound for a source that is not there."""
    for name, corpus in layout.recipe.corpora.items():
        yield IndexBuild(
            corpus=name,
            recipe=corpus,
            directory=layout.index_dir / name,
            log=layout.log_path(f"index-{name}"),
            stamp_path=layout.state_dir / "index-stamps" / f"{layout.recipe.name}.{name}",
            fingerprint=_fingerprint(corpus),
            root=layout.root,
        )


def build_index_command(source: Path, directory: Path, *, kind: str, encoder: str | None) -> tuple[str, ...]:
    """How `searcher up` and `searcher index build` call the retriever's builder, in a process of its own."""
    command = (sys.executable, "-m", "services.retriever.building", str(source), "--out", str(directory))
    return (*command, "--kind", kind, *(("--encoder", encoder) if encoder else ()))


def _fingerprint(corpus: CorpusRecipe) -> str:
    """What the index depends on: change any of it and the index is built anew."""
    try:
        facts = Path(corpus.source).stat()
    except FileNotFoundError:
        raise NotFound(f"{corpus.source}: no such corpus file") from None
    parts = (corpus.source, facts.st_size, facts.st_mtime_ns, corpus.kind, corpus.encoder)
    return hashlib.sha256(repr(parts).encode()).hexdigest()
