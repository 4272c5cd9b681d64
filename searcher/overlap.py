"""Two lists of questions -> those that are in both. A model is never evaluated on what it was trained on."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from searcher.contracts.errors import InvalidInput
from searcher.contracts.question import Question

NUM_SHOWN = 5
"""Questions that an error names; the command lists all."""

_ROW_NUMBER = re.compile(r"[A-Za-z._-]*\d{1,9}")
_WORDLESS = frozenset("PSZC")


@dataclass(frozen=True)
class Shared:
    """One question of the first list and the one of the second that it is."""

    first: Question
    second: Question
    same: Literal["text", "id"]
    """`id`: the data set's name for the question is the same, its text is not."""


def overlap(first: Sequence[Question], second: Sequence[Question]) -> list[Shared]:
    """In the first list's order, each of its questions at most once."""
    by_text = {text_key(question.question): question for question in reversed(second)}
    by_id = {question.id: question for question in reversed(second) if names_a_question(question.id)}
    shared: list[Shared] = []
    for question in first:
        if twin := by_text.get(text_key(question.question)):
            shared.append(Shared(question, twin, "text"))
        elif twin := by_id.get(question.id):
            shared.append(Shared(question, twin, "id"))
    return shared


def refuse_overlap(first: Sequence[Question], second: Sequence[Question], *, what: str, against: str, fix: str) -> None:
    """Raises InvalidInput that says how many questions of `what` are in `against`, and which; `fix` ends it."""
    shared = overlap(first, second)
    if shared:
        raise InvalidInput(f"{describe(shared, what=what, against=against)}; {fix}")


def describe(shared: Sequence[Shared], *, what: str, against: str) -> str:
    examples = "; ".join(f"{each.first.id} = {each.second.id} {each.first.question!r}" for each in shared[:NUM_SHOWN])
    more = f"; and {len(shared) - NUM_SHOWN} more" if len(shared) > NUM_SHOWN else ""
    return f"{what} shares {len(shared)} of its questions with {against}: {examples}{more}"


def text_key(text: str) -> str:
    """What is left of a question when case, punctuation, spacing and Unicode variants do not count."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    words = "".join(" " if unicodedata.category(character)[0] in _WORDLESS else character for character in folded)
    return " ".join(words.split()) or text


def names_a_question(question_id: str) -> bool:
    """Whether an id means the same question in every file. `17`, `dev_17` and `nq-open-0017` are positions in one."""
    return _ROW_NUMBER.fullmatch(question_id) is None
