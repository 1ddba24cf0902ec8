"""The errors that a user sees: one plain sentence each, never a traceback."""

import math
from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """The input is wrong; the message says where, what is wrong, and what to do."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error message: the nearest known name, or all of them.

    Returns "did you mean 'beta'?" if one is near, else "known: a, b, c".
    """
    names = sorted(known)
    match = get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {match[0]!r}?" if match else "known: " + ", ".join(names)


def check_bounds(options: object, **bounds: tuple[float, float]) -> None:
    """Raises UserError if a field of `options` is outside its (low, high), ends included; None passes."""
    for name, (low, high) in bounds.items():
        value = getattr(options, name)
        if value is not None and not low <= value <= high:
            wanted = f"{low:g} or more" if high == math.inf else f"from {low:g} to {high:g}"
            raise UserError(f"{name} is {value:g}; it must be {wanted}")


def check_positive(options: object, *names: str) -> None:
    """Raises UserError if a field of `options` is not a finite number above zero; None passes."""
    for name in names:
        value = getattr(options, name)
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"{name} is {value:g}; it must be a number above 0")
