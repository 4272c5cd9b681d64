"""The real client against the real app, in process."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client import REGISTRY

import services.reward.app as reward_app
from searcher.clients.reward import RewardClient
from searcher.contracts.errors import InvalidInput, UpstreamUnavailable
from searcher.contracts.question import Question
from searcher.contracts.score import RuleSet, Score, ScoreItem
from searcher.contracts.search import Passage
from searcher.contracts.trajectory import Search, Segment, Source, StopReason, Trajectory
from searcher.qa.tags import document_block
from services.reward.app import create_app
from services.reward.rules import RULES, Rules
from services.reward.settings import RewardSettings

pytestmark = pytest.mark.anyio

PASSAGE = Passage(id="7", title="France", text="Paris is its capital.", score=1.0)
ASK = "Let me see. <|begin_of_query|> capital of France <|end_of_query|>"


def trajectory(answer: str, *, searched: bool = True) -> Trajectory:
    texts = [(Source.POLICY, ASK), (Source.DOCUMENTS, document_block([PASSAGE]))] if searched else []
    texts.append((Source.POLICY, f"I see. </think>\n\n<answer> {answer} </answer>"))
    return Trajectory(
        id=f"q-{answer}",
        question=Question(id="q", question="What is the capital of France?", answers=("Paris",)),
        prompt_text="User:…",
        prompt_ids=(1,),
        segments=tuple(
            Segment(source=source, text=text, token_ids=(2,), logprobs=(0.0,), weight_steps=(0,))
            for source, text in texts
        ),
        searches=(Search(query="capital of France", passages=(PASSAGE,)),) if searched else (),
        stop_reason=StopReason.ANSWERED,
    )


@asynccontextmanager
async def running(app: FastAPI, *, attempts: int = 1) -> AsyncIterator[RewardClient]:
    async with (
        app.router.lifespan_context(app),
        RewardClient("http://reward", transport=httpx.ASGITransport(app), attempts=attempts) as client,
    ):
        yield client


async def test_a_group_is_scored_in_order() -> None:
    async with running(create_app(RewardSettings())) as client:
        group = [trajectory("Paris"), trajectory("Rome"), trajectory("Paris, France", searched=False)]

        scores = await client.score(group, rules="searcher")

    assert [(s.answer, round(s.total, 3), s.format_ok) for s in scores] == [
        ("Paris", 1.0, True),
        ("Rome", 0.0, True),
        ("Paris, France", 0.667, True),
    ]


async def test_searches_of_the_trajectory_are_what_stage_1_pays_for() -> None:
    async with running(create_app(RewardSettings())) as client:
        group = [trajectory("Rome"), trajectory("Rome", searched=False)]

        scores = await client.score(group, rules="searcher-stage1")

    assert [s.parts for s in scores] == [{"search": 0.5, "format": 0.5}, {"search": 0.0, "format": 0.5}]


@pytest.mark.parametrize("rules", RULES)
async def test_every_rule_set_is_served(rules: str) -> None:
    async with running(create_app(RewardSettings())) as client:
        (scored,) = await client.score([trajectory("Paris")], rules=rules)

    assert scored.em == scored.f1 == 1.0 and scored.format_ok


async def test_the_rule_sets_are_listed() -> None:
    async with running(create_app(RewardSettings())) as client:
        listed = [RuleSet.model_validate(row) for row in await client.get("/v1/rules")]

    assert {rules.name: rules.parts for rules in listed} == {name: tuple(rules.parts) for name, rules in RULES.items()}


async def test_an_unknown_rule_set_is_the_callers_mistake() -> None:
    async with running(create_app(RewardSettings())) as client:
        with pytest.raises(InvalidInput, match=r"reward: rules: 'f2' is not one of .*searcher-stage1"):
            await client.score([trajectory("Paris")], rules="f2")


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ({"items": []}, "body.items"),
        ({"items": [{"id": "1", "question": "?", "answers": [], "segments": []}]}, "body.items.0.answers"),
        (
            {"items": [{"id": "1", "question": "?", "answers": ["a"], "segments": [{"source": "user", "text": ""}]}]},
            "source",
        ),
        (
            {"items": [{"id": "1", "question": "?", "answers": ["a"], "segments": [], "reward": 1}]},
            "body.items.0.reward",
        ),
    ],
)
async def test_a_malformed_request_is_refused_by_the_name_of_its_field(body: dict[str, object], complaint: str) -> None:
    async with running(create_app(RewardSettings())) as client:
        with pytest.raises(InvalidInput, match=complaint):
            await client.post("/v1/score", body)


async def test_a_group_over_the_limit_is_asked_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    started, may_finish = threading.Event(), threading.Event()

    def slow(items: Sequence[ScoreItem], rules: Rules) -> tuple[Score, ...]:
        started.set()
        assert may_finish.wait(timeout=30)
        return ()

    monkeypatch.setattr(reward_app, "score_group", slow)
    async with running(create_app(RewardSettings(max_in_flight=1))) as client:
        first = asyncio.create_task(client.score([trajectory("Paris")], rules="searcher"))
        await asyncio.to_thread(started.wait, 30)

        with pytest.raises(UpstreamUnavailable, match="REWARD_MAX_IN_FLIGHT"):
            await client.score([trajectory("Paris")], rules="searcher")

        may_finish.set()
        assert await first == ()
        assert await client.score([trajectory("Paris")], rules="searcher") == ()


async def test_what_was_scored_is_counted() -> None:
    def counted(name: str, **labels: str) -> float:
        return REGISTRY.get_sample_value(f"searcher_reward_{name}_total", {"rules": "searcher", **labels}) or 0.0

    names = {"scores": {}, "unanswered": {}, "format_errors": {"check": "no_answer"}}
    before = {name: counted(name, **labels) for name, labels in names.items()}
    async with running(create_app(RewardSettings())) as client:
        await client.score([trajectory("Paris"), trajectory(" ")], rules="searcher")

    assert {name: counted(name, **labels) - before[name] for name, labels in names.items()} == {
        "scores": 2,
        "unanswered": 1,
        "format_errors": 1,
    }


async def test_the_service_is_ready_at_once() -> None:
    async with running(create_app(RewardSettings())) as client:
        assert await client.is_ready()
