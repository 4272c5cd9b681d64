"""What an answer rests on, by hand."""

import pytest

from searcher.contracts.search import Passage
from searcher.contracts.trajectory import Search
from services.evaluator.evidence import UNKNOWN, Evidence, evidence, stands_in, supported


def search(*passages: tuple[str, str]) -> Search:
    found = tuple(Passage(id=name, title=name.upper(), text=text, score=1.0) for name, text in passages)
    return Search(query="?", passages=found)


CROWN = ("a", "Iron Crown was directed by Halin Belard.")
BELARD = ("b", "Halin Belard was born in New York.")
OTHER = ("c", "Nothing of interest.")


def test_the_last_gold_passage_tells_at_which_search_the_evidence_was_complete() -> None:
    searches = [search(CROWN, OTHER), search(OTHER), search(OTHER, BELARD), search(CROWN)]

    assert evidence(("a", "b"), searches) == Evidence(all_found=True, recall=1.0, search=3)
    assert evidence(("a",), searches) == Evidence(all_found=True, recall=1.0, search=1)


def test_a_part_of_the_evidence_is_counted_as_a_share() -> None:
    assert evidence(("a", "b", "x", "y"), [search(CROWN), search(CROWN, BELARD)]) == Evidence(False, 0.5, None)
    assert evidence(("a", "b"), []) == Evidence(False, 0.0, None)


def test_a_gold_passage_that_is_named_twice_counts_once() -> None:
    assert evidence(("a", "a", "x"), [search(CROWN)]).recall == 0.5


def test_without_gold_passages_nothing_is_known() -> None:
    assert evidence((), [search(CROWN)]) == UNKNOWN


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Halin Belard", True),
        ("halin belard!", True),
        ("the Iron Crown", True),
        ("New York", True),
        ("York New", False),  # in order
        ("Halin was", False),  # side by side
        ("Belar", False),  # whole words
        ("interest Title", False),  # one passage does not go on in the next
        ("Paris", False),
        ("yes", None),
        ("No.", None),
        ("the", None),  # normalises to nothing
        ("", None),
        (None, None),
    ],
)
def test_an_answer_is_supported_if_its_words_stand_in_a_passage(answer: str | None, expected: bool | None) -> None:
    assert supported(answer, [search(OTHER, CROWN), search(BELARD)]) is expected


def test_a_title_was_read_too() -> None:
    assert stands_in("Halin Belard", ["Title: Halin Belard. A director."]) is True


def test_where_nothing_was_found_nothing_can_support() -> None:
    assert supported("Halin Belard", []) is None
    assert supported("Halin Belard", [search()]) is None


def test_a_megabyte_is_looked_up_like_anything_else() -> None:
    passage = "ab " * 300_000

    assert stands_in("ab " * 100_000, [passage, passage]) is True
    assert stands_in("ab " * 100_000 + "c", [passage, passage]) is False
