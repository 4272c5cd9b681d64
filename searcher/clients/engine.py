"""Ask one engine (a stock vLLM server with our weight transfer): token ids -> sampled ids, and replace its weights.

Nothing is retried here: whoever routes between engines decides where a turn goes next.
"""

import math
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx

from searcher.contracts.errors import InvalidInput, SearcherError, UpstreamUnavailable
from searcher.contracts.weights import WeightVersion

WORST_LOGPROB = -9_000.0
"""vLLM writes -9999.0 for minus infinity and for NaN."""


class PromptTooLong(InvalidInput):
    """The ids leave the engine no room for a single token."""


@dataclass(frozen=True)
class Sampling:
    """What one turn asks for; everything else is off, whatever the model's own defaults say."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None


@dataclass(frozen=True)
class Sampled:
    """What the engine sampled: three aligned arrays, and how it ended.

    The ids hold the whole last token, also when the stop string ends inside it.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Natural log, of the distribution that was sampled: after the temperature (1 where it is greedy)."""
    versions: tuple[str, ...]
    """The weights that sampled each token."""
    finish_reason: str
    """`stop` or `length`."""
    stop_string: str | None
    """The stop string that was hit; None at end-of-sequence."""


class EngineClient:
    """One per engine.

    Every call opens a connection of its own. Against a turn that costs nothing, vLLM drops kept ones after an error,
    and httpx looks at all of its idle connections for every request, which is most of the cost of a few hundred turns.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        turn_seconds: float = 600.0,
        probe_seconds: float = 15.0,
        update_seconds: float = 600.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.base_url, self.turn_seconds = base_url, turn_seconds
        self.probe_seconds, self.update_seconds = probe_seconds, update_seconds
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx.AsyncClient(
            base_url=base_url,
            headers=headers,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
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

    async def generate(self, token_ids: list[int], sampling: Sampling) -> Sampled:
        """Continue `token_ids`. Raises PromptTooLong, InvalidInput (other 4xx) or UpstreamUnavailable.

        Cancelling the call aborts the request in the engine.
        """
        body = _generate_body(token_ids, sampling)
        response = await self._call("POST", "/inference/v1/generate", timeout_seconds=self.turn_seconds, json=body)
        return self._sampled(response.json())

    async def weight_version(self) -> str:
        """The version it holds; `default` for the model it was started with."""
        body = (await self._call("GET", "/weight_info", timeout_seconds=self.probe_seconds)).json()
        return str(body["weight_version"])

    async def is_alive(self) -> bool:
        """Whether the server answers. A hung EngineCore passes this; `weight_version` times out on it."""
        try:
            await self._call("GET", "/health", timeout_seconds=self.probe_seconds)
        except SearcherError:
            return False
        return True

    async def update_weights(self, version: WeightVersion) -> None:
        """Replace the weights without losing a turn: those in flight freeze, and go on under the new weights.

        A file that is not what was announced is refused before anything is paused, and the engine serves on. After any
        later failure the engine stays paused until this is called again or `resume` is. Raises UpstreamUnavailable with
        the engine's reason.
        """
        file = {"location": version.location, "sha256": version.sha256, "num_bytes": version.num_bytes}
        await self._update_call("/init_weight_transfer_engine", {"init_info": file})
        # keep: in-flight requests freeze. clear_cache: they are re-prefilled, so no token mixes two weights' caches.
        await self._update_call("/pause?mode=keep&clear_cache=true")
        try:
            await self._update_call("/start_weight_update")
        except UpstreamUnavailable:  # somebody died between start and finish; that changed no weights
            await self._update_call("/finish_weight_update", {})
            await self._update_call("/init_weight_transfer_engine", {"init_info": file})
            await self._update_call("/start_weight_update")
        await self._update_call("/update_weights", {"update_info": {"sha256": version.sha256}})
        await self._update_call("/finish_weight_update", {"weight_version": version.name})
        await self.resume()

    async def resume(self) -> None:
        """End a pause; safe to repeat."""
        await self._update_call("/resume")

    async def _update_call(self, path: str, body: dict[str, Any] | None = None) -> None:
        await self._call("POST", path, timeout_seconds=self.update_seconds, json=body)

    async def _call(self, method: str, path: str, *, timeout_seconds: float, **arguments: Any) -> httpx.Response:
        timeout = httpx.Timeout(timeout_seconds, connect=5.0)
        try:
            response = await self._http.request(method, path, timeout=timeout, **arguments)
        except httpx.TransportError as error:
            problem = f"{type(error).__name__} {error}".rstrip()
            raise UpstreamUnavailable(f"engine at {self.base_url} did not answer: {problem}") from error
        if response.is_success:
            return response
        detail = f"engine at {self.base_url} in {path}: {_detail(response)} (HTTP {response.status_code})"
        if response.status_code >= 500:
            raise UpstreamUnavailable(detail)
        if "maximum context length" in detail or "longer than the maximum model length" in detail:
            raise PromptTooLong(detail)
        raise InvalidInput(detail)

    def _sampled(self, body: dict[str, Any]) -> Sampled:
        (choice,) = body["choices"]
        finish_reason = choice["finish_reason"]
        if finish_reason not in ("stop", "length"):  # aborted, or an error inside the engine
            raise UpstreamUnavailable(f"engine at {self.base_url} ended a turn early: {finish_reason}")
        token_ids = tuple(choice["token_ids"])
        logprobs = tuple(entry["logprob"] for entry in choice["logprobs"]["content"])
        spans = choice["weight_versions"] or ()
        versions = tuple(span["version"] for span in spans for _ in range(span["start"], span["end"]))
        if not len(token_ids) == len(logprobs) == len(versions):
            lengths = (len(token_ids), len(logprobs), len(versions))
            raise SearcherError(f"engine at {self.base_url}: ids, logprobs and versions differ in length: {lengths}")
        if not all(math.isfinite(logprob) and logprob > WORST_LOGPROB for logprob in logprobs):
            raise SearcherError(f"engine at {self.base_url} sampled a token of probability 0 or NaN: {versions[0]}")
        stop = choice["stop_reason"]
        return Sampled(token_ids, logprobs, versions, finish_reason, stop if isinstance(stop, str) else None)


def _generate_body(token_ids: list[int], sampling: Sampling) -> dict[str, Any]:
    parameters: dict[str, Any] = {
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "logprobs": 0,  # of the sampled token only
        "stop": list(sampling.stop),
    }
    if sampling.seed is not None:
        parameters["seed"] = sampling.seed
    return {"token_ids": token_ids, "sampling_params": parameters}


def _detail(response: httpx.Response) -> str:
    try:
        body = response.json()
        error = body.get("error", body)
        return str(error.get("message", error) if isinstance(error, dict) else error)[:500]
    except (ValueError, AttributeError):
        return response.text[:500] or response.reason_phrase
