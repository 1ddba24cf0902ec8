"""The table that `trimtab compare` prints at its end: at most 100 columns wide, readable as plain text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from trimtab.compare.statistics import Estimate
from trimtab.compare.summary import Comparison, Row, load_comparison
from trimtab.compare.verdict import number

if TYPE_CHECKING:
    from rich.table import Table


def summary_table(out: Path) -> Table:
    """One line for the starting model and for each setting; failed runs below, with the reason."""
    from rich.table import Table

    comparison = load_comparison(out)
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), title_justify="left")
    table.title = str(comparison.about.get("name", ""))
    table.caption, table.caption_justify = _caption(comparison), "left"
    table.add_column("", no_wrap=True)
    table.add_column("method")  # the only column that gives way where the terminal is narrow
    for name in (comparison.primary, "Δ start", "wins", "KL", "len", "dist2", "sec", "MB"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in comparison.rows:
        table.add_row(*_cells(row, comparison.primary), style="bold" if row.best else None)
    return table


def _cells(row: Row, primary: str) -> list[str]:
    return [
        "*" if row.best else "+" if row.chosen else "",
        " ".join(filter(None, [row.setting.name, row.setting.choice])),
        _interval(row.rewards[primary]),
        _interval(row.gain, "+"),
        _optional(row.win_rate.mean if row.win_rate else None, 2),
        _optional(row.kl, 1) + ("" if row.kl_error is None else f"±{row.kl_error:.1f}"),
        f"{row.length:.0f}",
        f"{row.distinct:.2f}",
        _optional(row.seconds, 0),
        _optional(row.memory_mb, 0),
    ]


def _caption(comparison: Comparison) -> str:
    halves = " (on the other half of the prompts)" if comparison.halved else ""
    lines = [f"* best, + chosen for its method{halves}; wins: against the start; brackets: 95 % intervals"]
    lines += [f"failed: {result.key}: {result.error or 'no reason given'}" for result in comparison.failed]
    return "\n".join(lines)


def _interval(estimate: Estimate | None, sign: str = "") -> str:
    if estimate is None:
        return "–"
    low_high = f" ({number(estimate.low)}–{number(estimate.high)})" if estimate.n > 1 else ""
    return number(estimate.mean, sign) + low_high


def _optional(value: float | None, digits: int) -> str:
    return "–" if value is None else number(value, digits=digits)
