"""Means, differences and win-rates with intervals; every function is free of the rest of trimtab.

Scores come as `[prompts]`, or as `[seeds, prompts]` where several training seeds answered the same prompts.
Answers to one prompt are not independent of each other, so the prompt is the unit that is resampled: seeds
are averaged within each prompt first.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import nan, sqrt

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]

CONFIDENCE = 0.95
RESAMPLES = 2000
SEED = 0  # the same evaluation gives the same report

# Chinese and Japanese are written without spaces: there each character is a word.
_CJK = r"\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+|[^\w\s]")


@dataclass(frozen=True)
class Estimate:
    """A mean of `n` prompts with its 95 % interval; the interval is NaN where one prompt allows none."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def per_prompt(scores: ArrayLike) -> FloatArray:
    """`[prompts]` or `[seeds, prompts]` -> `[prompts]`: the mean over seeds."""
    array = np.asarray(scores, dtype=np.float64)
    if array.ndim not in (1, 2) or array.size == 0:
        raise ValueError(f"scores must be [prompts] or [seeds, prompts] and not empty, not {array.shape}")
    return array if array.ndim == 1 else array.mean(axis=0)


def mean_interval(scores: ArrayLike) -> Estimate:
    """The mean with its percentile bootstrap interval (Efron 1979), clustered by prompt.

    scores: `[prompts]` or `[seeds, prompts]`, finite.
    """
    from scipy.stats import bootstrap

    values = per_prompt(scores)
    mean, n = float(values.mean()), len(values)
    if n < 2:
        return Estimate(mean, nan, nan, n)
    interval = bootstrap(
        (values,), np.mean, n_resamples=RESAMPLES, confidence_level=CONFIDENCE, method="percentile", rng=SEED
    ).confidence_interval
    return Estimate(mean, float(interval.low), float(interval.high), n)


def standard_error(scores: ArrayLike) -> float:
    """Standard error of the mean over prompts (seeds averaged first); NaN for a single prompt."""
    values = per_prompt(scores)
    return float(values.std(ddof=1) / sqrt(len(values))) if len(values) > 1 else nan


def paired_difference(a_scores: ArrayLike, b_scores: ArrayLike) -> Estimate:
    """Mean of a - b on the same prompts, with its bootstrap interval over prompts."""
    a, b = per_prompt(a_scores), per_prompt(b_scores)
    _check_paired(a, b)
    return mean_interval(a - b)


def win_rate(a_scores: ArrayLike, b_scores: ArrayLike) -> Estimate:
    """How often a scores above b on the same prompt; a tie counts as half a win.

    Every seed of a meets every seed of b. The interval is the bootstrap's over prompts; where all prompts
    agree the bootstrap has no width, and the interval is Wilson's.
    """
    a, b = np.atleast_2d(np.asarray(a_scores, float)), np.atleast_2d(np.asarray(b_scores, float))
    _check_paired(a, b)
    wins = (np.sign(a[:, None] - b[None]) + 1) / 2  # [seeds of a, seeds of b, prompts]
    rates = wins.mean(axis=(0, 1))
    if len(rates) > 1 and rates.min() == rates.max() and rates[0] in (0.0, 1.0):
        return wilson(int(rates.sum()), len(rates))
    return mean_interval(rates)


def wilson(successes: int, n: int) -> Estimate:
    """A proportion with Wilson's score interval (Wilson 1927)."""
    from scipy.stats import binomtest

    interval = binomtest(successes, n).proportion_ci(CONFIDENCE, method="wilson")
    return Estimate(successes / n, float(interval.low), float(interval.high), n)


def interquartile_mean(scores: ArrayLike) -> float:
    """Mean of the middle half (Agarwal et al. 2021): a quarter is cut, rounded down, at each end."""
    from scipy.stats import trim_mean

    return float(trim_mean(np.asarray(scores, dtype=np.float64).ravel(), 0.25))


def distinct_n(responses: Sequence[str], n: int) -> float:
    """Distinct n-grams divided by all n-grams (Li et al. 2016), case ignored.

    A unit is a word or a punctuation mark; each Chinese or Japanese character is a unit of its own.
    0 where no response has n units.
    """
    grams: list[tuple[str, ...]] = []
    for response in responses:
        units = _WORD.findall(response.lower())
        grams.extend(zip(*(units[i:] for i in range(n)), strict=False))
    return len(set(grams)) / len(grams) if grams else 0.0


def _check_paired(a: FloatArray, b: FloatArray) -> None:
    if a.shape[-1] != b.shape[-1]:
        raise ValueError(f"paired scores need the same prompts: {a.shape[-1]} against {b.shape[-1]}")
