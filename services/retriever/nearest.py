"""Vectors of queries -> rows with the largest inner product. With `gpu`, the only place that imports faiss.

    Flat        every vector, as it lies in a memory-mapped matrix             exact
    Fp16        every vector, from 16-bit codes in a memory-mapped file        half the bytes
    Quantised   short codes name candidates, the mapped matrix decides         a thirtieth of the bytes in memory

One caller at a time: the switches of faiss are the process'. Text is left to `encoder` and `index`.
"""

# Q = queries, K = results per query, N = passages, C = candidates per query, D = dimensions
import mmap
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from services.retriever import metrics
from services.retriever.encoder import Vectors
from services.retriever.products import BLOCK_ROWS, Matrix, Products, Rows, Scores

AnyMatrix = TypeVar("AnyMatrix", NDArray[np.float32], NDArray[np.float16])

NOTHING = -1
"""A row that fills up a result list: fewer passages than k were found."""


class Nearest(Protocol):
    def search(self, queries_QD: Vectors, k: int) -> tuple[Scores, Rows]:
        """scores_QK and rows_QK, best first; at most as many columns as there are vectors."""
        ...


# ---------------------------------------------------------------------------------------------------------------------
# Exact search


class Flat:
    """Two ways through the matrix. A few queries scan it, each thread its share of the rows, which the memory's speed
    bounds. Many are multiplied with it, which the arithmetic bounds. Where that begins to win is measured at start."""

    def __init__(self, vectors_ND: Vectors, *, num_threads: int) -> None:
        self._vectors_ND, self._num_threads = vectors_ND, num_threads
        self._threads = _threads(num_threads)
        self._products = Products(vectors_ND.shape[1], "float32", num_threads=num_threads)
        _set_up_faiss(num_threads)
        sample_ND = _sample(vectors_ND)
        self.product_from_queries = _crossover(
            "flat",
            sample_ND,
            scan=lambda queries_QD: self._scan(queries_QD, sample_ND, _CALIBRATION_K),
            multiply=lambda queries_QD: self._products.search(queries_QD, sample_ND, _CALIBRATION_K),
        )

    def search(self, queries_QD: Vectors, k: int) -> tuple[Scores, Rows]:
        search = self._products.search if len(queries_QD) >= self.product_from_queries else self._scan
        return search(queries_QD, self._vectors_ND, min(k, len(self._vectors_ND)))

    def _scan(self, queries_QD: Vectors, vectors_ND: Vectors, k: int) -> tuple[Scores, Rows]:
        """faiss' own way of sharing one query among threads is slower than one thread."""
        import faiss

        shares = np.linspace(0, len(vectors_ND), self._num_threads + 1).astype(int).tolist()

        def scan_share(share: tuple[int, int]) -> tuple[Scores, Rows]:
            start, stop = share
            part_ND = vectors_ND[start:stop]
            found = faiss.knn(queries_QD, part_ND, min(k, len(part_ND)), metric=faiss.METRIC_INNER_PRODUCT)
            return found[0], found[1] + start

        found = self._threads.map(scan_share, [share for share in pairwise(shares) if share[1] > share[0]])
        return best_of(list(found), k)


class Fp16:
    """Codes are 16-bit floats. A few queries scan them as they are; for many they are widened block by block."""

    def __init__(self, path: Path, *, num_threads: int) -> None:
        self._codes = read_codes(path)
        self._vectors_ND = half_vectors(path, dim=self._codes.d)
        self._products = Products(self._codes.d, "float16", num_threads=num_threads)
        _set_up_faiss(num_threads)
        sample_ND = _sample(self._vectors_ND)
        sample = _fp16_codes(sample_ND)
        self.product_from_queries = _crossover(
            "fp16",
            sample_ND,
            scan=lambda queries_QD: sample.search(queries_QD, _CALIBRATION_K),
            multiply=lambda queries_QD: self._products.search(queries_QD, sample_ND, _CALIBRATION_K),
        )

    def search(self, queries_QD: Vectors, k: int) -> tuple[Scores, Rows]:
        k = min(k, len(self._vectors_ND))
        if len(queries_QD) >= self.product_from_queries:
            return self._products.search(queries_QD, self._vectors_ND, k)
        scores_QK, rows_QK = self._codes.search(queries_QD, k)
        return scores_QK, rows_QK


def best_of(found: list[tuple[Scores, Rows]], k: int) -> tuple[Scores, Rows]:
    """The k best of several lists per query; equal scores in the order of the corpus."""
    if len(found) == 1:
        return found[0]
    scores_QC, rows_QC = (np.concatenate(parts, axis=1) for parts in zip(*found, strict=True))
    order_QK = np.lexsort((rows_QC, -scores_QC), axis=1)[:, :k]
    return np.take_along_axis(scores_QC, order_QK, axis=1), np.take_along_axis(rows_QC, order_QK, axis=1)


# ---------------------------------------------------------------------------------------------------------------------
# Codes that name candidates


class Quantised:
    """Candidates by codes, order by the vectors themselves: of a corpus, only the codes need memory.

    faiss scans codes for one query with one thread. The codes lie in shards, so that all threads have work.
    """

    def __init__(
        self, folder: Path, vectors_ND: Matrix, *, candidates: int, num_probes: int | None, num_threads: int
    ) -> None:
        _set_up_faiss(num_threads)
        self._shards = [read_codes(path) for path in sorted(folder.iterdir())]
        self._first_rows = [0, *accumulate(shard.ntotal for shard in self._shards)]
        self._vectors_ND, self.candidates = vectors_ND, candidates
        if isinstance(vectors_ND, np.memmap):
            # Candidates lie all over the file: reading on behind each would fetch a hundred times what is needed.
            vectors_ND._mmap.madvise(mmap.MADV_RANDOM)  # type: ignore[attr-defined]
        self._threads = _threads(num_threads) if len(self._shards) > 1 else None
        if num_probes is not None:
            self.probe(num_probes)

    def probe(self, num_probes: int) -> None:
        """Read this many lists per query from now on."""
        import faiss

        for shard in self._shards:
            faiss.ParameterSpace().set_index_parameter(shard, "nprobe", num_probes)

    def search(self, queries_QD: Vectors, k: int) -> tuple[Scores, Rows]:
        k = min(k, len(self._vectors_ND))
        rows_QC = self._find(queries_QD, min(k * self.candidates, len(self._vectors_ND)))
        scores_QC = self._score(queries_QD, rows_QC)
        order_QK = np.lexsort((rows_QC, -scores_QC), axis=1)[:, :k]
        return np.take_along_axis(scores_QC, order_QK, axis=1), np.take_along_axis(rows_QC, order_QK, axis=1)

    def _find(self, queries_QD: Vectors, num_candidates: int) -> Rows:
        if self._threads is None:
            rows_QC: Rows = self._shards[0].search(queries_QD, num_candidates)[1]
            return rows_QC

        def find(shard: Any, first_row: int) -> tuple[Scores, Rows]:
            scores_QC, rows_QC = shard.search(queries_QD, min(num_candidates, shard.ntotal))
            return scores_QC, np.where(rows_QC == NOTHING, NOTHING, rows_QC + first_row)

        scores_parts, rows_parts = zip(*self._threads.map(find, self._shards, self._first_rows), strict=True)
        scores_QC, rows_QC = np.concatenate(scores_parts, axis=1), np.concatenate(rows_parts, axis=1)
        best_QC = np.argpartition(-scores_QC, num_candidates - 1, axis=1)[:, :num_candidates]
        return np.asarray(np.take_along_axis(rows_QC, best_QC, axis=1))

    def _score(self, queries_QD: Vectors, rows_QC: Rows) -> Scores:
        scores_QC = np.empty(rows_QC.shape, dtype=np.float32)
        for q, rows_C in enumerate(rows_QC):
            # In the order of the file, so that neighbours on disk are read together; NOTHING reads row 0, and loses.
            vectors_CD = self._vectors_ND[np.maximum(rows_C, 0)]
            scores_QC[q] = vectors_CD.astype(np.float32, copy=False) @ queries_QD[q]
        scores_QC[rows_QC == NOTHING] = -np.inf
        return scores_QC


def read_codes(path: Path) -> Any:
    """The index of a file, memory-mapped where its kind allows."""
    import faiss

    return faiss.read_index(os.fspath(path), faiss.IO_FLAG_MMAP_IFC)


def train_codes(factory: str, sample_ND: Vectors) -> Any:
    """An empty index that has learnt the shape of the data. Raises RuntimeError for a factory faiss does not know."""
    import faiss

    codes = faiss.index_factory(sample_ND.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
    codes.train(sample_ND)
    return codes


def write_codes(codes: Any, blocks: Iterator[Vectors], folder: Path, *, shard_rows: int) -> None:
    """Write shards of `codes`, which is trained and empty, as files of a new folder. Memory holds one shard."""
    import faiss

    folder.mkdir()
    trained = faiss.serialize_index(codes)
    shard, number = faiss.deserialize_index(trained), 0

    def write() -> None:
        faiss.write_index(shard, os.fspath(folder / f"{number:03}.faiss"))

    for block_ND in blocks:
        if shard.ntotal and shard.ntotal + len(block_ND) > shard_rows:
            write()
            shard, number = faiss.deserialize_index(trained), number + 1
        shard.add(block_ND)
    write()


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


# ---------------------------------------------------------------------------------------------------------------------
# What faiss must be told

_ALWAYS_SCAN = 2**31 - 1
"""Queries x dimensions up to which faiss scans. Its own switch to products is not used, see `products`."""
_CALIBRATION_BYTES = 64 * 1024 * 1024
_CALIBRATION_BATCHES = (1, 2, 4, 8, 16, 32)
_CALIBRATION_SECONDS = 1.0
_CALIBRATION_K = 10


def _set_up_faiss(num_threads: int) -> None:
    import faiss

    faiss.omp_set_num_threads(num_threads)
    faiss.cvar.distance_compute_blas_threshold = _ALWAYS_SCAN


def _threads(num_threads: int) -> ThreadPoolExecutor:
    """Each for a share of its own, which faiss shall not share out again: the number is the calling thread's."""
    import faiss

    return ThreadPoolExecutor(num_threads, "search", initializer=faiss.omp_set_num_threads, initargs=(1,))


_measured: dict[tuple[str, int], int] = {}
"""Crossovers by kind and dimensions: the second index of a process need not measure again."""


def _sample(vectors_ND: AnyMatrix) -> AnyMatrix:
    """More than a cache holds, so that reading it costs what reading the whole would; less where there is not more."""
    return np.copy(vectors_ND[: _CALIBRATION_BYTES // (vectors_ND.dtype.itemsize * vectors_ND.shape[1])])


def _crossover(
    kind: str, sample_ND: Matrix, *, scan: Callable[[Vectors], Any], multiply: Callable[[Vectors], Any]
) -> int:
    """The number of queries from which `multiply` is faster; found in about a second."""
    if len(sample_ND) < BLOCK_ROWS:
        return _CALIBRATION_BATCHES[2]  # so small that either way is instant
    key = (kind, sample_ND.shape[1])
    if key not in _measured:
        _measured[key] = _measure(sample_ND, scan, multiply)
        metrics.BLAS_THRESHOLD.set(_measured[key] * sample_ND.shape[1])
    return _measured[key]


def _measure(sample_ND: Matrix, scan: Callable[[Vectors], Any], multiply: Callable[[Vectors], Any]) -> int:
    deadline = time.perf_counter() + _CALIBRATION_SECONDS
    for num_queries in _CALIBRATION_BATCHES:
        queries_QD = np.asarray(sample_ND[:num_queries], dtype=np.float32)
        scan_seconds, multiply_seconds = (
            min(_seconds(search, queries_QD), _seconds(search, queries_QD)) for search in (scan, multiply)
        )
        if multiply_seconds < scan_seconds or time.perf_counter() > deadline:
            return num_queries
    return 2 * _CALIBRATION_BATCHES[-1]


def _seconds(search: Callable[[Vectors], Any], queries_QD: Vectors) -> float:
    started = time.perf_counter()
    search(queries_QD)
    return time.perf_counter() - started
