"""What must hold of every input: it is refused in one sentence that names its place, or taken as it is.

Taken means for feedback: every row is a valid record or among the rejected rows, none is passed over, every
conversion gives valid records or a sentence, and what is written is read again as the same.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from trimtab.errors import UserError
from trimtab.feedback.conversions import ViewOptions
from trimtab.feedback.readers import Reading, read, scan
from trimtab.feedback.records import KINDS, Message, Record
from trimtab.feedback.views import convert
from trimtab.feedback.writers import write

T = TypeVar("T")
LONGEST = 700  # characters of a sentence


@dataclass(frozen=True)
class Case:
    """One input: the files of a folder, of which the first is asked for, or the words of a command."""

    files: dict[str, bytes] = field(default_factory=dict)
    words: tuple[str, ...] = ()
    rows: int | None = None  # how many were written, where damage cannot have changed that
    command: str = ""  # whose words they are

    def write(self, folder: Path) -> Path:
        """Puts the files into the folder; returns the first."""
        for name, content in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return folder / next(iter(self.files))


def one_of(call: Callable[[], T], *places: str) -> tuple[T | None, str]:
    """What the call returns, or the sentence with which it refuses. Anything else breaks the promise."""
    try:
        return call(), ""
    except UserError as error:
        check_sentence(str(error), places)
        return None, str(error)


def check_sentence(text: str, places: Sequence[str] = ()) -> None:
    """A message is one short line that a terminal can show, and names one of the places."""
    assert text and len(text) <= LONGEST, f"a message of {len(text)} characters: {text[:200]!r}"
    assert text.isprintable(), f"a message that cannot be printed: {text!r}"
    assert not places or any(place in text for place in places), f"{text!r} names none of {places}"


def check_feedback(case: Case, folder: Path) -> bool:
    """Whether the file was taken; AssertionError or any other error where a promise is broken."""
    path = case.write(folder)
    reading, _ = one_of(lambda: scan(str(path)), path.name)
    if reading is None:
        refused, _ = one_of(lambda: read(str(path), bad_rows="skip", rejects=folder / "r"), path.name)
        assert refused is None
        return False
    assert case.rows in (None, reading.rows), f"{case.rows} rows were written, {reading.rows} read"
    _check_reading(reading, path, folder)
    if not reading.records:
        return False
    _check_conversions(reading.records)
    _check_round_trip(reading.records, folder)
    return not reading.rejected


def _check_reading(reading: Reading, path: Path, folder: Path) -> None:
    """Every row is a record, a tree without one, or among the rejected, each with its place."""
    for record in reading.records:
        _check_record(record)
        assert record.source.startswith(path.name + ":")
    seen = {record.source for record in reading.records} | {bad.source for bad in reading.rejected}
    assert len(seen) + reading.without_feedback == reading.rows, "a row was passed over"
    for bad in reading.rejected:
        check_sentence(bad.reason)
    rejects = folder / "rejects" / "bad.jsonl"
    stopped, said = one_of(lambda: read(str(path)), path.name + ":", str(path))
    assert bool(said) == (stopped is None) and (stopped is None or not reading.rejected)
    taken, _ = one_of(lambda: read(str(path), bad_rows="skip", rejects=rejects), str(path))
    assert (taken or []) == reading.records
    if reading.rejected:
        lines = rejects.read_text().splitlines()
        assert [json.loads(line)["source"] for line in lines] == [bad.source for bad in reading.rejected]


def _check_record(record: Record) -> None:
    """It says what its types say, in text that can be written, with numbers that can be counted with."""
    turns = record.prompt if isinstance(record.prompt, tuple) else (record.prompt,)
    texts = [turn.content if isinstance(turn, Message) else turn for turn in turns]
    for text in (*texts, *record.responses):
        assert isinstance(text, str)
        text.encode()
    assert all(type(rank) is int for rank in record.ranks)
    assert all(type(score) is float and math.isfinite(score) for score in record.scores)
    assert record.desirable in (None, True, False)
    assert replace(record) == record or record.columns != record.columns  # NaN in a column


def _check_conversions(records: list[Record]) -> None:
    for to in KINDS:
        for options in (ViewOptions(), ViewOptions(threshold=0.5, pairs="adjacent", turns="all")):
            found, _ = one_of(lambda to=to, options=options: convert(records, to, options))  # type: ignore[misc]
            for record in found or []:
                _check_record(record)
                assert record.kind == to


def _said(record: Record) -> tuple[Any, ...]:
    return (
        record.kind, record.prompt, record.responses, record.ranks, record.scores, record.desirable,
        record.margin,
    )  # fmt: skip


def _check_round_trip(records: list[Record], folder: Path) -> None:
    """Written and read they are the same, in every format that takes them."""
    for ending in (".jsonl", ".csv", ".parquet"):
        target = folder / f"written{ending}"
        _, said = one_of(lambda target=target: write(records, target, overwrite=True), str(target))  # type: ignore[misc]
        if said:
            assert ending != ".jsonl", said
            continue
        again = read(str(target))
        assert list(map(_said, again)) == list(map(_said, records)), ending
        if ending == ".jsonl":
            for before, after in zip(records, again, strict=True):
                kept = {name: before.columns[name] for name in after.columns}
                assert json.dumps(kept, default=str) == json.dumps(after.columns), "a column has changed"


def check_numbers(options: Any) -> None:
    """No dataclass of options holds a number that is none, or text that cannot be written."""
    for item in fields(options) if is_dataclass(options) else ():
        value = getattr(options, item.name)
        for part in value if isinstance(value, list | tuple) else [value]:
            assert not (isinstance(part, float) and math.isnan(part)), f"{item.name} is {part}"
            assert not (isinstance(part, int) and abs(part) >= 2**63), f"{item.name} is {part}"
            if isinstance(part, str | Path):
                str(part).encode()
                assert "\x00" not in str(part), item.name
            check_numbers(part)
