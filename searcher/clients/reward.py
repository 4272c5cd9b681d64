"""Ask for rewards: the trajectories of one group -> their scores, from our service or from somebody's own."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic_core import to_json

from searcher.clients.http import ServiceClient
from searcher.contracts.errors import SearcherError
from searcher.contracts.score import RuleSet, Score, ScoreItem, ScoreRequest, ScoreResponse, TextSegment
from searcher.contracts.trajectory import Trajectory


class RewardClient(ServiceClient):
    service = "reward"
    _reads_documents: Mapping[str, bool] = {}
    """By rule set, as the service told; empty before it was asked."""

    async def score(self, trajectories: Sequence[Trajectory], *, rules: str) -> tuple[Score, ...]:
        """One score per trajectory, in order. Raises InvalidInput for an unknown rule set."""
        return await self.score_items([_item(trajectory) for trajectory in trajectories], rules=rules)

    async def score_items(self, items: Sequence[ScoreItem], *, rules: str) -> tuple[Score, ...]:
        body = await self._request(
            "POST",
            "/v1/score",
            content=to_json({"rules": rules, "items": await self._as_sent(items, rules)}),
            headers={"Content-Type": "application/json"},
        )
        scored = ScoreResponse.model_validate_json(body.content)
        asked = tuple(item.id for item in items)
        if len(scored.scores) != len(asked) or scored.ids not in (asked, ()):
            raise SearcherError(f"{self.service}: asked for the scores of {asked}, got those of {scored.ids}")
        return scored.scores

    async def _as_sent(self, items: Sequence[ScoreItem], rules: str) -> list[dict[str, Any]]:
        """The items without what the rules do not read: retrieved text is most of a trajectory."""
        if rules not in self._reads_documents:
            known = [RuleSet.model_validate(row) for row in await self.get("/v1/rules")]
            self._reads_documents = {name: row.reads_documents for row in known for name in (row.name, *row.aliases)}
        with_documents = self._reads_documents.get(rules, True)
        return [
            {
                "id": item.id,
                "question": item.question,
                "answers": item.answers,
                "segments": [
                    {"source": s.source, "text": s.text if with_documents or s.source == "policy" else ""}
                    for s in item.segments
                ],
                "num_searches": item.num_searches,
            }
            for item in items
        ]


class RemoteRewardClient(ServiceClient):
    """A reward of somebody's own: `POST <url>` with a ScoreRequest, answered by `{"scores": [number, …]}`."""

    service = "remote reward"

    async def points(self, items: Sequence[ScoreItem], *, rules: str) -> tuple[float, ...]:
        """One finite number per item, in order. Raises UpstreamUnavailable for an outage, SearcherError for others."""
        body = await self.post(self.base_url, ScoreRequest(rules=rules, items=tuple(items)))
        scores = body.get("scores") if isinstance(body, dict) else None
        if not isinstance(scores, list):
            raise SearcherError(
                f'{self.service} at {self.base_url}: wanted {{"scores": [number, …]}}, got {body!r:.100}'
            )
        if len(scores) != len(items):
            raise SearcherError(f"{self.service} at {self.base_url}: {len(scores)} scores for {len(items)} items")
        for at, score in enumerate(scores):
            if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
                raise SearcherError(
                    f"{self.service} at {self.base_url}: scores.{at} is {score!r:.100}, no finite number"
                )
        return tuple(float(score) for score in scores)


def _item(trajectory: Trajectory) -> ScoreItem:
    return ScoreItem(
        id=trajectory.id,
        question=trajectory.question.question,
        answers=trajectory.question.answers,
        segments=tuple(TextSegment(source=s.source.value, text=s.text) for s in trajectory.segments),
        num_searches=len(trajectory.searches),
    )
