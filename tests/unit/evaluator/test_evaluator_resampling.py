"""How sure a mean is: bounds worked by hand, and what honesty asks of few questions."""

from math import comb

import numpy as np
import pytest

from services.evaluator.resampling import RESAMPLES, mean_intervals, mean_of_means_interval, sign_flip_p_value

RATE = (0.0, 1.0)


def interval(*values: float, bounds: tuple[float, float] | None = RATE) -> tuple[float, float] | None:
    (found,) = mean_intervals(np.array(values)[:, None], [bounds])
    return None if found is None else (found.low, found.high)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0], (0.025, 1.0)),  # Clopper-Pearson: 0.025 ** (1 / n)
        ([0.0], (0.0, 0.975)),
        ([1.0] * 20, (0.025**0.05, 1.0)),
        ([0.5], (0.0125, 0.9875)),
    ],
)
def test_questions_that_all_agree_get_the_exact_binomial_bound(
    values: list[float], expected: tuple[float, float]
) -> None:
    assert interval(*values) == pytest.approx(expected)


def test_without_bounds_nothing_is_said_about_questions_that_all_agree() -> None:
    assert interval(3.0, bounds=None) is None
    assert interval(2.0, 2.0, 2.0, bounds=None) is None


def test_two_questions_that_differ_say_nothing_but_their_range() -> None:
    assert interval(0.0, 1.0) == (0.0, 1.0)


def test_many_questions_get_the_interval_of_the_normal_distribution() -> None:
    values = [1.0] * 580 + [0.0] * 420  # standard error (0.58 * 0.42 / 1000) ** 0.5 = 0.0156

    assert interval(*values) == pytest.approx((0.58 - 1.96 * 0.0156, 0.58 + 1.96 * 0.0156), abs=0.004)


def test_few_questions_get_wider_intervals_than_plain_percentiles() -> None:
    values = np.array([0.1, 0.9, 0.4, 0.7, 0.2])
    draws = np.random.default_rng(0).integers(0, 5, size=(RESAMPLES, 5))
    low, high = np.quantile(values[draws].mean(axis=1), [0.025, 0.975])

    found = interval(*values)

    assert found is not None and found[0] < low - 0.03 and found[1] > high + 0.03


def test_the_same_answers_give_the_same_interval() -> None:
    values = np.random.default_rng(1).random((50, 2))

    assert mean_intervals(values, [RATE, RATE]) == mean_intervals(values.copy(), [RATE, RATE])


@pytest.mark.parametrize(("rate", "count"), [(0.5, 3), (0.75, 5), (0.5, 10), (0.9, 20), (0.6, 50), (0.9, 125)])
def test_an_interval_holds_the_truth_about_as_often_as_it_says(rate: float, count: int) -> None:
    """Summed over every possible outcome: no chance is involved. Few questions get more than 95 %, never much less."""
    covered = 0.0
    for right in range(count + 1):
        found = interval(*([1.0] * right + [0.0] * (count - right)))
        assert found is not None
        if found[0] <= rate <= found[1]:
            covered += comb(count, right) * rate**right * (1 - rate) ** (count - right)

    assert covered >= 0.92


def test_the_mean_of_benchmarks_is_as_unsure_as_its_parts() -> None:
    sure, unsure = np.array([0.5, 0.5001] * 500), np.array([0.0, 1.0] * 50)  # standard errors: 0 and 0.05, so 0.025

    found = mean_of_means_interval([sure, unsure], RATE)

    assert found is not None
    assert (found.low, found.high) == pytest.approx((0.451, 0.549), abs=0.008)


def test_benchmarks_without_a_wrong_answer_are_not_sure_either() -> None:
    found = mean_of_means_interval([np.ones(1), np.ones(20)], RATE)

    assert found is not None
    assert (found.low, found.high) == pytest.approx(((0.025 + 0.025**0.05) / 2, 1.0))
    assert mean_of_means_interval([np.ones(1), np.ones(20)], None) is None


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([0.0, 0.0], 1.0),
        ([1.0], 1.0),
        ([1.0, 1.0, 1.0, 1.0, 1.0], 2 / 32),  # all five heads, or all five tails
        ([1.0, 1.0, 1.0, -1.0, 0.0], 2 * 5 / 16),  # at most one of four tails, either way round
        ([1.0, -1.0], 1.0),
        ([0.5, 0.25], 2 / 4),  # only + + and - - are as far from 0 as what was seen
        ([0.5, -0.25], 1.0),
        ([0.5, 0.25, 0.75], 2 / 8),
    ],
)
def test_few_differences_are_counted_exactly(differences: list[float], expected: float) -> None:
    assert sign_flip_p_value(np.array(differences)) == pytest.approx(expected)


def test_right_against_wrong_is_mcnemars_exact_test() -> None:
    gained, lost = 30, 12
    differences = np.array([1.0] * gained + [-1.0] * lost + [0.0] * 458)

    expected = 2 * sum(comb(42, k) for k in range(13)) / 2**42

    assert sign_flip_p_value(differences) == pytest.approx(expected)


def test_many_differences_are_drawn_and_come_near_the_exact_value() -> None:
    differences = np.array([0.9, 0.8, 0.7, 0.6, 0.55, 0.5, 0.45, 0.4, 0.35, 0.3, 0.25, 0.2, 0.15, -0.7, -0.5, -0.3])
    exact = sign_flip_p_value(differences)

    drawn = sign_flip_p_value(np.append(differences, 1e-6))  # one more than is counted exactly

    assert drawn == pytest.approx(exact, abs=0.01)
    assert drawn != exact


def test_a_p_value_is_never_zero() -> None:
    assert sign_flip_p_value(np.linspace(0.5, 1.0, 200)) == 1 / 10_001
