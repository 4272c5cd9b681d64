import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from searcher.contracts.errors import InvalidInput
from services.retriever.building.corpus import write_passages
from services.retriever.building.recall import Trial, read_questions, sample_queries, tuned
from services.retriever.index.exact import Flat
from services.retriever.index.passages import PassageStore
from services.retriever.index.protocol import NOTHING
from services.retriever.index.quantised import Quantised, train_codes, write_codes


def test_recall_is_the_share_of_the_nearest_that_were_found() -> None:
    vectors = np.array([[n, 0.0] for n in range(20)], dtype=np.float32)  # the 10 nearest to (1, 0) are 10 … 19
    trial = Trial.of(np.array([[1.0, 0.0], [2.0, 0.0]], dtype=np.float32), vectors, of_questions=False)

    recall = trial.recall_of(np.array([range(10, 20), [19, 18, 17, 16, 15, 3, 2, 2, 19, NOTHING]]))

    assert recall == (10 + 5) / 20


def test_a_passage_that_occurs_twice_is_as_good_in_either_place() -> None:
    vectors = np.array([[1.0]] * 12, dtype=np.float32)
    trial = Trial.of(np.array([[1.0]], dtype=np.float32), vectors, of_questions=False)

    assert trial.recall_of(np.array([range(2, 12)])) == trial.recall_of(np.array([range(10)])) == 1.0


def test_an_exact_index_has_all() -> None:
    vectors = np.random.default_rng(0).standard_normal((500, 8)).astype(np.float32)
    trial = Trial.of(vectors[:20], vectors, of_questions=False)

    facts = trial.facts(Flat(vectors, num_threads=1))

    assert (facts.recall, facts.k, facts.num_queries, facts.queries) == (1.0, 10, 20, "passages")


@pytest.mark.parametrize("factory", ["PQ4x4fs", "IVF16,PQ4x4fs"])
def test_an_index_is_tuned_to_no_more_than_the_recall_that_is_wanted(tmp_path: Path, factory: str) -> None:
    vectors = np.random.default_rng(0).standard_normal((4_000, 16)).astype(np.float32)
    write_codes(train_codes(factory, vectors), iter([vectors]), tmp_path / "codes", shard_rows=4_000)
    index = Quantised(tmp_path / "codes", vectors, candidates=1, num_probes=None, num_threads=1)
    trial = Trial.of(vectors[:50] + 0.1, vectors, of_questions=False)
    num_lists = 16 if factory.startswith("IVF") else None

    settings = tuned(index, trial, wanted=0.9, num_lists=num_lists)

    assert trial.recall(index) >= 0.9
    index.candidates = settings.candidates // 2
    assert settings.candidates == 5 or trial.recall(index) < 0.9
    assert (settings.num_probes is None) == (num_lists is None)


def test_what_cannot_be_had_ends_at_the_exactest_settings(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).standard_normal((4_000, 16)).astype(np.float32)
    write_codes(train_codes("IVF16,PQ1x4fs", vectors), iter([vectors]), tmp_path / "codes", shard_rows=4_000)
    index = Quantised(tmp_path / "codes", vectors, candidates=1, num_probes=None, num_threads=1)

    settings = tuned(index, Trial.of(vectors[:50], vectors, of_questions=False), wanted=1.1, num_lists=16)

    assert (settings.candidates, settings.num_probes) == (160, 16)


def test_sample_queries_are_stretches_of_passages_and_the_same_at_every_build(
    tmp_path: Path, write_corpus: Callable[..., Path]
) -> None:
    passages = [{"id": str(n), "text": " ".join(f"w{n}x{i}" for i in range(40))} for n in range(30)]
    write_passages(write_corpus(passages), tmp_path, on_progress=lambda *_: None)

    with PassageStore(tmp_path) as store:
        first, second = sample_queries(store, 8), sample_queries(store, 8)

    assert first == second
    assert len(first) == 8
    assert all(len(query.split()) == 12 and any(query in passage["text"] for passage in passages) for query in first)


def test_questions_are_spread_over_their_file(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps({"question": f"q{n}"}) + "\n" for n in range(10)).encode()))

    assert read_questions(path, 5) == ["q0", "q2", "q4", "q6", "q8"]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "holds no questions"),
        ('{"q": 1}\n', ":1: no JSON object"),
        ('{"question": null}\n', ":1: no JSON object with a text"),
        ('{"question": "\\ud800 who"}\n', ":1: no JSON object with a text"),
        ('{"question": "who"}\n{"question": " "}\n', ":2: the `question` is empty"),
    ],
)
def test_a_file_without_questions_is_refused(tmp_path: Path, content: str, complaint: str) -> None:
    (tmp_path / "q.jsonl").write_text(content)

    with pytest.raises(InvalidInput, match=complaint):
        read_questions(tmp_path / "q.jsonl")
