"""Means, differences and win-rates with intervals; every function is free of the rest of trimtab.

Scores of answers come as `[prompts]`, or as `[seeds, prompts]` where several training seeds answered the same
prompts. Answers to one prompt are not independent of each other, so the prompt is the unit that is resampled:
seeds are averaged within each prompt first.

Scores of runs in environments come as a list of `[seeds]`, one for each environment. There the run is the
unit, and it is resampled within its environment: a stratified bootstrap (Agarwal et al. 2021,
arXiv:2108.13264, sec. 4.1).
"""

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import nan, sqrt
from typing import Any

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
    """A mean of `n` prompts or seeds with its 95 % interval, which is NaN where a single one allows none."""

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


def iqm_interval(scores: Sequence[ArrayLike]) -> Estimate:
    """Interquartile mean of all runs with its stratified bootstrap interval (Agarwal et al. 2021, sec. 4.3).

    scores: `[seeds]` for each environment; n is the smallest number of seeds.
    """
    strata = _strata(scores)
    middle, n = interquartile_mean(np.concatenate(strata)), min(map(len, strata))
    if n < 2:
        return Estimate(middle, nan, nan, n)
    return Estimate(middle, *_interval(_iqms(_resampled(strata, np.random.default_rng(SEED)))), n)


def iqm_difference(a_scores: Sequence[ArrayLike], b_scores: Sequence[ArrayLike]) -> Estimate:
    """Interquartile mean of a less that of b; the runs of each are resampled independently."""
    a, b = _strata(a_scores), _strata(b_scores)
    gap, n = iqm_interval(a).mean - iqm_interval(b).mean, min(map(len, (*a, *b)))
    if n < 2:
        return Estimate(gap, nan, nan, n)
    rng = np.random.default_rng(SEED)
    return Estimate(gap, *_interval(_iqms(_resampled(a, rng)) - _iqms(_resampled(b, rng))), n)


def iqm_band(curves: ArrayLike) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Interquartile mean over seeds at each point of a curve, and the ends of its bootstrap interval.

    A seed is resampled with its whole curve. `[seeds, points]` -> three of `[points]`; the ends are NaN for a
    single seed.
    """
    from scipy.stats import trim_mean

    array = np.asarray(curves, dtype=np.float64)
    middle = trim_mean(array, 0.25, axis=0)
    if len(array) < 2:
        return middle, np.full_like(middle, nan), np.full_like(middle, nan)
    drawn = np.random.default_rng(SEED).integers(len(array), size=(RESAMPLES, len(array)))
    low, high = _interval(trim_mean(array[drawn], 0.25, axis=1))
    return middle, low, high


def probability_of_improvement(a_scores: Sequence[ArrayLike], b_scores: Sequence[ArrayLike]) -> Estimate:
    """How likely a run of a scores above a run of b in an environment drawn at random (Agarwal et al. 2021).

    That is Mann and Whitney's U as a share of all pairs, ties counted half, averaged over environments, with
    its stratified bootstrap interval. Where all pairs agree the bootstrap has no width, and the interval is
    Wilson's for as many pairs as share no run.
    """
    a, b = _strata(a_scores), _strata(b_scores)
    if len(a) != len(b):
        raise ValueError(f"both need the same environments: {len(a)} against {len(b)}")

    def share(x: list[FloatArray], y: list[FloatArray]) -> FloatArray:  # of `[resamples, seeds]` each
        pairs = zip(x, y, strict=True)
        wins = [(np.sign(i[:, :, None] - j[:, None]) + 1).mean(axis=(1, 2)) / 2 for i, j in pairs]
        return np.mean(wins, axis=0)

    chance = float(share([x[None] for x in a], [y[None] for y in b])[0])
    n = min(map(len, (*a, *b)))
    if n < 2:
        return Estimate(chance, nan, nan, n)
    if chance in (0.0, 1.0):
        pairs = sum(min(len(x), len(y)) for x, y in zip(a, b, strict=True))
        return dataclasses.replace(wilson(round(chance * pairs), pairs), n=n)
    rng = np.random.default_rng(SEED)
    return Estimate(chance, *_interval(share(_resampled(a, rng), _resampled(b, rng))), n)


def _strata(scores: Sequence[ArrayLike]) -> list[FloatArray]:
    strata = [np.asarray(stratum, dtype=np.float64) for stratum in scores]
    if not strata or any(stratum.ndim != 1 or stratum.size == 0 for stratum in strata):
        raise ValueError("scores must be [seeds] for each of one or more environments, and none empty")
    return strata


def _resampled(strata: list[FloatArray], rng: np.random.Generator) -> list[FloatArray]:
    """`[seeds]` each -> `[resamples, seeds]` each, drawn with replacement."""
    return [stratum[rng.integers(len(stratum), size=(RESAMPLES, len(stratum)))] for stratum in strata]


def _iqms(resampled: list[FloatArray]) -> FloatArray:
    from scipy.stats import trim_mean

    return trim_mean(np.concatenate(resampled, axis=1), 0.25, axis=1)


def _interval(values: FloatArray) -> tuple[Any, Any]:
    """The middle 95 % of `[resamples, ...]`."""
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(values, [tail, 100 - tail], axis=0)
    return low, high


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
