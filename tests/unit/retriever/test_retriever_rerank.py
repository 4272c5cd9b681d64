import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from searcher.contracts.errors import InvalidInput
from services.retriever.building.corpus import write_passages
from services.retriever.index.passages import PassageStore
from services.retriever.index.protocol import NOTHING, Rows, Scores
from services.retriever.index.rerank import OnnxReranker, RerankedIndex, read_reranker_card


class InOrder:
    """All rows up to `found`, whatever is asked."""

    def __init__(self, found: int) -> None:
        self.found, self.asked_for = found, 0

    def search(self, queries: Sequence[str], k: int) -> tuple[Rows, Scores]:
        self.asked_for = k
        row = [*range(self.found), *[NOTHING] * k][:k]
        return np.array([row] * len(queries)), np.ones((len(queries), k), dtype=np.float32)


class SharedWords:
    def scores(self, query: str, passages: Sequence[str]) -> Scores:
        return np.array([len(set(query.split()) & set(passage.split())) for passage in passages], dtype=np.float32)


@pytest.fixture
def passages(tmp_path: Path, write_corpus: Callable[..., Path]) -> PassageStore:
    rows = [{"id": str(n), "title": "", "text": text} for n, text in enumerate(["a", "a b c", "b", "a b", "d"])]
    write_passages(write_corpus(rows), tmp_path, on_progress=lambda *_: None)
    return PassageStore(tmp_path)


def test_the_best_are_put_in_the_rerankers_order_and_equals_stay_as_they_were(passages: PassageStore) -> None:
    index = RerankedIndex(InOrder(5), passages, SharedWords(), depth=4)

    rows, scores = index.search(["a b c"], 3)

    assert rows.tolist() == [[1, 3, 0]]
    assert scores.tolist() == [[3.0, 2.0, 1.0]]


def test_as_many_are_read_as_its_depth_says_or_as_are_asked_for(passages: PassageStore) -> None:
    found_by = InOrder(5)
    index = RerankedIndex(found_by, passages, SharedWords(), depth=4)

    index.search(["a"], 2)
    shallow = found_by.asked_for
    index.search(["a"], 5)

    assert (shallow, found_by.asked_for) == (4, 5)


def test_nothing_found_stays_nothing(passages: PassageStore) -> None:
    rows, _ = RerankedIndex(InOrder(0), passages, SharedWords(), depth=4).search(["a"], 2)

    assert rows.tolist() == [[NOTHING, NOTHING]]


def test_an_onnx_cross_encoder_reads_query_and_passage_together(counting_reranker: Path) -> None:
    reranker = OnnxReranker(counting_reranker, num_threads=1)

    scores = reranker.scores("aa", ["b", "bbb", "", "bb"] * 10)

    assert scores.tolist() == [1.0, 3.0, 0.0, 2.0] * 10  # tokens of the second text: its type ids are 1


def test_pairs_are_cut_at_the_cards_length(counting_reranker: Path) -> None:
    card = json.loads((counting_reranker / "reranker.json").read_text())
    (counting_reranker / "reranker.json").write_text(json.dumps(card | {"max_tokens": 8}))

    assert OnnxReranker(counting_reranker, num_threads=1).scores("aa", ["b" * 40]).tolist() == [6.0]


def test_a_folder_that_is_no_reranker_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"reranker\.json: no such file"):
        read_reranker_card(tmp_path)
