"""What every index can do, whatever it compares. Passages themselves are left to `passages`."""

# Q = queries, K = results per query, N = passages, D = dimensions
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from services.retriever.encoders.protocol import Vectors

Rows = NDArray[np.int64]
Scores = NDArray[np.float32]
Matrix = NDArray[np.float32] | NDArray[np.float16]
NOTHING = -1
"""A row that fills up a result list: fewer passages than k were found."""


class Nearest(Protocol):
    def search(self, queries_QD: Vectors, k: int) -> tuple[Scores, Rows]:
        """scores_QK and rows_QK, best first; at most as many columns as there are vectors."""
        ...


class Index(Protocol):
    def search(self, queries: Sequence[str], k: int) -> tuple[Rows, Scores]:
        """rows_QK and scores_QK, best first. What is not found is row NOTHING at the end of its list."""
        ...
