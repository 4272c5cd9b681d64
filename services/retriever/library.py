"""RETRIEVER_INDEX_DIR -> the corpora that are served, each verified and tried before the first request."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from searcher.contracts.base import Name
from searcher.contracts.errors import InvalidInput
from services.retriever import metrics
from services.retriever.corpus import PassageStore
from services.retriever.encoder import OnnxEncoder, read_card
from services.retriever.index import Bm25Index, FlatIndex, Index
from services.retriever.manifest import (
    MANIFEST_FILE,
    EncoderCard,
    FlatFacts,
    Manifest,
    manifest_sha256,
    read_manifest,
    verify,
)

DEFAULT = "default"
ENCODER_FOLDER = "encoder"
_GOLDEN_TOLERANCE = 1e-3
_NAME: TypeAdapter[str] = TypeAdapter(Name)


@dataclass(frozen=True, eq=False)
class Corpus:
    """An index that is open. Only the engine's thread may search it."""

    name: str
    manifest: Manifest
    sha256: str
    """Of the manifest: the identity of this build."""
    passages: PassageStore
    index: Index

    def close(self) -> None:
        self.passages.close()


class Library:
    """Opens indexes; encoders with equal cards are loaded once."""

    def __init__(self, *, num_threads: int | None = None) -> None:
        self.num_threads = num_threads or len(os.sched_getaffinity(0))
        self._encoders: dict[EncoderCard, OnnxEncoder] = {}

    def open_all(self, index_dir: Path) -> Mapping[str, Corpus]:
        """Corpora by the names under which they can be asked. Raises InvalidInput that names the file at fault."""
        corpora = {name: self.open(folder, name) for name, folder in _folders(index_dir).items()}
        for corpus in corpora.values():
            facts = corpus.manifest
            metrics.INDEX_PASSAGES.labels(corpus.name, facts.index.kind).set(facts.num_passages)
            metrics.INDEX_BYTES.labels(corpus.name).set(sum(file.num_bytes for file in facts.files.values()))
        if len(corpora) == 1:
            corpora.setdefault(DEFAULT, *corpora.values())
        return corpora

    def open(self, folder: Path, name: str) -> Corpus:
        manifest = read_manifest(folder)
        verify(folder, manifest)
        corpus = Corpus(
            name, manifest, manifest_sha256(folder), PassageStore(folder), self.index(folder, manifest.index)
        )
        _check(corpus, folder)
        return corpus

    def index(self, folder: Path, facts: object) -> Index:
        if isinstance(facts, FlatFacts):
            return FlatIndex(folder, self._encoder(folder, facts.encoder), num_threads=self.num_threads)
        return Bm25Index(folder)

    def _encoder(self, folder: Path, card: EncoderCard) -> OnnxEncoder:
        here = folder / ENCODER_FOLDER
        if read_card(here) != card:
            raise InvalidInput(f"{here}: is not the encoder that {folder / MANIFEST_FILE} names; build the index again")
        if card not in self._encoders:
            self._encoders[card] = OnnxEncoder(here, num_threads=self.num_threads)
        return self._encoders[card]


def _folders(index_dir: Path) -> dict[str, Path]:
    """One index, or one per sub-folder. Other names than a corpus can have (lost+found, .building) are passed over."""
    if not index_dir.is_dir():
        raise InvalidInput(f"RETRIEVER_INDEX_DIR: {index_dir} is not a folder; build one with `searcher index build`")
    if (index_dir / MANIFEST_FILE).is_file():
        return {DEFAULT: index_dir}
    folders = {path.name: path for path in sorted(index_dir.iterdir()) if path.is_dir() and _is_name(path.name)}
    if not folders:
        raise InvalidInput(f"RETRIEVER_INDEX_DIR: {index_dir} holds no index; build one with `searcher index build`")
    return folders


def _is_name(text: str) -> bool:
    try:
        _NAME.validate_python(text)
    except ValidationError:
        return False
    return True


def _check(corpus: Corpus, folder: Path) -> None:
    """The index must agree with its manifest in size, and on the golden query in score."""
    expected, golden = corpus.manifest.num_passages, corpus.manifest.golden
    if len(corpus.passages) != expected:
        raise InvalidInput(f"{folder}: {len(corpus.passages)} passages, but the manifest says {expected}")
    _, scores_QK = corpus.index.search([golden.query], 1)
    score = float(scores_QK[0, 0])
    if abs(score - golden.score) > _GOLDEN_TOLERANCE * max(1.0, abs(golden.score)):
        raise InvalidInput(
            f"{folder}: the golden query {golden.query!r} scores {score:.4f}, but {golden.score:.4f} when the index "
            "was built: encoder or library differ; build the index again"
        )
