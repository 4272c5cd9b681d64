"""A questions file -> figures in the terminal and a report on disk."""

import asyncio
import datetime as dt
import re
from pathlib import Path

from rich.table import Table

from searcher.cli.ask import evaluation_plan
from searcher.cli.console import console, duration
from searcher.cli.lifecycle import existing
from searcher.cli.progress import track_evaluation
from searcher.cli.settings import CliSettings
from searcher.clients.evaluator import EvaluatorClient
from searcher.contracts.report import EvaluationRequest, Metrics, Report
from searcher.recipes import load_questions
from searcher.servicekit.settings import SharedSettings

FIGURES = (
    ("questions", "num_questions", "{:.0f}"),
    ("EM", "em", "{:.3f}"),
    ("cover-EM", "cover_em", "{:.3f}"),
    ("F1", "f1", "{:.3f}"),
    ("reward", "reward", "{:+.3f}"),
    ("searched", "search_rate", "{:.0%}"),
    ("searches per question", "searches_mean", "{:.2f}"),
    ("format right", "format_rate", "{:.0%}"),
    ("answered", "answered_rate", "{:.0%}"),
    ("all evidence found", "evidence_rate", "{:.0%}"),
    ("tokens per response", "response_tokens_mean", "{:.0f}"),
)


def evaluate(
    questions: Path,
    *,
    corpus: str,
    limit: int | None,
    temperature: float,
    out: Path | None,
    recipe_name: str | None,
    state_dir: Path | None,
) -> None:
    request = EvaluationRequest(
        id=_evaluation_id(questions),
        title=questions.name,
        questions=tuple(load_questions(questions, corpus=corpus, limit=limit)),
        plan=evaluation_plan(recipe_name, state_dir).model_copy(update={"temperature": temperature}),
    )
    folder = out or (state_dir or CliSettings().state_dir) / "reports" / request.id
    report, html = asyncio.run(_run(_client(state_dir), request))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(report.model_dump_json(indent=1))
    (folder / "report.html").write_text(html)
    console.print(metrics_table(report))
    console.print(f"{folder / 'report.json'}\n{folder / 'report.html'}", soft_wrap=True)


def metrics_table(report: Report) -> Table:
    """One column for all questions and one per hop count; one row per figure."""
    table = Table(title=f"{report.title}: weights {report.weights}, {duration(report.seconds)}", title_justify="left")
    table.add_column("")
    columns = {"all": report.overall, **{_hops(key): metrics for key, metrics in sorted(report.by_hops.items())}}
    for title in columns:
        table.add_column(title, justify="right")
    for title, name, form in FIGURES:
        table.add_row(title, *(_cell(metrics, name, form) for metrics in columns.values()))
    return table


def _hops(count: str) -> str:
    return f"{count} hop" if count == "1" else f"{count} hops"


def _cell(metrics: Metrics, name: str, form: str) -> str:
    value = getattr(metrics, name)
    return "–" if value is None else form.format(value)


async def _run(client: EvaluatorClient, request: EvaluationRequest) -> tuple[Report, str]:
    async with client:
        return await track_evaluation(console, client, request), await client.report_html(request.id)


def _client(state_dir: Path | None) -> EvaluatorClient:
    url = CliSettings().evaluator_url
    return EvaluatorClient(url, api_key=SharedSettings().api_key) if url else existing(state_dir).evaluator()


def _evaluation_id(questions: Path) -> str:
    """New for every call: the same questions to newer weights are another evaluation."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", questions.name.split(".")[0]).strip("-.") or "questions"
    return f"{stem[:64]}-{dt.datetime.now(dt.UTC):%Y%m%d-%H%M%S}"
