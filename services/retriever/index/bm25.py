"""Words of queries -> rows of passages that share them, by BM25. The only place that imports bm25s."""

# Q = queries, K = results per query, N = passages, D = dimensions
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from searcher.contracts.errors import InvalidInput
from services.retriever import metrics
from services.retriever.index.manifest import Bm25Facts
from services.retriever.index.protocol import NOTHING, Rows, Scores

BM25_FOLDER = "bm25"
_WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """The words of a passage or a query: lower case, without accents, so that `Beyonce` finds `Beyoncé`."""
    if not text.isascii():
        text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return _WORD.findall(text.lower())


def write_bm25(texts: Iterator[str], folder: Path, *, facts: Bm25Facts) -> None:
    """Index one text per row, into a new folder. Raises InvalidInput if there is no word in any of them."""
    import bm25s

    vocabulary: dict[str, int] = {}
    tokens_N = [[vocabulary.setdefault(word, len(vocabulary)) for word in words(text)] for text in texts]
    if not vocabulary:
        raise InvalidInput("corpus: no passage holds a word, so there is nothing to match; use a `flat` index")
    model = bm25s.BM25(k1=facts.k1, b=facts.b, method=facts.variant)
    model.index((tokens_N, vocabulary), create_empty_token=False, show_progress=False)
    model.save(folder, show_progress=False)


class Bm25Index:
    """Passages that share a word with the query, by BM25. A query of unknown words finds nothing."""

    def __init__(self, folder: Path) -> None:
        import bm25s

        self._model = bm25s.BM25.load(folder, mmap=True, show_progress=False)

    def search(self, queries: Sequence[str], k: int) -> tuple[Rows, Scores]:
        rows_QK = np.full((len(queries), k), NOTHING, dtype=np.int64)
        scores_QK = np.zeros((len(queries), k), dtype=np.float32)
        with metrics.SEARCH_SECONDS.time():
            for q, query in enumerate(queries):
                known = [self._model.vocab_dict[word] for word in words(query) if word in self._model.vocab_dict]
                if known:
                    scores_N = self._model.get_scores_from_ids(known)
                    best = _best_matches(scores_N, k)
                    rows_QK[q, : len(best)], scores_QK[q, : len(best)] = best, scores_N[best]
        return rows_QK, scores_QK


def _best_matches(scores_N: Scores, k: int) -> Rows:
    """Rows with a score, best first, at most k; equal scores in the order of the corpus."""
    found = np.flatnonzero(scores_N > 0)
    if len(found) > k:
        kth_score = np.partition(scores_N[found], -k)[-k]
        found = found[scores_N[found] >= kth_score]
    return found[np.argsort(-scores_N[found], kind="stable")][:k]
