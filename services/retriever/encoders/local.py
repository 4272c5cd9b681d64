"""Text -> unit vectors in this process: tokens, batches and lengths here, the model by ONNX Runtime or by torch."""

# B = texts of one batch; T = tokens, right-padded; N = texts; D = dimensions
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from searcher.contracts.errors import InvalidInput
from services.retriever.encoders.card import MODEL_FILE, TOKENIZER_FILE, Pooling, read_card
from services.retriever.encoders.model_files import OnnxModel, open_tokenizer
from services.retriever.encoders.protocol import Vectors

BATCH_TOKENS = 512
"""Tokens, padding included, that go through the model at once. More is slower on CPU: activations leave the cache."""


class LocalEncoder(ABC):
    """Tokens, batches and lengths; the model is the backend's."""

    batch_tokens = BATCH_TOKENS

    def __init__(self, folder: Path) -> None:
        self.card = read_card(folder)
        self._tokenizer = open_tokenizer(folder / TOKENIZER_FILE)

    def encode_queries(self, queries: Sequence[str]) -> Vectors:
        texts = [self.card.query_prefix + query for query in queries]
        return self._encode(texts, self.card.query_max_tokens or self.card.max_tokens)

    def encode_passages(self, passages: Sequence[str]) -> Vectors:
        return self._encode([self.card.passage_prefix + passage for passage in passages], self.card.max_tokens)

    def _encode(self, texts: list[str], max_tokens: int) -> Vectors:
        """Sorted by length, so that a batch holds little padding; returned in the order given."""
        self._tokenizer.enable_truncation(max_tokens)
        tokens_N = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts)]
        order = sorted(range(len(texts)), key=lambda n: len(tokens_N[n]))
        vectors_ND = np.empty((len(texts), self.card.dim), dtype=np.float32)
        for batch in _batches(order, tokens_N, self.batch_tokens):
            vectors_ND[batch] = self._encode_batch([tokens_N[n] for n in batch])
        return normalised(vectors_ND) if self.card.normalised else vectors_ND

    def _encode_batch(self, tokens_B: list[list[int]]) -> Vectors:
        padding_B = [[0] * (max(1, *map(len, tokens_B)) - len(tokens)) for tokens in tokens_B]
        ids_BT = np.array([tokens + padding for tokens, padding in zip(tokens_B, padding_B, strict=True)])
        mask_BT = np.array([[1] * len(tokens) + padding for tokens, padding in zip(tokens_B, padding_B, strict=True)])
        return self.pooled(ids_BT, mask_BT)

    @abstractmethod
    def pooled(self, ids_BT: NDArray[np.int64], mask_BT: NDArray[np.int64]) -> Vectors:
        """vectors_BD, not yet of length 1. The mask is 1 where there is a token."""


class OnnxEncoder(LocalEncoder):
    def __init__(self, folder: Path, *, num_threads: int) -> None:
        super().__init__(folder)
        self._model = OnnxModel(folder / MODEL_FILE, num_threads=num_threads)
        shape = self._model.output_shape
        if len(shape) != 3:
            raise InvalidInput(f"{folder / MODEL_FILE}: its first output has {len(shape)} axes; hidden states have 3")
        if isinstance(shape[-1], int) and shape[-1] != self.card.dim:
            raise InvalidInput(
                f"{folder / MODEL_FILE}: gives {shape[-1]} dimensions, but its card says {self.card.dim}"
            )

    def pooled(self, ids_BT: NDArray[np.int64], mask_BT: NDArray[np.int64]) -> Vectors:
        return pool(self._model(ids_BT, mask_BT), mask_BT, self.card.pooling)


def pool(hidden_BTD: Vectors, mask_BT: NDArray[np.int64], pooling: Pooling) -> Vectors:
    """One vector a text. Padding is on the right, which a causal model never sees: the last token is the mask's."""
    if pooling is Pooling.CLS:
        return hidden_BTD[:, 0]
    num_tokens_B1 = np.maximum(mask_BT.sum(axis=1, keepdims=True), 1)
    if pooling is Pooling.LAST:
        return np.asarray(hidden_BTD[np.arange(len(hidden_BTD)), num_tokens_B1[:, 0] - 1], dtype=np.float32)
    shares_B1T = (mask_BT / num_tokens_B1)[:, None].astype(np.float32)
    return np.asarray((shares_B1T @ hidden_BTD)[:, 0], dtype=np.float32)


def normalised(vectors_ND: Vectors) -> Vectors:
    lengths_N1 = np.sqrt((vectors_ND * vectors_ND).sum(axis=1, keepdims=True))
    return np.asarray(vectors_ND / np.maximum(lengths_N1, 1e-12), dtype=np.float32)


def _batches(order: list[int], tokens_N: list[list[int]], batch_tokens: int) -> list[list[int]]:
    """Cut `order` (shortest first) so that no batch, padded to its longest text, exceeds `batch_tokens`."""
    batches: list[list[int]] = []
    for n in order:
        if batches and (len(batches[-1]) + 1) * len(tokens_N[n]) <= batch_tokens:
            batches[-1].append(n)
        else:
            batches.append([n])
    return batches
