"""The best of an index, read again beside the query by a cross-encoder, and put in its order.

A reranker is a folder: reranker.json (its card), tokenizer.json and model.onnx (`input_ids`, `attention_mask` and,
where the model has them, `token_type_ids` -> one logit a pair).
"""

# Q = queries, K = results per query, C = candidates of one query, B = pairs of one batch, T = tokens, right-padded
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from pydantic import ValidationError

from searcher.contracts.errors import InvalidInput
from services.retriever import metrics
from services.retriever.encoders.card import MODEL_FILE, TOKENIZER_FILE
from services.retriever.encoders.model_files import OnnxModel, open_tokenizer, told_in_a_line
from services.retriever.index.layout import RERANKER_CARD_FILE
from services.retriever.index.manifest import RerankerCard
from services.retriever.index.passages import PassageStore, searchable_text
from services.retriever.index.protocol import NOTHING, Index, Rows, Scores

_BATCH_PAIRS = 16


class Reranker(Protocol):
    def scores(self, query: str, passages: Sequence[str]) -> Scores:
        """One per passage: the higher, the more it answers the query."""
        ...


def read_reranker_card(folder: Path) -> RerankerCard:
    path = folder / RERANKER_CARD_FILE
    try:
        return RerankerCard.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise InvalidInput(f"reranker: {path}: no such file, so {folder} is not a reranker") from None
    except ValidationError as error:
        raise InvalidInput(f"{path}: {error.errors()[0]['loc']}: {error.errors()[0]['msg']}") from None


class OnnxReranker:
    """Raises InvalidInput for a folder whose card or files are missing or damaged."""

    def __init__(self, folder: Path, *, num_threads: int) -> None:
        card = read_reranker_card(folder)
        self._tokenizer = open_tokenizer(folder / TOKENIZER_FILE)
        self._tokenizer.enable_truncation(card.max_tokens, strategy="longest_first")
        self._model = OnnxModel(folder / MODEL_FILE, num_threads=num_threads)

    def scores(self, query: str, passages: Sequence[str]) -> Scores:
        pairs = self._tokenizer.encode_batch([(query, passage) for passage in passages])
        order = sorted(range(len(pairs)), key=lambda n: len(pairs[n].ids))
        scores_C = np.empty(len(pairs), dtype=np.float32)
        for start in range(0, len(order), _BATCH_PAIRS):
            batch = order[start : start + _BATCH_PAIRS]
            shape = len(batch), max(len(pairs[n].ids) for n in batch)
            ids_BT, mask_BT, types_BT = (np.zeros(shape, dtype=np.int64) for _ in range(3))
            for b, n in enumerate(batch):
                row = b, slice(len(pairs[n].ids))
                ids_BT[row], mask_BT[row], types_BT[row] = pairs[n].ids, pairs[n].attention_mask, pairs[n].type_ids
            logits = self._model(ids_BT, mask_BT, types_BT)
            scores_C[batch] = np.asarray(logits, dtype=np.float32).reshape(len(batch), -1)[:, 0]
        return scores_C


def try_out_reranker(folder: Path) -> None:
    """Score the longest pair that its card allows, lest a build find out at its end that it cannot be used.

    Raises InvalidInput with what the model said.
    """
    reranker = OnnxReranker(folder, num_threads=1)
    longest = "a " * read_reranker_card(folder).max_tokens
    with told_in_a_line(f"reranker: {folder} cannot score a pair of the length its card allows"):
        reranker.scores(longest, [longest])


class RerankedIndex:
    """What an index finds, the first `depth` of it in the reranker's order and with its scores; nothing is added."""

    def __init__(self, found_by: Index, passages: PassageStore, reranker: Reranker, *, depth: int) -> None:
        self._found_by, self._passages, self._reranker, self._depth = found_by, passages, reranker, depth

    def search(self, queries: Sequence[str], k: int) -> tuple[Rows, Scores]:
        rows_QC, _ = self._found_by.search(queries, max(k, self._depth))
        rows_QK = np.full((len(queries), k), NOTHING, dtype=np.int64)
        scores_QK = np.zeros((len(queries), k), dtype=np.float32)
        with metrics.RERANK_SECONDS.time():
            for q, query in enumerate(queries):
                rows_C = rows_QC[q][rows_QC[q] != NOTHING]
                if len(rows_C):
                    scores_C = self._reranker.scores(query, [self._text(row) for row in rows_C.tolist()])
                    best = np.argsort(-scores_C, kind="stable")[:k]
                    rows_QK[q, : len(best)], scores_QK[q, : len(best)] = rows_C[best], scores_C[best]
        return rows_QK, scores_QK

    def _text(self, row: int) -> str:
        passage = json.loads(self._passages.line(row))
        return searchable_text(passage["title"], passage["text"])
