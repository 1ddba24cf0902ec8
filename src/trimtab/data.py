"""Feedback by name, split by prompt: files, folders, hub names, and the built-in example."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from trimtab.errors import UserError, nearest
from trimtab.feedback.files import exists
from trimtab.feedback.mapped import chosen
from trimtab.feedback.readers import read
from trimtab.feedback.records import Prompt, Record, shown_name

BUILT_IN = ("reviews", "reviews:demonstrations")


def load_records(
    name: str,
    *,
    split: str = "train",
    bad_rows: Literal["stop", "skip"] = "stop",
    rejects: Path | None = None,
) -> Sequence[Record]:
    """The records of a file, a folder or a hub name, or of the built-in reviews.

    `reviews` are the sentences with their human labels as thumbs; `reviews:demonstrations` are all
    of them as demonstrations, whatever their label: the way reviewers write.
    """
    if not is_built_in(name):
        return read(name, split=split, bad_rows=bad_rows, rejects=rejects)
    if name not in BUILT_IN:
        where = shown_name(name)
        raise UserError(f"{where}: the built-in example has no such part; {nearest(name[:80], BUILT_IN)}")
    from trimtab.examples.reviews.data import load

    records = load("held_out" if split == "held_out" else "train")
    if name == "reviews":
        return records
    return [
        Record(kind="demonstration", prompt=r.prompt, responses=r.responses, source=r.source) for r in records
    ]


def is_built_in(name: str) -> bool:
    """Whether the name means the built-in example, or a part of it, and no file."""
    return name.split(":", maxsplit=1)[0] == "reviews" and not exists(name)


def split_by_prompt(records: Sequence[Record], held_out: float) -> tuple[Sequence[Record], Sequence[Record]]:
    """(train, held out): all records of a prompt on one side, decided by a hash of the prompt.

    Raises UserError if either side is empty.
    """
    is_held_out = np.array([_share(record.prompt) < held_out for record in records])
    if is_held_out.all() or not is_held_out.any():
        raise UserError(
            f"{len(records)} records cannot be split with {held_out:.0%} of the prompts held out: "
            "one side would be empty; add data or change `held_out`"
        )
    return chosen(records, ~is_held_out), chosen(records, is_held_out)


def _share(prompt: Prompt) -> float:
    """A number in [0, 1) that depends on the prompt alone."""
    digest = hashlib.sha256(repr(prompt).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
