"""A request -> its evaluation and, in the end, its report: from Redis while it goes on, from disk once it is done."""

import asyncio
from dataclasses import dataclass
from typing import Literal

from celery import Celery
from redis.exceptions import RedisError

from searcher.contracts.errors import Conflict, NotFound
from searcher.contracts.report import EvaluationRequest, EvaluationState, EvaluationStatus, Report
from services.evaluator.archive import Archive
from services.evaluator.assembly import assemble
from services.evaluator.chunks import digest
from services.evaluator.dispatch import dispatch
from services.evaluator.intake import Intake
from services.evaluator.jobs import Jobs, other_content
from services.evaluator.report.markdown import render_markdown
from services.evaluator.report.page import render

Format = Literal["json", "md", "html"]


@dataclass(frozen=True)
class Evaluations:
    """One per API process; workers have Jobs alone."""

    jobs: Jobs
    archive: Archive
    intake: Intake
    celery: Celery

    async def submit(self, request: EvaluationRequest) -> EvaluationStatus:
        """Raises Conflict if the id has other content, and InvalidInput for what is refused."""
        kept = self.archive.summary(request.id)
        known = kept.digest if kept else await self.jobs.digest(request.id)
        if known is None:
            questions, indexes = await self.intake.questions(request)
            await self.jobs.create(request, questions, indexes=indexes)
            await self.send_due(request.id)
        elif known != digest(request):
            raise other_content(request.id)
        return await self.status(request.id)

    async def send_due(self, evaluation_id: str) -> None:
        await dispatch(self.jobs, self.celery, evaluation_id)

    async def status(self, evaluation_id: str) -> EvaluationStatus:
        """Raises NotFound."""
        try:
            return await self.jobs.status(evaluation_id)
        except NotFound:
            kept = self.archive.summary(evaluation_id)
            if kept is None:
                raise
            return kept.status

    async def cancel(self, evaluation_id: str) -> EvaluationStatus:
        await self.jobs.fail(evaluation_id, reason="cancelled")
        return await self.status(evaluation_id)

    async def resume(self, evaluation_id: str) -> EvaluationStatus:
        """Raises NotFound, and Conflict if there is nothing left to do or to do it with."""
        try:
            await self.jobs.resume(evaluation_id)
        except NotFound as error:
            if self.archive.summary(evaluation_id) is None:
                raise
            raise Conflict(f"evaluation {evaluation_id!r} is done, and Redis has forgotten its answers") from error
        await self.send_due(evaluation_id)
        return await self.status(evaluation_id)

    async def report(self, evaluation_id: str, form: Format) -> str:
        """Raises NotFound, and Conflict before it is done."""
        text, page = self.archive.report(evaluation_id), self.archive.page(evaluation_id)
        if text is None or await self._is_taken_up(evaluation_id):
            _refuse_unfinished(await self.jobs.status(evaluation_id))
            text, page = (await self.keep_report(evaluation_id)).model_dump_json(), None
        if form == "json":
            return text
        if form == "md":
            return await asyncio.to_thread(render_markdown, Report.model_validate_json(text))
        return page if page is not None else await self.keep_page(Report.model_validate_json(text))

    async def keep_report(self, evaluation_id: str) -> Report:
        """Bring the report of an evaluation that is done to disk."""
        answered = await self.jobs.answered(evaluation_id)
        known = await self.jobs.digest(evaluation_id) or ""
        indexes = await self.intake.indexes() if answered.outline.corpora else None
        # Intervals take a second: other requests go on meanwhile.
        judge = self.jobs.settings.judge_model
        report = await asyncio.to_thread(assemble, answered, indexes=indexes or {}, judge=judge)
        await asyncio.to_thread(self.archive.keep, report, digest=known)
        return report

    async def keep_page(self, report: Report) -> str:
        page = await asyncio.to_thread(render, report)
        await asyncio.to_thread(self.archive.keep_page, report.id, page)
        return page

    async def _is_taken_up(self, evaluation_id: str) -> bool:
        """Whether there is, or soon will be, a newer report than the one on disk, which needs no Redis."""
        try:
            return await self.jobs.is_open(evaluation_id)
        except RedisError:
            return False


def _refuse_unfinished(status: EvaluationStatus) -> None:
    if status.state is EvaluationState.FAILED:
        raise Conflict(f"evaluation {status.id!r} failed and has no report: {status.error}")
    if status.state is not EvaluationState.DONE:
        raise Conflict(
            f"evaluation {status.id!r} is {status.state.value} ({status.done} of {status.total}); wait for it"
        )
