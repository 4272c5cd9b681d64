"""Documents of a world -> the best for a query. In process: pretraining and the probe search without a service."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable

import numpy as np

from demo.world import Document

K1, B = 1.2, 0.75  # Robertson's usual values, as in Lucene


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


class Bm25:
    # N = documents
    def __init__(self, documents: Iterable[Document]) -> None:
        self.documents = list(documents)
        counts = [Counter(words(f"{document.title} {document.text}")) for document in self.documents]
        lengths_N = np.array([count.total() for count in counts])
        length_terms_N = K1 * (1 - B + B * lengths_N / lengths_N.mean())

        rows: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for number, count in enumerate(counts):
            for word, frequency in count.items():
                rows[word].append((number, frequency))
        self.postings = {word: _posting(np.array(row), length_terms_N) for word, row in rows.items()}

    def search(self, query: str, k: int) -> list[Document]:
        """At most k documents that share a word with the query, best first. Ties go to the older document."""
        scores_N = np.zeros(len(self.documents))
        for word in words(query):
            if word in self.postings:
                numbers, weights = self.postings[word]
                scores_N[numbers] += weights
        best = np.argsort(-scores_N, kind="stable")[:k]
        return [self.documents[number] for number in best if scores_N[number] > 0]


def _posting(row: np.ndarray, length_terms_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The documents that hold a word, and what the word adds to the score of each."""
    numbers, frequencies = row[:, 0], row[:, 1]
    num_documents, document_frequency = len(length_terms_N), len(numbers)
    rarity = np.log(1 + (num_documents - document_frequency + 0.5) / (document_frequency + 0.5))
    return numbers, rarity * frequencies * (K1 + 1) / (frequencies + length_terms_N[numbers])
