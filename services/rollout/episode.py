"""One trajectory: think, search, read, think again, answer. Or less of it, for the baselines of an evaluation.

Nothing here knows about HTTP, Redis or metrics: tests run it with a toy policy and two passages. Routing between
engines is in engines.py, what is done with trajectories in worker.py and app.py.
"""

import hashlib
from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

from searcher.clients.engine import Sampled, Sampling
from searcher.contracts.question import Question, RolloutPlan, SearchMode
from searcher.contracts.search import Passage
from searcher.contracts.trajectory import AskEvent, AskEventKind, Search, StopReason, Trajectory
from searcher.qa.answer import extract_answer
from searcher.qa.tags import ANSWER_CLOSE, QUERY_CLOSE, asked_query
from services.rollout.ledger import Ledger
from services.rollout.policy import Codec, Policy

MAX_QUERY_CHARACTERS = 8_192


class Retriever(Protocol):
    async def search(self, queries: Sequence[str], *, k: int, corpus: str) -> tuple[tuple[Passage, ...], ...]:
        """Passages per query, best first. Raises UpstreamUnavailable; never [] for an outage."""


async def episode(
    question: Question, plan: RolloutPlan, *, sample: int, name: str, policy: Policy, codec: Codec, retriever: Retriever
) -> AsyncGenerator[AskEvent]:
    """Yield what happens as it happens; the last event, and only it, carries the trajectory.

    Raises InvalidInput for a plan that does not fit the model, UpstreamUnavailable when a service stays away: an
    episode that is cut short by an outage has no trajectory.
    """
    prompt, searches = codec.prompt(plan.template, question.question, search=plan.search), list[Search]()
    if plan.search is SearchMode.ONCE:
        # Standard RAG: the policy did not ask for these documents, so they are part of what it is asked.
        searches.append(await _searched(retriever, question.question, question, plan))
        documents = codec.documents(searches[-1].passages, max_tokens=plan.max_document_tokens)
        prompt = prompt + documents
        yield AskEvent(kind=AskEventKind.SEARCH, text=documents.text, search=searches[-1])
    ledger = Ledger(prompt.ids)
    while True:
        turn = await _think(policy, ledger, plan, seed=_seed(plan, question, sample, turn=len(searches)))
        if turn is None:
            stop = StopReason.OUT_OF_TOKENS
            break
        text = codec.written(turn.token_ids)
        ledger.wrote(text, turn)
        yield AskEvent(kind=AskEventKind.THINK, text=text)

        if ending := _ending(turn, text, plan, num_searches=len(searches)):
            stop = ending
            break
        search = await _searched(retriever, asked_query(text) or "", question, plan)
        documents = codec.documents(search.passages, max_tokens=plan.max_document_tokens)
        if len(ledger.context_ids) + len(documents.ids) >= plan.max_context_tokens:
            stop = StopReason.OUT_OF_TOKENS  # no room to read and answer: the policy never sees them
            break
        ledger.was_given(documents)
        searches.append(search)
        yield AskEvent(kind=AskEventKind.SEARCH, text=documents.text, search=searches[-1])

    trajectory = Trajectory(
        id=name,
        question=question,
        prompt_text=prompt.text,
        prompt_ids=tuple(prompt.ids),
        segments=tuple(ledger.segments),
        searches=tuple(searches),
        stop_reason=stop,
    )
    yield AskEvent(kind=AskEventKind.DONE, answer=extract_answer(trajectory.text), trajectory=trajectory)


async def _searched(retriever: Retriever, query: str, question: Question, plan: RolloutPlan) -> Search:
    query = query[:MAX_QUERY_CHARACTERS]
    (passages,) = await retriever.search([query], k=plan.documents_per_search, corpus=question.corpus)
    return Search(query=query, passages=passages)


async def _think(policy: Policy, ledger: Ledger, plan: RolloutPlan, *, seed: int | None) -> Sampled | None:
    """The next turn; None where the context has no room for one."""
    room = plan.max_context_tokens - len(ledger.context_ids)
    if room <= 0:
        return None
    sampling = Sampling(
        max_tokens=min(plan.max_tokens_per_turn, room),
        temperature=plan.temperature,
        top_p=plan.top_p,
        stop=_stops(plan),
        seed=seed,
    )
    return await policy.sample(ledger.context_ids, sampling)


def _stops(plan: RolloutPlan) -> tuple[str, ...]:
    """Nobody answers a baseline's query, so it is not interrupted at one: it may still come to an answer."""
    asking = (QUERY_CLOSE,) if plan.search is SearchMode.MULTI_TURN else ()
    return (*asking, ANSWER_CLOSE) if plan.stop_at_answer else asking


def _ending(turn: Sampled, text: str, plan: RolloutPlan, *, num_searches: int) -> StopReason | None:
    """Why the trajectory ends with this turn; None if it goes on with a search."""
    if turn.finish_reason == "length":
        return StopReason.OUT_OF_TOKENS
    if turn.stop_string != QUERY_CLOSE:
        return StopReason.ANSWERED
    if not asked_query(text):
        return StopReason.BAD_QUERY
    if num_searches == plan.max_searches:
        return StopReason.OUT_OF_SEARCHES
    return None


def _seed(plan: RolloutPlan, question: Question, sample: int, *, turn: int) -> int | None:
    """Different for every turn of every sample, the same whenever it is asked again."""
    if plan.seed is None:
        return None
    digest = hashlib.sha256(f"{plan.seed}/{question.id}/{sample}/{turn}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
