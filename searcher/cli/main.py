"""The `searcher` command. Every command imports what it needs by itself, so that `searcher --help` answers at once."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from searcher.cli.data_commands import data_app
from searcher.cli.eval_commands import eval_app
from searcher.cli.index_commands import index_app

app = typer.Typer(
    name="searcher",
    help="Teach a language model to search, and watch it learn.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(eval_app, name="eval")
app.add_typer(index_app, name="index")
app.add_typer(data_app, name="data")

Recipe = Annotated[str, typer.Argument(help="A recipe file, or the name of one in recipes/.", show_default=False)]
OptionalRecipe = Annotated[
    str | None,
    typer.Argument(help="A recipe file, or the name of one in recipes/. Without it: the last one used, else tiny."),
]
StateDir = Annotated[Path | None, typer.Option(help="Where logs, indexes and weights live.", show_default=".searcher")]
PortOffset = Annotated[
    int | None, typer.Option(help="Added to every port, to run beside another deployment.", min=0, max=50_000)
]
Corpus = Annotated[str, typer.Option(help="Which of the retriever's corpora to search.")]
PlanOf = Annotated[
    str | None,
    typer.Option("--recipe", help="Whose prompt and limits to use.", show_default="the deployed recipe's"),
]


def main() -> None:
    """Errors of our own tree, and files that cannot be read or written, are one line and exit code 1; everything else
    is a bug and shows its traceback."""
    try:
        app()
    except Exception as error:
        from searcher.contracts.errors import SearcherError

        if not isinstance(error, SearcherError | OSError):
            raise
        from searcher.cli.console import print_error

        print_error(error)
        sys.exit(1)


@app.command()
def up(recipe: OptionalRecipe = None, state_dir: StateDir = None, port_offset: PortOffset = None) -> None:
    """Start all services on this machine; return when they can serve."""
    from searcher.cli import lifecycle

    lifecycle.up(recipe, state_dir, port_offset)


@app.command()
def down(state_dir: StateDir = None) -> None:
    """Stop everything that `up` started."""
    from searcher.cli import lifecycle

    lifecycle.down(state_dir)


@app.command()
def status(state_dir: StateDir = None) -> None:
    """Programs, their readiness, the engines' weights and the training that runs."""
    from searcher.cli import lifecycle

    lifecycle.show_status(state_dir)


@app.command()
def logs(
    program: Annotated[str | None, typer.Argument(help="One program; without it, all.", show_default=False)] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new lines until Ctrl-C.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", help="How many of the last lines.", min=1)] = 40,
    state_dir: StateDir = None,
) -> None:
    """The end of the programs' logs."""
    from searcher.cli import lifecycle

    lifecycle.show_logs(program, state_dir, follow=follow, num_lines=lines)


@app.command()
def train(
    recipe: Recipe,
    run_id: Annotated[str | None, typer.Option(help="Name of the run.", show_default="the recipe's name")] = None,
    dry_run: Annotated[bool, typer.Option(help="Print the resolved plan and start nothing.")] = False,
    resume: Annotated[bool, typer.Option(help="Go on from the newest checkpoint of this run.")] = False,
    fresh: Annotated[bool, typer.Option(help="If the run exists, start another beside it: NAME-2, NAME-3, …")] = False,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one number of the recipe.")
    ] = None,
    state_dir: StateDir = None,
    port_offset: PortOffset = None,
) -> None:
    """Train a recipe and watch it: bring the services up, submit the run, draw its curves.

    Ctrl-C stops the run after its current step; a second one leaves it running.
    """
    from searcher.cli import train as training

    training.train(
        recipe,
        overrides=tuple(set_ or ()),
        run_id=run_id,
        dry_run=dry_run,
        resume=resume,
        fresh=fresh,
        state_dir=state_dir,
        port_offset=port_offset,
    )


@app.command()
def ask(
    question: Annotated[str, typer.Argument(show_default=False)],
    corpus: Corpus = "default",
    recipe: PlanOf = None,
    state_dir: StateDir = None,
) -> None:
    """Ask one question and watch the model think, search, read and answer."""
    from searcher.cli import ask as asking

    asking.ask(question, corpus=corpus, recipe_name=recipe, state_dir=state_dir)


@app.command()
def doctor(state_dir: StateDir = None, port_offset: PortOffset = None) -> None:
    """Check this machine: what is there, what is missing, and how to fix it."""
    from searcher.cli import doctor as checks

    checks.doctor(state_dir, port_offset or 0)


if __name__ == "__main__":
    main()
