"""What was retrieved, and the answer -> what the answer rests on: which gold passages came, when, and what was read."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from searcher.contracts.trajectory import Search
from searcher.qa.answer import normalize_answer

_SAY_NOTHING = frozenset({"yes", "no", "noanswer"})
"""Answers that are judgements: that such a word stands in a passage proves nothing."""


@dataclass(frozen=True)
class Evidence:
    """The gold passages among those retrieved; each field is None where the data names no gold passages."""

    all_found: bool | None
    recall: float | None
    """Share of the gold passages that were retrieved by any search."""
    search: int | None
    """At which search (1 is the first) the last of them came; None unless all did."""


UNKNOWN = Evidence(None, None, None)


def evidence(gold_ids: Collection[str], searches: Sequence[Search]) -> Evidence:
    missing, gold = set(gold_ids), set(gold_ids)
    if not gold:
        return UNKNOWN
    for number, search in enumerate(searches, start=1):
        missing.difference_update(passage.id for passage in search.passages)
        if not missing:
            return Evidence(all_found=True, recall=1.0, search=number)
    return Evidence(all_found=False, recall=1 - len(missing) / len(gold), search=None)


def supported(answer: str | None, searches: Sequence[Search]) -> bool | None:
    """Whether the answer's words stand side by side in a passage that was retrieved, its title included.

    None where that says nothing: no answer, no passage, and answers of yes and no.
    """
    return stands_in(answer, [passage.line for search in searches for passage in search.passages])


def stands_in(answer: str | None, passages: Sequence[str]) -> bool | None:
    """The same for passages as plain text."""
    words = normalize_answer(answer or "")
    if not words or words in _SAY_NOTHING or not passages:
        return None
    return any(f" {words} " in f" {normalize_answer(passage)} " for passage in passages)
