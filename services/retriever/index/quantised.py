"""Vectors of queries -> rows, where short codes name candidates and the vectors, mapped from disk, decide.

Of a corpus only the codes need memory: a thirtieth of its vectors. One caller at a time, as in `exact`.
"""

# Q = queries, K = results per query, N = passages, C = candidates per query, D = dimensions
import mmap
import os
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from searcher.contracts.errors import InvalidInput
from services.retriever.encoders.protocol import Vectors
from services.retriever.index.kernels import Threads, read_codes, set_up_libraries, use_threads
from services.retriever.index.layout import codes_file
from services.retriever.index.protocol import NOTHING, Matrix, Rows, Scores


class Quantised:
    """Candidates by codes, order by the vectors themselves: of a corpus, only the codes need memory.

    faiss scans codes for one query with one thread. The codes lie in shards, so that all threads have work.
    """

    def __init__(
        self, folder: Path, vectors_ND: Matrix, *, candidates: int, num_probes: int | None, num_threads: int
    ) -> None:
        set_up_libraries(num_threads)
        self._shards = [read_codes(path) for path in sorted(folder.glob("[0-9]*.faiss"))]
        num_codes = sum(shard.ntotal for shard in self._shards)
        if num_codes != len(vectors_ND):
            raise InvalidInput(
                f"{folder}: codes of {num_codes:,} vectors, and there are {len(vectors_ND):,}; build again"
            )
        self._first_rows = [0, *accumulate(shard.ntotal for shard in self._shards[:-1])]
        self._vectors_ND, self.candidates = vectors_ND, candidates
        if isinstance(vectors_ND, np.memmap):
            # Candidates lie all over the file: reading on behind each would fetch a hundred times what is needed.
            vectors_ND._mmap.madvise(mmap.MADV_RANDOM)  # type: ignore[attr-defined]
        self._threads = Threads(num_threads)
        self.num_probes = num_probes
        """Lists that are read per query; None where codes do not lie in lists."""

    def search(self, queries_QD: Vectors, k: int) -> tuple[Scores, Rows]:
        k = min(k, len(self._vectors_ND))
        rows_QC = self._find_enough(queries_QD, k, min(k * self.candidates, len(self._vectors_ND)))
        scores_QC = self._score(queries_QD, rows_QC)
        order_QK = np.lexsort((rows_QC, -scores_QC), axis=1)[:, :k]
        return np.take_along_axis(scores_QC, order_QK, axis=1), np.take_along_axis(rows_QC, order_QK, axis=1)

    def _find_enough(self, queries_QD: Vectors, k: int, num_candidates: int) -> Rows:
        """At least k for each query, so more lists than usual are read where those hold fewer."""
        if self.num_probes is None:
            return self._find(queries_QD, num_candidates)
        num_probes, num_lists = self.num_probes, self._shards[0].nlist
        rows_QC = self._probe(queries_QD, num_candidates, num_probes)
        while num_probes < num_lists and len(short := np.flatnonzero((rows_QC != NOTHING).sum(axis=1) < k)):
            num_probes *= 2
            rows_QC[short] = self._probe(queries_QD[short], num_candidates, num_probes)
        return rows_QC

    def _probe(self, queries_QD: Vectors, num_candidates: int, num_probes: int) -> Rows:
        for shard in self._shards:
            shard.nprobe = num_probes
        return self._find(queries_QD, num_candidates)

    def _find(self, queries_QD: Vectors, num_candidates: int) -> Rows:
        if len(self._shards) == 1:
            use_threads(self._threads.num_threads)
            rows_QC: Rows = self._shards[0].search(queries_QD, num_candidates)[1]
            return rows_QC

        def find(part: tuple[Any, int]) -> tuple[Scores, Rows]:
            shard, first_row = part
            scores_QC, rows_QC = shard.search(queries_QD, min(num_candidates, shard.ntotal))
            return scores_QC, np.where(rows_QC == NOTHING, NOTHING, rows_QC + first_row)

        parts = list(zip(self._shards, self._first_rows, strict=True))
        scores_parts, rows_parts = zip(*self._threads.each(find, parts), strict=True)
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
        faiss.write_index(shard, os.fspath(folder / codes_file(number)))

    for block_ND in blocks:
        if shard.ntotal and shard.ntotal + len(block_ND) > shard_rows:
            write()
            shard, number = faiss.deserialize_index(trained), number + 1
        shard.add(block_ND)
    write()
