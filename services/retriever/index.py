"""Queries -> rows of the best passages and their scores. The only place that imports bm25s; faiss is `nearest`'s.

`Bm25Index` matches words, `DenseIndex` compares vectors. Their files are memory-mapped, so opening costs milliseconds
and replicas on one host share the pages. Passages themselves are left to `corpus`.
"""

# Q = queries, K = results per query, N = passages of the corpus, D = dimensions
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from searcher.contracts.errors import InvalidInput
from services.retriever import metrics
from services.retriever.encoder import Encoder, Vectors
from services.retriever.gpu import GpuFlat, check_one_faiss, num_gpus
from services.retriever.manifest import Bm25Facts, DenseFacts, FlatFacts, Fp16Facts
from services.retriever.nearest import NOTHING, Flat, Fp16, Nearest, Quantised, half_vectors
from services.retriever.products import Rows, Scores

__all__ = ["NOTHING", "Bm25Index", "DenseIndex", "Index", "Rows", "Scores", "open_nearest"]

VECTORS_FILE, HALF_VECTORS_FILE, CODES_FOLDER, BM25_FOLDER = "vectors.npy", "vectors.fp16.faiss", "codes", "bm25"


class Index(Protocol):
    def search(self, queries: Sequence[str], k: int) -> tuple[Rows, Scores]:
        """rows_QK and scores_QK, best first. What is not found is row NOTHING at the end of its list."""
        ...


# ---------------------------------------------------------------------------------------------------------------------
# BM25

_WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """The words of a passage or a query: lower case, without accents, so that `Beyonce` finds `Beyoncé`."""
    if not text.isascii():
        text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return _WORD.findall(text.lower())


def write_bm25(texts: Iterator[str], folder: Path, *, facts: Bm25Facts) -> None:
    """Index one text per row, into a new folder. Raises InvalidInput if there is no word in any of them."""
    import bm25s

    vocabulary: dict[str, int] = {}
    tokens_N = [[vocabulary.setdefault(word, len(vocabulary)) for word in words(text)] for text in texts]
    if not vocabulary:
        raise InvalidInput("corpus: no passage holds a word, so there is nothing to match; use a `flat` index")
    model = bm25s.BM25(k1=facts.k1, b=facts.b, method=facts.variant)
    model.index((tokens_N, vocabulary), create_empty_token=False, show_progress=False)
    model.save(folder, show_progress=False)


class Bm25Index:
    """Passages that share a word with the query, by BM25. A query of unknown words finds nothing."""

    def __init__(self, folder: Path) -> None:
        import bm25s

        self._model = bm25s.BM25.load(folder, mmap=True, show_progress=False)

    def search(self, queries: Sequence[str], k: int) -> tuple[Rows, Scores]:
        rows_QK = np.full((len(queries), k), NOTHING, dtype=np.int64)
        scores_QK = np.zeros((len(queries), k), dtype=np.float32)
        with metrics.SEARCH_SECONDS.time():
            for q, query in enumerate(queries):
                known = [self._model.vocab_dict[word] for word in words(query) if word in self._model.vocab_dict]
                if known:
                    scores_N = self._model.get_scores_from_ids(known)
                    best = _best_matches(scores_N, k)
                    rows_QK[q, : len(best)], scores_QK[q, : len(best)] = best, scores_N[best]
        return rows_QK, scores_QK


def _best_matches(scores_N: Scores, k: int) -> Rows:
    """Rows with a score, best first, at most k; equal scores in the order of the corpus."""
    found = np.flatnonzero(scores_N > 0)
    if len(found) > k:
        kth_score = np.partition(scores_N[found], -k)[-k]
        found = found[scores_N[found] >= kth_score]
    return found[np.argsort(-scores_N[found], kind="stable")][:k]


# ---------------------------------------------------------------------------------------------------------------------
# Vectors


def write_vectors(blocks: Iterator[Vectors], path: Path, *, num_passages: int, dim: int, dtype: str) -> None:
    """Blocks of vectors -> one matrix on disk; memory holds one block."""
    shape = (num_passages, dim)
    vectors_ND = np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(dtype), shape=shape)
    row = 0
    for block_ND in blocks:
        vectors_ND[row : row + len(block_ND)] = block_ND
        row += len(block_ND)
    assert row == num_passages, (row, num_passages)
    vectors_ND.flush()


class DenseIndex:
    """Passages whose vectors are nearest to the query's: always finds k, unless the corpus is smaller."""

    def __init__(self, encoder: Encoder, nearest: Nearest) -> None:
        self._encoder, self._nearest = encoder, nearest

    def search(self, queries: Sequence[str], k: int) -> tuple[Rows, Scores]:
        with metrics.ENCODE_SECONDS.time():
            queries_QD = self._encoder.encode_queries(queries)
        with metrics.SEARCH_SECONDS.time():
            scores_QK, rows_QK = self._nearest.search(queries_QD, k)
        return rows_QK, scores_QK


def open_nearest(folder: Path, facts: DenseFacts, *, num_threads: int) -> Nearest:
    """The vectors of an index folder, mapped from disk; those of exact kinds on the GPUs that faiss can use."""
    check_one_faiss()
    gpus = num_gpus()
    if isinstance(facts, Fp16Facts) and gpus:
        return GpuFlat(half_vectors(folder / HALF_VECTORS_FILE, dim=facts.encoder.dim), num_gpus=gpus)
    if isinstance(facts, Fp16Facts):
        return Fp16(folder / HALF_VECTORS_FILE, num_threads=num_threads)
    vectors_ND = np.load(folder / VECTORS_FILE, mmap_mode="r")
    if isinstance(facts, FlatFacts) and gpus:
        return GpuFlat(vectors_ND, num_gpus=gpus)
    if isinstance(facts, FlatFacts):
        return Flat(vectors_ND, num_threads=num_threads)
    return Quantised(
        folder / CODES_FOLDER,
        vectors_ND,
        candidates=facts.candidates,
        num_probes=facts.num_probes,
        num_threads=num_threads,
    )
