"""Ask the reward service: the trajectories of one group -> their scores."""

from collections.abc import Sequence

from searcher.clients.http import ServiceClient
from searcher.contracts.score import Score, ScoreItem, ScoreRequest, ScoreResponse, TextSegment
from searcher.contracts.trajectory import Trajectory


class RewardClient(ServiceClient):
    service = "reward"

    async def score(self, trajectories: Sequence[Trajectory], *, rules: str) -> tuple[Score, ...]:
        """One score per trajectory, in order. Raises InvalidInput for an unknown rule set."""
        items = tuple(_item(trajectory) for trajectory in trajectories)
        body = await self.post("/v1/score", ScoreRequest(rules=rules, items=items))
        return ScoreResponse.model_validate(body).scores


def _item(trajectory: Trajectory) -> ScoreItem:
    return ScoreItem(
        id=trajectory.id,
        question=trajectory.question.question,
        answers=trajectory.question.answers,
        segments=tuple(TextSegment(source=s.source.value, text=s.text) for s in trajectory.segments),
        num_searches=len(trajectory.searches),
    )
