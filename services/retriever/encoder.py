"""Text -> unit vectors. Making an encoder folder from a model is left to `export_encoder`.

An encoder is a folder: encoder.json (its card) and

    tokenizer.json model.onnx     onnx          `input_ids`, `attention_mask` -> hidden states
    tokenizer.json model/…        torch         a checkpoint as transformers reads it
    server.json                   openai-http   the address of a server

so any encoder can be brought along in one of these forms.
"""

# Q, N = queries, passages; B = texts of one batch; T = tokens, right-padded; D = dimensions
import asyncio
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import SecretStr, ValidationError

from searcher.clients.embeddings import EmbeddingsClient
from searcher.contracts.base import Contract
from searcher.contracts.errors import InvalidInput
from services.retriever.manifest import Backend, EncoderCard, Pooling

CARD_FILE, MODEL_FILE, TOKENIZER_FILE = "encoder.json", "model.onnx", "tokenizer.json"
TORCH_FOLDER, SERVER_FILE = "model", "server.json"
BATCH_TOKENS = 512
"""Tokens, padding included, that go through the model at once. More is slower on CPU: activations leave the cache."""

Vectors = NDArray[np.float32]
C = TypeVar("C", bound=Contract)


class Encoder(Protocol):
    """Not thread-safe, as tokenizers are not: one thread owns it."""

    @property
    def card(self) -> EncoderCard: ...

    def encode_queries(self, queries: Sequence[str]) -> Vectors: ...

    def encode_passages(self, passages: Sequence[str]) -> Vectors: ...


class Server(Contract):
    """Where an `openai-http` encoder is asked."""

    url: str
    """Ends where /embeddings begins: http://127.0.0.1:8080/v1"""
    model: str = ""
    """What the server calls the model."""
    timeout_seconds: float = 30.0
    attempts: int = 4


def read_card(folder: Path) -> EncoderCard:
    return _read(folder / CARD_FILE, EncoderCard, missing=f"so {folder} is not an encoder")


def open_encoder(
    folder: Path, *, num_threads: int, server_url: str | None = None, server_key: SecretStr | None = None
) -> Encoder:
    """The encoder of a folder, by its card. `server_url` takes the place of the one in server.json.

    Raises InvalidInput for a folder that is not one, or whose backend is not installed.
    """
    backend = read_card(folder).backend
    if backend is Backend.ONNX:
        return OnnxEncoder(folder, num_threads=num_threads)
    if backend is Backend.TORCH:
        from services.retriever.torch_encoder import TorchEncoder

        return TorchEncoder(folder, num_threads=num_threads)
    return HttpEncoder(folder, url=server_url, key=server_key)


def _read(path: Path, kind: type[C], *, missing: str) -> C:
    try:
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise InvalidInput(f"{path}: no such file, {missing}") from None
    except ValidationError as error:
        raise InvalidInput(f"{path}: {error.errors()[0]['loc']}: {error.errors()[0]['msg']}") from None


# ---------------------------------------------------------------------------------------------------------------------
# In this process


class LocalEncoder:
    """Tokens, batches and lengths; the model is the backend's."""

    batch_tokens = BATCH_TOKENS

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        self.card = read_card(folder)
        self._tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(self.card.max_tokens)

    def encode_queries(self, queries: Sequence[str]) -> Vectors:
        return self._encode([self.card.query_prefix + query for query in queries])

    def encode_passages(self, passages: Sequence[str]) -> Vectors:
        return self._encode([self.card.passage_prefix + passage for passage in passages])

    def _encode(self, texts: list[str]) -> Vectors:
        """Sorted by length, so that a batch holds little padding; returned in the order given."""
        tokens_N = [encoding.ids for encoding in self._tokenizer.encode_batch(texts)]
        order = sorted(range(len(texts)), key=lambda n: len(tokens_N[n]))
        vectors_ND = np.empty((len(texts), self.card.dim), dtype=np.float32)
        for batch in _batches(order, tokens_N, self.batch_tokens):
            vectors_ND[batch] = self._encode_batch([tokens_N[n] for n in batch])
        return _normalised(vectors_ND) if self.card.normalised else vectors_ND

    def _encode_batch(self, tokens_B: list[list[int]]) -> Vectors:
        num_tokens_B = np.array([len(tokens) for tokens in tokens_B])
        mask_BT = np.arange(max(1, num_tokens_B.max())) < num_tokens_B[:, None]
        ids_BT = np.zeros(mask_BT.shape, dtype=np.int64)
        ids_BT[mask_BT] = np.concatenate(tokens_B)
        return self.pooled(ids_BT, mask_BT)

    def pooled(self, ids_BT: NDArray[np.int64], mask_BT: NDArray[np.bool_]) -> Vectors:
        raise NotImplementedError


class OnnxEncoder(LocalEncoder):
    def __init__(self, folder: Path, *, num_threads: int) -> None:
        super().__init__(folder)
        self._session = onnx_session(folder / MODEL_FILE, num_threads=num_threads)
        dim = self._session.get_outputs()[0].shape[-1]
        if dim != self.card.dim:
            raise InvalidInput(f"{folder / MODEL_FILE}: gives {dim} dimensions, but its card says {self.card.dim}")

    def pooled(self, ids_BT: NDArray[np.int64], mask_BT: NDArray[np.bool_]) -> Vectors:
        (hidden_BTD,) = self._session.run(None, {"input_ids": ids_BT, "attention_mask": mask_BT.astype(np.int64)})
        return pool(hidden_BTD, mask_BT, self.card.pooling)


def onnx_session(path: Path, *, num_threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    # Waiting threads must sleep: spinning ones take the cores from the search that follows, and from neighbours.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def pool(hidden_BTD: Vectors, mask_BT: NDArray[np.bool_], pooling: Pooling) -> Vectors:
    """One vector a text. Padding is on the right, which a causal model never sees: the last token is the mask's."""
    if pooling is Pooling.CLS:
        return hidden_BTD[:, 0]
    num_tokens_B = mask_BT.sum(axis=1).clip(min=1)
    if pooling is Pooling.LAST:
        return np.asarray(hidden_BTD[np.arange(len(hidden_BTD)), num_tokens_B - 1], dtype=np.float32)
    sums_BD = np.einsum("btd,bt->bd", hidden_BTD, mask_BT.astype(np.float32))
    return np.asarray(sums_BD / num_tokens_B[:, None], dtype=np.float32)


def _normalised(vectors_ND: Vectors) -> Vectors:
    return np.asarray(vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True).clip(min=1e-12), dtype=np.float32)


def _batches(order: list[int], tokens_N: list[list[int]], batch_tokens: int) -> list[list[int]]:
    """Cut `order` (shortest first) so that no batch, padded to its longest text, exceeds `batch_tokens`."""
    batches: list[list[int]] = []
    for n in order:
        if batches and (len(batches[-1]) + 1) * len(tokens_N[n]) <= batch_tokens:
            batches[-1].append(n)
        else:
            batches.append([n])
    return batches


# ---------------------------------------------------------------------------------------------------------------------
# On a server


class HttpEncoder:
    """Asks a server, which tokenises, cuts and pools. Its outage is UpstreamUnavailable, never an empty vector."""

    def __init__(
        self,
        folder: Path,
        *,
        url: str | None = None,
        key: SecretStr | None = None,
        client: EmbeddingsClient | None = None,
    ) -> None:
        self.card = read_card(folder)
        server = _read(folder / SERVER_FILE, Server, missing="so nobody knows which server to ask")
        self._model = server.model
        self._client = client or EmbeddingsClient(
            url or server.url,
            api_key=key.get_secret_value() if key else None,
            timeout_seconds=server.timeout_seconds,
            attempts=server.attempts,
        )
        # The engine's thread has no event loop, and the thread that starts the service has one that runs already.
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=_run, args=(self._loop, self._client), name="encoder-http", daemon=True).start()
        weakref.finalize(self, self._loop.call_soon_threadsafe, self._loop.stop)

    def encode_queries(self, queries: Sequence[str]) -> Vectors:
        return self._encode([self.card.query_prefix + query for query in queries])

    def encode_passages(self, passages: Sequence[str]) -> Vectors:
        return self._encode([self.card.passage_prefix + passage for passage in passages])

    def _encode(self, texts: list[str]) -> Vectors:
        work = self._client.embed(texts, model=self._model, max_tokens=self.card.max_tokens)
        vectors = asyncio.run_coroutine_threadsafe(work, self._loop).result()
        lengths = {len(vector) for vector in vectors}
        if lengths - {self.card.dim}:
            raise InvalidInput(f"encoder: the server gives {lengths} dimensions, but the card says {self.card.dim}")
        vectors_ND = np.array(vectors, dtype=np.float32).reshape(len(texts), self.card.dim)
        return _normalised(vectors_ND) if self.card.normalised else vectors_ND


def _run(loop: asyncio.AbstractEventLoop, client: EmbeddingsClient) -> None:
    """Until the encoder is forgotten, as when the last index that has it is replaced."""
    loop.run_forever()
    loop.run_until_complete(client.close())
    loop.close()
