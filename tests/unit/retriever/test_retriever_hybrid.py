from collections.abc import Sequence

import numpy as np
import pytest

from services.retriever.encoders.card import EncoderCard, Pooling
from services.retriever.index.hybrid import HybridIndex, fused
from services.retriever.index.manifest import FlatFacts, HybridFacts
from services.retriever.index.protocol import NOTHING, Rows, Scores

CARD = EncoderCard(name="toy", weights_sha256="0" * 64, dim=2, pooling=Pooling.MEAN, max_tokens=8)


class Listed:
    """The same rows for every query."""

    def __init__(self, *rows: int) -> None:
        self.rows, self.asked_for = rows, 0

    def search(self, queries: Sequence[str], k: int) -> tuple[Rows, Scores]:
        self.asked_for = k
        row = [*self.rows, *[NOTHING] * k][:k]
        return np.array([row] * len(queries)), np.ones((len(queries), k), dtype=np.float32)


def test_ranks_are_added_by_the_formula_and_equals_stand_by_row() -> None:
    rows, scores = fused([np.array([5, 7, 9]), np.array([9, 5, 2])], rank_constant=60)

    assert rows.tolist() == [5, 9, 7, 2]
    assert scores.tolist() == pytest.approx([1 / 61 + 1 / 62, 1 / 63 + 1 / 61, 1 / 62, 1 / 63])


def test_what_one_list_did_not_find_counts_for_nothing() -> None:
    rows, _ = fused([np.array([NOTHING, NOTHING]), np.array([3, NOTHING])], rank_constant=60)

    assert rows.tolist() == [3]


def test_both_lists_are_read_deeper_than_is_asked_for() -> None:
    dense, words = Listed(1, 2, 3), Listed(3, 4)
    index = HybridIndex([dense, words], HybridFacts(dense=FlatFacts(encoder=CARD), depth=50))

    rows, scores = index.search(["a", "b"], 2)

    assert rows.tolist() == [[3, 1]] * 2  # 1/63 + 1/61 > 1/61
    assert scores[0].tolist() == pytest.approx([1 / 63 + 1 / 61, 1 / 61])
    assert (dense.asked_for, words.asked_for) == (50, 50)


def test_fewer_than_k_end_with_nothing() -> None:
    index = HybridIndex([Listed(1), Listed(1)], HybridFacts(dense=FlatFacts(encoder=CARD)))

    rows, _ = index.search(["a"], 3)

    assert rows.tolist() == [[1, NOTHING, NOTHING]]
