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
from services.retriever.encoders.local import onnx_session
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
    def __init__(self, folder: Path, *, num_threads: int) -> None:
        from tokenizers import Tokenizer

        card = read_reranker_card(folder)
        self._tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(card.max_tokens, strategy="longest_first")
        self._session = onnx_session(folder / MODEL_FILE, num_threads=num_threads)
        self._inputs = {given.name for given in self._session.get_inputs()}

    def scores(self, query: str, passages: Sequence[str]) -> Scores:
        pairs = self._tokenizer.encode_batch([(query, passage) for passage in passages])
        order = sorted(range(len(pairs)), key=lambda n: len(pairs[n].ids))
        scores_C = np.empty(len(pairs), dtype=np.float32)
        for start in range(0, len(order), _BATCH_PAIRS):
            batch = order[start : start + _BATCH_PAIRS]
            num_tokens = max(len(pairs[n].ids) for n in batch)
            inputs_BT = {name: np.zeros((len(batch), num_tokens), dtype=np.int64) for name in sorted(self._inputs)}
            for b, n in enumerate(batch):
                for name, values in (
                    ("input_ids", pairs[n].ids),
                    ("attention_mask", pairs[n].attention_mask),
                    ("token_type_ids", pairs[n].type_ids),
                ):
                    if name in inputs_BT:
                        inputs_BT[name][b, : len(values)] = values
            (logits,) = self._session.run(None, inputs_BT)
            scores_C[batch] = np.asarray(logits, dtype=np.float32).reshape(len(batch), -1)[:, 0]
        return scores_C


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
