"""`searcher eval …`: the commands' arguments and help. What they do is imported when they run."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup


class _RunByDefault(TyperGroup):
    """`searcher eval FILE` and `searcher eval --benchmark …` mean `searcher eval run …`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["run", *args]
        parsed: list[str] = super().parse_args(ctx, args)
        return parsed


eval_app = typer.Typer(
    cls=_RunByDefault,
    no_args_is_help=True,
    help="Measure models on benchmarks: EM, cover-EM, F1, judge, searches and evidence, with intervals. "
    "`searcher eval FILE` is short for `searcher eval run FILE`.",
)


@eval_app.command("run")
def run(
    questions: Annotated[
        Path | None,
        typer.Argument(help="A file of questions with answers, in any form that `searcher data check` reads."),
    ] = None,
    benchmark: Annotated[
        list[str] | None,
        typer.Option(help="By name instead, e.g. hotpotqa; repeat it for several. The evaluator has the files."),
    ] = None,
    baselines: Annotated[
        bool, typer.Option("--baselines", help="Beside it: no search, and one search with the question itself.")
    ] = False,
    sample: Annotated[int | None, typer.Option(help="Ask this many of each benchmark, drawn at random.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Of the draw: the same seed asks the same questions.", min=0)] = 0,
    n: Annotated[int | None, typer.Option("--n", help="Ask the first N questions of the file only.", min=1)] = None,
    corpus: Annotated[
        str | None,
        typer.Option(help="Which of the retriever's corpora to search.", show_default="default, or the question's own"),
    ] = None,
    judge: Annotated[
        bool, typer.Option("--judge", help="Ask the evaluator's judge too (EVALUATOR_JUDGE_URL).")
    ] = False,
    weights: Annotated[
        str | None, typer.Option(help="Evaluate this version only.", show_default="what the engines hold")
    ] = None,
    model_url: Annotated[
        str | None, typer.Option(help="Evaluate a model behind an OpenAI-compatible API: its URL up to /v1.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Its name there.")] = None,
    rules: Annotated[str, typer.Option(help="The rule set of reward and format.")] = "searcher",
    k: Annotated[
        int | None, typer.Option("-k", help="Documents per search.", min=1, max=100, show_default="the recipe's")
    ] = None,
    searches: Annotated[
        int | None, typer.Option(help="Searches at most.", min=0, max=64, show_default="the recipe's")
    ] = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy.", min=0.0, max=2.0)] = 0.0,
    out: Annotated[
        Path | None,
        typer.Option(help="Directory of report.json, report.md and report.html.", show_default="reports/ID"),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--id", help="Of the evaluation; the same one with the same options again goes on with it."),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", help="Whose prompt and limits to use.", show_default="the deployed recipe's"),
    ] = None,
    state_dir: Annotated[
        Path | None, typer.Option(help="Where logs, indexes and weights live.", show_default=".searcher")
    ] = None,
) -> None:
    """Ask a benchmark or a file of questions, and write the report. Ctrl-C leaves the evaluation going on."""
    from searcher.cli import evaluate

    evaluate.evaluate(
        evaluate.EvaluateOptions(
            questions=questions,
            benchmarks=tuple(benchmark or ()),
            baselines=baselines,
            sample=sample,
            seed=seed,
            limit=n,
            corpus=corpus,
            judge=judge,
            weights=weights,
            model_url=model_url,
            model=model,
            rules=rules,
            k=k,
            searches=searches,
            temperature=temperature,
            out=out,
            id=name,
            recipe=recipe,
            state_dir=state_dir,
        )
    )


@eval_app.command("score")
def score(
    file: Annotated[
        Path,
        typer.Argument(help="JSONL with question, answer, pred_ans and gen_text_store a line; gzipped or not."),
    ],
    rules: Annotated[
        str | None, typer.Option(help="Score the responses by this rule set too, e.g. r1-searcher-qwen.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON instead of a table.")] = False,
) -> None:
    """Score finished trajectories in R1-Searcher's published form. Needs no service and no network."""
    from searcher.cli import score as scoring

    scoring.score_file(file, rules=rules, as_json=as_json)


@eval_app.command("compare")
def compare(
    a: Annotated[Path, typer.Argument(help="A report.json.", show_default=False)],
    b: Annotated[Path, typer.Argument(help="Another; differences are B - A.", show_default=False)],
    system: Annotated[
        str | None, typer.Option(help="Compare this system only.", show_default="all that both have, or the first")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON instead of a table.")] = False,
) -> None:
    """A paired test of two reports on the questions they share. Needs no service and no network."""
    from searcher.cli import compare as comparing

    comparing.compare_files(a, b, system=system, as_json=as_json)
