"""What faiss and BLAS must be told, and where multiplying matrices begins to beat scans on this machine."""

# Q = queries, N = passages, D = dimensions
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from services.retriever import metrics
from services.retriever.encoders.protocol import Vectors
from services.retriever.index.products import BLOCK_ROWS
from services.retriever.index.protocol import Matrix

AnyMatrix = TypeVar("AnyMatrix", NDArray[np.float32], NDArray[np.float16])
Part = TypeVar("Part")
Found = TypeVar("Found")

_ALWAYS_SCAN = 2**31 - 1
"""Queries x dimensions up to which faiss scans. Its own switch to products is not used, see `products`."""
_CALIBRATION_BYTES = 64 * 1024 * 1024
_CALIBRATION_BATCHES = (1, 2, 4, 8, 16, 32)
_CALIBRATION_SECONDS = 1.0
CALIBRATION_K = 10


def set_up_libraries(num_threads: int) -> None:
    """For the whole process. numpy's products here are small and stay on one thread: the others of its OpenBLAS spin
    for some 20 ms after each, on the cores that the encoder needs next."""
    import faiss

    use_threads(num_threads)
    faiss.cvar.distance_compute_blas_threshold = _ALWAYS_SCAN
    ThreadpoolController().select(threading_layer="pthreads").limit(limits=1)


def use_threads(num_threads: int) -> None:
    """How many threads share a call of faiss from this thread: OpenMP keeps that number for every thread apart."""
    import faiss

    faiss.omp_set_num_threads(num_threads)


def read_codes(path: Path) -> Any:
    """The index of a file, memory-mapped where its kind allows."""
    import faiss

    return faiss.read_index(os.fspath(path), faiss.IO_FLAG_MMAP_IFC)


class Threads:
    """Parts of a search, each on one thread. The calling thread works too: it need not be woken."""

    def __init__(self, num_threads: int) -> None:
        self.num_threads = num_threads
        others = max(1, num_threads - 1)
        self._others = ThreadPoolExecutor(others, "search", initializer=use_threads, initargs=(1,))

    def each(self, search: Callable[[Part], Found], parts: Sequence[Part]) -> list[Found]:
        """What was found in each part, in their order. Whoever is done takes the next."""
        left, found = deque(enumerate(parts)), dict[int, Found]()

        def take_parts() -> None:
            while True:
                try:
                    number, part = left.popleft()
                except IndexError:
                    return
                found[number] = search(part)

        helping = [self._others.submit(take_parts) for _ in range(min(self.num_threads, len(parts)) - 1)]
        use_threads(1)
        try:
            take_parts()
        finally:
            left.clear()  # where one part failed, nobody wants the rest
            use_threads(self.num_threads)
        for helper in helping:
            if not helper.cancel():  # it began, or is done
                helper.result()
        return [found[number] for number in range(len(parts))]


_measured: dict[tuple[str, int], int] = {}
"""Crossovers by kind and dimensions: the second index of a process need not measure again."""


def sample_of(vectors_ND: AnyMatrix) -> AnyMatrix:
    """More than a cache holds, so that reading it costs what reading the whole would; less where there is not more."""
    return np.copy(vectors_ND[: _CALIBRATION_BYTES // (vectors_ND.dtype.itemsize * vectors_ND.shape[1])])


def crossover(
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
