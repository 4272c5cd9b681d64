import re
import string
from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from searcher.qa.answer import (
    cover_exact_match,
    cover_exact_match_strict,
    exact_match,
    extract_answer,
    f1,
    normalize_answer,
)

MEGABYTE = 1_000_000
words = st.lists(
    st.sampled_from(["paris", "rome", "The", "a", "York", "yes", "no", "U.S.", "3,000", "_", ""]), max_size=8
)
answers = words.map(" ".join) | st.text(max_size=30)


def normalised_step_by_step(text: str) -> str:
    """The five published steps, each written out."""
    text = text.replace("_", " ")
    text = text.lower()
    text = "".join(" " if letter in set(string.punctuation) | set("‘’´`") else letter for letter in text)
    text = re.sub(r"\b(a|an|the)\b", " ", text)
    return " ".join(text.split())


# ---------------------------------------------------------------------------------------------------------------------
# normalize_answer


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("The  Beatles", "beatles"),
        ("U.S.A.", "u s"),  # punctuation becomes a space first, and the lone "a" that is left is an article then
        ("U.S.", "u s"),
        ("rock'n'roll", "rock n roll"),
        ("3,000", "3 000"),
        ("snake_case", "snake case"),
        ("The_Beatles", "beatles"),  # an underscore is a space before articles are looked for
        ("O’Neill ‘x’ ´y` z", "o neill x y z"),
        ("Theatre of Anatolia", "theatre of anatolia"),
        ("An apple\ta\nday", "apple day"),
        ("¿Qué?", "¿qué"),  # only ASCII punctuation and four quotes are removed
        ("The A", ""),
        ("", ""),
    ],
)
def test_normalising_follows_the_published_steps(text: str, normalised: str) -> None:
    assert normalize_answer(text) == normalised


@given(st.text() | st.text(alphabet="ATheand _-.,'’` \n"))
def test_normalising_equals_the_published_steps_on_any_text(text: str) -> None:
    assert normalize_answer(text) == normalised_step_by_step(text)


# ---------------------------------------------------------------------------------------------------------------------
# exact_match, cover_exact_match, f1


def test_exact_match_ignores_case_articles_and_punctuation() -> None:
    assert exact_match("the Eiffel-Tower!", "Eiffel Tower") == 1.0
    assert exact_match("Tower Eiffel", "Eiffel Tower") == 0.0


def test_cover_exact_match_ignores_order_and_what_stands_between() -> None:
    assert cover_exact_match("York, which is New", "New York") == 1.0
    assert cover_exact_match("Newest York", "New York") == 0.0


def test_cover_exact_match_compares_whole_words() -> None:
    assert cover_exact_match("Parisian", "Paris") == 0.0


def test_a_gold_of_articles_only_is_covered_by_an_empty_prediction_only() -> None:
    assert cover_exact_match("the", "A") == 1.0
    assert cover_exact_match("paris", "A") == 0.0


@pytest.mark.parametrize(
    ("prediction", "gold", "covered"),
    [
        ("It is New York, I think", "New York", 1.0),
        ("New York", "New York", 1.0),
        ("York, which is New", "New York", 0.0),  # all words, in another order
        ("new and old York", "New York", 0.0),  # in order, but not side by side
        ("Newest York", "New York", 0.0),  # part of a word
        ("new the York", "New York", 1.0),  # articles are no words
        ("the", "A", 1.0),
        ("paris", "A", 0.0),
        ("it is true", True, 0.0),
        ("yes it is", True, 1.0),
    ],
)
def test_strict_cover_wants_the_words_side_by_side_and_in_order(
    prediction: str, gold: str | bool, covered: float
) -> None:
    assert cover_exact_match_strict(prediction, gold) == covered


@given(answers, answers)
def test_strict_cover_lies_between_exact_match_and_cover(prediction: str, gold: str) -> None:
    strict = cover_exact_match_strict(prediction, gold)

    assert exact_match(prediction, gold) <= strict <= cover_exact_match(prediction, gold)


def test_f1_counts_words_with_multiplicity() -> None:
    # prediction: new new york (3), gold: new york city (3), in common: new york (2); P = R = 2/3
    assert f1("new new york", "New York City") == pytest.approx(2 / 3)


def test_f1_is_the_harmonic_mean_of_precision_and_recall() -> None:
    # in common: 1; precision 1/1, recall 1/3
    assert f1("Paris", "Paris of France") == pytest.approx(2 * 1 * (1 / 3) / (1 + 1 / 3))


@pytest.mark.parametrize(
    ("prediction", "gold"), [("yes", "yes it is"), ("yes it is", "yes"), ("no", "yes"), ("noanswer", "noanswer x")]
)
def test_yes_and_no_are_right_or_wrong_as_a_whole(prediction: str, gold: str) -> None:
    assert f1(prediction, gold) == 0.0


@pytest.mark.parametrize(
    ("prediction", "gold"), [("True", "yes"), ("no", "False"), (True, "Yes."), ("yes", True), (False, False)]
)
def test_booleans_mean_yes_and_no(prediction: str | bool, gold: str | bool) -> None:
    assert exact_match(prediction, gold) == cover_exact_match(prediction, gold) == f1(prediction, gold) == 1.0


def test_of_several_golds_the_one_that_fits_best_counts() -> None:
    golds = ["Gotham", "New York City", "NYC"]

    assert exact_match("nyc", golds) == 1.0
    assert cover_exact_match("the city of New York", golds) == 1.0
    assert f1("New York", golds) == pytest.approx(0.8)
    assert exact_match("Boston", golds) == cover_exact_match("Boston", golds) == f1("Boston", golds) == 0.0


@given(answers, answers)
def test_f1_is_symmetric_and_a_rate(prediction: str, gold: str) -> None:
    assert f1(prediction, gold) == f1(gold, prediction)
    assert 0.0 <= f1(prediction, gold) <= 1.0


@given(words, words, st.randoms(use_true_random=False))
def test_f1_does_not_see_the_order_of_words(prediction: list[str], gold: list[str], random: Random) -> None:
    shuffled = random.sample(prediction, len(prediction))

    assert f1(" ".join(shuffled), " ".join(gold)) == f1(" ".join(prediction), " ".join(gold))


@given(answers, answers)
def test_an_exact_match_is_covered_and_has_f1_one_unless_nothing_is_left_of_it(prediction: str, gold: str) -> None:
    if exact_match(prediction, gold):
        assert cover_exact_match(prediction, gold) == 1.0
        assert f1(prediction, gold) == float(normalize_answer(gold) != "")


@given(answers, answers)
def test_f1_one_means_the_same_words_equally_often(prediction: str, gold: str) -> None:
    same = Counter(normalize_answer(prediction).split()) == Counter(normalize_answer(gold).split()) != Counter()

    assert (f1(prediction, gold) == 1.0) == same


@given(answers, st.lists(answers, min_size=1, max_size=4))
def test_a_metric_over_several_golds_is_the_best_over_each(prediction: str, golds: list[str]) -> None:
    for metric in (exact_match, cover_exact_match, cover_exact_match_strict, f1):
        assert metric(prediction, golds) == max(metric(prediction, gold) for gold in golds)


# ---------------------------------------------------------------------------------------------------------------------
# extract_answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("I think </think>\n\n<answer> Paris </answer>", "Paris"),
        ("<answer>Rome</answer> no, <answer>Paris</answer>", "Paris"),
        ("<answer>Paris</answer> and </answer>", "Paris"),
        ("<answer> </answer>", ""),
        ("<answer><answer>Paris</answer>", "Paris"),
        ("<answer>Rome</answer> <answer>Paris", None),
        ("</answer> Paris <answer>", None),
        ("Paris</answer>", None),
        ("<answer>Paris", None),
        ("", None),
    ],
)
def test_the_answer_stands_after_the_last_opening_and_before_the_next_closing_tag(
    text: str, answer: str | None
) -> None:
    assert extract_answer(text) == answer


@given(st.text(), st.text().filter(lambda text: "<" not in text))
def test_whatever_comes_before_the_last_answer_does_not_change_it(before: str, answer: str) -> None:
    assert extract_answer(f"{before}<answer>{answer}</answer>") == answer.strip()


# ---------------------------------------------------------------------------------------------------------------------
# A megabyte of anything is scored, not waited for: anything quadratic would not come back here.


@pytest.mark.parametrize(
    "piece", ["<answer>", "</answer>", "<answer", "<answer></answer>", "a ", "the\n", "x", "' ", "word ", "<|"]
)
def test_a_megabyte_of_anything_can_be_read_and_compared(piece: str) -> None:
    text = piece * (MEGABYTE // len(piece))

    answer = extract_answer(text)
    metrics = (exact_match, cover_exact_match, cover_exact_match_strict, f1)
    compared = [metric(text, ["gold"] * 50) for metric in metrics]

    assert answer is None or answer == ""
    assert compared == [0.0, 0.0, 0.0, 0.0]


def test_a_gold_that_almost_fits_everywhere_is_looked_for_in_a_megabyte() -> None:
    almost = "x " * (MEGABYTE // 4)

    assert cover_exact_match_strict(almost * 2, almost[: MEGABYTE // 8] + "y " + almost[: MEGABYTE // 8]) == 0.0


def test_a_megabyte_of_different_words_is_compared_with_many_golds() -> None:
    text = " ".join(f"w{number}" for number in range(MEGABYTE // 8))
    golds = [f"w{number} w{number + 1}" for number in range(256)]

    assert cover_exact_match(text, golds) == 1.0
    assert 0.0 < f1(text, golds) < 0.001
