"""HTTP -> scores. Which rules there are is in rules.py; how a group is scored, in engine.py."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool

from searcher.contracts.errors import Overloaded
from searcher.contracts.score import RuleSet, ScoreRequest, ScoreResponse
from searcher.servicekit.app import create_service
from services.reward.engine import score_group
from services.reward.metrics import GROUP_SECONDS, observe
from services.reward.rules import RULES, rules_named
from services.reward.settings import RewardSettings


def create_app(settings: RewardSettings) -> FastAPI:
    app = create_service(
        "reward", summary="Trajectories -> scores", settings=settings, lifespan=_lifespan, is_ready=_is_ready
    )
    _add_routes(app, settings.max_in_flight)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield  # rules are functions: there is nothing to open


async def _is_ready(app: FastAPI) -> None:
    """Always: the service depends on nothing."""


def _add_routes(app: FastAPI, max_in_flight: int) -> None:
    in_flight = 0

    @app.post("/v1/score", summary="The trajectories of one group -> their scores, in order")
    async def score(request: ScoreRequest) -> ScoreResponse:
        nonlocal in_flight
        rules = rules_named(request.rules)
        if in_flight >= max_in_flight:
            raise Overloaded(f"{in_flight} groups are being scored (REWARD_MAX_IN_FLIGHT); ask again")
        in_flight += 1
        try:
            with GROUP_SECONDS.labels(rules.name).time():
                scores = await run_in_threadpool(score_group, request.items, rules)
        finally:
            in_flight -= 1
        observe(rules.name, scores)
        return ScoreResponse(rules=rules.name, scores=scores)

    @app.get("/v1/rules", summary="The rule sets that `/v1/score` knows")
    async def rules() -> list[RuleSet]:
        return [rules.as_contract() for rules in RULES.values()]
