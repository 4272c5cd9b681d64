"""A chunk's questions -> evaluated questions, by way of a model behind an OpenAI-compatible API.

    user: question -> assistant: thought and query, stopped at the query's end -> user: documents -> assistant: …

The protocol is the policy's, over chat messages: a model that is given the chat template writes the same tags, and the
same rules score it. What it writes behind a closed query is cut off, whether its server knows stop strings or not, so
that no model searches by making the documents up.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from searcher.clients.chat import ChatClient, Completion, ConversationTooLong, Message
from searcher.clients.retriever import RetrieverClient
from searcher.clients.reward import RewardClient
from searcher.contracts.errors import InvalidInput, Unavailable
from searcher.contracts.question import Question, RolloutPlan, SearchMode
from searcher.contracts.report import EvaluatedQuestion
from searcher.contracts.score import ScoreItem, TextSegment
from searcher.contracts.search import Passage
from searcher.contracts.trajectory import Search, StopReason
from searcher.qa.prompt import TEMPLATES, chat_messages, template_named
from searcher.qa.tags import (
    ANSWER_CLOSE,
    ANSWER_OPEN,
    DOCUMENTS_CLOSE,
    QUERY_CLOSE,
    QUERY_OPEN,
    THINK_OPEN,
    asked_query,
    document_block,
)
from services.evaluator.answering import Answers, evaluated
from services.evaluator.chunks import Claim

MAX_QUERY_CHARACTERS = 8_192
CHAT_TEMPLATE = "r1-searcher-chat"
CHARACTERS_PER_TOKEN = 4
"""Nobody here has the model's tokenizer: documents are cut to this many characters for each token of the plan."""


@dataclass
class Conversation:
    """One question, as the model sees it and as the reward service judges it."""

    messages: list[Message]
    segments: list[TextSegment] = field(default_factory=list)
    searches: list[Search] = field(default_factory=list)
    num_tokens: int = 0
    stop_reason: StopReason = StopReason.OUT_OF_TOKENS
    read_at_first: str = ""
    """Documents that came with the question."""

    @property
    def text(self) -> str:
        return self.read_at_first + "".join(segment.text for segment in self.segments)


@dataclass(frozen=True)
class ModelAnswers:
    """A model's answers; it searches through our retriever and is scored by our reward service."""

    model: ChatClient
    retriever: RetrieverClient
    reward: RewardClient
    concurrency: int

    async def answer(self, claim: Claim, questions: Sequence[Question]) -> Answers:
        """With the first failure, the questions that have not begun are left alone."""
        places, rows = asyncio.Semaphore(self.concurrency), list[EvaluatedQuestion]()
        failures: list[Unavailable | InvalidInput] = []

        async def one(question: Question) -> None:
            async with places:
                if not failures:
                    try:
                        rows.append(await self._row(claim, question))
                    except (Unavailable, InvalidInput) as error:
                        failures.append(error)

        async with asyncio.TaskGroup() as group:
            for question in questions:
                group.create_task(one(question))
        for failure in failures:
            if isinstance(failure, Unavailable):
                return Answers(rows, outage=failure)
            raise failure
        return Answers(rows)

    async def _row(self, claim: Claim, question: Question) -> EvaluatedQuestion:
        plan = claim.outline.plan.model_copy(update={"search": claim.system.search})
        told = await converse(question, plan, self.model, self.retriever)
        item = ScoreItem(
            id="answer",  # rules never look it up, and a question's own id may be in use for another system
            question=question.question,
            answers=question.answers,
            segments=tuple(told.segments),
            num_searches=len(told.searches),
        )
        (score,) = await self.reward.score_items([item], rules=claim.outline.rules)
        return evaluated(
            claim,
            question,
            score,
            searches=told.searches,
            num_tokens=told.num_tokens,
            stop_reason=told.stop_reason,
            response=told.text,
        )


async def converse(
    question: Question, plan: RolloutPlan, model: ChatClient, retriever: RetrieverClient
) -> Conversation:
    """Ask until the model has answered, or may ask no more. Raises UpstreamUnavailable and InvalidInput."""
    told = Conversation(chat_messages(template_named(_template(plan), plan.search), question.question))
    if plan.search is SearchMode.ONCE:
        told.searches.append(await _searched(retriever, question.question, question, plan))
        told.read_at_first = _documents(told.searches[0].passages, plan)
        told.messages[-1] = {"role": "user", "content": question.question + told.read_at_first}
    while True:
        try:
            completion = await _next(model, told, plan)
        except ConversationTooLong:
            return told
        turn = _turn(completion, plan)
        told.segments.append(TextSegment(source="policy", text=turn))
        told.num_tokens += completion.num_tokens
        if ending := _ending(completion, turn, plan, num_searches=len(told.searches)):
            told.stop_reason = ending
            return told
        search = await _searched(retriever, asked_query(turn) or "", question, plan)
        documents = _documents(search.passages, plan)
        told.searches.append(search)
        told.segments.append(TextSegment(source="documents", text=documents))
        told.messages += [{"role": "assistant", "content": turn}, {"role": "user", "content": documents.strip()}]


async def _next(model: ChatClient, told: Conversation, plan: RolloutPlan) -> Completion:
    return await model.complete(
        told.messages,
        max_tokens=plan.max_tokens_per_turn,
        temperature=plan.temperature,
        top_p=plan.top_p,
        stop=_stops(plan),
        seed=plan.seed,
    )


def _template(plan: RolloutPlan) -> str:
    """The plan's, if a chat can be opened with it; its example would put documents into the model's own mouth."""
    template = TEMPLATES.get(plan.template)
    return plan.template if template and template.chat and not template.example else CHAT_TEMPLATE


def _stops(plan: RolloutPlan) -> tuple[str, ...]:
    asking = (QUERY_CLOSE,) if plan.search is SearchMode.MULTI_TURN else ()
    return (*asking, ANSWER_CLOSE) if plan.stop_at_answer else asking


def _turn(completion: Completion, plan: RolloutPlan) -> str:
    """Up to and with the stop string that came first, which most servers leave out.

    A chat model opens its thought itself, where the policy finds it open.
    """
    text = completion.text.lstrip().removeprefix(THINK_OPEN)
    ends = [text.index(stop) + len(stop) for stop in _stops(plan) if stop in text]
    if ends:
        return text[: min(ends)]
    if completion.finish_reason == "stop":
        for opened, closed in ((QUERY_OPEN, QUERY_CLOSE), (ANSWER_OPEN, ANSWER_CLOSE)):
            if closed in _stops(plan) and text.rfind(opened) > text.rfind(closed):
                return text + closed
    return text


def _ending(completion: Completion, turn: str, plan: RolloutPlan, *, num_searches: int) -> StopReason | None:
    """Why the conversation ends with this turn; None if it goes on with a search."""
    is_over = completion.finish_reason == "length" or completion.num_context_tokens >= plan.max_context_tokens
    if plan.search is not SearchMode.MULTI_TURN or not turn.endswith(QUERY_CLOSE):
        return StopReason.OUT_OF_TOKENS if completion.finish_reason == "length" else StopReason.ANSWERED
    if is_over:
        return StopReason.OUT_OF_TOKENS
    if not asked_query(turn):
        return StopReason.BAD_QUERY
    return StopReason.OUT_OF_SEARCHES if num_searches == plan.max_searches else None


async def _searched(retriever: RetrieverClient, query: str, question: Question, plan: RolloutPlan) -> Search:
    query = query[:MAX_QUERY_CHARACTERS]
    (passages,) = await retriever.search([query], k=plan.documents_per_search, corpus=question.corpus)
    return Search(query=query, passages=passages)


def _documents(passages: Sequence[Passage], plan: RolloutPlan) -> str:
    """The block that the policy would be given; the worst passages go first, then the text's end."""
    limit = plan.max_document_tokens * CHARACTERS_PER_TOKEN
    block = document_block(passages)
    while len(block) > limit and len(passages) > 1:
        passages = passages[:-1]
        block = document_block(passages)
    closing = f"\n{DOCUMENTS_CLOSE}\n\n"
    return block if len(block) <= limit else block[: limit - len(closing)] + closing
