"""Ask the evaluator: weights x benchmark -> a report."""

import asyncio
from collections.abc import Callable

from searcher.clients.http import ServiceClient
from searcher.contracts.errors import SearcherError
from searcher.contracts.report import EvaluationRequest, EvaluationState, EvaluationStatus, Report


class EvaluatorClient(ServiceClient):
    service = "evaluator"

    async def submit(self, request: EvaluationRequest) -> EvaluationStatus:
        return EvaluationStatus.model_validate(await self.post("/v1/evaluations", request))

    async def status(self, evaluation_id: str) -> EvaluationStatus:
        return EvaluationStatus.model_validate(await self.get(f"/v1/evaluations/{evaluation_id}"))

    async def cancel(self, evaluation_id: str) -> EvaluationStatus:
        return EvaluationStatus.model_validate(await self.post(f"/v1/evaluations/{evaluation_id}/cancel"))

    async def resume(self, evaluation_id: str) -> EvaluationStatus:
        """Take up one that failed, or ask again for verdicts that its report misses. Raises Conflict if neither."""
        return EvaluationStatus.model_validate(await self.post(f"/v1/evaluations/{evaluation_id}/resume"))

    async def report(self, evaluation_id: str) -> Report:
        return Report.model_validate(await self.get(f"/v1/evaluations/{evaluation_id}/report"))

    async def report_html(self, evaluation_id: str) -> str:
        return await self.get_text(f"/v1/evaluations/{evaluation_id}/report?format=html")

    async def report_markdown(self, evaluation_id: str) -> str:
        return await self.get_text(f"/v1/evaluations/{evaluation_id}/report?format=md")

    async def run(
        self,
        request: EvaluationRequest,
        *,
        poll_seconds: float = 0.25,
        on_progress: Callable[[EvaluationStatus], None] = lambda status: None,
    ) -> Report:
        """Submit, wait and fetch. Raises SearcherError with the evaluator's reason if the evaluation fails."""
        on_progress(await self.submit(request))
        return await self.finished(request.id, poll_seconds=poll_seconds, on_progress=on_progress)

    async def finished(
        self,
        evaluation_id: str,
        *,
        poll_seconds: float = 0.25,
        on_progress: Callable[[EvaluationStatus], None] = lambda status: None,
    ) -> Report:
        """Wait for an evaluation that was submitted, and fetch its report. Raises as `run` does."""
        status = await self.status(evaluation_id)
        while status.state in (EvaluationState.QUEUED, EvaluationState.RUNNING):
            on_progress(status)
            await asyncio.sleep(poll_seconds)
            status = await self.status(evaluation_id)
        on_progress(status)
        if status.state is EvaluationState.FAILED:
            raise SearcherError(f"evaluation {evaluation_id} failed: {status.error}")
        return await self.report(evaluation_id)
