"""Parts that see the whole group: a budget of searches, a price, and what happens to unjudged answers."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from searcher.contracts.errors import InvalidInput, SearcherError
from searcher.contracts.score import Score, ScoreItem, TextSegment, Verdict
from services.reward.engine import group_of, score, score_group
from services.reward.response import Group
from services.reward.rules import JUDGED, RULES

BUDGET, PRICE = RULES["searcher-budget"], RULES["searcher-price"]


def item(answer: str, *, searches: int = 0, question: str = "?") -> ScoreItem:
    asking = [
        TextSegment(source="policy", text="<|begin_of_query|> x <|end_of_query|>"),
        TextSegment(source="documents", text="\n\n<|begin_of_documents|>\nNone<|end_of_documents|>\n\n"),
    ]
    concluding = TextSegment(source="policy", text=f"</think><answer>{answer}</answer>")
    return ScoreItem(
        id=f"{answer}-{searches}",
        question=question,
        answers=("Paris",),
        segments=(*(asking * searches), concluding),
        num_searches=searches,
    )


def totals(scores: tuple[Score, ...]) -> list[float]:
    return [scored.total for scored in scores]


# ---------------------------------------------------------------------------------------------------------------------
# Budget


def test_of_the_right_answers_the_one_with_the_fewest_searches_earns_more() -> None:
    # right answers searched 1, 3 and 3 times: mean 7/3, variance (16 + 4 + 4) / 27 = 8/9
    group = [item("Paris", searches=1), item("Paris", searches=3), item("Paris", searches=3), item("Rome")]

    scores = score_group(group, BUDGET)

    bonus = 0.25 * math.sqrt(8 / 9)
    assert totals(scores) == pytest.approx([1 + bonus, 1, 1, 0])
    assert [scored.parts["fewest_searches"] for scored in scores] == pytest.approx([bonus, 0, 0, 0])


def test_a_wrong_answer_without_a_search_sets_no_budget() -> None:
    scores = score_group([item("Rome", searches=0), item("Paris", searches=2), item("Paris", searches=4)], BUDGET)

    assert totals(scores) == [0, 1.25, 1]  # standard deviation of 2 and 4: 1


def test_equally_many_searches_earn_nobody_anything() -> None:
    scores = score_group([item("Paris", searches=2), item("Paris", searches=2), item("Rome", searches=1)], BUDGET)

    assert totals(scores) == [1, 1, 0]


def test_the_budget_pays_half_a_point_at_most() -> None:
    scores = score_group([item("Paris", searches=0), item("Paris", searches=40)], BUDGET)

    assert totals(scores) == [1.5, 1]


def test_a_group_without_a_right_answer_has_no_budget() -> None:
    assert totals(score_group([item("Rome"), item("Oslo", searches=3)], BUDGET)) == [0, 0]


def test_rules_that_compare_want_one_question() -> None:
    with pytest.raises(InvalidInput, match=r"items\.1\.question: differs from items\.0\.question"):
        score_group([item("Paris"), item("Paris", question="Who?")], BUDGET)


groups = st.lists(
    st.tuples(st.sampled_from(["Paris", "Rome", "Paris, France", ""]), st.integers(0, 6)), min_size=1, max_size=8
).map(lambda pairs: [item(answer, searches=searches) for answer, searches in pairs])


@given(groups)
def test_searching_less_never_makes_up_for_a_wrong_answer(group: list[ScoreItem]) -> None:
    plain = totals(score_group(group, RULES["searcher"]))

    budget = totals(score_group(group, BUDGET))

    assert all(before <= after <= before + 0.5 for before, after in zip(plain, budget, strict=True))
    assert all(after == before for before, after in zip(plain, budget, strict=True) if before <= 0)


# ---------------------------------------------------------------------------------------------------------------------
# Price


def test_each_search_costs_a_right_answer_a_little() -> None:
    assert totals(score_group([item("Paris", searches=n) for n in range(3)], PRICE)) == pytest.approx([1, 0.95, 0.9])


def test_searches_cost_half_of_what_the_answer_earns_at_most_and_a_wrong_answer_nothing() -> None:
    scores = score_group(
        [item("Paris", searches=30), item("Paris, France", searches=30), item("Rome", searches=3)], PRICE
    )

    assert totals(scores) == pytest.approx([0.5, 1 / 3, 0])


# ---------------------------------------------------------------------------------------------------------------------
# Verdicts


def judged(*verdicts: Verdict) -> list[float]:
    answers = ["Paris", "Rome", "Paris, France", ""]
    group = group_of([item(answer) for answer in answers[: len(verdicts)]], JUDGED)
    return totals(score(replace(group, verdicts=verdicts), JUDGED))


def test_the_judge_is_believed_whatever_the_words_are() -> None:
    assert judged(Verdict.WRONG, Verdict.RIGHT, Verdict.RIGHT, Verdict.NOT_ASKED) == [0, 1, 1, -1]


def test_one_answer_without_a_verdict_puts_the_group_on_its_f1() -> None:
    mixed = judged(Verdict.WRONG, Verdict.RIGHT, Verdict.NOT_JUDGED, Verdict.NOT_ASKED)

    assert mixed == pytest.approx([1, 0, 2 / 3, -1])


# ---------------------------------------------------------------------------------------------------------------------
# Parts that fail


def broken(group: Group) -> list[float]:
    raise KeyError("nothing here")


@pytest.mark.parametrize(
    ("part", "complaint"),
    [
        (broken, r"rules 'searcher', part 'mine': KeyError: 'nothing here'"),
        (lambda group: [0.0], r"part 'mine': gave 1 numbers for 2 responses"),
        (lambda group: [0.0, float("nan")], r"part 'mine': gave nan for 'Rome-0'"),
        (lambda group: [0.0, "many"], r"part 'mine': ValueError"),
        (lambda group: None, r"part 'mine': TypeError"),
    ],
)
def test_a_part_that_fails_is_named(part: object, complaint: str) -> None:
    rules = replace(RULES["searcher"], parts={"mine": part})

    with pytest.raises(SearcherError, match=complaint):
        score_group([item("Paris"), item("Rome")], rules)
