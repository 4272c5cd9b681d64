"""Texts -> vectors, by a server that speaks the embeddings of OpenAI: text-embeddings-inference, vLLM, and others."""

import asyncio
from collections.abc import Sequence
from typing import Any

import httpx

from searcher.clients.http import ServiceClient
from searcher.contracts.errors import SearcherError, UpstreamUnavailable

TEXTS_PER_REQUEST = 32
"""Servers refuse long lists; text-embeddings-inference takes 32 unless told otherwise."""
_REQUESTS_AT_ONCE = 8


class EmbeddingsClient(ServiceClient):
    service = "encoder"

    async def embed(self, texts: Sequence[str], *, model: str, max_tokens: int) -> list[list[float]]:
        """A vector per text, in their order. Raises UpstreamUnavailable for an outage, SearcherError for an answer
        that is not one."""
        turns = asyncio.Semaphore(_REQUESTS_AT_ONCE)

        async def ask(part: Sequence[str]) -> list[list[float]]:
            async with turns:
                # vLLM cuts where it is told to; text-embeddings-inference cuts by itself and ignores the field.
                body = {"model": model, "input": list(part), "truncate_prompt_tokens": max_tokens}
                return _vectors(await self.post("/embeddings", body), len(part))

        starts = range(0, len(texts), TEXTS_PER_REQUEST)
        parts = await asyncio.gather(*(ask(texts[start : start + TEXTS_PER_REQUEST]) for start in starts))
        return [vector for part in parts for vector in part]

    def raise_for_status(self, response: httpx.Response) -> None:
        """429 means the same as 503 here: text-embeddings-inference says it when its queue is full."""
        if response.status_code == httpx.codes.TOO_MANY_REQUESTS:
            raise UpstreamUnavailable(f"{self.service}: has too much to do (HTTP 429)")
        super().raise_for_status(response)


def _vectors(answer: Any, count: int) -> list[list[float]]:
    try:
        rows = sorted(answer["data"], key=lambda row: row["index"])
        vectors = [[float(value) for value in row["embedding"]] for row in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise SearcherError(f"encoder: the answer is not OpenAI's list of embeddings: {error!r}") from None
    if len(vectors) != count:
        raise SearcherError(f"encoder: {len(vectors)} vectors for {count} texts")
    return vectors
