"""Statistics against hand computation, scipy, and simulations whose truth is known."""

import math

import numpy as np
import pytest
from scipy import stats

from trimtab.compare.statistics import (
    distinct_n,
    interquartile_mean,
    mean_interval,
    paired_difference,
    standard_error,
    wilson,
    win_rate,
)


def test_mean_interval_is_close_to_the_t_interval_of_normal_scores() -> None:
    scores = np.random.default_rng(1).normal(3.0, 2.0, 400)
    low, high = stats.t.interval(0.95, 399, loc=scores.mean(), scale=stats.sem(scores))
    estimate = mean_interval(scores)
    assert estimate.mean == pytest.approx(scores.mean())
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=0.02)


def test_mean_interval_covers_the_truth_19_times_in_20() -> None:
    rng = np.random.default_rng(2)
    estimates = [mean_interval(rng.exponential(1.0, 100)) for _ in range(300)]  # skewed, mean 1
    coverage = np.mean([e.low <= 1.0 <= e.high for e in estimates])
    assert 0.90 <= coverage <= 0.985


def test_seeds_that_share_prompts_are_not_counted_as_new_prompts() -> None:
    """Three seeds with the same answers know no more than one."""
    once = np.random.default_rng(3).normal(size=50)
    one, three = mean_interval(once), mean_interval(np.stack([once] * 3))
    assert (three.mean, three.low, three.high) == pytest.approx((one.mean, one.low, one.high))
    assert three.n == 50


def test_clustered_interval_covers_the_truth_where_an_unclustered_one_would_not() -> None:
    rng = np.random.default_rng(4)
    covered, naive = [], []
    for _ in range(300):
        ease = rng.normal(size=(1, 40))  # what the three answers to a prompt have in common
        scores = ease + 0.3 * rng.normal(size=(3, 40))
        estimate, flat = mean_interval(scores), mean_interval(scores.ravel())
        covered.append(estimate.low <= 0 <= estimate.high)
        naive.append(flat.low <= 0 <= flat.high)
    assert np.mean(covered) >= 0.89
    assert np.mean(naive) <= 0.80


def test_one_prompt_has_no_interval() -> None:
    estimate = mean_interval([0.25])
    assert estimate.mean == 0.25
    assert math.isnan(estimate.low)
    assert math.isnan(estimate.high)
    assert not estimate.excludes_zero
    assert math.isnan(standard_error([0.25]))


def test_standard_error_by_hand() -> None:
    assert standard_error([1.0, 2.0, 3.0, 4.0]) == pytest.approx(0.6454972)  # sqrt(5/3) / 2
    assert standard_error([[0.0, 2.0, 4.0], [2.0, 2.0, 4.0]]) == pytest.approx(0.8819171)  # of 1, 2, 4


def test_paired_difference_uses_the_pairing() -> None:
    ease = np.random.default_rng(5).normal(0, 10, 100)
    noise = np.random.default_rng(6).normal(0, 0.1, 100)
    estimate = paired_difference(ease + 0.5 + noise, ease)
    assert estimate.mean == pytest.approx(0.5, abs=0.03)
    assert 0.4 < estimate.low < estimate.high < 0.6
    assert estimate.excludes_zero


def test_paired_difference_refuses_other_prompts() -> None:
    with pytest.raises(ValueError, match="3 against 2"):
        paired_difference([1.0, 2.0, 3.0], [1.0, 2.0])


def test_win_rate_counts_ties_half() -> None:
    assert win_rate([1.0, 2.0, 3.0, 4.0], [0.0, 2.0, 5.0, 1.0]).mean == 0.625  # win, tie, loss, win


def test_win_rate_lets_every_seed_meet_every_seed() -> None:
    a = [[1.0, 1.0], [3.0, 3.0]]
    b = [[2.0, 0.0], [0.0, 1.0], [4.0, 3.0]]
    # prompt 1: 1 beats 0, 3 beats 2 and 0: 3 of 6; prompt 2: 3 wins and 2 ties: 4 of 6
    assert win_rate(a, b).mean == pytest.approx((3 / 6 + 4 / 6) / 2)
    assert win_rate(b, a).mean == pytest.approx(1 - (3 / 6 + 4 / 6) / 2)


def test_win_rate_interval_is_close_to_the_binomial_one() -> None:
    wins = np.random.default_rng(7).random(300) < 0.7
    low, high = stats.binomtest(int(wins.sum()), 300).proportion_ci(0.95, "wilson")
    estimate = win_rate(wins.astype(float), np.full(300, 0.5))
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=0.01)


def test_a_clean_sweep_of_few_prompts_is_not_certain() -> None:
    estimate = win_rate([1.0] * 5, [0.0] * 5)
    assert estimate.mean == 1.0
    assert estimate.low == pytest.approx(0.5655, abs=1e-4)  # n / (n + 1.96^2) for n wins of n
    assert estimate.high == 1.0


def test_wilson_by_hand() -> None:
    # Wilson (1927): centre (p + z^2/2n) / (1 + z^2/n), for p = 0.3, n = 10, z = 1.959964
    estimate = wilson(3, 10)
    assert (estimate.mean, estimate.low, estimate.high) == pytest.approx((0.3, 0.107789, 0.603222), abs=1e-5)


def test_interquartile_mean_drops_a_quarter_at_each_end() -> None:
    assert interquartile_mean([-1000.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 1000.0]) == 3.5
    assert interquartile_mean([[0.0, 1.0], [2.0, 99.0]]) == 1.5


@pytest.mark.parametrize(
    ("responses", "n", "expected"),
    [
        (["the film is the film"], 1, 3 / 5),
        (["the film is the film"], 2, 3 / 4),  # the film, film is, is the, the film
        (["a b", "a b"], 2, 1 / 2),
        (["A b a B"], 2, 2 / 3),  # case does not count
        (["a", "b"], 2, 0.0),  # no bigram spans two responses
        ([], 1, 0.0),
        (["电影很好", "电影很差"], 1, 5 / 8),
        (["很好很好"], 2, 2 / 3),
        (["我爱DPO算法"], 1, 5 / 5),  # a Latin word inside Chinese is one unit
        (["good, good."], 1, 3 / 4),
    ],
)
def test_distinct_n_by_hand(responses: list[str], n: int, expected: float) -> None:
    assert distinct_n(responses, n) == pytest.approx(expected)
