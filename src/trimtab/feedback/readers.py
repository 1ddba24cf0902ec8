"""Reads feedback: rows from a file are recognised by their content and become records."""

import json
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from trimtab.errors import UserError
from trimtab.feedback.files import REJECTED, raw_rows
from trimtab.feedback.mapped import Spill
from trimtab.feedback.records import Record, shown_name
from trimtab.feedback.shapes import recognise

log = logging.getLogger("trimtab")


@dataclass(frozen=True, slots=True)
class RejectedRow:
    """A row that is not feedback, with the reason."""

    source: str  # "file.jsonl:12"
    reason: str
    row: Any


@dataclass
class Reading:
    """All that a file holds: the good rows as records, the bad rows with their reasons."""

    name: str
    records: list[Record] = field(default_factory=list)
    rejected: list[RejectedRow] = field(default_factory=list)
    shapes: Counter[str] = field(default_factory=Counter)  # name of the shape -> rows
    without_feedback: int = 0  # good rows that yield no record: message trees without a ranking

    @property
    def rows(self) -> int:
        """How many rows were read, good and bad."""
        return self.shapes.total() + len(self.rejected)


def scan(path_or_name: str, split: str = "train") -> Reading:
    """Reads everything and keeps bad rows aside.

    path_or_name: a .json, .jsonl, .csv or .parquet file (the text formats also .gz), a folder of them, a
    folder saved by `datasets`, or a dataset's name on the hub, "name" or "name:configuration".
    Raises UserError if it cannot be read at all, or holds no rows.
    """
    reading = Reading(path_or_name)
    _scan(reading, split, reading.records.extend)
    return reading


def _scan(reading: Reading, split: str, keep: Callable[[list[Record]], None]) -> None:
    """Reads all rows; hands the records over, row by row, and notes the rest."""
    try:
        _each(reading, split, keep)
    except MemoryError:
        raise UserError(
            f"{shown_name(reading.name)}: it does not fit into memory; cut it into smaller files"
        ) from None


def _each(reading: Reading, split: str, keep: Callable[[list[Record]], None]) -> None:
    for raw in raw_rows(reading.name, split):
        try:
            if raw.problem:
                raise UserError(raw.problem)
            shape = recognise(raw.value)
            records = shape.records(raw.value, raw.source)
        except UserError as error:
            reading.rejected.append(RejectedRow(raw.source, str(error), raw.value))
            continue
        reading.shapes[shape.name] += 1
        reading.without_feedback += not records
        keep(records)
    if not reading.rows:
        raise UserError(f"{shown_name(reading.name)}: there are no rows in it")


def read(
    path_or_name: str,
    *,
    bad_rows: Literal["stop", "skip"] = "stop",
    rejects: Path | None = None,
    split: str = "train",
) -> Sequence[Record]:
    """The records of a file, a folder or a dataset (see `scan`): a list, or, of very many, what is mapped.

    bad_rows: "stop" raises UserError at the first bad row; "skip" writes the bad rows with their reasons to
    `rejects` (NAME.rejected.jsonl in the current folder if not given) and warns how many there were.
    Raises UserError if no good row is left.
    """
    reading, spill = Reading(path_or_name), Spill()
    _scan(reading, split, spill.extend)
    records = spill.done()
    if reading.rejected and bad_rows == "stop":
        first = reading.rejected[0]
        raise UserError(
            f"{first.source}: {first.reason}; fix the row, or pass --bad-rows skip to leave bad rows out"
        )
    if reading.rejected:
        target = rejects or Path(_stem(path_or_name) + REJECTED)
        if target.resolve() == Path(path_or_name).resolve():
            raise UserError(
                f"{shown_name(target)}: the bad rows would replace the file that they come from; rename it"
            )
        write_rejected(reading.rejected, target)
        bad = f"{len(reading.rejected)} of {reading.rows} rows are bad and left out"
        log.warning(f"{shown_name(path_or_name)}: {bad}; they and the reasons are in {shown_name(target)}")
    if not records:
        reason = f"; the first bad row: {reading.rejected[0].reason}" if reading.rejected else ""
        raise UserError(f"{shown_name(path_or_name)}: none of its {reading.rows} rows holds feedback{reason}")
    if reading.without_feedback:
        empty = f"{reading.without_feedback} of {reading.rows} rows"
        log.warning(
            f"{shown_name(path_or_name)}: {empty} hold no ranking of two responses or more and yield nothing"
        )
    return records


def write_rejected(rejected: list[RejectedRow], path: Path) -> None:
    """Writes bad rows as JSON Lines: {"source", "reason", "row"}. A former file of the name is replaced.

    Raises UserError if the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8") as file:
            for bad in rejected:
                line = {"source": bad.source, "reason": bad.reason, "row": bad.row}
                # ASCII, because a row may be bad for holding what UTF-8 cannot say; str for dates in Parquet.
                file.write(json.dumps(line, default=str) + "\n")
    except (OSError, ValueError) as error:  # ValueError for a name that holds a zero byte
        raise UserError(
            f"{shown_name(path)}: cannot write the bad rows ({getattr(error, 'strerror', error)})"
        ) from error


def _stem(path_or_name: str) -> str:
    """The name without folders and endings: "data/pairs.jsonl.gz" -> "pairs"."""
    return Path(path_or_name).name.split(".")[0].replace(":", "-") or "data"
