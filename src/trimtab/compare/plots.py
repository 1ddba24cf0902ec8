"""The report's plots, each an SVG string; None where there is nothing to draw.

One colour and one marker per method, the same in every plot; the markers tell methods apart in grey print
and beyond eight methods. The start is a black star. A filled marker is the strength chosen for its method.
"""

import io
from collections.abc import Callable
from functools import wraps
from itertools import groupby
from typing import TYPE_CHECKING, Any, ParamSpec

import numpy as np

from trimtab.compare.results import load_curve
from trimtab.compare.statistics import Estimate, FloatArray, standard_error
from trimtab.compare.summary import Comparison, Row, Setting

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# After Tol's colour-blind-safe "bright" and "vibrant" schemes.
COLOURS = ("#4477aa", "#ee7733", "#228833", "#cc3377", "#33a6c4", "#997700", "#7f4fa3", "#5c5c5c")
MARKERS = "osD^vPXph<>d8H"
INK, QUIET, FAINT = "#1d2129", "#5b626d", "#eceef1"
WIDE, HALF = 11.0, 5.3  # inches; the page shows an inch as 96 px
STYLE: Any = {
    "svg.fonttype": "none",  # text stays text and takes the reader's fonts
    "svg.hashsalt": "trimtab",  # the same numbers give the same file
    "font.sans-serif": ["Helvetica Neue", "Segoe UI", "Arial", "Liberation Sans", "DejaVu Sans"],
    "font.size": 9.5, "axes.titlesize": 10, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "text.color": INK, "axes.labelcolor": INK, "xtick.color": QUIET, "ytick.color": QUIET,
    "axes.edgecolor": "#9aa0a9", "axes.linewidth": 0.8, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.color": FAINT, "grid.linewidth": 0.8, "axes.axisbelow": True,
    "xtick.major.size": 0, "ytick.major.size": 0, "xtick.minor.size": 0, "ytick.minor.size": 0,
    "lines.linewidth": 1.7, "lines.markersize": 6, "legend.frameon": False, "legend.fontsize": 9,
}  # fmt: skip

P = ParamSpec("P")
Measure = Callable[[Setting], FloatArray]  # -> [seeds, reported prompts]


def as_svg(draw: Callable[P, "Figure | None"]) -> Callable[P, str | None]:
    """Makes a function that draws a figure into one that returns the figure's SVG."""

    @wraps(draw)
    def svg(*args: P.args, **kwargs: P.kwargs) -> str | None:
        from matplotlib import rc_context

        with rc_context(STYLE):
            figure = draw(*args, **kwargs)
            if figure is None:
                return None
            text = io.StringIO()
            metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
            figure.savefig(text, format="svg", metadata=metadata, transparent=True)
        return text.getvalue()

    return svg


@as_svg
def frontier(comparison: Comparison) -> "Figure | None":
    """Primary reward against KL to the starting model, a curve per method (DPO paper, figure 2)."""
    if all(setting.kl is None for setting in comparison.settings):
        return None

    def kl(setting: Setting) -> FloatArray:
        return comparison.reported_part(setting.kl) if setting.kl is not None else np.full((1, 1), np.nan)

    return _scatter(comparison, kl, "KL to the start (nats per response)", wide=True)


@as_svg
def reward_against(comparison: Comparison, other: str) -> "Figure | None":
    """Primary reward against another reward, a curve per method."""
    return _scatter(comparison, lambda setting: comparison.reward(setting, other), f"{other} reward")


@as_svg
def reward_against_length(comparison: Comparison) -> "Figure | None":
    """Primary reward against response length."""
    return _scatter(comparison, lambda s: comparison.reported_part(s.tokens), "response length (tokens)")


@as_svg
def strength_sweep(comparison: Comparison) -> "Figure | None":
    """Every reward against strength, a panel per reward; methods with a single strength are left out."""
    swept = [method for method, settings in comparison.by_method.items() if len(settings) > 1]
    strengths = [s.strength for method in swept for s in comparison.by_method[method] if s.strength]
    if not strengths:
        return None
    names = sorted({strength.name for strength in strengths})
    figure, axes = canvas(WIDE, 3.7, 1, len(comparison.rewards))
    for axis, reward in zip(axes, comparison.rewards, strict=True):
        for rows in (rows for method in swept for rows in _lines(comparison, method)):
            method = rows[0].setting.method
            values = [row.setting.strength.value for row in rows if row.setting.strength]
            _curve(axis, rows, np.array(values), reward, style=method_style(comparison, method))
        if comparison.start:
            level = comparison.reward(comparison.start, reward).mean()
            axis.axhline(level, color=INK, linewidth=1, linestyle=(0, (4, 3)), label="start")
        _strength_axis(axis, sorted({strength.value for strength in strengths}))
        axis.set(title=f"{reward} reward", xlabel=", ".join(names))
    legend(figure, axes[0], wide=True)
    return figure


@as_svg
def curves(comparison: Comparison, metric: str) -> "Figure | None":
    """A training metric of every method's chosen strength, a panel per method, as the methods share no scale.

    A thin line per seed as it was logged; the thick line is the mean of the seeds, smoothed.
    """
    logged = {method: _logged(comparison, setting, metric) for method, setting in comparison.chosen.items()}
    logged = {method: seeds for method, seeds in logged.items() if seeds}
    if not logged:
        return None
    columns = min(len(logged), 4)
    lines = -(-len(logged) // columns)
    figure, axes = canvas(max(WIDE / 4 * columns, HALF), 1.9 * lines + 0.2, lines, columns)
    for axis in axes[len(logged) :]:
        axis.remove()
    for axis, (method, seeds) in zip(axes, logged.items(), strict=False):
        colour, _ = method_style(comparison, method)
        for steps, values in seeds:
            axis.plot(steps, values, color=colour, linewidth=0.7, alpha=0.3)
        length = min(len(values) for _, values in seeds)
        mean = np.mean([values[:length] for _, values in seeds], axis=0)
        axis.plot(seeds[0][0][:length], _smooth(mean), color=colour)
        axis.set_title(comparison.chosen[method].label, color=colour)
    return figure


@as_svg
def win_matrix(comparison: Comparison) -> "Figure | None":
    """How often the row's method beats the column's, as a heat map with intervals."""
    return heat_map([player.name for player in comparison.players], comparison.win_matrix())


def heat_map(names: list[str], rates: list[list[Estimate | None]]) -> "Figure | None":
    """Rates of row against column, 0 to 1, with their intervals; None for a single name."""
    from matplotlib.colors import LinearSegmentedColormap

    if len(names) < 2:
        return None
    means = np.array([[0.5 if rate is None else rate.mean for rate in row] for row in rates])
    figure, (axis,) = canvas(min(0.95 * len(names) + 1.7, WIDE), 0.58 * len(names) + 0.6, 1, 1)
    colours = LinearSegmentedColormap.from_list("loses-wins", ["#e0a262", "#ffffff", "#7fa8d3"])
    axis.imshow(means, cmap=colours, vmin=0, vmax=1, aspect="auto")
    for i, row in enumerate(rates):
        for j, rate in enumerate(row):
            if rate is None:
                axis.text(j, i, "·", ha="center", va="center", color=QUIET)
                continue
            axis.text(j, i - 0.1, f"{rate.mean:.2f}", ha="center", va="center", fontweight="bold")
            interval = f"{rate.low:.2f}–{rate.high:.2f}" if rate.n > 1 else ""
            axis.text(j, i + 0.24, interval, ha="center", va="center", fontsize=6.8)
    axis.set_xticks(
        range(len(names)),
        names,
        rotation=0 if len(names) < 8 else 35,
        ha="left" if len(names) > 7 else "center",
    )
    axis.set_yticks(range(len(names)), names)
    axis.tick_params(colors=INK, top=False, labeltop=True, labelbottom=False)
    axis.grid(False)
    axis.spines[:].set_visible(False)
    return figure


def method_style(comparison: Comparison, method: str) -> tuple[str, str]:
    """The colour and marker of a method, by the order in which methods appear in the comparison."""
    index = list(comparison.by_method).index(method)
    return COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]


def _scatter(comparison: Comparison, x: Measure, label: str, wide: bool = False) -> "Figure | None":
    """Primary reward against x: a curve per method through its strengths, small dots for single seeds."""
    if not comparison.settings:
        return None
    figure, (axis,) = canvas(WIDE if wide else HALF, 5.0 if wide else 4.2, 1, 1)
    for rows in (rows for method in comparison.by_method for rows in _lines(comparison, method)):
        style = method_style(comparison, rows[0].setting.method)
        for row in rows:
            if len(row.setting.results) > 1:
                seeds = x(row.setting).mean(axis=1), comparison.reward(row.setting).mean(axis=1)
                axis.plot(*seeds, ".", color=style[0], alpha=0.4, markersize=3.5)
        means = np.array([x(row.setting).mean() for row in rows])
        errors = np.array([1.96 * standard_error(x(row.setting)) for row in rows])
        _curve(axis, rows, means, comparison.primary, style=style, x_errors=errors)
    if comparison.start:
        at = x(comparison.start).mean(), comparison.reward(comparison.start).mean()
        axis.plot(*at, "*", color=INK, markersize=13, linestyle="", label="start", zorder=5)
    axis.set(xlabel=label, ylabel=f"{comparison.primary} reward")
    legend(figure, axis, wide)
    return figure


def _curve(
    axis: "Axes",
    rows: list[Row],
    x: FloatArray,
    reward: str,
    *,
    style: tuple[str, str],
    x_errors: FloatArray | None = None,
) -> None:
    """One method's strengths, joined; hollow markers, but for the chosen strength."""
    colour, marker = style
    estimates = [row.rewards[reward] for row in rows]
    y = np.array([estimate.mean for estimate in estimates])
    errors = np.array([[e.mean - e.low, e.high - e.mean] for e in estimates]).T
    axis.errorbar(x, y, errors, x_errors, color=colour, ecolor=colour + "70", elinewidth=1, linewidth=1.7)
    label = ", ".join(filter(None, [rows[0].setting.name, rows[0].setting.variant]))
    axis.plot([], [], color=colour, marker=marker, label=label)
    for row, x_value, y_value in zip(rows, x, y, strict=True):
        size, face = (7.5, colour) if row.chosen else (5, "white")
        axis.plot(x_value, y_value, marker, color=colour, markersize=size, markerfacecolor=face, zorder=4)


def _strength_axis(axis: "Axes", values: list[float]) -> None:
    """A log axis with the strengths themselves as ticks; linear near zero where a strength is 0."""
    from matplotlib.ticker import NullFormatter

    if values[0] > 0:
        axis.set_xscale("log")
    else:
        axis.set_xscale("symlog", linthresh=min((value for value in values if value > 0), default=1.0))
    if len(values) <= 8:
        axis.set_xticks(values, [f"{value:g}" for value in values])
        axis.xaxis.set_minor_formatter(NullFormatter())


def canvas(width: float, height: float, lines: int, columns: int) -> "tuple[Figure, list[Axes]]":
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(hspace=0.09)
    figure = Figure(figsize=(width, height), layout=layout)
    axes = figure.subplots(lines, columns, squeeze=False)
    return figure, list(axes.ravel())


def legend(figure: "Figure", axis: "Axes", wide: bool) -> None:
    handles, labels = axis.get_legend_handles_labels()
    if wide:
        figure.legend(handles, labels, loc="outside right upper")
    else:
        figure.legend(
            handles, labels, loc="outside upper left", ncols=4, columnspacing=1.2, handletextpad=0.5
        )


def _lines(comparison: Comparison, method: str) -> list[list[Row]]:
    """A method's rows, a list for each of its variants: a line joins strengths and nothing else."""
    rows = [row for row in comparison.rows if row.setting.method == method]
    return [list(group) for _, group in groupby(rows, key=lambda row: row.setting.variant)]


def _logged(comparison: Comparison, setting: Setting, metric: str) -> list[tuple[FloatArray, FloatArray]]:
    """(steps, values) of every seed that logged the metric."""
    seeds = []
    for result in setting.results:
        points = [(row["step"], row[metric]) for row in load_curve(comparison.out, result) if metric in row]
        if points:
            steps, values = np.array(points, dtype=np.float64).T
            seeds.append((steps, values))
    return seeds


def _smooth(values: FloatArray) -> FloatArray:
    """A running mean over a twentieth of the curve, narrower near its ends."""
    half = max(len(values) // 40, 0)
    return np.array([values[max(i - half, 0) : i + half + 1].mean() for i in range(len(values))])
