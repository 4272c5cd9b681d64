"""HTTP -> scores. Which rules there are is in rules.py; how a group is scored, in engine.py.

`/v1/score` is ours. `/get_reward` speaks the protocol of R1-Searcher's and OpenRLHF's reward servers, so that trainers
written for those can be pointed here as they are.
"""

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

import structlog
from fastapi import FastAPI
from pydantic import ValidationError
from pydantic_core import to_json
from starlette.concurrency import run_in_threadpool

from searcher.clients.judge import JudgeClient
from searcher.clients.reward import RemoteRewardClient
from searcher.contracts.errors import InvalidInput, Overloaded
from searcher.contracts.score import RuleSet, Score, ScoreItem, ScoreRequest, ScoreResponse
from searcher.servicekit.app import create_service
from searcher.servicekit.call import Call
from searcher.servicekit.frame import Framed
from searcher.servicekit.posts import add_post, invalid_body
from services.reward.catalogue import catalogue
from services.reward.dropin import KnownQuestions, RewardRequest, items_of
from services.reward.engine import group_of, score
from services.reward.metrics import GROUP_SECONDS, REFUSED_DROPIN, observe
from services.reward.outside import Outside
from services.reward.rules import Rules, rules_named
from services.reward.settings import RewardSettings

log = structlog.get_logger()

QUICK_CHARACTERS = 262_144
"""A group of up to this much text is scored at once; handing it to a thread would take longer than scoring it."""


@dataclass
class Scorer:
    """What the routes share. Opened when the service starts, in whose event loop its clients live."""

    known: dict[str, Rules]
    max_in_flight: int
    outside: Outside
    in_flight: int = 0

    async def scored(self, items: Sequence[ScoreItem], rules: Rules) -> tuple[Score, ...]:
        with self._place(), GROUP_SECONDS.labels(rules.name).time():
            group = group_of(items, rules)
            if _num_characters(items) > QUICK_CHARACTERS:
                await run_in_threadpool(lambda: [response.errors for response in group.responses])
                group = await self.outside.asked(group, rules)
                scores = await run_in_threadpool(score, group, rules)
            else:
                scores = score(await self.outside.asked(group, rules), rules)
        observe(rules.name, scores)
        return scores

    @contextmanager
    def _place(self) -> Iterator[None]:
        if self.in_flight >= self.max_in_flight:
            raise Overloaded(f"{self.in_flight} groups are being scored (REWARD_MAX_IN_FLIGHT); ask again")
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1


def create_app(settings: RewardSettings) -> Framed:
    """Raises InvalidInput for a setting that cannot be served: at start, not at the first request."""
    known = catalogue(settings)
    dropin_rules = _dropin_rules(settings, known)
    questions = KnownQuestions.load(settings.dropin_questions) if settings.dropin_questions else None

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.scorer = Scorer(known, settings.max_in_flight, _outside(settings))
        yield
        await app.state.scorer.outside.close()

    app = create_service(
        "reward", summary="Trajectories -> scores", settings=settings, lifespan=lifespan, is_ready=_is_ready
    )
    _add_routes(app, known)
    _add_dropin(app, dropin_rules, questions)
    return app


async def _is_ready(app: FastAPI) -> None:
    """Always: without its judge the service still scores, and says so."""


def _outside(settings: RewardSettings) -> Outside:
    judge = remote = None
    if settings.judge_url and settings.judge_model:
        judge = JudgeClient(
            settings.judge_url,
            settings.judge_model,
            api_key=settings.judge_key,
            timeout_seconds=settings.judge_timeout_seconds,
            attempts=settings.judge_attempts,
            concurrency=settings.judge_concurrency,
            cache_entries=settings.judge_cache_entries,
        )
    if settings.remote_url:
        remote = RemoteRewardClient(
            settings.remote_url, api_key=settings.remote_key, timeout_seconds=settings.remote_timeout_seconds
        )
    return Outside(judge, settings.judge_timeout_seconds, remote)


def _dropin_rules(settings: RewardSettings, known: dict[str, Rules]) -> Rules:
    try:
        rules = rules_named(settings.dropin_rules, known)
    except InvalidInput as error:
        raise InvalidInput(f"REWARD_DROPIN_RULES: {error}") from None
    if rules.compares:
        raise InvalidInput(
            f"REWARD_DROPIN_RULES: {rules.name!r} compares the responses to one question, but clients of /get_reward "
            "send one response a call; choose another rule set"
        )
    return rules


def _add_routes(app: Framed, known: dict[str, Rules]) -> None:
    async def score_group(call: Call) -> bytes:
        request = _parse(call.body)
        rules = rules_named(request.rules, known)
        _refuse_repeated_ids(request.items)
        scores = await app.state.scorer.scored(request.items, rules)
        return to_json(ScoreResponse(rules=rules.name, scores=scores, ids=tuple(item.id for item in request.items)))

    add_post(
        app,
        "/v1/score",
        score_group,
        body=ScoreRequest,
        response=ScoreResponse,
        summary="The trajectories of one group -> their scores, in order",
    )

    @app.get("/v1/rules", summary="The rule sets that `/v1/score` knows")
    async def rules() -> list[RuleSet]:
        return [rules.as_contract() for name, rules in known.items() if name == rules.name]


def _add_dropin(app: FastAPI, rules: Rules, questions: KnownQuestions | None) -> None:
    @app.post("/get_reward", tags=["drop-in"], summary="R1-Searcher's and OpenRLHF's remote reward")
    async def get_reward(request: RewardRequest) -> dict[str, list[float]]:
        try:
            items = items_of(request, questions)
        except InvalidInput as error:
            # The client prints no body, asks again up to a hundred times and gives up: here is where people will look.
            REFUSED_DROPIN.inc()
            log.error("get_reward refused", reason=str(error))
            raise
        scores = await app.state.scorer.scored(items, rules)
        rewards = {"rewards": [float(scored.total) for scored in scores]}
        return rewards if request.labels is None else {**rewards, "scores": [float(scored.f1) for scored in scores]}


def _parse(body: bytes) -> ScoreRequest:
    try:
        return ScoreRequest.model_validate_json(body)
    except ValidationError as error:
        raise invalid_body(error) from None


def _refuse_repeated_ids(items: Sequence[ScoreItem]) -> None:
    places: dict[str, int] = {}
    for at, item in enumerate(items):
        if places.setdefault(item.id, at) != at:
            raise InvalidInput(f"items.{at}.id: {item.id!r} is the id of items.{places[item.id]} already; rename one")


def _num_characters(items: Sequence[ScoreItem]) -> int:
    return sum(len(segment.text) for item in items for segment in item.segments)
