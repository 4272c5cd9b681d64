"""question -> trajectory, measured. Shared by the worker (training) and the routes (everyone)."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from searcher.clients.retriever import RetrieverClient
from searcher.contracts.errors import InvalidInput, SearcherError, UpstreamUnavailable
from searcher.contracts.question import Question, RolloutPlan
from searcher.contracts.search import Passage
from searcher.contracts.trajectory import AskEvent, Trajectory
from services.rollout import metrics
from services.rollout.engines import Engines, Session
from services.rollout.episode import episode
from services.rollout.policy import Codec


class RetrieverUnavailable(UpstreamUnavailable):
    """Of the services behind an episode, it was the retriever that did not answer."""


@dataclass(frozen=True)
class Sample:
    trajectory: Trajectory
    versions: frozenset[str]
    """Names of all weights that sampled a token of it."""


class Sampler:
    def __init__(self, engines: Engines, codec: Codec, retriever: RetrieverClient) -> None:
        self.engines, self.codec, self.retriever = engines, codec, _MeasuredRetriever(retriever)

    async def trajectory(self, question: Question, plan: RolloutPlan, *, sample: int, name: str) -> Sample:
        """Raises InvalidInput, or UpstreamUnavailable after an outage longer than the settings allow."""
        session = self.engines.session()
        trajectory = None
        async with aclosing(self.events(question, plan, sample=sample, name=name, session=session)) as events:
            async for event in events:
                trajectory = event.trajectory
        assert trajectory is not None, "an episode's last event carries its trajectory"
        return Sample(trajectory, frozenset(session.versions))

    async def events(
        self, question: Question, plan: RolloutPlan, *, sample: int, name: str, session: Session
    ) -> AsyncGenerator[AskEvent]:
        """The episode as it happens."""
        story = episode(
            question, plan, sample=sample, name=name, policy=session, codec=self.codec, retriever=self.retriever
        )
        with metrics.TRAJECTORIES_IN_FLIGHT.track_inprogress():
            async with aclosing(story) as events:
                async for event in events:
                    if event.trajectory is not None:
                        metrics.observe(event.trajectory)
                    yield event


@dataclass(frozen=True)
class _MeasuredRetriever:
    client: RetrieverClient

    async def search(self, queries: Sequence[str], *, k: int, corpus: str) -> tuple[tuple[Passage, ...], ...]:
        with metrics.RETRIEVAL_SECONDS.time():
            try:
                return await self.client.search(queries, k=k, corpus=corpus)
            except InvalidInput:
                raise
            except SearcherError as error:
                raise RetrieverUnavailable(str(error)) from error
