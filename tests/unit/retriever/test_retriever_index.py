import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from searcher.contracts.errors import InvalidInput
from services.retriever.encoders.local import OnnxEncoder
from services.retriever.index.bm25 import Bm25Index, _best_matches, words, write_bm25
from services.retriever.index.dense import DenseIndex, write_vectors
from services.retriever.index.exact import Flat
from services.retriever.index.manifest import Bm25Facts
from services.retriever.index.protocol import NOTHING

TEXTS = ("Rome Rome is a city", "Paris is a city", "Beyoncé sings", "Rome and Paris")


@pytest.fixture
def bm25(tmp_path: Path) -> Bm25Index:
    write_bm25(iter(TEXTS), tmp_path / "bm25", facts=Bm25Facts())
    return Bm25Index(tmp_path / "bm25")


def test_words_have_no_case_and_no_accents() -> None:
    assert words("Beyoncé's 1st Ærø-trip: ÇA") == ["beyonce", "s", "1st", "ærø", "trip", "ca"]


def test_bm25_scores_are_those_of_the_formula(bm25: Bm25Index) -> None:
    rows_QK, scores_QK = bm25.search(["rome"], 2)

    idf = math.log(1 + (4 - 2 + 0.5) / (2 + 0.5))  # "rome" is in 2 of 4 passages, whose mean length is 14 / 4
    first = idf * 2 / (2 + 1.2 * (1 - 0.75 + 0.75 * 5 / 3.5))
    last = idf * 1 / (1 + 1.2 * (1 - 0.75 + 0.75 * 3 / 3.5))
    assert rows_QK.tolist() == [[0, 3]]
    assert scores_QK[0].tolist() == pytest.approx([first, last], rel=1e-6)


def test_a_question_finds_a_name_with_or_without_its_accent(bm25: Bm25Index) -> None:
    rows_QK, _ = bm25.search(["Who is beyonce?", "Does Beyoncé sing?"], 1)

    assert rows_QK.tolist() == [[2], [2]]


def test_a_query_of_unknown_words_finds_nothing(bm25: Bm25Index) -> None:
    rows_QK, _ = bm25.search(["zyzzyva", "?!", "city zyzzyva"], 3)

    assert rows_QK.tolist() == [[NOTHING] * 3, [NOTHING] * 3, [1, 0, NOTHING]]


def test_k_beyond_the_corpus_gives_what_there_is(bm25: Bm25Index) -> None:
    rows_QK, _ = bm25.search(["rome paris beyonce city"], 100)

    assert sorted(rows_QK[0, :4].tolist()) == [0, 1, 2, 3]
    assert set(rows_QK[0, 4:].tolist()) == {NOTHING}


def test_a_corpus_without_words_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="no passage holds a word"):
        write_bm25(iter(["?!", "…"]), tmp_path, facts=Bm25Facts())


scores = arrays(np.float32, st.integers(1, 30), elements=st.sampled_from([0.0, 0.5, 1.0, 2.0]))


@given(scores_N=scores, k=st.integers(1, 40))
def test_best_matches_are_the_positive_scores_in_order_and_equals_by_row(scores_N: np.ndarray, k: int) -> None:
    expected = sorted((row for row, score in enumerate(scores_N) if score > 0), key=lambda row: (-scores_N[row], row))

    assert _best_matches(scores_N, k).tolist() == expected[:k]


@pytest.fixture
def letters(letter_encoder: Callable[..., Path]) -> OnnxEncoder:
    return OnnxEncoder(letter_encoder(), num_threads=1)


def dense(path: Path, letters: OnnxEncoder, texts: list[str], *, dtype: str = "float32") -> DenseIndex:
    blocks = (letters.encode_passages(texts[start : start + 2]) for start in range(0, len(texts), 2))
    write_vectors(blocks, path, num_passages=len(texts), dim=27, dtype=dtype)
    return DenseIndex(letters, Flat(np.load(path, mmap_mode="r"), num_threads=1))


def test_dense_search_finds_the_nearest_vectors(tmp_path: Path, letters: OnnxEncoder) -> None:
    index = dense(tmp_path / "v.npy", letters, ["aaaa", "bbbb", "abbb", "cccc", "bbcc"])

    rows_QK, scores_QK = index.search(["aaab", "ccc"], 1)

    assert rows_QK.tolist() == [[0], [3]]
    assert scores_QK == pytest.approx(np.array([[3 / math.sqrt(10)], [1.0]]), abs=1e-6)  # (3, 1) . (1, 0) / |(3, 1)|


def test_a_dense_index_smaller_than_k_gives_all_of_it(tmp_path: Path, letters: OnnxEncoder) -> None:
    rows_QK, _ = dense(tmp_path / "v.npy", letters, ["ab", "cd"]).search(["cc"], 100)

    assert rows_QK.tolist() == [[1, 0]]


def test_vectors_may_be_kept_in_half_the_bytes(tmp_path: Path, letters: OnnxEncoder) -> None:
    write_vectors(iter([letters.encode_passages(["ab"])]), tmp_path / "v.npy", num_passages=1, dim=27, dtype="float16")

    assert np.load(tmp_path / "v.npy").dtype == np.float16
