"""One question -> the model's thoughts, searches, documents and answer, as they come."""

import asyncio
from pathlib import Path

from searcher.cli.console import console
from searcher.cli.lifecycle import existing
from searcher.cli.settings import CliSettings
from searcher.clients.rollout import RolloutClient
from searcher.contracts.errors import NotFound, SearcherError
from searcher.contracts.question import AskRequest, RolloutPlan
from searcher.contracts.trajectory import AskEvent, AskEventKind
from searcher.servicekit.settings import SharedSettings


def ask(question: str, *, corpus: str, state_dir: Path | None) -> None:
    client, plan = _rollout_and_plan(state_dir)
    asyncio.run(_ask(client, AskRequest(question=question, corpus=corpus, plan=plan)))


def greedy(plan: RolloutPlan, *, temperature: float = 0.0) -> RolloutPlan:
    """A recipe's plan as it is used outside training: most likely tokens, and an end at the answer."""
    return plan.model_copy(update={"temperature": temperature, "stop_at_answer": True})


def plan_of_deployment(state_dir: Path | None) -> RolloutPlan:
    """The prompt and limits of the deployed recipe; the published ones if nothing is deployed here."""
    try:
        return existing(state_dir).recipe.rollout
    except NotFound:
        return RolloutPlan()


def _rollout_and_plan(state_dir: Path | None) -> tuple[RolloutClient, RolloutPlan]:
    url, plan = CliSettings().rollout_url, greedy(plan_of_deployment(state_dir))
    if url is not None:
        return RolloutClient(url, api_key=SharedSettings().api_key, timeout_seconds=600.0), plan
    return existing(state_dir).rollout(), plan


async def _ask(client: RolloutClient, request: AskRequest) -> None:
    async with client:
        async for event in client.ask(request):
            _show(event)


def _show(event: AskEvent) -> None:
    if event.kind is AskEventKind.THINK:
        console.print(event.text.strip(), style="cyan", markup=False)
    elif event.kind is AskEventKind.SEARCH and event.search is not None:
        console.print(f"search  {event.search.query}", style="bold yellow", markup=False)
        for rank, passage in enumerate(event.search.passages, start=1):
            console.print(f"  ({rank}) {passage.line}", style="dim", markup=False)
    elif event.kind is AskEventKind.DONE:
        answer = event.answer if event.answer is not None else "(no answer)"
        console.print(f"answer  {answer}", style="bold green", markup=False)
    elif event.kind is AskEventKind.ERROR:
        raise SearcherError(event.text)
