"""The errors that a user sees: one plain sentence each, never a traceback."""

import errno
import math
import re
from collections.abc import Iterable
from difflib import get_close_matches

MOST = 20  # names that a sentence lists


class UserError(Exception):
    """The input is wrong; the message says where, what is wrong, and what to do."""


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error message: the nearest known name, or all of them if they are not too many.

    Returns "did you mean 'beta'?" if one is near, else "known: a, b, c".
    """
    names = sorted(known)
    match = get_close_matches(name, names, n=1, cutoff=0.5)
    if match:
        return f"did you mean {match[0]!r}?"
    more = f" and {len(names) - MOST} more" if len(names) > MOST else ""
    return "known: " + ", ".join(names[:MOST]) + more


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


NO_MEMORY = re.compile(  # as CUDA, torch's CPU allocator, MPS, cuBLAS and oneDNN say it
    r"out of memory|allocate memory|invalid buffer size|alloc_failed|could not create a (primitive$|memory)",
    re.IGNORECASE | re.MULTILINE,
)


def ran_out_of_memory(error: BaseException) -> str | None:
    """How much more memory was asked for, such as "2.00 GiB", empty if unknown; None for other errors.

    Python, numpy and torch have errors of their own for it; torch on a CPU raises a plain RuntimeError.
    """
    said = str(error)
    named = any(cls.__name__ == "OutOfMemoryError" for cls in type(error).__mro__)
    plain = isinstance(error, RuntimeError) and NO_MEMORY.search(said) is not None
    if not (named or plain or isinstance(error, MemoryError) or getattr(error, "errno", 0) == errno.ENOMEM):
        return None
    asked = re.search(r"allocate ([\d.]+ ?[KMGTPE]?i?B(?:ytes)?)\b", said, re.IGNORECASE)
    return asked[1] if asked else ""


STORAGE = {
    errno.ENOSPC: "the disk is full; free some space, or write to another disk",
    errno.EDQUOT: "your share of the disk is used up; free some space, or write to another disk",
    errno.EFBIG: "a file may not grow larger here; write to another disk, or raise the limit (ulimit -f)",
    errno.EROFS: "the disk is read-only; choose another folder",
    errno.EACCES: "there is no permission to use it; change its permissions, or choose another folder",
    errno.EPERM: "there is no permission to use it; change its permissions, or choose another folder",
    errno.ENOTDIR: "a part of this path is a file, not a folder; choose another folder",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    errno.EIO: "the disk does not answer as it should (input/output error); look after it, or take another",
}


def storage_failed(error: BaseException, place: str) -> str | None:
    """The sentence for a disk or folder that does not take what is written; None for other errors.

    Args:
        place: what the sentence names where the error names no path.
    """
    # safetensors and tokenizers, written in Rust, say the number in their text alone
    in_text = re.search(r"\(os error (\d+)\)", str(error))
    number = getattr(error, "errno", None) or (int(in_text[1]) if in_text else 0)
    if number not in STORAGE:
        return None
    return f"{getattr(error, 'filename', None) or place}: {STORAGE[number]}"
