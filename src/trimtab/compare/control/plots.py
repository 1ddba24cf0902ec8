"""The plots of a comparison in environments, each an SVG string; None where there is nothing to draw.

One colour per method with its parameters, the same in every plot; beyond eight, the kind of line tells them
apart.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from trimtab.compare.control.curves import Curve
from trimtab.compare.control.summary import Contender, ControlComparison
from trimtab.compare.plots import COLOURS, INK, QUIET, WIDE, as_svg, canvas, heat_map, legend

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LINES = ("solid", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)))
LEGIBLE = 16  # thin lines in one plot


@as_svg
def learning_curves(comparison: ControlComparison, env: str) -> "Figure | None":
    """Returns against steps: the interquartile mean over seeds with its interval, and thin lines of seeds."""
    curves = {c: comparison.curve(c, env) for c in comparison.ranking([env])}
    drawn = {contender: curve for contender, curve in curves.items() if curve is not None}
    if not drawn:
        return None
    figure, (axis,) = canvas(WIDE, 4.3, 1, 1)
    thin = sum(len(curve.lines) for curve in drawn.values()) <= LEGIBLE
    for contender, curve in drawn.items():
        _curve(axis, contender.label, curve, style(comparison, contender), thin)
    if env in comparison.start.results:
        start = float(np.mean(comparison.start.scores(env)))
        axis.axhline(start, color=INK, linewidth=1, linestyle=(0, (4, 3)), label="untrained")
    if (level := comparison.threshold(env)) is not None:
        axis.axhline(level, color=QUIET, linewidth=0.9, linestyle=(0, (1, 2)), label="90 % of the way")
    axis.xaxis.set_major_formatter(_steps)
    axis.set(xlabel="steps in the environment", ylabel="return", xlim=(0, None))
    legend(figure, axis, wide=True)
    return figure


@as_svg
def improvement(comparison: ControlComparison, envs: Sequence[str]) -> "Figure | None":
    """How likely a run of the row's method scores above one of the column's, as a heat map."""
    players = comparison.ranking(envs)
    if envs and all(env in comparison.start.results for env in envs):
        players = [*players, comparison.start]
    names = [player.label.replace(" (", "\n(") for player in players]
    rates = [[None if a is b else comparison.improvement(a, b, envs) for b in players] for a in players]
    return heat_map(names, rates)


def style(comparison: ControlComparison, contender: Contender) -> tuple[str, object]:
    """Colour and kind of line, by the order in which methods appear in the comparison."""
    if contender is comparison.start:
        return INK, LINES[0]
    lap, place = divmod(comparison.contenders.index(contender), len(COLOURS))
    return COLOURS[place], LINES[lap % len(LINES)]


def _curve(axis: "Axes", label: str, curve: Curve, look: tuple[str, object], thin: bool) -> None:
    colour, line = look
    if thin and len(curve.lines) > 1:
        for steps, returns in curve.lines:
            axis.plot(steps, returns, color=colour, linewidth=0.6, alpha=0.35)
    axis.fill_between(curve.steps, curve.low, curve.high, color=colour, alpha=0.16, linewidth=0)
    marker = "o" if len(curve.steps) == 1 else ""
    axis.plot(curve.steps, curve.middle, color=colour, linestyle=line, marker=marker, label=label)


def _steps(steps: float, _: object = None) -> str:
    """50k, 1.5M."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(steps) >= size:
            return f"{steps / size:g}{letter}"
    return f"{steps:g}"
