"""The errors that a user sees: one plain sentence each, never a traceback."""

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
