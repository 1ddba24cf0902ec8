"""What every measurement here can say of itself: a row of a table, and whether it missed its bound."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class Measured(Protocol):
    """One row. `cells` has the title first; `missed` tells that it is further off than it may be."""

    @property
    def cells(self) -> tuple[str, ...]: ...
    @property
    def missed(self) -> bool: ...


def table(header: Sequence[str], rows: Sequence[Measured]) -> str:
    """Rows in Markdown, their titles as code."""
    lines = [_line(header), "|" + "---|" * len(header)]
    return "\n".join(lines + [_line((f"`{row.cells[0]}`", *row.cells[1:])) for row in rows])


def titled(method: str, parameters: Mapping[str, Any]) -> str:
    """A method with its parameters, as a user would write them."""
    return " ".join([method, *(f"{name}={value}" for name, value in parameters.items())])


def figure(value: float) -> str:
    """Four digits; what is smaller is rounding."""
    return "< 0.0001" if value < 1e-4 else f"{value:.4f}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
