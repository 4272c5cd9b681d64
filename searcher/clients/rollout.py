"""Ask the rollout service: questions -> trajectories."""

from collections.abc import AsyncIterator

import httpx

from searcher.clients.http import ServiceClient
from searcher.contracts.errors import UpstreamUnavailable
from searcher.contracts.question import AskRequest, RolloutRequest
from searcher.contracts.trajectory import AskEvent, RolloutResponse
from searcher.contracts.weights import WeightsStatus


class RolloutClient(ServiceClient):
    service = "rollout"

    async def rollouts(self, request: RolloutRequest) -> RolloutResponse:
        """Raises Conflict if the engines do not hold `request.weights`."""
        return RolloutResponse.model_validate(await self.post("/v1/rollouts", request))

    async def weights(self) -> WeightsStatus:
        return WeightsStatus.model_validate(await self.get("/v1/weights"))

    async def ask(self, request: AskRequest) -> AsyncIterator[AskEvent]:
        """Events as they happen: think, search, think, …, done. Not retried: the caller has seen half of it."""
        content, headers = request.model_dump_json(), {"Content-Type": "application/json"}
        try:
            async with self._http.stream("POST", "/v1/ask", content=content, headers=headers) as response:
                if not response.is_success:
                    await response.aread()
                    self.raise_for_status(response)
                async for line in response.aiter_lines():
                    if line.startswith("data:"):
                        yield AskEvent.model_validate_json(line.removeprefix("data:"))
        except httpx.TransportError as error:
            raise UpstreamUnavailable(
                f"{self.service} at {self.base_url} did not answer: {type(error).__name__} {error}".rstrip()
            ) from error
