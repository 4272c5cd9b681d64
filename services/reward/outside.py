"""A group -> what others think of it: the verdicts of a judge, or the points of a remote reward."""

import asyncio
from dataclasses import dataclass, replace

import structlog

from searcher.clients.judge import JudgeClient
from searcher.clients.reward import RemoteRewardClient
from searcher.contracts.errors import UpstreamUnavailable
from searcher.contracts.score import Verdict
from services.reward.metrics import VERDICTS
from services.reward.response import Group, Response
from services.reward.rules import Rules

log = structlog.get_logger()


@dataclass(frozen=True)
class Outside:
    judge: JudgeClient | None = None
    judge_timeout_seconds: float = 20.0
    """For all verdicts of a group, waiting for a place included."""
    remote: RemoteRewardClient | None = None

    async def asked(self, group: Group, rules: Rules) -> Group:
        """The group with the opinions that the rules need. A judge that fails is a verdict of its own; a remote reward
        that fails raises UpstreamUnavailable, since nothing could stand in for it."""
        if rules.asks == "judge":
            assert self.judge is not None, rules.name
            return replace(group, verdicts=await self._verdicts(self.judge, group))
        if rules.asks == "remote":
            assert self.remote is not None, rules.name
            items = [response.item for response in group.responses]
            return replace(group, remote_points=await self.remote.points(items, rules=rules.name))
        return group

    async def close(self) -> None:
        for client in (self.judge, self.remote):
            if client is not None:
                await client.close()

    async def _verdicts(self, judge: JudgeClient, group: Group) -> tuple[Verdict, ...]:
        tasks = [asyncio.create_task(_verdict(judge, response)) for response in group.responses]
        try:
            await asyncio.wait(tasks, timeout=self.judge_timeout_seconds)
        finally:
            late = [task for task in tasks if task.cancel()]
        if late:
            log.warning("not judged in time", answers=len(late), seconds=self.judge_timeout_seconds)
        verdicts = tuple(Verdict.NOT_JUDGED if task in late else task.result() for task in tasks)
        for verdict in verdicts:
            VERDICTS.labels(verdict.value).inc()
        return verdicts


async def _verdict(judge: JudgeClient, response: Response) -> Verdict:
    if response.errors or response.answer is None:
        return Verdict.NOT_ASKED
    try:
        right = await judge.verdict(response.item.question, response.golds, response.answer)
    except UpstreamUnavailable as error:
        log.warning("not judged", item=response.item.id, error=str(error))
        return Verdict.NOT_JUDGED
    return Verdict.RIGHT if right else Verdict.WRONG
