"""Text -> unit vectors by a server that speaks OpenAI's protocol (text-embeddings-inference, vLLM)."""

# N = texts; D = dimensions
import asyncio
import hashlib
import os
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import SecretStr

from searcher.clients.embeddings import EmbeddingsClient
from searcher.contracts.base import Contract
from searcher.contracts.errors import InvalidInput, UpstreamUnavailable
from services.retriever.encoders.card import SERVER_FILE, read_card, read_fields
from services.retriever.encoders.local import normalised
from services.retriever.encoders.protocol import Vectors


class Server(Contract):
    """Where an `openai-http` encoder is asked."""

    url: str
    """Ends where /embeddings begins: http://127.0.0.1:8080/v1"""
    model: str = ""
    """What the server calls the model."""
    timeout_seconds: float = 30.0
    attempts: int = 4

    @property
    def sha256(self) -> str:
        """In place of the weights', which a server does not show: another address or model is another encoder."""
        return hashlib.sha256(f"{self.url.rstrip('/')} {self.model}".encode()).hexdigest()


def read_server(folder: Path) -> Server:
    return read_fields(folder / SERVER_FILE, Server, missing="so nobody knows which server to ask")


def write_server(server: Server, folder: Path) -> None:
    """By a rename: a build that reads the folder at this moment finds the old file or the new one."""
    unfinished = folder / f".{SERVER_FILE}.{os.getpid()}"
    unfinished.write_text(server.model_dump_json(indent=2))
    unfinished.rename(folder / SERVER_FILE)


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
        server = read_server(folder)
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
        texts = [self.card.query_prefix + query for query in queries]
        return self._encode(texts, self.card.query_max_tokens or self.card.max_tokens)

    def encode_passages(self, passages: Sequence[str]) -> Vectors:
        return self._encode([self.card.passage_prefix + passage for passage in passages], self.card.max_tokens)

    def _encode(self, texts: list[str], max_tokens: int) -> Vectors:
        work = self._client.embed(texts, model=self._model, max_tokens=max_tokens)
        try:
            vectors = asyncio.run_coroutine_threadsafe(work, self._loop).result()
        except InvalidInput as error:  # the server's settings are at fault, and not what our caller gave
            raise UpstreamUnavailable(f"encoder: the server refuses: {error.detail}") from error
        lengths = {len(vector) for vector in vectors}
        if lengths - {self.card.dim}:
            raise InvalidInput(f"encoder: the server gives {lengths} dimensions, but the card says {self.card.dim}")
        vectors_ND = np.array(vectors, dtype=np.float32).reshape(len(texts), self.card.dim)
        return normalised(vectors_ND) if self.card.normalised else vectors_ND


def _run(loop: asyncio.AbstractEventLoop, client: EmbeddingsClient) -> None:
    """Until the encoder is forgotten, as when the last index that has it is replaced."""
    loop.run_forever()
    loop.run_until_complete(client.close())
    loop.close()
