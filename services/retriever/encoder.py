"""Text -> unit vectors, with ONNX Runtime and a tokenizer only. Exporting a model is left to `export_encoder`.

An encoder is a folder: encoder.json (its card), model.onnx (`input_ids`, `attention_mask` -> hidden states) and
tokenizer.json. Any BERT-like encoder can be brought along in this form.
"""

# Q, N = queries, passages; B = texts of one batch; T = tokens, right-padded; D = dimensions
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from searcher.contracts.errors import InvalidInput
from services.retriever.manifest import EncoderCard

CARD_FILE, MODEL_FILE, TOKENIZER_FILE = "encoder.json", "model.onnx", "tokenizer.json"
BATCH_TOKENS = 512
"""Tokens, padding included, that go through the model at once. More is slower on CPU: activations leave the cache."""

Vectors = NDArray[np.float32]


class Encoder(Protocol):
    @property
    def card(self) -> EncoderCard: ...

    def encode_queries(self, queries: Sequence[str]) -> Vectors: ...

    def encode_passages(self, passages: Sequence[str]) -> Vectors: ...


def read_card(folder: Path) -> EncoderCard:
    path = folder / CARD_FILE
    try:
        return EncoderCard.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise InvalidInput(f"{path}: no such file, so {folder} is not an encoder") from None
    except ValidationError as error:
        raise InvalidInput(f"{path}: {error.errors()[0]['loc']}: {error.errors()[0]['msg']}") from None


class OnnxEncoder:
    """Not thread-safe, as its tokenizer is not: one thread owns it."""

    def __init__(self, folder: Path, *, num_threads: int) -> None:
        import onnxruntime
        from tokenizers import Tokenizer

        self.card = read_card(folder)
        self._tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(self.card.max_tokens)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        # Waiting threads must sleep: spinning ones take the cores from the search that follows, and from neighbours.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(
            str(folder / MODEL_FILE), options, providers=["CPUExecutionProvider"]
        )
        self._check_dimensions(folder)

    def encode_queries(self, queries: Sequence[str]) -> Vectors:
        return self._encode([self.card.query_prefix + query for query in queries])

    def encode_passages(self, passages: Sequence[str]) -> Vectors:
        return self._encode([self.card.passage_prefix + passage for passage in passages])

    def _encode(self, texts: list[str]) -> Vectors:
        """Sorted by length, so that a batch holds little padding; returned in the order given."""
        tokens_N = [encoding.ids for encoding in self._tokenizer.encode_batch(texts)]
        order = sorted(range(len(texts)), key=lambda n: len(tokens_N[n]))
        vectors_ND = np.empty((len(texts), self.card.dim), dtype=np.float32)
        for batch in _batches(order, tokens_N):
            vectors_ND[batch] = self._encode_batch([tokens_N[n] for n in batch])
        return vectors_ND

    def _encode_batch(self, tokens_B: list[list[int]]) -> Vectors:
        num_tokens_B = np.array([len(tokens) for tokens in tokens_B])
        mask_BT = np.arange(max(1, num_tokens_B.max())) < num_tokens_B[:, None]
        ids_BT = np.zeros(mask_BT.shape, dtype=np.int64)
        ids_BT[mask_BT] = np.concatenate(tokens_B)
        inputs = {"input_ids": ids_BT, "attention_mask": mask_BT.astype(np.int64)}
        (hidden_BTD,) = self._session.run(None, inputs)
        return self._pool(hidden_BTD, mask_BT)

    def _pool(self, hidden_BTD: Vectors, mask_BT: NDArray[np.bool_]) -> Vectors:
        if self.card.pooling == "cls":
            vectors_BD = hidden_BTD[:, 0]
        else:
            num_tokens_B1 = mask_BT.sum(axis=1, keepdims=True).clip(min=1)
            vectors_BD = np.einsum("btd,bt->bd", hidden_BTD, mask_BT.astype(np.float32)) / num_tokens_B1
        if self.card.normalised:
            vectors_BD = vectors_BD / np.linalg.norm(vectors_BD, axis=1, keepdims=True).clip(min=1e-12)
        return np.asarray(vectors_BD, dtype=np.float32)

    def _check_dimensions(self, folder: Path) -> None:
        dim = self._session.get_outputs()[0].shape[-1]
        if dim != self.card.dim:
            raise InvalidInput(f"{folder / MODEL_FILE}: gives {dim} dimensions, but its card says {self.card.dim}")


def _batches(order: list[int], tokens_N: list[list[int]]) -> list[list[int]]:
    """Cut `order` (shortest first) so that no batch, padded to its longest text, exceeds BATCH_TOKENS."""
    batches: list[list[int]] = []
    for n in order:
        if batches and (len(batches[-1]) + 1) * len(tokens_N[n]) <= BATCH_TOKENS:
            batches[-1].append(n)
        else:
            batches.append([n])
    return batches
