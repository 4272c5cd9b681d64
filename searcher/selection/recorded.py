"""Answers that stand in a file already -> labels by the same rule. Asks nobody."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from searcher.contracts.errors import InvalidInput
from searcher.qa.answer import cover_exact_match, exact_match, f1
from searcher.questions import Row, question_of, rows
from searcher.selection.difficulty import Labelled
from searcher.selection.journal import Correct

FIGURES = {Correct.COVER_EM: cover_exact_match, Correct.EM: exact_match, Correct.F1: f1}


def label_recorded(
    path: Path, field: str, *, correct: Correct, at_least: float, rollouts: int, corpus: str
) -> list[Labelled]:
    """The answers of `field`, in their order, stand for rollouts. Raises InvalidInput for a row that has none."""
    labelled = []
    for row in rows(path):
        question, answers = question_of(row, corpus=corpus), _recorded(row, field)[:rollouts]
        figures = (FIGURES[correct](answer, question.answers) for answer in answers)
        first = next((number for number, figure in enumerate(figures, start=1) if figure >= at_least), None)
        labelled.append(Labelled(question, num_asked=first or len(answers), first_correct=first))
    return labelled


def _recorded(row: Row, field: str) -> Sequence[str]:
    value: Any = row.fields.get(field)
    if not isinstance(value, list) or not value or not all(isinstance(answer, str) for answer in value):
        raise InvalidInput(f"{row.where}: {field}: expected a list of answers (texts), at least one")
    return value
