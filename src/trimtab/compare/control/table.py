"""The table that a comparison in environments prints at its end: at most 100 columns wide."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from trimtab.compare.control.config import Score
from trimtab.compare.control.summary import ControlComparison, Row, load_control_comparison
from trimtab.compare.control.verdict import overall, score
from trimtab.compare.statistics import Estimate
from trimtab.compare.verdict import number
from trimtab.rollouts.environment import LAST

if TYPE_CHECKING:
    from rich.table import Table

EPISODES: dict[Score, str] = {
    "deterministic": "deterministic episodes",
    "drawn": "episodes with drawn actions",
    "training": f"the last {LAST} training episodes",
}


def control_table(out: Path) -> Table:
    """For each environment a line for each method, then the untrained policy; failed runs below."""
    from rich.table import Table

    comparison = load_control_comparison(out)
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), title_justify="left")
    table.title = str(comparison.about.get("name", ""))
    table.caption, table.caption_justify = _caption(comparison), "left"
    table.add_column("", no_wrap=True)
    table.add_column("method")  # the only column that gives way where the terminal is narrow
    for name in ("seeds", "return", "worst", "drawn", "90 % at", "sec", "steps/s"):
        table.add_column(name, justify="right", no_wrap=True)
    for env, rows in comparison.rows.items():
        _heading(table, env)
        for row in rows:
            table.add_row(*_cells(row), style="bold" if row.best else None)
    envs = overall(comparison)
    if len(envs) > 1:
        _heading(table, f"{len(envs)} environments, normalised")
        for place, contender in enumerate(comparison.ranking(envs)):
            estimate = comparison.estimate(contender, envs)
            cells = ("*" if place == 0 else "", contender.label, str(estimate.n), _interval(estimate, number))
            table.add_row(*cells, style="bold" if place == 0 else None)
    return table


def _heading(table: Table, text: str) -> None:
    if table.row_count:
        table.add_row()
    table.add_row("", text, style="underline")


def _cells(row: Row) -> list[str]:
    return [
        "*" if row.best else "",
        row.contender.label,
        str(row.seeds),
        _interval(row.score, score),
        score(row.worst),
        score(row.drawn),
        reached(row),
        _whole(row.seconds),
        _whole(row.speed),
    ]


def reached(row: Row) -> str:
    """12,300, or `not reached`; nothing for a policy that was not trained."""
    if row.steps is None:
        return "–"
    return "not reached" if row.steps_to is None else f"{row.steps_to:,.0f}"


def _whole(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def _interval(estimate: Estimate, text: Callable[[float], str]) -> str:
    ends = f" ({text(estimate.low)} to {text(estimate.high)})" if estimate.n > 1 else ""
    return f"{text(estimate.mean)}{ends}"


def _caption(comparison: ControlComparison) -> str:
    episodes = EPISODES[comparison.score]
    lines = [
        f"* best; return: interquartile mean over seeds of {episodes} (95 % interval);",
        "drawn: mean return with drawn actions; 90 % at: steps to 0.9 of the best, counted from untrained",
    ]
    lines += [f"failed: {result.key}: {result.error or 'no reason given'}" for result in comparison.failed]
    return "\n".join(lines)
