"""Exact search on GPUs, with faiss' build for them (the extra `retriever-gpu`).

faiss' own way from a CPU index to a GPU holds the matrix up to four times. Here an empty GPU index reserves its room
once and is filled from the memory-mapped matrix, page by page, so it is held once; with several GPUs, each gets a share
of the rows.
"""

# Q = queries, K = results per query, N = passages, D = dimensions
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from typing import Any

import numpy as np

from searcher.contracts.errors import InvalidInput
from services.retriever.encoder import Vectors
from services.retriever.nearest import Matrix, Rows, Scores, best_of

FAISS_PACKAGES = ("faiss-cpu", "faiss-gpu", "faiss-gpu-cuvs", "faiss-gpu-cu12", "faiss-gpu-cu11")
_PAGE_BYTES = 256 * 1024 * 1024
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
    """One thread only: a GPU index is not safe to share, even for reading."""

    def __init__(self, vectors_ND: Matrix, *, num_gpus: int) -> None:
        shares = np.linspace(0, len(vectors_ND), num_gpus + 1).astype(int).tolist()
        self._num_vectors = len(vectors_ND)
        self._shards = [
            (start, _filled(vectors_ND[start:stop], device))
            for device, (start, stop) in enumerate(pairwise(shares))
            if stop > start
        ]

    def search(self, queries_QD: Vectors, k: int) -> tuple[Scores, Rows]:
        found = []
        for start, (_, index) in self._shards:
            scores_QK, rows_QK = index.search(queries_QD, min(k, index.ntotal))
            found.append((scores_QK, rows_QK + start))
        return best_of(found, min(k, self._num_vectors))


def _filled(vectors_ND: Matrix, device: int) -> tuple[Any, Any]:
    """The resources must live as long as the index."""
    import faiss

    resources = faiss.StandardGpuResources()
    resources.setTempMemory(_SCRATCH_BYTES)
    config = faiss.GpuIndexFlatConfig()
    config.device = device
    config.useFloat16 = vectors_ND.dtype == np.float16
    index = faiss.GpuIndexFlatIP(resources, vectors_ND.shape[1], config)
    index.reserveMemory(len(vectors_ND))
    fill(index, vectors_ND)
    return resources, index


def fill(index: Any, vectors_ND: Matrix) -> None:
    """Add the rows a page at a time: beside the index, memory holds one page."""
    rows = max(1, _PAGE_BYTES // (4 * vectors_ND.shape[1]))
    for start in range(0, len(vectors_ND), rows):
        index.add(np.ascontiguousarray(vectors_ND[start : start + rows], dtype=np.float32))
