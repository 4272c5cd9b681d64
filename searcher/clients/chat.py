"""Ask a language model behind an OpenAI-compatible API: messages -> what it says next."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from searcher.clients.http import ServiceClient
from searcher.contracts.errors import InvalidInput, UpstreamUnavailable

Message = dict[str, str]

_TOO_LONG = ("context_length_exceeded", "maximum context length", "longer than the maximum model length")


class ConversationTooLong(InvalidInput):
    """The messages leave the model no room for an answer."""


@dataclass(frozen=True)
class Completion:
    text: str
    """Without the stop string, as the protocol has it; some servers put it at the end all the same."""
    finish_reason: str
    """`stop` for a stop string and for the end alike; `length` where the tokens ran out."""
    num_tokens: int
    """Written; 0 where the server does not count."""
    num_context_tokens: int
    """Read and written; 0 where the server does not count."""


class ChatClient(ServiceClient):
    """One per endpoint, model and event loop."""

    service = "model"

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key: str | None = None,
        timeout_seconds: float = 120.0,
        attempts: int = 5,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """`base_url` ends where `/chat/completions` begins. `timeout_seconds` is for one answer with its retries."""
        super().__init__(
            base_url, api_key=api_key, timeout_seconds=timeout_seconds, attempts=attempts, transport=transport
        )
        self.model = model

    async def complete(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int,
        temperature: float,
        top_p: float = 1.0,
        stop: Sequence[str] = (),
        seed: int | None = None,
    ) -> Completion:
        """Raises ConversationTooLong, InvalidInput (refused for another reason) or UpstreamUnavailable (an outage)."""
        request: dict[str, Any] = {
            "model": self.model,
            "messages": list(messages),
            "max_tokens": max_tokens,
            "temperature": temperature,
            "top_p": top_p,
        }
        if stop:
            request["stop"] = list(stop)
        if seed is not None:
            request["seed"] = seed
        try:
            async with asyncio.timeout(self.timeout_seconds):
                body = await self.post("/chat/completions", request)
        except TimeoutError as error:
            raise UpstreamUnavailable(f"model at {self.base_url} did not answer in {self.timeout_seconds} s") from error
        try:
            (choice,) = body["choices"]
            usage = body.get("usage") or {}
            written = int(usage.get("completion_tokens") or 0)
            return Completion(
                text=str(choice["message"].get("content") or ""),
                finish_reason=str(choice.get("finish_reason") or "stop"),
                num_tokens=written,
                num_context_tokens=int(usage.get("prompt_tokens") or 0) + written,
            )
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise UpstreamUnavailable(f"model at {self.base_url} does not reply like an OpenAI endpoint") from error

    def raise_for_status(self, response: httpx.Response) -> None:
        """Rate limits and the endpoint's own failures are worth another attempt."""
        if response.is_success:
            return
        detail = f"model at {self.base_url} answered HTTP {response.status_code}: {response.text[:300]}"
        if response.status_code == 429 or response.status_code >= 500:
            raise UpstreamUnavailable(detail, retry_after_seconds=_retry_after_seconds(response))
        if any(sign in response.text for sign in _TOO_LONG):
            raise ConversationTooLong(detail)
        raise InvalidInput(detail)


def _retry_after_seconds(response: httpx.Response) -> float:
    try:
        return float(response.headers.get("Retry-After", "1"))
    except ValueError:
        return 1.0
