"""An index folder and its manifest -> what can be searched. Verifying the files is left to `library`."""

from collections.abc import Callable
from pathlib import Path

from searcher.contracts.errors import InvalidInput
from services.retriever.encoders.card import read_card
from services.retriever.encoders.protocol import Encoder
from services.retriever.index.bm25 import Bm25Index
from services.retriever.index.dense import DenseIndex, open_nearest
from services.retriever.index.hybrid import HybridIndex
from services.retriever.index.layout import BM25_FOLDER, ENCODER_FOLDER, RERANKER_FOLDER
from services.retriever.index.manifest import (
    MANIFEST_FILE,
    Bm25Facts,
    DenseFacts,
    HybridFacts,
    IndexFacts,
    RerankerCard,
)
from services.retriever.index.passages import PassageStore
from services.retriever.index.protocol import Index
from services.retriever.index.rerank import OnnxReranker, RerankedIndex, read_reranker_card

EncoderOf = Callable[[Path], Encoder]
"""An encoder folder -> the encoder; a process that opens several indexes may give them one."""


def open_index(folder: Path, facts: IndexFacts, *, encoder_of: EncoderOf, num_threads: int) -> Index:
    """Raises InvalidInput if the folder's encoder is not the one that its manifest names."""
    if isinstance(facts, Bm25Facts):
        return Bm25Index(folder / BM25_FOLDER)
    if isinstance(facts, HybridFacts):
        return HybridIndex(
            [_dense(folder, facts.dense, encoder_of, num_threads), Bm25Index(folder / BM25_FOLDER)], facts
        )
    return _dense(folder, facts, encoder_of, num_threads)


def reranked(index: Index, folder: Path, card: RerankerCard, *, passages: PassageStore, num_threads: int) -> Index:
    """`index` with the folder's reranker behind it. Raises InvalidInput if that is not the one its manifest names."""
    here = folder / RERANKER_FOLDER
    if read_reranker_card(here) != card:
        raise InvalidInput(f"{here}: is not the reranker that {folder / MANIFEST_FILE} names; build the index again")
    return RerankedIndex(index, passages, OnnxReranker(here, num_threads=num_threads), depth=card.depth)


def _dense(folder: Path, facts: DenseFacts, encoder_of: EncoderOf, num_threads: int) -> DenseIndex:
    here = folder / ENCODER_FOLDER
    if read_card(here) != facts.encoder:
        raise InvalidInput(f"{here}: is not the encoder that {folder / MANIFEST_FILE} names; build the index again")
    return DenseIndex(encoder_of(here), open_nearest(folder, facts, num_threads=num_threads))
