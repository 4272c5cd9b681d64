"""Vectors of queries -> rows with the largest inner product, every passage compared.

    Flat   the vectors as they lie in a memory-mapped matrix
    Fp16   16-bit codes in a memory-mapped file: half the bytes

One caller at a time: the switches of faiss are the process'.
"""

# Q = queries, K = results per query, N = passages, C = candidates per query, D = dimensions
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.retriever.encoders.protocol import Vectors
from services.retriever.index.kernels import (
    CALIBRATION_K,
    Threads,
    crossover,
    read_codes,
    sample_of,
    set_up_libraries,
    use_threads,
)
from services.retriever.index.products import Products
from services.retriever.index.protocol import Matrix, Rows, Scores

_MOST_EQUALS = 1_024
"""Passages with one and the same vector among which the order of the corpus is looked for."""


class Flat:
    """Two ways through the matrix. A few queries scan it, each thread its share of the rows, which the memory's speed
    bounds. Many are multiplied with it, which the arithmetic bounds. Where that begins to win is measured at start."""

    def __init__(self, vectors_ND: Vectors, *, num_threads: int) -> None:
        self._vectors_ND = np.asarray(vectors_ND)  # still mapped; slices of a memmap cost more
        self._threads = Threads(num_threads)
        self._products = Products(vectors_ND.shape[1], "float32", num_threads=num_threads)
        set_up_libraries(num_threads)
        sample_ND = sample_of(vectors_ND)
        self.product_from_queries = crossover(
            "flat",
            sample_ND,
            scan=lambda queries_QD: self._scan(queries_QD, sample_ND, CALIBRATION_K),
            multiply=lambda queries_QD: self._products.search(queries_QD, sample_ND, CALIBRATION_K),
        )

    def search(self, queries_QD: Vectors, k: int) -> tuple[Scores, Rows]:
        search = self._products.search if len(queries_QD) >= self.product_from_queries else self._scan
        return search(queries_QD, self._vectors_ND, min(k, len(self._vectors_ND)))

    def _scan(self, queries_QD: Vectors, vectors_ND: Vectors, k: int) -> tuple[Scores, Rows]:
        """faiss' own way of sharing one query among threads is slower than one thread."""
        import faiss

        num_threads = self._threads.num_threads
        limits = [len(vectors_ND) * number // num_threads for number in range(num_threads + 1)]

        def scan_share(share: tuple[int, int]) -> tuple[Scores, Rows]:
            start, stop = share
            part_ND = vectors_ND[start:stop]
            scores_QK, rows_QK = in_order(
                lambda k: faiss.knn(queries_QD, part_ND, k, metric=faiss.METRIC_INNER_PRODUCT), k, len(part_ND)
            )
            return scores_QK, rows_QK + start

        return best_of(self._threads.each(scan_share, [share for share in pairwise(limits) if share[1] > share[0]]), k)


class Fp16:
    """Codes are 16-bit floats. A few queries scan them as they are; for many they are widened block by block."""

    def __init__(self, path: Path, *, num_threads: int) -> None:
        self._codes, self._num_threads = read_codes(path), num_threads
        self._vectors_ND = half_vectors(path, dim=self._codes.d)
        self._products = Products(self._codes.d, "float16", num_threads=num_threads)
        set_up_libraries(num_threads)
        sample_ND = sample_of(self._vectors_ND)
        sample = _fp16_codes(sample_ND)
        self.product_from_queries = crossover(
            "fp16",
            sample_ND,
            scan=lambda queries_QD: sample.search(queries_QD, CALIBRATION_K),
            multiply=lambda queries_QD: self._products.search(queries_QD, sample_ND, CALIBRATION_K),
        )

    def search(self, queries_QD: Vectors, k: int) -> tuple[Scores, Rows]:
        k = min(k, len(self._vectors_ND))
        if len(queries_QD) >= self.product_from_queries:
            return self._products.search(queries_QD, self._vectors_ND, k)
        use_threads(self._num_threads)
        return in_order(partial(self._codes.search, queries_QD), k, len(self._vectors_ND))


def in_order(search: Callable[[int], tuple[Scores, Rows]], k: int, num_rows: int) -> tuple[Scores, Rows]:
    """The k best that `search`, one of faiss', finds; equal scores in the order of the corpus, as everywhere.

    faiss keeps any of those whose scores are equal at the limit. So it is asked for more, until a lower score is seen.
    """
    asked = min(k + 1, num_rows)
    while True:
        scores_QC, rows_QC = search(asked)
        if asked >= min(num_rows, _MOST_EQUALS + k) or (scores_QC[:, -1] < scores_QC[:, k - 1]).all():
            return best_of([(scores_QC, rows_QC)], k)
        asked = min(2 * asked, num_rows)


def best_of(found: list[tuple[Scores, Rows]], k: int) -> tuple[Scores, Rows]:
    """The k best of several lists per query; equal scores in the order of the corpus."""
    scores_QC, rows_QC = (np.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
    order_QK = np.lexsort((rows_QC, -scores_QC), axis=1)[:, :k]
    queries_Q1 = np.arange(len(order_QK))[:, None]
    return scores_QC[queries_Q1, order_QK], rows_QC[queries_Q1, order_QK]


# ---------------------------------------------------------------------------------------------------------------------
# 16-bit codes: faiss' file for them is a header and the vectors as they are, so it can be written as a stream


def write_half_vectors(blocks: Iterator[Vectors], path: Path, *, num_rows: int, dim: int) -> None:
    with path.open("wb") as file:
        file.write(_half_header(num_rows, dim))
        for block_ND in blocks:
            block_ND.astype(np.float16).tofile(file)


def half_vectors(path: Path, *, dim: int) -> NDArray[np.float16]:
    """The vectors of such a file, memory-mapped."""
    offset = len(_half_header(0, dim))
    num_rows = (path.stat().st_size - offset) // (2 * dim)
    return np.memmap(path, dtype=np.float16, mode="r", offset=offset, shape=(num_rows, dim))


def _half_header(num_rows: int, dim: int) -> bytes:
    import faiss

    header = bytearray(faiss.serialize_index(_fp16_codes(np.empty((0, dim), dtype=np.float16))).tobytes())
    header[8:16] = num_rows.to_bytes(8, "little")
    header[-8:] = (num_rows * dim * 2).to_bytes(8, "little")
    return bytes(header)


def _fp16_codes(vectors_ND: Matrix) -> Any:
    import faiss

    dim = vectors_ND.shape[1]
    codes = faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    if len(vectors_ND):
        codes.add(vectors_ND.astype(np.float32))
    return codes
