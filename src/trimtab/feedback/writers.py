"""Writes records in the shapes of the field: TRL's, ShareGPT's, Alpaca's."""

import csv
import gzip
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from io import StringIO
from pathlib import Path
from typing import Any

from trimtab.errors import UserError, nearest
from trimtab.feedback.files import exists, file_format
from trimtab.feedback.records import Message, Record, as_conversation, printable, shown, shown_name
from trimtab.feedback.shapes import Shape, recognise

Row = dict[str, Any]

SHAREGPT_ROLES = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}


def write(
    records: Sequence[Record], path: str | Path, shape: str = "trl", *, overwrite: bool = False
) -> None:
    """Writes records to a .jsonl, .json, .csv (each also .gz), .parquet or .arrow file, whole or not at all.

    shape: a name in LAYOUTS. "trl" keeps every kind; "sharegpt" and "alpaca" make a user turn of a text
    prompt, and take only the kinds that those shapes know. The row's other columns are kept, unless one
    would change what the row is read as.
    Raises UserError if the file exists and `overwrite` is false, or the records do not go into the shape.
    """
    path = Path(path)
    ending = file_format(path)
    if shape not in LAYOUTS:
        raise UserError(f"unknown shape {shape!r}; {nearest(shape, LAYOUTS)}")
    if exists(str(path)) and not overwrite:
        raise UserError(
            f"{shown_name(path)} exists already; choose another name, or pass --overwrite to replace it"
        )
    rows = (_with_columns(LAYOUTS[shape](record), record) for record in records)
    if ending in (".parquet", ".arrow"):
        table = _arrow(list(rows), path)
        _atomically(path, lambda target: _write_table(table, target, path))
    else:
        text = [_csv(list(rows), path)] if ending.startswith(".csv") else _json(rows, ending)
        _atomically(path, lambda target: _write_text(text, target, ending))


def trl(record: Record) -> Row:
    """TRL's shapes, text or conversational; `responses` with `ranks` or `scores` for several responses."""
    row: Row = {"prompt": record.prompt}
    if record.kind == "pair":
        row |= {"chosen": _trl_response(record, 0), "rejected": _trl_response(record, 1)}
        if record.margin is not None:
            row["margin"] = record.margin
    elif record.kind == "ranking":
        row |= {"responses": list(record.responses), "ranks": list(record.ranks)}
    elif len(record.responses) > 1:
        row |= {"responses": list(record.responses), "scores": list(record.scores)}
    elif record.responses:
        row["completion"] = _trl_response(record, 0)
    if record.kind == "thumbs":
        row["label"] = record.desirable
    if record.kind == "score" and len(record.responses) == 1:
        row["reward"] = record.scores[0]
    if not isinstance(record.prompt, str):
        row["prompt"] = [_trl_message(turn) for turn in record.prompt]
    return row


def sharegpt(record: Record) -> Row:
    """`conversations` with from and value; `chosen` and `rejected`, or `label`, beside it."""
    turns = [_sharegpt_message(turn) for turn in _turns(record, "sharegpt")]
    if record.kind == "pair":
        chosen, rejected = (_sharegpt_message(Message("assistant", text)) for text in record.responses)
        row: Row = {"conversations": turns, "chosen": chosen, "rejected": rejected}
    else:
        row = {"conversations": [*turns, _sharegpt_message(Message("assistant", record.responses[0]))]}
    return row | _judgement(record)


def alpaca(record: Record) -> Row:
    """`instruction`, `input`, `output`, with `system` and `history` where there are earlier turns."""
    turns = list(_turns(record, "alpaca"))
    row: Row = {"instruction": turns[-1].content, "input": ""}
    if turns[0].role == "system":
        row["system"] = turns.pop(0).content
    earlier = turns[:-1]
    if [turn.role for turn in turns] != ["user", "assistant"] * (len(earlier) // 2) + ["user"]:
        raise UserError(
            _place(record) + "an Alpaca row holds turns of user and assistant in alternation only"
        )
    if earlier:
        texts = [turn.content for turn in earlier]
        row["history"] = [list(both) for both in zip(texts[::2], texts[1::2], strict=True)]
    if record.kind == "pair":
        row |= {"chosen": record.responses[0], "rejected": record.responses[1]}
    else:
        row["output"] = record.responses[0]
    return row | _judgement(record)


LAYOUTS: dict[str, Callable[[Record], Row]] = {"trl": trl, "sharegpt": sharegpt, "alpaca": alpaca}


def _turns(record: Record, shape: str) -> tuple[Message, ...]:
    """The prompt's turns, for a shape that holds one judged response, or a pair, after a conversation."""
    if record.kind in ("ranking", "score", "prompt"):
        raise UserError(f"the {shape} shape has no place for a {record.kind} record; write the trl shape")
    turns = as_conversation(record.prompt)
    if not turns:
        raise UserError(_place(record) + f"the {shape} shape needs a prompt, and this one is empty")
    return turns


def _judgement(record: Record) -> Row:
    """The label of thumbs, the margin of a pair."""
    if record.kind == "thumbs":
        return {"label": record.desirable}
    return {} if record.margin is None else {"margin": record.margin}


def _trl_message(turn: Message) -> Row:
    return {"role": turn.role, "content": turn.content}


def _trl_response(record: Record, index: int) -> str | list[Row]:
    """Text after a text prompt, one assistant message after a conversation."""
    text = record.responses[index]
    return text if isinstance(record.prompt, str) else [_trl_message(Message("assistant", text))]


def _sharegpt_message(turn: Message) -> Row:
    return {"from": SHAREGPT_ROLES[turn.role], "value": turn.content}


def _with_columns(row: Row, record: Record) -> Row:
    """Adds the record's other columns, except those that belong to the shape or turn it into another."""
    shape = recognise(row)
    for name, value in record.columns.items():
        if name not in shape.optional and _is_of({**row, name: value}, shape):
            row.setdefault(name, value)
    return row


def _is_of(row: Row, shape: Shape) -> bool:
    try:
        return recognise(row) is shape
    except UserError:  # a prompt beside a label, say, is no shape at all
        return False


def _json(rows: Iterable[Row], ending: str) -> Iterator[str]:
    """The text in parts: rows need not be in memory together."""
    lines = (json.dumps(row, ensure_ascii=False, default=str) for row in rows)
    if ending.startswith(".jsonl"):
        yield from (line + "\n" for line in lines)
        return
    yield "[\n" + next(lines, "")
    yield from (",\n" + line for line in lines)
    yield "\n]\n"


def _write_text(parts: Iterable[str], target: Path, ending: str) -> None:
    with target.open("wb") as file:
        # without a time stamp and a name the same records give the same bytes
        packed = (
            gzip.GzipFile("", "wb", fileobj=file, mtime=0) if ending.endswith(".gz") else nullcontext(file)
        )
        with packed as stream:
            for part in parts:
                stream.write(part.encode())


def _csv(rows: list[Row], path: Path) -> str:
    """CSV text with a header. Raises UserError for what has no cells: lists, mixed kinds."""
    for row in rows:
        nested = [name for name, value in row.items() if isinstance(value, list | dict)]
        if nested:
            column = shown(nested[0])
            raise UserError(
                f"{shown_name(path)}: CSV cannot hold the messages or lists in {column}; "
                "write .jsonl or .parquet"
            )
    names = _column_names(rows, path)
    if padded := [name for name in names if name != name.strip()]:
        raise UserError(
            f"{shown_name(path)}: CSV loses the space at an end of the column name {shown(padded[0])}; "
            "write .jsonl"
        )
    text = StringIO(newline="")
    writer = csv.DictWriter(text, names)  # ends lines with CRLF, so that a lone CR in a cell is quoted too
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _column_names(rows: list[Row], path: Path) -> list[str]:
    """All columns. In a table every row has every column, so that rows of two shapes would look alike."""
    kinds = {recognise(row).name for row in rows}
    if len(kinds) > 1:
        raise UserError(
            f"{shown_name(path)}: a table cannot mix {' and '.join(sorted(kinds))} rows; write .jsonl"
        )
    return list(dict.fromkeys(name for row in rows for name in row))


def _arrow(rows: list[Row], path: Path) -> Any:
    """The rows as Arrow's table."""
    import pyarrow

    names = _column_names(rows, path)
    try:
        return pyarrow.Table.from_pylist([{name: row.get(name) for name in names} for row in rows])
    except (pyarrow.ArrowException, OverflowError) as error:  # the latter for whole numbers of over 64 bits
        raise _no_type(path, error) from error


def _no_type(path: Path, error: Exception) -> UserError:
    what = "Arrow" if path.name.lower().endswith(".arrow") else "Parquet"
    return UserError(
        f"{shown_name(path)}: a column mixes types, which {what} cannot hold, or has no type there "
        f"({_one_line(error)}); write .jsonl"
    )


def _write_table(table: Any, target: Path, path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    if path.name.lower().endswith(".arrow"):
        with pyarrow.OSFile(str(target), "wb") as file, pyarrow.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        return
    try:
        pyarrow.parquet.write_table(table, target)
    except (pyarrow.ArrowException, OverflowError) as error:
        raise _no_type(path, error) from error
    try:
        pyarrow.parquet.ParquetFile(target).close()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(
            f"{shown_name(path)}: a column is nested too deeply for Parquet; write .jsonl"
        ) from error


def _atomically(path: Path, fill: Callable[[Path], object]) -> None:
    """Fills a temporary file beside `path`, flushes it to disk and renames it to `path`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            fill(temporary)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, ValueError) as error:  # ValueError for a name that holds a zero byte
        raise UserError(f"{shown_name(path)}: cannot write the file ({_one_line(error)})") from error


def _one_line(error: Exception) -> str:
    return printable(" ".join(str(getattr(error, "strerror", None) or error).split()))


def _place(record: Record) -> str:
    return f"{record.source}: " if record.source else ""
