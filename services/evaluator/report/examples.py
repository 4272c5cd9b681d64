"""A report's trajectories -> a few of each outcome, to read."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from searcher.contracts.question import SearchMode
from searcher.contracts.report import EvaluatedQuestion, Report, SystemReport
from searcher.qa.markup import Kind, pieces
from services.evaluator.evidence import stands_in

EXAMPLES_PER_KIND = 3
MISSED = "Retrieved, but missed"


@dataclass(frozen=True)
class Examples:
    """Questions of one outcome, and a few of them to read."""

    title: str
    meaning: str
    count: int
    rows: tuple[EvaluatedQuestion, ...]


def shown_system(report: Report) -> SystemReport:
    """Whose trajectories are worth reading: the first that may search as it wants, else the first."""
    free = (one for one in report.systems if one.system.search is SearchMode.MULTI_TURN)
    return next(free, report.systems[0])


def examples(rows: Iterable[EvaluatedQuestion]) -> list[Examples]:
    """Instructive outcomes, each question under the first that fits; within one, the most searches come first."""
    left = sorted(rows, key=lambda row: -row.num_searches)
    kinds = []
    for title, meaning, fits in _KINDS:
        fitting = tuple(row for row in left if fits(row))
        left = [row for row in left if not fits(row)]
        if fitting:
            kinds.append(Examples(title, meaning, len(fitting), fitting[:EXAMPLES_PER_KIND]))
    return kinds


def _is_right(row: EvaluatedQuestion) -> bool:
    return row.cover_em == 1.0 or row.judge is True


def _searched_and_right(row: EvaluatedQuestion) -> bool:
    return row.num_searches > 0 and _is_right(row) and row.supported is not False


def _right_without_support(row: EvaluatedQuestion) -> bool:
    return row.num_searches > 0 and _is_right(row)


def _no_answer(row: EvaluatedQuestion) -> bool:
    return row.num_searches > 0 and row.answer is None


def _retrieved_but_missed(row: EvaluatedQuestion) -> bool:
    """By the gold passages; where the data names none, by an accepted answer that stands in the documents."""
    if row.num_searches == 0 or _is_right(row):
        return False
    return row.evidence if row.evidence is not None else _read_the_answer(row)


def _read_the_answer(row: EvaluatedQuestion) -> bool:
    read = [piece.text for piece in pieces(row.response) if piece.kind is Kind.DOCUMENTS]
    return any(stands_in(answer, read) for answer in row.answers)


def _searched_and_wrong(row: EvaluatedQuestion) -> bool:
    return row.num_searches > 0


_KINDS: tuple[tuple[str, str, Callable[[EvaluatedQuestion], bool]], ...] = (
    ("Searched and right", "asked, read, and gave the right answer", _searched_and_right),
    (
        "Right, but not from what was read",
        "the right answer stands in no passage: remembered, concluded, or guessed",
        _right_without_support,
    ),
    ("No answer", "searched, and ended without an answer", _no_answer),
    (
        MISSED,
        "what was needed was retrieved (all gold passages, or the accepted answer where none are named), and the "
        "answer is wrong",
        _retrieved_but_missed,
    ),
    ("Searched and wrong", "the evidence was not retrieved, and the answer is wrong", _searched_and_wrong),
    ("Did not search", "answered from memory, or not at all", lambda row: True),
)
