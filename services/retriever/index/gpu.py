"""Exact search on GPUs, with faiss' build for them (the extra `retriever-gpu`).

faiss' own way from a CPU index to 16 bits on a GPU holds the matrix up to four times. Here an empty GPU index reserves
its room once and is filled from the memory-mapped matrix, page by page, so it is held once; with several GPUs, each
gets a share of the rows.
"""

# Q = queries, K = results per query, N = passages, D = dimensions
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from typing import Any

import numpy as np

from searcher.contracts.errors import InvalidInput
from services.retriever.encoders.protocol import Vectors
from services.retriever.index.exact import best_of
from services.retriever.index.protocol import Matrix, Rows, Scores

FAISS_PACKAGES = ("faiss-cpu", "faiss-gpu", "faiss-gpu-cuvs", "faiss-gpu-cu12", "faiss-gpu-cu11")
_CONVERTED_BYTES = 4 * 1024**3
"""Of host memory, for vectors that are converted on their way to a GPU."""
_SCRATCH_BYTES = 512 * 1024 * 1024


def check_one_faiss() -> None:
    """All packages of faiss install one module, so the last one installed wins, in parts. Raises InvalidInput."""
    installed = [f"{name} {found}" for name in FAISS_PACKAGES if (found := _version(name))]
    if len(installed) > 1:
        raise InvalidInput(
            f"{' and '.join(installed)} are installed, and only one can be: uninstall all of them, then install one of "
            "the extras `retriever` and `retriever-gpu`"
        )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def num_gpus() -> int:
    """That this faiss can use: 0 for its build for CPUs."""
    import faiss

    return int(faiss.get_num_gpus()) if hasattr(faiss, "get_num_gpus") else 0


class GpuFlat:
    """Exact up to the rounding to 16 bits. One thread only: a GPU index is not safe to share, even for reading."""

    def __init__(self, vectors_ND: Matrix, *, num_gpus: int) -> None:
        shares = np.linspace(0, len(vectors_ND), num_gpus + 1).astype(int).tolist()
        self._num_vectors = len(vectors_ND)
        self._parts = [
            (start, filled(vectors_ND[start:stop], device))
            for device, share in enumerate(pairwise(shares))
            for start, stop in parts_of(*share, vectors_ND)
        ]

    def search(self, queries_QD: Vectors, k: int) -> tuple[Scores, Rows]:
        found = []
        for start, (_, index) in self._parts:
            scores_QK, rows_QK = index.search(queries_QD, min(k, index.ntotal))
            found.append((scores_QK, rows_QK + start))
        return best_of(found, min(k, self._num_vectors))


def parts_of(start: int, stop: int, vectors_ND: Matrix) -> list[tuple[int, int]]:
    """The rows of one GPU, cut where host memory needs it: faiss takes 32-bit vectors, and those of a 32-bit matrix are
    read as they are, but others are converted first."""
    if start == stop:
        return []
    rows = stop - start if vectors_ND.dtype == np.float32 else max(1, _CONVERTED_BYTES // (4 * vectors_ND.shape[1]))
    return [(first, min(first + rows, stop)) for first in range(start, stop, rows)]


def filled(vectors_ND: Matrix, device: int) -> tuple[Any, Any]:
    """Resources, which must live as long as the index, and the index. One `add` reserves the room for all rows at once,
    and reads them page by page; several would move what is there whenever it grows."""
    import faiss

    resources = faiss.StandardGpuResources()
    resources.setTempMemory(_SCRATCH_BYTES)
    config = faiss.GpuIndexFlatConfig()
    config.device = device
    config.useFloat16 = True
    index = faiss.GpuIndexFlatIP(resources, vectors_ND.shape[1], config)
    index.add(np.ascontiguousarray(vectors_ND, dtype=np.float32))
    return resources, index
