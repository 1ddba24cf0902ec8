"""Statistics over seeds and environments, against enumeration, closed forms and scipy."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from trimtab.compare.statistics import (
    FloatArray,
    iqm_band,
    iqm_difference,
    iqm_interval,
    probability_of_improvement,
)

FIVE = [1.0, 2.0, 4.0, 8.0, 16.0]


def iqms(scores: Sequence[float]) -> FloatArray:
    """The mean of the middle three of every resample of five scores: all 3,125."""
    return np.array([sum(sorted(drawn)[1:-1]) / 3 for drawn in itertools.product(scores, repeat=5)])


def test_the_middle_half_of_all_runs_is_averaged() -> None:
    assert iqm_interval([[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 700.0]]).mean == 3.5
    assert iqm_interval([[0.0, 100.0], [2.0, 4.0]]).mean == 3.0  # over both environments, not in each
    assert iqm_interval([[0.0, 3.0, 9.0]]).mean == 4.0  # of three none is cut


def test_the_interval_is_that_of_all_resamples() -> None:
    low, high = np.percentile(iqms(FIVE), [2.5, 97.5])
    estimate = iqm_interval([FIVE])
    assert estimate.mean == pytest.approx(14 / 3)
    assert (estimate.low, estimate.high) == (pytest.approx(low, abs=0.4), pytest.approx(high, abs=0.8))


def test_three_seeds_span_the_lowest_and_the_highest() -> None:
    """Each end has a chance of 1/27, more than 2.5 %."""
    estimate = iqm_interval([[3.0, 5.0, 10.0]])
    assert (estimate.low, estimate.high, estimate.n) == (3.0, 10.0, 3)


def test_runs_are_drawn_again_within_their_environment_only() -> None:
    """Without strata the share of ones among six draws would vary."""
    estimate = iqm_interval([[5.0, 5.0, 5.0], [1.0, 1.0, 1.0]])
    assert (estimate.mean, estimate.low, estimate.high) == (3.0, 3.0, 3.0)


def test_the_same_scores_give_the_same_interval() -> None:
    scores = np.random.default_rng(0).normal(size=(3, 6))
    assert iqm_interval(list(scores)) == iqm_interval(list(scores))
    assert iqm_difference(scores, scores + 1) == iqm_difference(scores, scores + 1)


def test_the_interval_covers_the_truth_19_times_in_20_with_many_seeds() -> None:
    rng = np.random.default_rng(1)
    estimates = [iqm_interval(list(rng.normal(size=(2, 30)))) for _ in range(200)]
    assert 0.89 <= np.mean([e.low <= 0 <= e.high for e in estimates]) <= 0.99


def test_a_difference_resamples_both_sides() -> None:
    others = [0.0, 1.0, 3.0, 9.0, 27.0]
    exact = np.subtract.outer(iqms(FIVE), iqms(others)).ravel()
    low, high = np.percentile(exact, [2.5, 97.5])
    estimate = iqm_difference([FIVE], [others])
    assert estimate.mean == pytest.approx(14 / 3 - 13 / 3)
    assert (estimate.low, estimate.high) == (pytest.approx(low, abs=1.0), pytest.approx(high, abs=1.0))


def test_one_seed_has_no_interval() -> None:
    for estimate in (
        iqm_interval([[2.0], [4.0, 4.0]]),
        iqm_difference([[3.0]], [[0.0]]),
        probability_of_improvement([[2.0]], [[1.0]]),
    ):
        assert estimate.n == 1 and math.isnan(estimate.low) and math.isnan(estimate.high)
    assert iqm_difference([[3.0]], [[0.0]]).mean == 3.0
    assert probability_of_improvement([[2.0]], [[1.0]]).mean == 1.0


def test_improvement_by_hand() -> None:
    # 1 is above 0; 3 is above 2 and 0: 3 of 6 pairs
    assert probability_of_improvement([[1.0, 3.0]], [[2.0, 0.0, 4.0]]).mean == 0.5
    # a win and a tie of two pairs; then two losses: the mean over environments
    assert probability_of_improvement([[2.0], [0.0]], [[1.0, 2.0], [5.0, 6.0]]).mean == 0.375


def test_improvement_is_mann_and_whitneys_u() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.integers(6, size=(4, 5)).astype(float), rng.integers(6, size=(4, 7)).astype(float)
    shares = [stats.mannwhitneyu(x, y).statistic / 35 for x, y in zip(a, b, strict=True)]
    estimate = probability_of_improvement(list(a), list(b))
    assert estimate.mean == pytest.approx(np.mean(shares))
    assert 0 < estimate.low < estimate.mean < estimate.high < 1
    assert probability_of_improvement(list(b), list(a)).mean == pytest.approx(1 - estimate.mean)


@pytest.mark.parametrize(("environments", "low"), [(1, 0.4385), (2, 0.6097)])
def test_a_clean_sweep_of_few_seeds_is_not_certain(environments: int, low: float) -> None:
    """Wilson's interval of n wins of n begins at n / (n + 1.96^2)."""
    a, b = [[5.0, 6.0, 7.0]] * environments, [[1.0, 2.0, 3.0]] * environments
    wins, losses = probability_of_improvement(a, b), probability_of_improvement(b, a)
    assert (wins.mean, wins.high, wins.n) == (1.0, 1.0, 3)
    assert wins.low == pytest.approx(low, abs=1e-4)
    assert (losses.mean, losses.low, losses.high) == (0.0, 0.0, pytest.approx(1 - low, abs=1e-4))


def test_improvement_needs_the_same_environments() -> None:
    with pytest.raises(ValueError, match="1 against 2"):
        probability_of_improvement([[1.0]], [[1.0], [2.0]])


@pytest.mark.parametrize("scores", [[], [[]], [[[1.0]]]])
def test_scores_without_seeds_are_refused(scores: list[list[float]]) -> None:
    with pytest.raises(ValueError, match=r"must be \[seeds\]"):
        iqm_interval(scores)


def test_a_band_is_the_interval_at_every_point() -> None:
    curves = np.array([FIVE, [0.0, 1.0, 1.0, 0.0, 7.0], [3.0, 3.0, 3.0, 3.0, 3.0]]).T  # [5 seeds, 3 points]
    middle, low, high = iqm_band(curves)
    for point in range(3):
        alone = iqm_interval([curves[:, point]])
        assert (middle[point], low[point], high[point]) == pytest.approx((alone.mean, alone.low, alone.high))
    assert (low[2], high[2]) == (3.0, 3.0)


def test_the_band_of_one_seed_has_no_width() -> None:
    middle, low, high = iqm_band([[1.0, 2.0]])
    assert middle.tolist() == [1.0, 2.0] and np.isnan(low).all() and np.isnan(high).all()
