"""Folders -> corpora that can be searched, each verified and tried before the first request.

indexes/wiki/manifest.json …              an index, or
indexes/wiki/current -> 2026-11-20        a link to one: what is served changes with it
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from weakref import WeakValueDictionary

from pydantic import SecretStr, TypeAdapter, ValidationError

from searcher.contracts.base import Name
from searcher.contracts.errors import InvalidInput, SearcherError
from services.retriever import metrics
from services.retriever.backend import DEFAULT
from services.retriever.encoders.card import EncoderCard, read_card
from services.retriever.encoders.opening import open_encoder
from services.retriever.encoders.protocol import Encoder
from services.retriever.index.manifest import (
    MANIFEST_FILE,
    IndexFacts,
    Manifest,
    manifest_sha256,
    read_manifest,
    verify,
)
from services.retriever.index.opening import open_index, reranked
from services.retriever.index.passages import PassageStore
from services.retriever.index.protocol import Index

CURRENT_LINK = "current"
_GOLDEN_TOLERANCE = 1e-3
_NAME: TypeAdapter[str] = TypeAdapter(Name)


@dataclass(frozen=True, eq=False)
class Corpus:
    """An index that is open. Only the engine's thread may search it; it closes with the last one who refers to it."""

    name: str
    folder: Path
    manifest: Manifest
    sha256: str
    """Of the manifest: the identity of this build."""
    passages: PassageStore
    index: Index

    @cached_property
    def identity(self) -> bytes:
        """What an answer depends on besides query and k: this build and its encoder."""
        encoder = getattr(self.manifest.index, "encoder", None)
        return f"{self.sha256} {encoder.name} {encoder.weights_sha256}".encode() if encoder else self.sha256.encode()


class Library:
    """Opens indexes; encoders with equal cards are loaded once, and forgotten with the last index that has them."""

    def __init__(
        self, *, num_threads: int | None = None, encoder_url: str | None = None, encoder_key: SecretStr | None = None
    ) -> None:
        self.num_threads = num_threads or len(os.sched_getaffinity(0))
        self._encoder_url, self._encoder_key = encoder_url, encoder_key
        self._encoders: WeakValueDictionary[EncoderCard, Encoder] = WeakValueDictionary()

    def open_all(self, index_dir: Path) -> Mapping[str, Corpus]:
        """Corpora by the names under which they can be asked. Raises InvalidInput that names the file at fault."""
        corpora = {name: self.open(location, name) for name, location in locations(index_dir).items()}
        for corpus in corpora.values():
            check(corpus)
            publish(corpus)
        return with_default(corpora)

    def open(self, location: Path, name: str) -> Corpus:
        """The index at `location`, its files verified but not yet tried: see `check`. Raises InvalidInput."""
        with _refusing(location):
            folder = index_folder(location)
            manifest = read_manifest(folder)
            verify(folder, manifest)
            passages = PassageStore(folder)
            index = self.index(folder, manifest.index)
            if card := manifest.reranker:
                index = reranked(index, folder, card, passages=passages, num_threads=self.num_threads)
            return Corpus(name, folder, manifest, manifest_sha256(folder), passages, index)

    def index(self, folder: Path, facts: IndexFacts) -> Index:
        return open_index(folder, facts, encoder_of=self._encoder, num_threads=self.num_threads)

    def _encoder(self, folder: Path) -> Encoder:
        card = read_card(folder)
        encoder = self._encoders.get(card)
        if encoder is None:
            encoder = self._encoders[card] = open_encoder(
                folder, num_threads=self.num_threads, server_url=self._encoder_url, server_key=self._encoder_key
            )
        return encoder


def locations(index_dir: Path) -> dict[str, Path]:
    """One index, or one per sub-folder. Other names than a corpus can have (lost+found, .building) are passed over."""
    if not index_dir.is_dir():
        raise InvalidInput(f"RETRIEVER_INDEX_DIR: {index_dir} is not a folder; build one with `searcher index build`")
    if (index_dir / MANIFEST_FILE).is_file() or (index_dir / CURRENT_LINK).exists():
        return {DEFAULT: index_dir}
    folders = {path.name: path for path in sorted(index_dir.iterdir()) if path.is_dir() and _is_name(path.name)}
    if not folders:
        raise InvalidInput(f"RETRIEVER_INDEX_DIR: {index_dir} holds no index; build one with `searcher index build`")
    return folders


def index_folder(location: Path) -> Path:
    """Where the files lie now: a link that changes later does not change what is open."""
    link = location / CURRENT_LINK
    return (link if link.exists() else location).resolve()


def with_default(corpora: Mapping[str, Corpus]) -> dict[str, Corpus]:
    """A single corpus is also asked when none is named."""
    return {DEFAULT: next(iter(corpora.values())), **corpora} if len(corpora) == 1 else dict(corpora)


def publish(corpus: Corpus, *, instead_of: Corpus | None = None) -> None:
    """Set the metrics of what is served now."""
    facts = corpus.manifest
    if instead_of is not None:
        metrics.INDEX_PASSAGES.remove(instead_of.name, instead_of.manifest.index.kind)
    metrics.INDEX_PASSAGES.labels(corpus.name, facts.index.kind).set(facts.num_passages)
    metrics.INDEX_BYTES.labels(corpus.name).set(sum(file.num_bytes for file in facts.files.values()))


def _is_name(text: str) -> bool:
    try:
        _NAME.validate_python(text)
    except ValidationError:
        return False
    return True


def check(corpus: Corpus) -> None:
    """Size and golden query must be the manifest's. Raises InvalidInput. Searches, so only the engine's thread may call
    it once an engine runs."""
    expected, golden = corpus.manifest.num_passages, corpus.manifest.golden
    if len(corpus.passages) != expected:
        raise InvalidInput(f"{corpus.folder}: {len(corpus.passages)} passages, but the manifest says {expected}")
    with _refusing(corpus.folder):
        _, scores_QK = corpus.index.search([golden.query], 1)
    score = float(scores_QK[0, 0])
    if abs(score - golden.score) > _GOLDEN_TOLERANCE * max(1.0, abs(golden.score)):
        raise InvalidInput(
            f"{corpus.folder}: the golden query {golden.query!r} scores {score:.4f}, but {golden.score:.4f} when the "
            "index was built: encoder or library differ; build the index again"
        )


@contextmanager
def _refusing(location: Path) -> Iterator[None]:
    """Libraries raise what they like at files that they do not understand, or for want of memory: it is the index that
    cannot be served, and whoever asked for it hears why."""
    try:
        yield
    except SearcherError:
        raise
    except Exception as error:
        raise InvalidInput(
            f"folder: {str(location)[:200]!r} cannot be served: {type(error).__name__}: {error}"
        ) from error
