"""Ask the trainer: start, watch, stop and resume runs."""

from typing import Any

from searcher.clients.http import ServiceClient
from searcher.contracts.run import Checkpoint, RunRequest, RunStatus


class TrainerClient(ServiceClient):
    service = "trainer"

    async def start(self, request: RunRequest) -> RunStatus:
        return RunStatus.model_validate(await self.post("/v1/runs", request))

    async def runs(self) -> list[RunStatus]:
        return [RunStatus.model_validate(row) for row in await self.get("/v1/runs")]

    async def run(self, run_id: str) -> RunStatus:
        return RunStatus.model_validate(await self.get(f"/v1/runs/{run_id}"))

    async def stop(self, run_id: str) -> RunStatus:
        return RunStatus.model_validate(await self.post(f"/v1/runs/{run_id}/stop"))

    async def resume(self, run_id: str) -> RunStatus:
        return RunStatus.model_validate(await self.post(f"/v1/runs/{run_id}/resume"))

    async def metrics(self, run_id: str, *, after_step: int = 0) -> list[dict[str, Any]]:
        """Lines of metrics.jsonl with a step above `after_step`."""
        rows: list[dict[str, Any]] = await self.get(f"/v1/runs/{run_id}/metrics?after_step={after_step}")
        return rows

    async def checkpoints(self, run_id: str) -> list[Checkpoint]:
        return [Checkpoint.model_validate(row) for row in await self.get(f"/v1/runs/{run_id}/checkpoints")]
