"""Questions, or benchmarks by name -> figures in the terminal and a report on disk."""

import asyncio
import datetime as dt
import re
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from rich.table import Table

from searcher.cli.ask import evaluation_plan
from searcher.cli.compare import comparison_table
from searcher.cli.console import console, duration
from searcher.cli.lifecycle import existing
from searcher.cli.progress import track_evaluation
from searcher.cli.settings import CliSettings
from searcher.clients.evaluator import EvaluatorClient
from searcher.contracts.errors import InvalidInput
from searcher.contracts.report import (
    BASELINES,
    POLICY,
    EvaluationRequest,
    Metrics,
    OpenAIModel,
    Report,
    Sample,
    System,
)
from searcher.pages import hops_title
from searcher.questions import load_questions
from searcher.recipes import explain
from searcher.servicekit.settings import SharedSettings

FIGURES = (
    ("questions", "num_questions", "{:,.0f}"),
    ("EM", "em", "{:.3f}"),
    ("cover-EM", "cover_em", "{:.3f}"),
    ("F1", "f1", "{:.3f}"),
    ("judge", "judge", "{:.3f}"),
    ("cover-EM, words in a row", "cover_em_strict", "{:.3f}"),
    ("reward", "reward", "{:+.3f}"),
    ("searched", "search_rate", "{:.0%}"),
    ("searches per question", "searches_mean", "{:.2f}"),
    ("format right", "format_rate", "{:.0%}"),
    ("answered", "answered_rate", "{:.0%}"),
    ("all evidence found", "evidence_rate", "{:.0%}"),
    ("share of evidence found", "evidence_recall", "{:.0%}"),
    ("search with the last of it", "evidence_search_mean", "{:.2f}"),
    ("answer stands in what was read", "supported_rate", "{:.0%}"),
    ("tokens per response", "response_tokens_mean", "{:.0f}"),
)
WITH_INTERVAL = frozenset({"em", "cover_em", "f1", "judge"})


@dataclass(frozen=True)
class EvaluateOptions:
    """What `searcher eval run` was given."""

    questions: Path | None = None
    benchmarks: tuple[str, ...] = ()
    baselines: bool = False
    sample: int | None = None
    seed: int = 0
    limit: int | None = None
    """The first questions of the file only."""
    corpus: str | None = None
    judge: bool = False
    weights: str | None = None
    model_url: str | None = None
    model: str | None = None
    rules: str = "searcher"
    k: int | None = None
    """Documents per search; None: the plan's, as is `searches`."""
    searches: int | None = None
    temperature: float = 0.0
    out: Path | None = None
    id: str | None = None
    recipe: str | None = None
    state_dir: Path | None = None


def evaluate(options: EvaluateOptions) -> None:
    request = request_of(options)
    folder = options.out or (options.state_dir or CliSettings().state_dir) / "reports" / request.id
    try:
        report, pages = asyncio.run(_run(_client(options.state_dir), request))
    except KeyboardInterrupt:
        console.print(f"The evaluation goes on. The same command with --id {request.id} shows it again.", markup=False)
        raise SystemExit(130) from None
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in {"report.json": report.model_dump_json(indent=1), **pages}.items():
        (folder / name).write_text(text, encoding="utf-8")
    show(report)
    for name in ("report.json", *pages):
        console.print(str(folder / name), soft_wrap=True, markup=False)


def request_of(options: EvaluateOptions) -> EvaluationRequest:
    """Raises InvalidInput for options that do not go together, and for a bad file."""
    if (options.questions is None) == (not options.benchmarks):
        raise InvalidInput("give either a file of questions or --benchmark NAME, not both and not neither")
    if (options.model_url is None) != (options.model is None):
        raise InvalidInput("--model-url and --model belong together: where the model is served, and its name there")
    if options.limit is not None and options.questions is None:
        raise InvalidInput("--n takes the first questions of a file; for a benchmark use --sample")
    file, corpus = options.questions, options.corpus
    plan = evaluation_plan(options.recipe, options.state_dir)
    numbers = {
        "temperature": options.temperature,
        "documents_per_search": options.k,
        "max_searches": options.searches,
    }
    try:
        return EvaluationRequest(
            id=options.id or _evaluation_id(file.name if file else "-".join(options.benchmarks)),
            title=file.name if file else ", ".join(options.benchmarks),
            benchmarks=options.benchmarks,
            questions=tuple(load_questions(file, corpus=corpus or "default", limit=options.limit)) if file else (),
            sample=None if options.sample is None else Sample(size=options.sample, seed=options.seed),
            corpus=corpus,
            systems=systems_of(options),
            plan=plan.model_copy(update={name: value for name, value in numbers.items() if value is not None}),
            rules=options.rules,
            judge=options.judge,
            weights=options.weights,
        )
    except ValidationError as error:
        raise InvalidInput(explain(error)) from None


def systems_of(options: EvaluateOptions) -> tuple[System, ...]:
    """What is evaluated comes first: figures and differences are about it."""
    if options.model_url is None or options.model is None:
        return (POLICY, *BASELINES) if options.baselines else (POLICY,)
    model = OpenAIModel(base_url=options.model_url, model=options.model)
    whole = System(name=options.model[-64:], model=model)
    return (whole, *(one.model_copy(update={"model": model}) for one in BASELINES)) if options.baselines else (whole,)


def show(report: Report) -> None:
    console.print(metrics_table(report))
    if report.comparisons:
        console.print(comparison_table(report.comparisons))
    for note in report.missing:
        console.print(f"missing: {note}", style="yellow", markup=False, soft_wrap=True)
    for row in report.published:
        if not row.comparable:
            console.print(
                f"{row.benchmark}: not comparable with {row.source}: {row.why_not}",
                style="dim", markup=False, soft_wrap=True,
            )  # fmt: skip


def metrics_table(report: Report) -> Table:
    """One row per figure that anybody has; a column per system, and for a single one its benchmarks and hop counts."""
    title = f"{report.title}: " + (f"weights {report.weights}, " if report.weights else "") + duration(report.seconds)
    table = Table(title=title, title_justify="left")
    table.add_column("")
    columns = _columns(report)
    for name in columns:
        table.add_column(name, justify="right")
    for name, field, form in FIGURES:
        cells = [_cell(metrics, field, form) for metrics in columns.values()]
        if any(cell != "–" for cell in cells):
            table.add_row(name, *cells)
    return table


def _columns(report: Report) -> dict[str, Metrics]:
    if len(report.systems) > 1:
        return {one.system.name: one.overall for one in report.systems}
    (only,) = report.systems
    columns = {"all": only.overall}
    if len(only.by_benchmark) > 1:
        columns |= only.by_benchmark | ({"their mean": only.macro} if only.macro else {})
    return columns | {hops_title(count): metrics for count, metrics in only.by_hops.items()}


def _cell(metrics: Metrics, name: str, form: str) -> str:
    value, interval = getattr(metrics, name), metrics.intervals.get(name)
    if value is None:
        return "–"
    shown = form.format(value)
    if name in WITH_INTERVAL and interval is not None:
        shown += f" [dim]{form.format(interval.low)}–{form.format(interval.high)}[/]"
    return shown


async def _run(client: EvaluatorClient, request: EvaluationRequest) -> tuple[Report, dict[str, str]]:
    async with client:
        report = await track_evaluation(console, client, request)
        return report, {
            "report.md": await client.report_markdown(request.id),
            "report.html": await client.report_html(request.id),
        }


def _client(state_dir: Path | None) -> EvaluatorClient:
    url = CliSettings().evaluator_url
    return EvaluatorClient(url, api_key=SharedSettings().api_key) if url else existing(state_dir).evaluator()


def _evaluation_id(name: str) -> str:
    """New for every call: the same questions to newer weights are another evaluation."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", name.split(".")[0]).strip("-.") or "questions"
    return f"{stem[:64]}-{dt.datetime.now(dt.UTC):%Y%m%d-%H%M%S}"
