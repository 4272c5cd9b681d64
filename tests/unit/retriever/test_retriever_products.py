import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from services.retriever.index import products
from services.retriever.index.products import Products, exact

DIM = 4


def by_hand(
    queries: NDArray[np.float32], vectors: NDArray[np.floating], k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    scores = queries @ vectors.astype(np.float32).T
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, rows, axis=1), rows


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "BLOCK_ROWS", 128)
    monkeypatch.setattr(products, "_PART_QUERIES", 2)


@given(
    num_vectors=st.integers(1, 700),
    num_queries=st.integers(1, 5),
    k=st.integers(1, 200),
    seed=st.integers(0, 1_000),
    distinct=st.integers(1, 4),
)
def test_the_best_are_those_of_one_large_product_and_equals_stand_by_row(
    num_vectors: int, num_queries: int, k: int, seed: int, distinct: int
) -> None:
    random = np.random.default_rng(seed)
    vectors = random.integers(-distinct, distinct + 1, (num_vectors, DIM)).astype(np.float32)  # many equal scores
    queries = random.integers(-2, 3, (num_queries, DIM)).astype(np.float32)
    k = min(k, num_vectors)

    scores, rows = exact(queries, vectors, k)

    expected_scores, expected_rows = by_hand(queries, vectors, k)
    assert scores.tolist() == expected_scores.tolist()
    assert rows.tolist() == expected_rows.tolist()


def test_16_bit_vectors_are_widened_block_by_block() -> None:
    random = np.random.default_rng(0)
    vectors = random.standard_normal((500, DIM)).astype(np.float16)
    queries = random.standard_normal((3, DIM)).astype(np.float32)

    scores, rows = Products(DIM, "float16", num_threads=2).search(queries, vectors, 10)

    expected_scores, expected_rows = by_hand(queries, vectors, 10)
    assert rows.tolist() == expected_rows.tolist()
    assert scores == pytest.approx(expected_scores, abs=1e-5)
