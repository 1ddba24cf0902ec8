"""Feedback larger than memory: what grows with the rows of a file lies on the disk and is memory-mapped.

    file --read--> records --convert, one by one--> tokens --train--> batches of a few rows
                      |                                |
                MappedRecords               TokenRows, Examples      lists and arrays while there is little,
                an Arrow file               arrays of numbers        files without a name from then on

The files are made in the cache folder and have no name there, so that they are gone with the process, however
it ends. The system keeps in memory what is read of them for as long as there is room, and no longer.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, islice, pairwise
from math import isnan
from mmap import mmap
from typing import IO, Any, TypeVar, overload

import numpy as np

from trimtab.feedback.kept import from_json, to_json
from trimtab.feedback.numbers import MARK, mapped, mark, onto_the_disk, unnamed
from trimtab.feedback.records import KINDS, Kind, Message, Record

FEW_RECORDS = 20_000  # that stay in memory, if their texts together have at most FEW_CHARACTERS
FEW_CHARACTERS = 2**26
CHUNK = 1000  # records that are written, read and tokenised at once
CHUNK_CHARACTERS = 2**22  # or fewer records, with about so many characters

Thing = TypeVar("Thing")


def chunks(things: Iterable[Thing], size: int = CHUNK) -> Iterator[list[Thing]]:
    """The things in lists of `size`, the last one shorter."""
    left = iter(things)
    while chunk := list(islice(left, size)):
        yield chunk


class Spill:
    """Records as they come: a list while they are few, a file from then on."""

    def __init__(self) -> None:
        self._held: list[Record] = []  # what is not in the file
        self._characters = 0  # of what is held
        self._file: IO[bytes] | None = None
        self._writer: Any = None

    def extend(self, records: Iterable[Record]) -> None:
        """Takes over some more of them."""
        for record in records:
            self._held.append(record)
            self._characters += _characters(record)
            few = (CHUNK, CHUNK_CHARACTERS) if self._writer else (FEW_RECORDS, FEW_CHARACTERS)
            if len(self._held) > few[0] or self._characters > few[1]:
                self._write()

    def done(self) -> Sequence[Record]:
        """All of them."""
        if self._file is None:
            return self._held
        self._write()
        with onto_the_disk():
            self._writer.close()
        return MappedRecords(_batches(mapped(self._file)))

    def _write(self) -> None:
        import pyarrow

        if self._file is None:
            self._file = unnamed()
            self._writer = pyarrow.ipc.new_file(self._file, _schema())
        size = len(self._held) * CHUNK_CHARACTERS // max(1, self._characters)
        with onto_the_disk():
            for chunk in chunks(self._held, min(CHUNK, max(1, size))):
                self._writer.write_batch(_batch(chunk))
        self._held, self._characters = [], 0


def kept(records: Iterable[Record]) -> Sequence[Record]:
    """The records as a list, or, if they are many, on the disk."""
    spill = Spill()
    spill.extend(records)
    return spill.done()


class MappedRecords(Sequence[Record]):
    """Records of a mapped Arrow file, all of them or a choice; a Record is made when it is asked for.

    Args:
        batches: Arrow's record batches, which hold nothing in memory.
        chosen: the numbers of the records, in the order wanted; None for all.
    """

    def __init__(self, batches: list[Any], chosen: np.ndarray | None = None) -> None:
        self._batches = batches
        self._starts = np.cumsum([0, *(batch.num_rows for batch in batches)])
        self._chosen = np.arange(self._starts[-1]) if chosen is None else chosen

    def __len__(self) -> int:
        return len(self._chosen)

    def __iter__(self) -> Iterator[Record]:
        for start in range(0, len(self), CHUNK):
            yield from self._take(self._chosen[start : start + CHUNK])

    @overload
    def __getitem__(self, place: int) -> Record: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Record]: ...
    def __getitem__(self, place: int | slice) -> Record | Sequence[Record]:
        if isinstance(place, slice):
            return MappedRecords(self._batches, self._chosen[place])
        return next(self._take(self._chosen[[place]]))

    def select(self, places: Any) -> "MappedRecords":
        """Those at these places, in their order."""
        return MappedRecords(self._batches, self._chosen[places])

    def kinds(self) -> dict[Kind, np.ndarray]:
        """The places of each kind's records, in the order in which kinds first come."""
        codes = np.concatenate([batch.column("kind").to_numpy() for batch in self._batches])[self._chosen]
        firsts = sorted(np.unique(codes, return_index=True)[1])
        return {KINDS[codes[first]]: np.flatnonzero(codes == codes[first]) for first in firsts}

    def marks(self) -> np.ndarray:
        """A mark of each record's prompt."""
        return np.frombuffer(b"".join(mark(record.prompt) for record in self), MARK)

    def has_conversations(self) -> bool:
        """Whether a prompt is a conversation."""
        texts = [batch.column("prompt").is_valid().to_numpy(False) for batch in self._batches]
        return not np.concatenate(texts)[self._chosen].all()

    def _take(self, numbers: np.ndarray) -> Iterator[Record]:
        owners = np.searchsorted(self._starts, numbers, side="right") - 1
        for owner, group in groupby(range(len(numbers)), key=owners.tolist().__getitem__):
            batch, inside = self._batches[owner], numbers[list(group)] - self._starts[owner]
            whole = len(inside) == batch.num_rows and (inside == np.arange(len(inside))).all()
            yield from _records(batch if whole else batch.take(inside))


def by_kind(records: Sequence[Record]) -> dict[Kind, Sequence[Record]]:
    """The records of each kind, in the order in which kinds first come."""
    found: dict[Kind, Any] = {}
    if isinstance(records, MappedRecords):
        return {kind: records.select(places) for kind, places in records.kinds().items()}
    for record in records:
        found.setdefault(record.kind, []).append(record)
    return found


def chosen(records: Sequence[Record], wanted: np.ndarray) -> Sequence[Record]:
    """The records whose place is true in `wanted`, [N]."""
    places = np.flatnonzero(wanted)
    if isinstance(records, MappedRecords):
        return records.select(places)
    return [records[place] for place in places.tolist()]


def has_conversations(records: Sequence[Record]) -> bool:
    """Whether a prompt among them is a conversation."""
    if isinstance(records, MappedRecords):
        return records.has_conversations()
    return any(not isinstance(record.prompt, str) for record in records)


def _characters(record: Record) -> int:
    """Of all texts in it, but for what is nested in other columns."""
    prompt = record.prompt
    asked = len(prompt) if isinstance(prompt, str) else sum(len(turn.content) for turn in prompt)
    others = sum(len(value) for value in record.columns.values() if isinstance(value, str))
    return asked + sum(map(len, record.responses)) + others


def _schema() -> Any:
    import pyarrow as pa

    texts = pa.list_(pa.large_string())
    fields = {"kind": pa.uint8(), "prompt": pa.large_string(), "turns": texts, "responses": texts}
    fields |= {"ranks": pa.list_(pa.int64()), "scores": pa.list_(pa.float64())}
    fields |= {"desirable": pa.bool_(), "margin": pa.float64(), "source": pa.string()}
    return pa.schema(fields | {"columns": pa.large_binary()})


def _batch(records: Sequence[Record]) -> Any:
    """A record batch. A conversation is written as its roles and contents in turn, beside an empty prompt."""
    import pyarrow

    rows = [
        (
            KINDS.index(r.kind),
            r.prompt if isinstance(r.prompt, str) else None,
            [] if isinstance(r.prompt, str) else [s for turn in r.prompt for s in (turn.role, turn.content)],
            r.responses, r.ranks, r.scores, r.desirable, r.margin, r.source,
            to_json(r.columns, r.source) if r.columns else None,
        )
        for r in records
    ]  # fmt: skip
    columns = [pyarrow.array(c, f.type) for c, f in zip(zip(*rows, strict=True), _schema(), strict=True)]
    return pyarrow.record_batch(columns, schema=_schema())


def _batches(content: mmap) -> list[Any]:
    import pyarrow

    reader = pyarrow.ipc.open_file(pyarrow.py_buffer(content))
    return [reader.get_batch(i) for i in range(reader.num_record_batches)]


def _records(batch: Any) -> Iterator[Record]:
    lists = ("turns", "responses", "ranks", "scores")
    read = (_lists if name in lists else _values for name in batch.schema.names)
    columns = [of(batch.column(name)) for of, name in zip(read, batch.schema.names, strict=True)]
    for kind, text, turns, responses, ranks, scores, desirable, margin, source, others in zip(
        *columns, strict=True
    ):
        prompt = tuple(map(Message, turns[::2], turns[1::2])) if text is None else text
        label = None if desirable is None else bool(desirable)
        yield Record(
            KINDS[kind], prompt, responses, ranks, scores, label,
            None if isnan(margin) else margin,
            source, from_json(others) if others else {},
        )  # fmt: skip


def _values(column: Any) -> list[Any]:
    return column.to_numpy(zero_copy_only=False).tolist()


def _lists(column: Any) -> list[tuple[Any, ...]]:
    values = _values(column.values)
    return [tuple(values[start:end]) for start, end in pairwise(column.offsets.to_numpy().tolist())]
