"""Candidate questions -> a training set by difficulty: overlap refused, rollouts asked, labels mixed and written."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from searcher.cli.ask import rollout_client
from searcher.cli.console import console, duration
from searcher.cli.lifecycle import last_deployment, recipe_path
from searcher.contracts.errors import InvalidInput, Unavailable
from searcher.contracts.question import Question, RolloutPlan
from searcher.contracts.recipe import Recipe
from searcher.files import file_sha256
from searcher.overlap import describe, overlap
from searcher.questions import load_questions
from searcher.recipes import load_recipe
from searcher.selection.asking import Tally, ask_all, held_weights, is_finished, labelled
from searcher.selection.difficulty import EASY_BELOW, MEDIUM_UP_TO, Difficulty, Labelled, Ratio, mix, parse_ratio
from searcher.selection.journal import Asking, Correct, Journal
from searcher.selection.output import write_selection
from searcher.selection.recorded import label_recorded

ROLLOUT_SECONDS = 1_800.0
"""One request's answer: its slowest trajectory, and an outage that the rollout service waits out by itself."""


@dataclass(frozen=True)
class SelectOptions:
    """What the command line says; None: what the recipe says."""

    rollouts: int = 20
    mix: str | None = None
    size: int | None = None
    seed: int = 0
    against: tuple[Path, ...] = ()
    allow_overlap: bool = False
    drop_overlap: bool = False
    corpus: str | None = None
    rules: str = "searcher"
    correct: Correct = Correct.COVER_EM
    at_least: float = 1.0
    temperature: float | None = None
    answers_field: str | None = None
    outage_minutes: float = 10.0
    recipe: str | None = None
    state_dir: Path | None = None


def select(candidates: Path, out: Path, options: SelectOptions) -> None:
    if out.resolve() == candidates.resolve():
        raise InvalidInput(f"--out: {out} is the candidates' file; choose another")
    if options.size is not None and options.size < 1:
        raise InvalidInput(f"--size: {options.size} selects nothing; give 1 or more")
    ratio = parse_ratio(options.mix) if options.mix else None
    recipe = _recipe(options)
    corpus = options.corpus or (recipe.stages[0].corpus if recipe else "default")
    questions = load_questions(candidates, corpus=corpus)
    questions = _without_overlap(questions, candidates, _against(options, recipe), options)
    asking = _asking(candidates, corpus, recipe, options)
    if options.answers_field is not None:
        found = _from_file(candidates, questions, asking, options.answers_field)
    else:
        asking, found = _from_rollouts(questions, asking, out, options)
    chosen = mix(found, ratio, size=options.size, seed=options.seed)
    write_selection(out, chosen, asking)
    console.print(_summary(found, chosen, ratio))
    _warn_of_unsure(found)
    console.print(str(out), soft_wrap=True)


def correct_named(name: str) -> Correct:
    try:
        return Correct(name)
    except ValueError:
        raise InvalidInput(f"--correct: {name!r} is not one of {', '.join(Correct)}") from None


def _without_overlap(
    questions: list[Question], candidates: Path, against: Sequence[Path], options: SelectOptions
) -> list[Question]:
    """Raises InvalidInput if evaluation questions are among them, unless that is allowed or they are dropped."""
    if not against:
        console.print("overlap with evaluation questions not checked: name their files with --against", style="yellow")
    dropped: set[str] = set()
    for path in against:
        shared = overlap(questions, load_questions(path))
        if not shared:
            continue
        problem = describe(shared, what=str(candidates), against=str(path))
        if not (options.allow_overlap or options.drop_overlap):
            raise InvalidInput(f"{problem}. Leave them out with --drop-overlap, or go on with --allow-overlap")
        console.print(f"{'left out' if options.drop_overlap else 'allowed'}: {problem}", style="yellow", markup=False)
        if options.drop_overlap:
            dropped.update(each.first.id for each in shared)
    kept = [question for question in questions if question.id not in dropped]
    if not kept:
        raise InvalidInput(f"{candidates}: all questions are evaluation questions; nothing is left to select")
    return kept


def _summary(found: Sequence[Labelled], chosen: Sequence[Labelled], ratio: Ratio | None) -> Table:
    table = Table(box=None, pad_edge=False)
    columns = ("", "first right at", "questions", "rollouts", "selected", *(("ratio",) if ratio else ()))
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < 2 else "right")
    borders = (f"below {EASY_BELOW}", f"{EASY_BELOW} to {MEDIUM_UP_TO}", f"above {MEDIUM_UP_TO}, or never")
    for label, border in zip(Difficulty, borders, strict=True):
        of_label = [each for each in found if each.difficulty is label]
        selected = sum(each.difficulty is label for each in chosen)
        share = (f"{ratio[label]:.0%}",) if ratio else ()
        rollouts = sum(each.num_asked for each in of_label)
        table.add_row(label.value, border, f"{len(of_label):,}", f"{rollouts:,}", f"{selected:,}", *share)
    all_rollouts = sum(each.num_asked for each in found)
    table.add_row("all", "", f"{len(found):,}", f"{all_rollouts:,}", f"{len(chosen):,}")
    return table


def _warn_of_unsure(found: Sequence[Labelled]) -> None:
    unsure = [each.num_asked for each in found if each.first_correct is None and each.num_asked < MEDIUM_UP_TO]
    if unsure:
        console.print(
            f"{len(unsure):,} of the difficult ones were asked at most {max(unsure)} times: asked more often, some "
            "might be medium",
            style="yellow",
        )


@contextmanager
def _live() -> Iterator[Callable[[Tally], None]]:
    """What is looked at while rollouts are asked. Yields what `ask_all` reports to."""
    with Live(console=console, refresh_per_second=4) as live:
        yield lambda tally: live.update(_tally_view(tally))


def _tally_view(tally: Tally) -> Group:
    row = Table.grid(padding=(0, 2))
    left = tally.seconds_left()
    row.add_row(
        "select",
        ProgressBar(total=tally.num_questions, completed=tally.num_finished, width=30),
        f"{tally.num_finished}/{tally.num_questions}",
        ", ".join(f"{label} {tally.labels[label]}" for label in Difficulty),
        f"{tally.num_asked:,} rollouts",
        f"about {duration(left)} left" if left is not None and tally.num_finished < tally.num_questions else "",
    )
    waiting = Text(f"waiting: {tally.outage}", style="yellow") if tally.outage else Text("")
    return Group(row, waiting)


# --- what is asked, and where -----------------------------------------------------------------------------------------


def _recipe(options: SelectOptions) -> Recipe | None:
    """By name, else the deployed one."""
    if options.recipe is not None:
        return load_recipe(recipe_path(options.recipe))
    last = last_deployment(options.state_dir)
    return last.recipe if last else None


def _against(options: SelectOptions, recipe: Recipe | None) -> list[Path]:
    """The named files, and the recipe's own evaluation where its file is there."""
    own = [Path(recipe.evaluation.questions)] if recipe and recipe.evaluation else []
    return [*options.against, *(path for path in own if path.exists())]


def _asking(candidates: Path, corpus: str, recipe: Recipe | None, options: SelectOptions) -> Asking:
    plan = recipe.rollout if recipe else RolloutPlan()
    if options.temperature is not None:
        plan = plan.model_copy(update={"temperature": options.temperature})
    if plan.temperature == 0.0 and options.answers_field is None and options.rollouts > 1:
        raise InvalidInput("--temperature: at 0 all rollouts of a question are the same; give more, e.g. 1.0")
    return Asking(
        candidates=candidates.name,
        candidates_sha256=file_sha256(candidates),
        corpus=corpus,
        rollouts=options.rollouts,
        correct=options.correct,
        at_least=options.at_least,
        rules=options.rules,
        seed=options.seed,
        plan=plan.model_copy(update={"seed": None}),
        weights="",
        recorded_in=options.answers_field,
    )


def _from_file(candidates: Path, questions: Sequence[Question], asking: Asking, field: str) -> list[Labelled]:
    kept = {question.id for question in questions}
    found = label_recorded(
        candidates,
        field,
        correct=asking.correct,
        at_least=asking.at_least,
        rollouts=asking.rollouts,
        corpus=asking.corpus,
    )
    return [each for each in found if each.question.id in kept]


def _from_rollouts(
    questions: Sequence[Question], asking: Asking, out: Path, options: SelectOptions
) -> tuple[Asking, list[Labelled]]:
    """What the journal holds, completed. A journal that is complete needs no service."""
    with Journal(out.with_name(f"{out.name}.journal.jsonl")) as journal:
        try:
            asked = asyncio.run(_ask(questions, journal, asking, options))
        except (KeyboardInterrupt, Unavailable):
            if journal.attempts:
                finished = len(labelled(questions, journal))
                console.print(f"{finished} of {len(questions)} questions are finished; the same command goes on")
            raise
        return asked, labelled(questions, journal)


async def _ask(questions: Sequence[Question], journal: Journal, asking: Asking, options: SelectOptions) -> Asking:
    """What was asked, with the weights that answered."""
    started = journal.asking
    unfinished = [q for q in questions if not is_finished(journal.attempts.get(q.id, []), asking.rollouts)]
    if started is not None and not unfinished:
        asking = asking.model_copy(update={"weights": started.weights})
        journal.start(asking)
        return asking
    outage_seconds = options.outage_minutes * 60
    async with rollout_client(options.state_dir, timeout_seconds=ROLLOUT_SECONDS) as client:
        weights = await held_weights(client, outage_seconds=outage_seconds)
        asking = asking.model_copy(update={"weights": weights})
        journal.start(asking)
        with _live() as show:
            await ask_all(client, questions, journal, outage_seconds=outage_seconds, on_progress=show)
    return asking
