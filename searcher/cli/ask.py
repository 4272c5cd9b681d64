"""One question -> the model's thoughts, searches, documents and answer, as they come."""

import asyncio
from pathlib import Path

from searcher.cli.console import console
from searcher.cli.embedded.deployment import ASK_SECONDS
from searcher.cli.lifecycle import existing, last_deployment, recipe_path
from searcher.cli.settings import CliSettings
from searcher.clients.rollout import RolloutClient
from searcher.contracts.errors import SearcherError
from searcher.contracts.question import AskRequest, RolloutPlan
from searcher.contracts.trajectory import AskEvent, AskEventKind
from searcher.recipes import load_recipe
from searcher.servicekit.settings import SharedSettings


def ask(question: str, *, corpus: str, recipe_name: str | None, state_dir: Path | None) -> None:
    request = AskRequest(question=question, corpus=corpus, plan=evaluation_plan(recipe_name, state_dir))
    asyncio.run(_ask(rollout_client(state_dir), request))


def evaluation_plan(recipe_name: str | None, state_dir: Path | None) -> RolloutPlan:
    """Prompt and limits as the model was trained with them: of a recipe by name, else of the deployed one.

    Where neither is known, the published ones.
    """
    if recipe_name is not None:
        return load_recipe(recipe_path(recipe_name)).evaluation_plan
    last = last_deployment(state_dir)
    return last.recipe.evaluation_plan if last else RolloutPlan(temperature=0.0, stop_at_answer=True)


def rollout_client(state_dir: Path | None, *, timeout_seconds: float = ASK_SECONDS) -> RolloutClient:
    """Of the service that the environment names, else of the embedded one."""
    url = CliSettings().rollout_url or existing(state_dir).url("rollout")
    return RolloutClient(url, api_key=SharedSettings().api_key, timeout_seconds=timeout_seconds)


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
