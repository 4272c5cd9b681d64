"""Numbers, one per question -> how sure their mean is: bootstrap intervals and a paired test. It knows no reports.

Intervals are two-sided, 95 %, by the percentile bootstrap over questions, always with the same seed: the same answers
give the same report. Its two known weaknesses are mended, so that a few questions never look like many:

- Percentiles are too narrow where there are few questions. They are taken further out, by as much as Student's t is
  wider than the normal distribution (Hesterberg 2015, "expanded percentiles").
- Where all questions gave the same number, resampling sees no spread. A figure with known bounds then gets the exact
  binomial (Clopper-Pearson) bound: 1 right of 1 is [0.025, 1], 20 of 20 is [0.832, 1]. One without has no interval.

Q = questions, F = figures, R = resamples
"""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from searcher.contracts.report import Interval

Values = NDArray[np.float64]
Bounds = tuple[float, float]

RESAMPLES = 2_000
FLIPS = 10_000
SEED = 0
EXACT_UP_TO = 16
"""Questions that differ, up to which all sign flips are counted instead of drawn."""
_NUMBERS_AT_ONCE = 2_000_000
_TAIL = 0.025


def mean_intervals(values_QF: Values, bounds_F: Sequence[Bounds | None]) -> list[Interval | None]:
    """Of each column's mean; `bounds_F` is what one question can give at least and at most, where that is known."""
    means_RF = _resampled_means(values_QF, np.random.default_rng(SEED))
    return [
        _interval(means_R, values_Q, bounds)
        for means_R, values_Q, bounds in zip(means_RF.T, values_QF.T, bounds_F, strict=True)
    ]


def mean_of_means_interval(groups: Sequence[Values], bounds: Bounds | None) -> Interval | None:
    """Of the mean of the groups' means: each group is resampled by itself, and the smallest says how few they are."""
    streams = np.random.default_rng(SEED).spawn(len(groups))
    means_RG = np.hstack([_resampled_means(group[:, None], rng) for group, rng in zip(groups, streams, strict=True)])
    if np.ptp(means_RG, axis=0).max() == 0.0:
        alone = [_interval(means_R, group, bounds) for means_R, group in zip(means_RG.T, groups, strict=True)]
        known = [interval for interval in alone if interval is not None]
        if len(known) < len(groups):
            return None
        low, high = (float(np.mean([getattr(one, end) for one in known])) for end in ("low", "high"))
        return Interval(low=low, high=high)
    return _percentiles(means_RG.mean(axis=1), min(len(group) for group in groups))


def sign_flip_p_value(differences_Q: Values) -> float:
    """Two-sided: how often random signs give a mean at least this far from 0, if each question's sign is a coin's.

    Counted exactly where few questions differ, and where all that differ do so by the same amount (as right and wrong
    do: McNemar's exact test); else drawn, with 1/10,001 as the smallest value that can come out.
    """
    nonzero_Q = differences_Q[differences_Q != 0.0]
    count = len(nonzero_Q)
    if count == 0:
        return 1.0
    if np.ptp(np.abs(nonzero_Q)) == 0.0:
        return _binomial_p_value(int((nonzero_Q > 0).sum()), count)
    if count <= EXACT_UP_TO:
        bits_RQ = (np.arange(2**count)[:, None] >> np.arange(count)) & 1
        return float(_as_far(bits_RQ, nonzero_Q).mean())
    rng, num_as_far, left = np.random.default_rng(SEED), 0, FLIPS
    while left:
        size = min(left, max(1, _NUMBERS_AT_ONCE // count))
        num_as_far += int(_as_far(rng.integers(0, 2, size=(size, count), dtype=np.uint8), nonzero_Q).sum())
        left -= size
    return (1 + num_as_far) / (1 + FLIPS)


def _resampled_means(values_QF: Values, rng: np.random.Generator) -> Values:
    """[R, F]. How often each question was drawn is a row of weights, so that all figures share one draw."""
    num_questions = len(values_QF)
    parts = []
    at_once = max(1, _NUMBERS_AT_ONCE // num_questions)
    for start in range(0, RESAMPLES, at_once):
        size = min(at_once, RESAMPLES - start)
        drawn_RQ = rng.integers(0, num_questions, size=(size, num_questions))
        drawn_RQ += np.arange(size)[:, None] * num_questions
        weights_RQ = np.bincount(drawn_RQ.ravel(), minlength=size * num_questions).reshape(size, num_questions)
        parts.append(weights_RQ @ values_QF / num_questions)
    return np.concatenate(parts)


def _interval(means_R: Values, values_Q: Values, bounds: Bounds | None) -> Interval | None:
    if np.ptp(values_Q) > 0.0:
        return _percentiles(means_R, len(values_Q))
    return None if bounds is None else _unanimous(float(values_Q[0]), len(values_Q), bounds)


def _percentiles(means_R: Values, num_questions: int) -> Interval:
    tail = _expanded_tail(num_questions)
    low, high = np.quantile(means_R, [tail, 1 - tail])
    return Interval(low=float(low), high=float(high))


def _expanded_tail(num_questions: int) -> float:
    """Below 0.025 by what Student's t and the division by n - 1 add; 0.025 for very many questions."""
    if num_questions < 2:
        return 0.0
    z, freedom = NormalDist().inv_cdf(1 - _TAIL), num_questions - 1
    # Cornish-Fisher: within 1 % of Student's quantile from 3 degrees of freedom on, and below that the tail is 0.
    student = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    student += (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    return NormalDist().cdf(-math.sqrt(num_questions / freedom) * student)


def _unanimous(value: float, num_questions: int, bounds: Bounds) -> Interval:
    """Values as extreme as a bound, in a share that would still let all questions agree once in 40 times."""
    low, high = bounds
    unseen = 1 - _TAIL ** (1 / num_questions)
    return Interval(low=value - (value - low) * unseen, high=value + (high - value) * unseen)


def _as_far(bits_RQ: NDArray[Any], nonzero_Q: Values) -> NDArray[np.bool_]:
    total = nonzero_Q.sum()
    sums_R = 2 * (bits_RQ @ nonzero_Q) - total
    return np.asarray(np.abs(sums_R) >= abs(total) - 1e-9)


def _binomial_p_value(num_positive: int, count: int) -> float:
    fewer = min(num_positive, count - num_positive)
    if 2 * fewer == count:
        return 1.0
    log_all = count * math.log(2) - math.lgamma(count + 1)
    return min(
        1.0,
        2 * math.fsum(math.exp(-math.lgamma(k + 1) - math.lgamma(count - k + 1) - log_all) for k in range(fewer + 1)),
    )
