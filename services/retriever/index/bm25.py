"""Words of queries -> rows of passages that share them, by BM25. The only place that imports bm25s."""

# Q = queries, K = results per query, N = passages, V = words, P = postings: a word in a passage
import math
import re
import tempfile
import unicodedata
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from searcher.contracts.errors import InvalidInput
from services.retriever import metrics
from services.retriever.index.layout import BM25_FILES
from services.retriever.index.manifest import Bm25Facts
from services.retriever.index.matrix import new_matrix
from services.retriever.index.protocol import NOTHING, Rows, Scores

_WORD = re.compile(r"\w+")
_POSTING = np.dtype([("row", np.int32), ("word", np.int32), ("count", np.int32)])
_BLOCK_TEXTS = 1_024
_BLOCK_POSTINGS = 1_000_000
_POSTINGS_AT_ONCE = 256_000_000
"""That are put in order in one pass: 2 GB of the page cache."""


def words(text: str) -> list[str]:
    """The words of a passage or a query: lower case, without accents, so that `Beyonce` finds `Beyoncé`."""
    if not text.isascii():
        text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return _WORD.findall(text.lower())


def write_bm25(
    texts: Iterator[str],
    folder: Path,
    *,
    facts: Bm25Facts,
    on_postings: Callable[[int, int], object] = lambda done, total: None,
) -> None:
    """Index one text per row, into a new folder: byte for byte what bm25s writes, which holds all of it in memory.

    Here memory holds the vocabulary and one block. `on_postings` hears how many are read, and of how many, when all
    texts have been counted. Raises InvalidInput if there is no word in any of the texts.
    """
    import bm25s

    with tempfile.TemporaryDirectory(dir=_new(folder)) as scratch:
        counted = _count(texts, Path(scratch))
        if not counted.vocabulary:
            raise InvalidInput("corpus: no passage holds a word, so there is nothing to match; use a `flat` index")
        starts_V = np.concatenate([[0], np.cumsum(counted.passages_with_V)])
        model = bm25s.BM25(k1=facts.k1, b=facts.b, method=facts.variant)
        model.vocab_dict, model.nonoccurrence_array = counted.vocabulary, None
        # Everything but the postings, whose files are made beside the others and then filled.
        nothing = np.empty(0)
        num_passages = len(counted.lengths_N)
        model.scores = {"data": nothing, "indices": nothing, "indptr": starts_V, "num_docs": num_passages}
        model.save(folder, show_progress=False)
        shape = (int(starts_V[-1]),)
        scores_at, rows_at, *_ = (folder / name for name in BM25_FILES)
        scores_P = new_matrix(scores_at, np.float32, shape)
        rows_P = new_matrix(rows_at, np.int32, shape)
        _write_postings(counted, starts_V, scores_P, rows_P, facts, on_postings)


def _new(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@dataclass(frozen=True)
class _Counted:
    """The words of a corpus. Only the vocabulary, and what there is per word, is in memory."""

    vocabulary: dict[str, int]
    passages_with_V: NDArray[np.int64]
    lengths_N: NDArray[np.int32]
    """Words of each passage, on disk."""
    postings_P: NDArray[np.void]
    """_POSTING, on disk, in the order of the corpus."""


def _count(texts: Iterator[str], scratch: Path) -> _Counted:
    vocabulary: dict[str, int] = {}
    passages_with_V = np.zeros(1, dtype=np.int64)
    first_row = 0
    with (scratch / "lengths").open("wb") as lengths_file, (scratch / "postings").open("wb") as postings_file:
        while block := list(islice(texts, _BLOCK_TEXTS)):
            ids_of_block, lengths = array("q"), array("i")
            for text in block:
                ids = [vocabulary.setdefault(word, len(vocabulary)) for word in words(text)]
                ids_of_block.extend(ids)
                lengths.append(len(ids))
            rows = np.repeat(np.arange(len(block)), lengths) + first_row
            in_order, counts = np.unique(rows << 32 | np.frombuffer(ids_of_block, dtype=np.int64), return_counts=True)
            postings = np.empty(len(in_order), dtype=_POSTING)
            postings["row"], postings["word"], postings["count"] = in_order >> 32, in_order & 0xFFFFFFFF, counts
            if len(vocabulary) > len(passages_with_V):
                passages_with_V = np.concatenate([passages_with_V, np.zeros(len(vocabulary), dtype=np.int64)])
            np.add.at(passages_with_V, postings["word"], 1)
            lengths.tofile(lengths_file)
            postings.tofile(postings_file)
            first_row += len(block)
    return _Counted(
        vocabulary,
        passages_with_V[: len(vocabulary)],
        _mapped(scratch / "lengths", np.dtype(np.int32)),
        _mapped(scratch / "postings", _POSTING),
    )


def _mapped(path: Path, dtype: np.dtype[Any]) -> NDArray[Any]:
    return np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.empty(0, dtype)


def _write_postings(
    counted: _Counted,
    starts_V: NDArray[np.int64],
    scores_P: Scores,
    rows_P: NDArray[np.int32],
    facts: Bm25Facts,
    on_postings: Callable[[int, int], object],
) -> None:
    """From the order of the corpus to that of the vocabulary. A range of words at a time, so that what is written to
    stays in the page cache; each takes one pass through the postings."""
    idf_V = _idf(counted.passages_with_V, len(counted.lengths_N))
    mean_length = counted.lengths_N.sum(dtype=np.int64) / len(counted.lengths_N)
    next_V = starts_V[:-1].copy()
    num_postings, ranges = len(counted.postings_P), list(_ranges_of_words(starts_V))
    for number, (first, last) in enumerate(ranges):
        for start in range(0, num_postings, _BLOCK_POSTINGS):
            on_postings(number * num_postings + start, len(ranges) * num_postings)
            block = counted.postings_P[start : start + _BLOCK_POSTINGS]
            block = block[(block["word"] >= first) & (block["word"] < last)]
            block = block[np.argsort(block["word"], kind="stable")]
            word, first_of_word, count_of_word = np.unique(block["word"], return_index=True, return_counts=True)
            rank_within_word = np.arange(len(block)) - np.repeat(first_of_word, count_of_word)
            places = next_V[block["word"]] + rank_within_word
            next_V[word] += count_of_word
            rows_P[places] = block["row"]
            # As bm25s reckons, in double precision but for the words' weights, so that no score differs in a bit.
            length_norm = facts.k1 * ((1 - facts.b) + facts.b * counted.lengths_N[block["row"]] / mean_length)
            scores_P[places] = idf_V[block["word"]] * (block["count"] / (length_norm + block["count"]))
    on_postings(len(ranges) * num_postings, len(ranges) * num_postings)


def _idf(passages_with_V: NDArray[np.int64], num_passages: int) -> NDArray[np.float32]:
    """By `math.log`, as numpy's may differ in the last bit."""
    distinct, which_V = np.unique(passages_with_V, return_inverse=True)
    weights = [math.log(1 + (num_passages - n + 0.5) / (n + 0.5)) for n in distinct.tolist()]
    return np.array(weights, dtype=np.float32)[which_V]


def _ranges_of_words(starts_V: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    first, num_words = 0, len(starts_V) - 1
    while first < num_words:
        last = int(np.searchsorted(starts_V, starts_V[first] + _POSTINGS_AT_ONCE, side="right")) - 1
        last = max(last, first + 1)
        yield first, last
        first = last


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
