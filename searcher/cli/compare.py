"""Two reports -> a paired test on the questions that they share, and what else differs between them. Offline."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from pydantic import ValidationError
from rich.table import Table

from searcher.cli.console import console
from searcher.contracts.errors import InvalidInput
from searcher.contracts.report import Comparison, EvaluatedQuestion, Report
from searcher.pages import p_value

NAMES = {"em": "EM", "cover_em": "cover-EM", "f1": "F1", "judge": "judge"}


def compare_files(a: Path, b: Path, *, system: str | None, as_json: bool) -> None:
    before, after = read_report(a), read_report(b)
    found = compare_reports(before, after, system=system, names=(str(a), str(b)))
    notes = list(differences(before, after))
    if as_json:
        print(json.dumps({"comparisons": [one.model_dump() for one in found], "differs": notes}))
        return
    console.print(f"{b}\nagainst {a}, on the questions that both asked", markup=False, soft_wrap=True)
    console.print(comparison_table(found))
    for note in notes or ["Nothing else differs: weights, corpus, k, plan and rules are the same."]:
        console.print(note, markup=False, soft_wrap=True)


def read_report(path: Path) -> Report:
    """Raises InvalidInput that names the file and the first wrong field."""
    try:
        return Report.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InvalidInput(f"{path}: cannot be read: {error.strerror}") from None
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(map(str, problem["loc"])) or "the file"
        raise InvalidInput(f"{path}: is not a report.json: {field}: {problem['msg']}") from None


def compare_reports(
    before: Report, after: Report, *, system: str | None = None, names: tuple[str, str] = ("a", "b")
) -> list[Comparison]:
    """`after - before`, for every system that both have; where they share none, for the first of each.

    Raises InvalidInput if they share no questions: means of other questions say nothing about the systems.
    """
    from services.evaluator.statistics import compare

    found: list[Comparison] = []
    for first, second in _systems(before, after, system, names):
        old = _answers(before, first)
        new = [row for row in _answers(after, second).values() if _key(row) in old]
        found += compare(first, old.values(), second, new)
    if not found:
        raise InvalidInput(
            f"{names[0]} and {names[1]} share no questions (the same benchmark, id and text): nothing can be compared"
        )
    return found


def _systems(before: Report, after: Report, system: str | None, names: tuple[str, str]) -> list[tuple[str, str]]:
    old, new = ([one.system.name for one in report.systems] for report in (before, after))
    if system is not None:
        for name, known in zip(names, (old, new), strict=True):
            if system not in known:
                raise InvalidInput(f"--system: {system!r} is not in {name}, which has {', '.join(known)}")
        return [(system, system)]
    return [(name, name) for name in old if name in new] or [(old[0], new[0])]


def _key(row: EvaluatedQuestion) -> tuple[str, str, str]:
    """The text too: ids such as line numbers occur in every file."""
    return row.benchmark, row.id, row.question


def _answers(report: Report, system: str) -> dict[tuple[str, str, str], EvaluatedQuestion]:
    return {_key(row): row for row in report.questions if row.system == system}


def differences(before: Report, after: Report) -> Iterator[str]:
    """What else could explain a difference, one sentence each."""
    if before.weights != after.weights:
        yield f"Weights differ: {before.weights or 'none'} and {after.weights or 'none'}."
    if before.corpora != after.corpora:
        yield f"Corpora (indexes) differ: {_corpora(before)} and {_corpora(after)}."
    old, new = before.plan.model_dump(mode="json"), after.plan.model_dump(mode="json")
    for name in old:
        if old[name] != new[name]:
            yield f"plan.{name} differs: {old[name]} and {new[name]}."
    if before.rules != after.rules:
        yield f"Rules differ: {before.rules} and {after.rules}; rewards and format rates are two measures then."
    num_old, num_new = (len({_key(row) for row in report.questions}) for report in (before, after))
    num_shared = len({_key(row) for row in before.questions} & {_key(row) for row in after.questions})
    if not num_old == num_new == num_shared:
        yield f"Questions differ: {num_old:,} and {num_new:,}; only the {num_shared:,} that they share count here."


def _corpora(report: Report) -> str:
    return ", ".join(f"{name} ({index[:12] or 'unknown'})" for name, index in report.corpora.items()) or "not told"


def comparison_table(found: Sequence[Comparison]) -> Table:
    table = Table()
    for column in ("", "figure", "questions", "difference", "95 % interval", "p"):
        table.add_column(column, justify="left" if column in ("", "figure") else "right")
    for one in found:
        name = one.a if one.a == one.b else f"{one.b} − {one.a}"
        interval = f"{one.interval.low:+.3f} to {one.interval.high:+.3f}"
        table.add_row(
            name, NAMES[one.metric], f"{one.num_questions:,}", f"{one.difference:+.3f}", interval, p_value(one.p_value)
        )
    return table
