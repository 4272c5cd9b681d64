"""An index of vectors -> the share of the truly nearest passages that it finds, and the settings it needs for that."""

# Q = queries, K = results per query, D = dimensions
import gzip
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from searcher.contracts.errors import InvalidInput
from searcher.contracts.search import Recall
from services.retriever.encoders.protocol import Vectors
from services.retriever.index.passages import PassageStore
from services.retriever.index.products import exact
from services.retriever.index.protocol import NOTHING, Matrix, Nearest, Rows, Scores
from services.retriever.index.quantised import Quantised

K = 10
NUM_QUERIES = 256
_QUERY_WORDS = 12
_CANDIDATES = (5, 10, 20, 40, 80, 160)
"""Per result. More is exacter and slower."""
_SAME_SCORE = 1e-5
"""Two ways of adding up the same product differ by less."""


@dataclass(frozen=True)
class Trial:
    """Queries, and the score that a passage must have to be among the nearest, from exact search.

    Scores and not rows decide: a passage that occurs twice is as good in either place.
    """

    queries_QD: Vectors
    vectors_ND: Matrix
    k: int
    worst_Q: Scores
    """The score of the k-th nearest."""
    of_questions: bool

    @classmethod
    def of(cls, queries_QD: Vectors, vectors_ND: Matrix, *, of_questions: bool) -> "Trial":
        k = min(K, len(vectors_ND))
        scores_QK, _ = exact(queries_QD, vectors_ND, k)
        return cls(queries_QD, vectors_ND, k, scores_QK[:, -1], of_questions)

    def recall(self, index: Nearest) -> float:
        _, rows_QK = index.search(self.queries_QD, self.k)
        return self.recall_of(rows_QK)

    def recall_of(self, rows_QK: Rows) -> float:
        """The share of the k nearest that is in `rows_QK`."""
        hits = 0
        for rows, query_D, worst in zip(rows_QK, self.queries_QD, self.worst_Q, strict=True):
            found = np.unique(rows[rows != NOTHING])
            scores = np.asarray(self.vectors_ND[found], dtype=np.float32) @ query_D
            hits += int((scores >= worst - _SAME_SCORE).sum())
        return hits / (self.k * len(self.queries_QD))

    def facts(self, index: Nearest) -> Recall:
        return Recall(
            recall=self.recall(index),
            k=self.k,
            num_queries=len(self.queries_QD),
            queries="questions" if self.of_questions else "passages",
        )


@dataclass(frozen=True)
class Settings:
    candidates: int
    num_probes: int | None


def tuned(index: Quantised, trial: Trial, *, wanted: float, num_lists: int | None) -> Settings:
    """The cheapest settings with the recall that is wanted; the exactest there are, if none has it."""
    num_probes = None
    index.candidates = _CANDIDATES[-1]
    if num_lists is not None:
        num_probes = 1
        index.num_probes = num_probes
        while trial.recall(index) < wanted and num_probes < num_lists:
            num_probes = min(2 * num_probes, num_lists)
            index.num_probes = num_probes
    for candidates in _CANDIDATES:
        index.candidates = candidates
        if trial.recall(index) >= wanted:
            break
    return Settings(index.candidates, num_probes)


def sample_queries(passages: PassageStore, num_queries: int = NUM_QUERIES) -> list[str]:
    """Stretches of words from passages all over the corpus, the same at every build."""
    random = np.random.default_rng(0)
    rows = random.choice(len(passages), size=min(num_queries, len(passages)), replace=False)
    queries = []
    for row in sorted(rows.tolist()):
        words = passages.searchable_texts(row, row + 1)[0].split()
        start = int(random.integers(max(1, len(words) - _QUERY_WORDS)))
        queries.append(" ".join(words[start : start + _QUERY_WORDS]))
    return queries


def read_questions(path: Path, num_queries: int = NUM_QUERIES) -> list[str]:
    """The questions of a JSONL file, spread over it. Raises InvalidInput with the line that holds none."""
    questions = []
    for number, line in enumerate(_lines(path), start=1):
        try:
            question = json.loads(line)["question"]
            question.encode()  # half a surrogate pair, written as \\ud800, is valid JSON but no text
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
            raise InvalidInput(f"queries: {path}:{number}: no JSON object with a text `question`: {error!r}") from None
        if not question.strip():
            raise InvalidInput(f"queries: {path}:{number}: the `question` is empty")
        questions.append(question)
    if not questions:
        raise InvalidInput(f"queries: {path} holds no questions")
    return questions[:: max(1, len(questions) // num_queries)][:num_queries]


def _lines(path: Path) -> Sequence[str]:
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        return [line for line in content.decode().split("\n") if line.strip()]
    except (OSError, EOFError, zlib.error, UnicodeError) as error:
        raise InvalidInput(f"queries: {path}: {error}") from None
