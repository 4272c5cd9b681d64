"""A model behind an OpenAI-compatible API, over a real socket: what it is sent, what its turn is, how it ends."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from rollout_toys import PASSAGES, retriever_app, reward_app, served

from searcher.clients.chat import ChatClient
from searcher.clients.retriever import RetrieverClient
from searcher.clients.reward import RewardClient
from searcher.contracts.errors import InvalidInput, UpstreamUnavailable
from searcher.contracts.question import Question, RolloutPlan, SearchMode
from searcher.contracts.report import OpenAIModel, System
from searcher.contracts.trajectory import StopReason
from searcher.qa.tags import document_block
from services.evaluator.answering import Answers
from services.evaluator.chunks import Chunk, Claim, Outline
from services.evaluator.openai_model import Conversation, ModelAnswers, converse

pytestmark = pytest.mark.anyio

QUESTION = Question(id="q", question="Where was Ada born?", answers=("London",), gold_ids=("p1", "p2"))
PLAN = RolloutPlan(temperature=0.0, stop_at_answer=True, documents_per_search=2)
ASKS = "<think> I search. <|begin_of_query|> Ada birthplace "
ANSWERS = "Now I know. </think> <answer> London "


@dataclass
class ToyModel:
    """OpenAI's route on one text after another; leaves the stop string out, as the protocol has it."""

    texts: list[str] = field(default_factory=list)
    failures: list[int] = field(default_factory=list)
    """HTTP statuses that come first."""
    fails_from: int = 1_000
    """After so many answers there are no more."""
    finish_reason: str = "stop"
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.post("/v1/chat/completions")
        async def complete(request: Request) -> JSONResponse:
            self.keys.append(request.headers.get("Authorization", ""))
            if self.failures:
                code = self.failures.pop(0)
                return JSONResponse({"error": {"message": "context_length_exceeded" if code == 400 else "no"}}, code)
            if len(self.requests) >= self.fails_from:
                return JSONResponse({"error": {"message": "down"}}, 503)
            self.requests.append(await request.json())
            text = self.texts[min(len(self.requests), len(self.texts)) - 1]
            choice = {"message": {"role": "assistant", "content": text}, "finish_reason": self.finish_reason}
            return JSONResponse({"choices": [choice], "usage": {"prompt_tokens": 10, "completion_tokens": 7}})

        return app

    @property
    def last_messages(self) -> list[dict[str, str]]:
        messages: list[dict[str, str]] = self.requests[-1]["messages"]
        return messages


@pytest.fixture
def toy() -> ToyModel:
    return ToyModel([ASKS, ANSWERS])


@pytest.fixture
def address(toy: ToyModel) -> Iterator[str]:
    with served(model=toy.app(), retriever=retriever_app(), reward=reward_app()) as url:
        yield url


async def talk(address: str, plan: RolloutPlan = PLAN, *, attempts: int = 1) -> Conversation:
    async with (
        ChatClient(f"{address}/model/v1", "toy", api_key="secret", attempts=attempts) as model,
        RetrieverClient(f"{address}/retriever") as retriever,
    ):
        return await converse(QUESTION, plan, model, retriever)


async def test_documents_are_the_users_next_message(toy: ToyModel, address: str) -> None:
    told = await talk(address)

    assert [segment.text for segment in told.segments] == [
        " I search. <|begin_of_query|> Ada birthplace <|end_of_query|>",
        document_block(PASSAGES),
        "Now I know. </think> <answer> London </answer>",
    ]
    assert [message["role"] for message in toy.last_messages] == ["system", "user", "assistant", "user"]
    assert toy.last_messages[1]["content"] == "Where was Ada born?"
    assert toy.last_messages[2]["content"].endswith("<|begin_of_query|> Ada birthplace <|end_of_query|>")
    assert toy.last_messages[3]["content"] == document_block(PASSAGES).strip()
    assert toy.requests[0]["stop"] == ["<|end_of_query|>", "</answer>"]
    assert (told.searches[0].query, told.stop_reason, told.num_tokens) == ("Ada birthplace", StopReason.ANSWERED, 14)
    assert set(toy.keys) == {"Bearer secret"}


async def test_what_a_model_writes_behind_its_query_is_cut_off(toy: ToyModel, address: str) -> None:
    """A server that does not know stop strings; the model goes on and makes the documents up."""
    toy.texts = [ASKS + "<|end_of_query|> <|begin_of_documents|> Rome <answer> Rome </answer>", ANSWERS]

    told = await talk(address)

    assert "Rome <answer>" not in told.text
    assert len(told.searches) == 1


async def test_a_model_that_searches_once_gets_the_documents_with_the_question(toy: ToyModel, address: str) -> None:
    toy.texts = [ASKS + "<|end_of_query|> Nothing comes. " + ANSWERS]

    told = await talk(address, PLAN.model_copy(update={"search": SearchMode.ONCE}))

    assert toy.last_messages[1]["content"] == "Where was Ada born?" + document_block(PASSAGES)
    assert [search.query for search in told.searches] == ["Where was Ada born?"]
    assert (len(toy.requests), toy.requests[0]["stop"]) == (1, ["</answer>"])
    assert told.text.startswith(document_block(PASSAGES)) and told.text.endswith("<answer> London </answer>")


async def test_a_model_without_search_is_told_nothing_about_it(toy: ToyModel, address: str) -> None:
    toy.texts = [ANSWERS]

    told = await talk(address, PLAN.model_copy(update={"search": SearchMode.NONE}))

    assert "begin_of_query" not in str(toy.last_messages) and told.searches == []
    assert told.stop_reason is StopReason.ANSWERED


@pytest.mark.parametrize(
    ("texts", "finish_reason", "plan", "reason"),
    [
        (["I do not know."], "stop", {}, StopReason.ANSWERED),
        (["<|begin_of_query|> a"], "length", {}, StopReason.OUT_OF_TOKENS),
        (['<|begin_of_query|> "" '], "stop", {}, StopReason.BAD_QUERY),
        ([ASKS, ASKS], "stop", {"max_searches": 1}, StopReason.OUT_OF_SEARCHES),
        ([ASKS], "stop", {"max_context_tokens": 17}, StopReason.OUT_OF_TOKENS),
    ],
)
async def test_every_ending_has_its_name(
    toy: ToyModel, address: str, texts: list[str], finish_reason: str, plan: dict[str, int], reason: StopReason
) -> None:
    toy.texts, toy.finish_reason = texts, finish_reason

    assert (await talk(address, PLAN.model_copy(update=plan))).stop_reason is reason


async def test_a_conversation_that_outgrows_the_model_ends_there(toy: ToyModel, address: str) -> None:
    toy.failures = [400]

    told = await talk(address)

    assert (told.stop_reason, told.text) == (StopReason.OUT_OF_TOKENS, "")


async def test_rate_limits_are_retried_and_then_an_outage(toy: ToyModel, address: str) -> None:
    toy.failures = [429, 500]
    assert (await talk(address, attempts=3)).stop_reason is StopReason.ANSWERED

    toy.failures = [429, 429]
    with pytest.raises(UpstreamUnavailable, match="HTTP 429"):
        await talk(address, attempts=2)


async def test_a_wrong_key_is_not_asked_again(toy: ToyModel, address: str) -> None:
    toy.failures = [401]

    with pytest.raises(InvalidInput, match="HTTP 401"):
        await talk(address, attempts=5)
    assert len(toy.keys) == 1


def claim_of(address: str, questions: list[Question]) -> Claim:
    system = System(name="toy", model=OpenAIModel(base_url=f"{address}/model/v1", model="toy"))
    outline = Outline(
        id="e", title="", systems=(system,), plan=PLAN, rules="searcher", judge=False, weights=None, version=None,
        corpora=(), indexes={},
    )  # fmt: skip
    return Claim("e", 0, "me", outline, Chunk(system="toy", benchmark="nq", questions=tuple(questions)), 0)


async def answers_of(address: str, count: int, *, concurrency: int = 1) -> Answers:
    questions = [QUESTION.model_copy(update={"id": f"q{number}"}) for number in range(count)]
    async with (
        ChatClient(f"{address}/model/v1", "toy", attempts=1) as model,
        RetrieverClient(f"{address}/retriever") as retriever,
        RewardClient(f"{address}/reward") as reward,
    ):
        answerer = ModelAnswers(model, retriever, reward, concurrency)
        return await answerer.answer(claim_of(address, questions), questions)


async def test_an_answer_becomes_a_row_that_the_rules_have_scored(toy: ToyModel, address: str) -> None:
    (row,) = (await answers_of(address, 1)).rows

    assert (row.id, row.system, row.benchmark, row.reward) == ("q0", "toy", "nq", 1.0)
    assert (row.num_searches, row.queries, row.num_tokens) == (1, ("Ada birthplace",), 14)
    assert (row.evidence, row.evidence_search) == (True, 1)
    assert re.search(r"\(1\)Title: Ada", row.response)


async def test_an_outage_keeps_what_was_answered_and_asks_no_more(toy: ToyModel, address: str) -> None:
    toy.texts = [ANSWERS] * 2 + [""] * 3
    toy.fails_from = 2

    answers = await answers_of(address, 5)

    assert [row.id for row in answers.rows] == ["q0", "q1"]
    assert answers.outage is not None and "HTTP 503" in answers.outage.detail
    assert len(toy.keys) == 3  # one question at a time, and the last two were left alone
