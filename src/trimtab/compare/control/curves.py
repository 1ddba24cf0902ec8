"""Learning curves: the seeds of a method on common steps, and their middle."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trimtab.compare import statistics
from trimtab.compare.results import Result, load_curve
from trimtab.compare.statistics import FloatArray

POINTS = 201

Line = tuple[FloatArray, FloatArray]  # (steps, returns) as a run logged them


@dataclass(frozen=True)
class Curve:
    """The interquartile mean of several seeds' returns, and the ends of its interval.

    Attributes:
        steps: [points] of the environment, from where every seed has a return to where the first seed ends.
        middle: [points].
        low, high: [points]; NaN for a single seed.
        lines: each seed as it was logged.
    """

    steps: FloatArray
    middle: FloatArray
    low: FloatArray
    high: FloatArray
    lines: tuple[Line, ...]

    def reaches(self, level: float) -> float | None:
        """The steps after which the middle is first at this level or above; None if it never is."""
        there = np.nonzero(self.middle >= level)[0]
        return float(self.steps[there[0]]) if len(there) else None


def learning_curve(out: Path, results: tuple[Result, ...]) -> Curve | None:
    """The returns of finished runs, interpolated on common steps; None if there are no common steps.

    A run has no return until its first episode has ended, so that curves do not begin at step 0.
    """
    lines = [_line(out, result) for result in results]
    if not lines or any(not len(steps) for steps, _ in lines):
        return None
    first, last = max(steps[0] for steps, _ in lines), min(steps[-1] for steps, _ in lines)
    if first > last:
        return None
    steps = np.linspace(first, last, POINTS if first < last else 1)
    middle, low, high = statistics.iqm_band([np.interp(steps, *line) for line in lines])
    return Curve(steps, middle, low, high, tuple(lines))


def _line(out: Path, result: Result) -> Line:
    rows = [row for row in load_curve(out, result) if row.get("return") is not None]
    steps, returns = ([float(row[name]) for row in rows] for name in ("total_steps", "return"))
    return np.array(steps), np.array(returns)
