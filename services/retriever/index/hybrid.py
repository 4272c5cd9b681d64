"""Several rankings of one corpus -> one, by reciprocal-rank fusion (Cormack, Clarke and Büttcher, 2009)."""

# Q = queries, K = results per query, C = ranks of one list
from collections.abc import Sequence

import numpy as np

from services.retriever.index.manifest import HybridFacts
from services.retriever.index.protocol import NOTHING, Index, Rows, Scores


class HybridIndex:
    """A score is comparable within one index only, a rank is not a score: so ranks are what is joined."""

    def __init__(self, legs: Sequence[Index], facts: HybridFacts) -> None:
        self._legs, self._facts = legs, facts

    def search(self, queries: Sequence[str], k: int) -> tuple[Rows, Scores]:
        depth = max(k, self._facts.depth)
        rankings = [leg.search(queries, depth)[0] for leg in self._legs]
        rows_QK = np.full((len(queries), k), NOTHING, dtype=np.int64)
        scores_QK = np.zeros((len(queries), k), dtype=np.float32)
        for q in range(len(queries)):
            rows, scores = fused([rows_QC[q] for rows_QC in rankings], rank_constant=self._facts.rank_constant)
            rows_QK[q, : len(rows[:k])], scores_QK[q, : len(rows[:k])] = rows[:k], scores[:k]
        return rows_QK, scores_QK


def fused(rankings: Sequence[Rows], *, rank_constant: int) -> tuple[Rows, Scores]:
    """Rows that any ranking has, by the sum of 1 / (rank_constant + rank); equal sums in the order of the corpus."""
    ranks_of_all = np.concatenate([np.arange(1, len(rows_C) + 1) for rows_C in rankings])
    rows_of_all = np.concatenate(list(rankings))
    found = rows_of_all != NOTHING
    rows, position = np.unique(rows_of_all[found], return_inverse=True)
    sums = np.bincount(position, weights=1.0 / (rank_constant + ranks_of_all[found]), minlength=len(rows))
    order = np.lexsort((rows, -sums))
    return rows[order], sums[order].astype(np.float32)
