"""Labels by the paper's borders, and mixtures by ratio."""

from collections import Counter

import pytest

from searcher.contracts.errors import InvalidInput
from searcher.contracts.question import Question
from searcher.selection.difficulty import Difficulty, Labelled, difficulty_of, mix, parse_ratio, shares

EASY, MEDIUM, DIFFICULT = Difficulty


def labelled(easy: int, medium: int, difficult: int) -> list[Labelled]:
    firsts = [1] * easy + [10] * medium + [None] * difficult
    return [
        Labelled(Question(id=str(number), question="?", answers=("a",)), num_asked=first or 20, first_correct=first)
        for number, first in enumerate(firsts)
    ]


def counts(chosen: list[Labelled]) -> tuple[int, ...]:
    of_label = Counter(each.difficulty for each in chosen)
    return tuple(of_label[label] for label in Difficulty)


@pytest.mark.parametrize(
    ("first_correct", "label"),
    [(1, EASY), (9, EASY), (10, MEDIUM), (20, MEDIUM), (21, DIFFICULT), (None, DIFFICULT)],
)
def test_the_borders_are_the_papers(first_correct: int | None, label: Difficulty) -> None:
    assert difficulty_of(first_correct) is label


def test_without_a_ratio_all_are_selected_or_as_many_as_asked_for() -> None:
    questions = labelled(3, 4, 5)

    assert mix(questions, None, size=None, seed=0) == questions
    assert len(mix(questions, None, size=7, seed=0)) == 7


def test_a_mixture_is_as_large_as_its_ratio_allows() -> None:
    # medium : difficult = 1 : 2; ten difficult ones allow five medium ones
    assert counts(mix(labelled(9, 8, 10), parse_ratio("medium=1,difficult=2"), size=None, seed=0)) == (0, 5, 10)
    # thirds of 3 x 5
    assert counts(mix(labelled(9, 8, 5), parse_ratio("easy=1,medium=1,difficult=1"), size=None, seed=0)) == (5, 5, 5)


def test_a_size_is_met_exactly_and_rounding_goes_to_the_largest_remainder() -> None:
    ratio = parse_ratio("easy=1,medium=2,difficult=4")

    # of 10: 1.43, 2.86, 5.71 -> 1, 3, 6
    assert shares(ratio, 10) == {EASY: 1, MEDIUM: 3, DIFFICULT: 6}
    assert counts(mix(labelled(9, 9, 9), ratio, size=10, seed=0)) == (1, 3, 6)


def test_the_same_seed_draws_the_same_questions_in_their_own_order() -> None:
    questions, ratio = labelled(0, 50, 50), parse_ratio("medium=1,difficult=1")

    chosen = mix(questions, ratio, size=20, seed=1)

    assert chosen == mix(list(reversed(questions)), ratio, size=20, seed=1)[::-1]
    assert chosen == sorted(chosen, key=lambda each: int(each.question.id))
    assert chosen != mix(questions, ratio, size=20, seed=2)


def test_too_few_of_a_label_are_refused_with_what_there_is() -> None:
    with pytest.raises(
        InvalidInput, match=r"12 in this ratio are 0 easy, 6 medium, 6 difficult; there are 1 easy, 5 medium"
    ):
        mix(labelled(1, 5, 9), parse_ratio("medium=1,difficult=1"), size=12, seed=0)
    with pytest.raises(InvalidInput, match=r"there are 3 easy, 0 medium"):
        mix(labelled(3, 0, 9), parse_ratio("medium=1,difficult=1"), size=None, seed=0)
    with pytest.raises(InvalidInput, match=r"12 questions are wanted, there are 3"):
        mix(labelled(3, 0, 0), None, size=12, seed=0)


@pytest.mark.parametrize(
    "text", ["hard=1", "easy", "easy=x", "easy=-1", "easy=0", "easy=1,easy=2", "easy=nan", "easy=inf", ""]
)
def test_a_wrong_ratio_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="--mix"):
        parse_ratio(text)
