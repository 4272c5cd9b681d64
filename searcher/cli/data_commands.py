"""`searcher data …`: the commands' arguments and help. What they do is imported when they run."""

from pathlib import Path
from typing import Annotated

import typer

data_app = typer.Typer(help="Look at question and passage files; select what to train on.", no_args_is_help=True)


@data_app.command("split-kilt")
def split_kilt(
    pages: Annotated[Path, typer.Argument(help="KILT pages: JSONL with wikipedia_title and text, gzipped or not.")],
    out: Annotated[Path, typer.Argument(help="TSV to write, gzipped if its name ends in .gz.")],
) -> None:
    """KILT pages -> passages of 100 words, by R1-Searcher's rule."""
    from searcher.cli import kilt
    from searcher.cli.console import console

    console.print(f"{out}: {kilt.split(pages, out):,} passages", highlight=False)


@data_app.command("check")
def check(
    file: Annotated[
        Path, typer.Argument(help="Questions (JSONL, JSON, CSV, TSV) or a corpus (JSONL), gzipped or not.")
    ],
) -> None:
    """Validate a file line by line; print counts, hops and duplicates."""
    from searcher.cli import data

    data.check(file)


@data_app.command("overlap")
def overlap(
    files: Annotated[list[Path], typer.Argument(help="Two or more files of questions; every pair is compared.")],
    list_: Annotated[bool, typer.Option("--list", help="Print every shared question, not only how many.")] = False,
    fail: Annotated[bool, typer.Option("--fail", help="End with exit code 1 if there is any, for scripts.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per pair instead.")] = False,
) -> None:
    """Which questions are in several files: the same text after normalisation, or the same data set id."""
    from searcher.cli import data

    if data.show_overlap(files, list_all=list_, as_json=as_json) and fail:
        raise typer.Exit(1)


@data_app.command("select")
def select(
    candidates: Annotated[Path, typer.Argument(help="Questions with answers, in any form that `data check` reads.")],
    out: Annotated[Path, typer.Option(help="JSONL to write; FILE.journal.jsonl beside it keeps every rollout.")],
    rollouts: Annotated[int, typer.Option(help="Ask a question this often at most.", min=1, max=1_000)] = 20,
    mix: Annotated[
        str | None,
        typer.Option(help="Ratio of labels, e.g. medium=1,difficult=1.", show_default="all questions, labelled"),
    ] = None,
    size: Annotated[int | None, typer.Option(help="Select this many.", show_default="all that the mix allows")] = None,
    seed: Annotated[int, typer.Option(help="Of the rollouts and of the draw.", min=0)] = 0,
    against: Annotated[
        list[Path] | None, typer.Option(help="Evaluation questions; candidates that are among them are refused.")
    ] = None,
    allow_overlap: Annotated[bool, typer.Option("--allow-overlap", help="Go on with them.")] = False,
    drop_overlap: Annotated[bool, typer.Option("--drop-overlap", help="Leave them out.")] = False,
    corpus: Annotated[
        str | None, typer.Option(help="Which of the retriever's corpora to search.", show_default="the recipe's")
    ] = None,
    rules: Annotated[str, typer.Option(help="The reward service's rule set that scores an answer.")] = "searcher",
    correct: Annotated[str, typer.Option(help="What makes an answer right: cover_em, em or f1.")] = "cover_em",
    at_least: Annotated[float, typer.Option(help="Right from this value on.", min=0.0, max=1.0)] = 1.0,
    temperature: Annotated[
        float | None, typer.Option(help="Of the rollouts.", min=0.0, max=2.0, show_default="the recipe's")
    ] = None,
    answers: Annotated[
        str | None,
        typer.Option(metavar="FIELD", help="Ask nobody: label by the recorded answers of this field (a list)."),
    ] = None,
    outage_minutes: Annotated[float, typer.Option(help="Wait this long for a service that is away.", min=0.0)] = 10.0,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", help="Whose prompt, limits and corpus to use.", show_default="the deployed recipe's"),
    ] = None,
    state_dir: Annotated[Path | None, typer.Option(help="The deployment's folder.", show_default=".searcher")] = None,
) -> None:
    """Label questions by how many rollouts they take (easy, medium, difficult), mix them, write a training set.

    A kill or Ctrl-C loses nothing: the same command goes on, and no finished question is asked again.
    """
    from searcher.cli import select as selecting

    selecting.select(
        candidates,
        out,
        selecting.SelectOptions(
            rollouts=rollouts,
            mix=mix,
            size=size,
            seed=seed,
            against=tuple(against or ()),
            allow_overlap=allow_overlap,
            drop_overlap=drop_overlap,
            corpus=corpus,
            rules=rules,
            correct=selecting.correct_named(correct),
            at_least=at_least,
            temperature=temperature,
            answers_field=answers,
            outage_minutes=outage_minutes,
            recipe=recipe,
            state_dir=state_dir,
        ),
    )
