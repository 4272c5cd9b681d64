"""Queries -> rows of the best passages and their scores. The only place that imports faiss and bm25s.

Two kinds: `Bm25Index` matches words, `FlatIndex` compares vectors with every passage (exact). Both are memory-mapped,
so opening costs milliseconds and replicas on one host share the pages. Passages themselves are left to `corpus`.
"""

# Q = queries, K = results per query, N = passages of the corpus, D = dimensions
import re
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from searcher.contracts.errors import InvalidInput
from services.retriever import metrics
from services.retriever.corpus import Progress
from services.retriever.encoder import Encoder, Vectors
from services.retriever.manifest import Bm25Facts

VECTORS_FILE, BM25_FOLDER = "vectors.npy", "bm25"
NOTHING = -1
"""A row that fills up a result list: fewer passages than k were found."""

Rows = NDArray[np.int64]
Scores = NDArray[np.float32]


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
    """Index one text per row. Raises InvalidInput if there is no word in any of them."""
    import bm25s

    vocabulary: dict[str, int] = {}
    tokens_N = [[vocabulary.setdefault(word, len(vocabulary)) for word in words(text)] for text in texts]
    if not vocabulary:
        raise InvalidInput("corpus: no passage holds a word, so there is nothing to match; use a `flat` index")
    model = bm25s.BM25(k1=facts.k1, b=facts.b, method=facts.variant)
    model.index((tokens_N, vocabulary), create_empty_token=False, show_progress=False)
    model.save(folder / BM25_FOLDER, show_progress=False)


class Bm25Index:
    """Passages that share a word with the query, by BM25. A query of unknown words finds nothing."""

    def __init__(self, folder: Path) -> None:
        import bm25s

        self._model = bm25s.BM25.load(folder / BM25_FOLDER, mmap=True, show_progress=False)

    def search(self, queries: Sequence[str], k: int) -> tuple[Rows, Scores]:
        rows_QK = np.full((len(queries), k), NOTHING, dtype=np.int64)
        scores_QK = np.zeros((len(queries), k), dtype=np.float32)
        with metrics.STAGE_SECONDS.labels("search").time():
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
# Exact vector search


def write_vectors(
    blocks: Iterator[list[str]], folder: Path, *, num_passages: int, encoder: Encoder, on_progress: Progress
) -> None:
    """Encode block by block into one matrix on disk; memory holds one block."""
    shape = (num_passages, encoder.card.dim)
    vectors_ND = np.lib.format.open_memmap(folder / VECTORS_FILE, mode="w+", dtype=np.float32, shape=shape)
    row = 0
    for texts in blocks:
        vectors_ND[row : row + len(texts)] = encoder.encode_passages(texts)
        row += len(texts)
        on_progress("encoding", row, num_passages)
    assert row == num_passages, (row, num_passages)
    vectors_ND.flush()


class FlatIndex:
    """Inner product with every passage: always finds k, unless the corpus is smaller."""

    def __init__(self, folder: Path, encoder: Encoder, *, num_threads: int) -> None:
        self._vectors_ND: Vectors = np.load(folder / VECTORS_FILE, mmap_mode="r")
        self._encoder = encoder
        _tune_faiss(self._vectors_ND, num_threads)

    def search(self, queries: Sequence[str], k: int) -> tuple[Rows, Scores]:
        with metrics.STAGE_SECONDS.labels("encode").time():
            queries_QD = self._encoder.encode_queries(queries)
        with metrics.STAGE_SECONDS.labels("search").time():
            scores_QK, rows_QK = _nearest(queries_QD, self._vectors_ND, min(k, len(self._vectors_ND)))
        return rows_QK, scores_QK


def _nearest(queries_QD: Vectors, vectors_ND: Vectors, k: int) -> tuple[Scores, Rows]:
    """faiss' kernel of IndexFlatIP, on the memory-mapped matrix as it lies there."""
    import faiss

    scores_QK, rows_QK = faiss.knn(queries_QD, vectors_ND, k, metric=faiss.METRIC_INNER_PRODUCT)
    return scores_QK, rows_QK


_CALIBRATION_ROWS = 50_000
_CALIBRATION_BATCHES = (2, 4, 8, 16, 32)
_ALWAYS_BLAS, _NEVER_BLAS = 1, 2**31 - 1
"""faiss multiplies matrices when queries x dimensions reaches the threshold, and scans once per query below it."""


def _tune_faiss(vectors_ND: Vectors, num_threads: int) -> None:
    """Set faiss' process-wide switches. Its own threshold was tuned on data that fits into the cache: with a larger
    index it scans 64 queries one by one where one matrix product would be several times faster."""
    import faiss

    faiss.omp_set_num_threads(num_threads)
    faiss.cvar.distance_compute_blas_database_bs = 16_384
    sample_ND = vectors_ND[:_CALIBRATION_ROWS]
    threshold = faiss.cvar.distance_compute_blas_threshold
    for num_queries in _CALIBRATION_BATCHES:
        queries_QD = np.resize(sample_ND[:num_queries], (num_queries, sample_ND.shape[1]))

        def seconds(blas_threshold: int, queries_QD: Vectors = queries_QD) -> float:
            faiss.cvar.distance_compute_blas_threshold = blas_threshold
            return min(_seconds(lambda: _nearest(queries_QD, sample_ND, 1)) for _ in range(2))

        if seconds(_ALWAYS_BLAS) < seconds(_NEVER_BLAS):
            threshold = queries_QD.size
            break
    faiss.cvar.distance_compute_blas_threshold = threshold
    metrics.BLAS_THRESHOLD.set(threshold)


def _seconds(action: Callable[[], Any]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started
