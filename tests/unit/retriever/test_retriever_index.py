import math
import tracemalloc
from collections.abc import Callable, Iterator
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


def random_texts(count: int, *, num_words: int = 300) -> Iterator[str]:
    random = np.random.default_rng(0)
    for _ in range(count):
        yield " ".join(f"w{word}" for word in random.zipf(1.3, size=random.integers(0, 60)) % num_words)


@pytest.mark.parametrize("postings_at_once", [1, 700, 10**9])
def test_words_are_indexed_byte_for_byte_as_bm25s_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, postings_at_once: int
) -> None:
    import bm25s

    vocabulary: dict[str, int] = {}
    tokens = [[vocabulary.setdefault(word, len(vocabulary)) for word in words(text)] for text in random_texts(2_500)]
    reference = bm25s.BM25(k1=1.2, b=0.75, method="lucene")
    reference.index((tokens, vocabulary), create_empty_token=False, show_progress=False)
    reference.save(tmp_path / "reference", show_progress=False)

    monkeypatch.setattr("services.retriever.index.bm25._POSTINGS_AT_ONCE", postings_at_once)
    monkeypatch.setattr("services.retriever.index.bm25._BLOCK_POSTINGS", 9_000)
    write_bm25(random_texts(2_500), tmp_path / "ours", facts=Bm25Facts())

    ours, theirs = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("ours", "reference")
    )
    assert len(theirs) == 5
    assert ours == theirs


def test_indexing_words_takes_memory_for_the_vocabulary_and_not_for_the_corpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.retriever.index.bm25._BLOCK_TEXTS", 64)
    monkeypatch.setattr("services.retriever.index.bm25._BLOCK_POSTINGS", 4_000)

    def peak_bytes(count: int) -> int:
        tracemalloc.start()
        write_bm25(random_texts(count), tmp_path / str(count), facts=Bm25Facts())
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    peak_bytes(10)  # imports
    small, large = peak_bytes(500), peak_bytes(4_000)

    assert large < 1.2 * small


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
