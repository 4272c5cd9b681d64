"""Queries -> vectors -> rows of the nearest passages. What is nearest is left to `exact`, `quantised` and `gpu`."""

# Q = queries, K = results per query, N = passages, D = dimensions
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from searcher.contracts.errors import InvalidInput
from services.retriever import metrics
from services.retriever.encoders.protocol import Encoder, Vectors
from services.retriever.index.exact import Flat, Fp16, half_vectors
from services.retriever.index.gpu import GpuFlat, check_one_faiss, num_gpus
from services.retriever.index.layout import CODES_FOLDER, HALF_VECTORS_FILE, VECTORS_FILE
from services.retriever.index.manifest import DenseFacts, FlatFacts, Fp16Facts
from services.retriever.index.matrix import new_matrix
from services.retriever.index.protocol import Nearest, Rows, Scores
from services.retriever.index.quantised import Quantised


def write_vectors(blocks: Iterator[Vectors], path: Path, *, num_passages: int, dim: int, dtype: str) -> None:
    """Blocks of vectors -> one matrix on disk; memory holds one block."""
    shape = (num_passages, dim)
    vectors_ND = new_matrix(path, dtype, shape)
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
    """The vectors of an index folder, mapped from disk; those of exact kinds on the GPUs that faiss can use.

    Raises InvalidInput if they are not as long as the encoder's.
    """
    check_one_faiss()
    gpus = num_gpus()
    if isinstance(facts, Fp16Facts) and gpus:
        return GpuFlat(half_vectors(folder / HALF_VECTORS_FILE, dim=facts.encoder.dim), num_gpus=gpus)
    if isinstance(facts, Fp16Facts):
        return Fp16(folder / HALF_VECTORS_FILE, num_threads=num_threads)
    vectors_ND = _vectors(folder / VECTORS_FILE, dim=facts.encoder.dim)
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


def _vectors(path: Path, *, dim: int) -> Any:
    """float32, or float16 if only candidates are scored by them."""
    vectors_ND = np.load(path, mmap_mode="r")
    if vectors_ND.ndim != 2 or vectors_ND.shape[1] != dim:
        message = f"{path}: a matrix of {vectors_ND.shape}, and the encoder's vectors have {dim} dimensions"
        raise InvalidInput(f"{message}; build the index again")
    return vectors_ND
