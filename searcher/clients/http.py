"""One HTTP call to another service: bounded in time, retried when that is safe, errors from the one tree.

Every call of Searcher is safe to repeat (search, score and generate are functions of their input; evaluations and runs
carry the caller's id), so transport errors and 502/503/504 are retried with jitter until the deadline.
"""

import datetime as dt
from types import TracebackType
from typing import Any, Self

import httpx
import stamina

from searcher.contracts import errors
from searcher.contracts.base import Contract
from searcher.contracts.errors import InvalidInput, SearcherError, UpstreamUnavailable

_RETRYABLE = frozenset({502, 503, 504})


class ServiceClient:
    """The base of all clients. One per process and service; close it, or use it as an async context manager."""

    service = "service"

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        timeout_seconds: float = 30.0,
        attempts: int = 5,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.base_url, self.attempts, self.timeout_seconds = base_url, attempts, timeout_seconds
        self._http = httpx.AsyncClient(
            base_url=base_url,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx.Timeout(timeout_seconds, connect=min(5.0, timeout_seconds)),
            # httpcore looks through all idle connections at every request: many cost more than they save.
            limits=httpx.Limits(max_connections=512, max_keepalive_connections=8, keepalive_expiry=2),
            transport=transport,
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def post(self, path: str, body: Contract | dict[str, Any] | None = None) -> Any:
        """The response's JSON. Raises InvalidInput (4xx), UpstreamUnavailable (no answer in time) or SearcherError
        (an answer that is none of the service's)."""
        content = body.model_dump_json() if isinstance(body, Contract) else None
        json = body if isinstance(body, dict) else None
        headers = {"Content-Type": "application/json"} if content else {}
        return self._json(await self._request("POST", path, content=content, json=json, headers=headers))

    async def get(self, path: str) -> Any:
        return self._json(await self._request("GET", path))

    def _json(self, response: httpx.Response) -> Any:
        try:
            return response.json()
        except ValueError:
            raise SearcherError(
                f"{self.service} at {self.base_url} answers {response.text[:100]!r}, which is no JSON; is it the one?"
            ) from None

    async def get_text(self, path: str) -> str:
        return (await self._request("GET", path)).text

    async def is_ready(self) -> bool:
        """One question, no retries."""
        try:
            return (await self._http.get("/readyz", timeout=5.0)).status_code == 200
        except httpx.TransportError:
            return False

    async def _request(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        async for attempt in stamina.retry_context(
            on=_wait_before_retry,
            attempts=self.attempts,
            timeout=self.timeout_seconds,
            wait_initial=0.1,
            wait_max=5.0,
            wait_jitter=0.5,
        ):
            with attempt:
                try:
                    response = await self._http.request(method, path, **arguments)
                except httpx.TransportError as error:
                    raise UpstreamUnavailable(
                        f"{self.service} at {self.base_url} did not answer: {type(error).__name__} {error}".rstrip()
                    ) from error
                self.raise_for_status(response)
                return response
        raise AssertionError("unreachable: the last attempt raises")

    def raise_for_status(self, response: httpx.Response) -> None:
        """Turn an error response into the error it was. `response` must have been read."""
        if response.is_success:
            return
        name, detail = _error_body(response)
        text = f"{self.service}: {detail}"
        if response.status_code in _RETRYABLE:
            raise UpstreamUnavailable(text, retry_after_seconds=_retry_after(response))
        known = getattr(errors, name, None)
        if isinstance(known, type) and issubclass(known, InvalidInput):
            raise known(text)
        if 400 <= response.status_code < 500:
            raise InvalidInput(f"{text} (HTTP {response.status_code})")
        raise SearcherError(f"{text} (HTTP {response.status_code})")


def _wait_before_retry(error: Exception) -> bool | dt.timedelta:
    """Retry outages only, and wait as long as the service asked for."""
    if not isinstance(error, UpstreamUnavailable):
        return False
    asked = error.retry_after_seconds
    return dt.timedelta(seconds=min(asked, 10.0)) if asked > 1.0 else True


def _error_body(response: httpx.Response) -> tuple[str, str]:
    try:
        body = response.json()
        return str(body["error"]), str(body["detail"])
    except (ValueError, KeyError, TypeError):
        return "", response.text[:500] or response.reason_phrase


def _retry_after(response: httpx.Response) -> float:
    try:
        return float(response.headers.get("Retry-After", "1"))
    except ValueError:
        return 1.0
