"""From a file, a folder or a dataset's name to rows, each with its place for error messages."""

import csv
import gzip
import json
import re
import sys
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from trimtab.errors import UserError, nearest
from trimtab.hub import hub_answers

FORMATS = (".json", ".jsonl", ".csv", ".parquet")
COMPRESSED = (".json.gz", ".jsonl.gz", ".csv.gz")
REJECTED = ".rejected.jsonl"  # the end of the name of files that hold rows left out

# Without a file of this name: "imdb", "openai/gsm8k", "openai/gsm8k:main".
HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?(:[\w.-]+)?")


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row as it stands in its file. `problem` says why `value`, then its raw text, is not an object."""

    source: str  # "file.jsonl:12": the line, or for Parquet and datasets the row, counted from 1
    value: Any
    problem: str = ""


def raw_rows(path_or_name: str, split: str = "train") -> Iterator[RawRow]:
    """The rows of a data file, of a folder of them, of a saved `datasets` folder, or of a dataset on the hub.

    Raises UserError if there is nothing of that name or a file cannot be read to its end.
    """
    path = Path(path_or_name)
    if path.is_dir():
        if any((path / name).is_file() for name in ("dataset_info.json", "dataset_dict.json")):
            yield from _saved_dataset(path, split)
        else:
            for file in _data_files(path, split):
                yield from _file_rows(file, str(file.relative_to(path)))
    elif path.is_file():
        yield from _file_rows(path, path.name)
    else:
        yield from _hub_rows(path_or_name, split)


def file_format(path: Path) -> str:
    """One of FORMATS or COMPRESSED. Raises UserError for a name that ends otherwise."""
    name = path.name.lower()
    for ending in (*COMPRESSED, *FORMATS):
        if name.endswith(ending):
            return ending
    raise UserError(f"{path}: the name must end in one of {', '.join((*FORMATS, *COMPRESSED))}")


def _file_rows(path: Path, name: str) -> Iterator[RawRow]:
    ending = file_format(path)
    if ending == ".parquet":
        yield from _parquet_rows(path, name)
        return
    content = _decode(_contents(path), name)
    if ending.startswith(".csv"):
        yield from _csv_rows(content, name)
    elif content.lstrip().startswith("["):
        yield from _array_rows(content, name)
    else:
        yield from _line_rows(content, name)


def _contents(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if path.name.lower().endswith(".gz") else data
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot read the file ({error})") from error


def _decode(data: bytes, name: str) -> str:
    """Text from UTF-8, or from UTF-16 with its byte order mark."""
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        byte = data[min(error.start, len(data) - 1)]
        raise UserError(
            f"{name}:{line}: the file is not UTF-8 text (byte 0x{byte:02x}); save it as UTF-8, "
            f"for example with iconv -t UTF-8 -f and its encoding"
        ) from error


def _line_rows(content: str, name: str) -> Iterator[RawRow]:
    """JSON Lines. Lines end with a line feed alone: U+2028 may stand inside of text."""
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            try:
                yield _row(f"{name}:{number}", json.loads(line))
            except (json.JSONDecodeError, RecursionError) as error:
                yield RawRow(f"{name}:{number}", line, _broken(error))


def _array_rows(content: str, name: str) -> Iterator[RawRow]:
    """The elements of one JSON array, each with the line where it starts. Broken JSON ends the file."""
    decoder = json.JSONDecoder()
    start, line, position = 0, 1, content.index("[") + 1
    while True:
        position = _skip_space(content, position)
        if content[position : position + 1] == "]":
            break
        line += content.count("\n", start, position)
        start = position
        try:
            value, position = decoder.raw_decode(content, position)
            position = _skip_space(content, position)
            if content[position : position + 1] not in (",", "]"):
                raise json.JSONDecodeError("Expecting ',' or ']'", content, position)
        except (json.JSONDecodeError, RecursionError) as error:
            place = error.lineno if isinstance(error, json.JSONDecodeError) else line
            raise UserError(f"{name}:{place}: {_broken(error)}; fix the file") from error
        yield _row(f"{name}:{line}", value)
        position += content[position] == ","
    if content[position + 1 :].strip():
        raise UserError(f"{name}: there is text after the end of the JSON array; fix the file")


def _skip_space(content: str, position: int) -> int:
    while content[position : position + 1] in (" ", "\n", "\r", "\t"):
        position += 1
    return position


def _broken(error: json.JSONDecodeError | RecursionError) -> str:
    if isinstance(error, RecursionError):
        return "broken JSON (nested too deeply)"
    return f"broken JSON at column {error.colno} ({error.msg})"


def _row(source: str, value: Any) -> RawRow:
    if isinstance(value, dict):
        return RawRow(source, value)
    return RawRow(source, value, "the row is not an object with named columns")


def _csv_rows(content: str, name: str) -> Iterator[RawRow]:
    """CSV with a header. A quoted field may span lines; the row's place is its first line."""
    csv.field_size_limit(sys.maxsize)  # the default refuses fields of more than 128 KiB
    reader = csv.reader(StringIO(content, newline=""), strict=True)
    header: list[str] | None = None
    line = 1
    try:
        for cells in reader:
            place, line = f"{name}:{line}", reader.line_num + 1
            if not cells:
                continue
            if header is None:
                header = _header(cells, name)
            elif len(cells) != len(header):
                problem = f"the row has {len(cells)} cells, but the header has {len(header)}"
                yield RawRow(place, cells, problem)
            else:
                yield RawRow(place, dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        raise UserError(f"{name}:{line}: broken CSV ({error}); fix the file") from error


def _header(cells: list[str], name: str) -> list[str]:
    header = [cell.strip() for cell in cells]
    if len(set(header)) < len(header):
        raise UserError(f"{name}:1: the header names a column twice; rename one")
    return header


def _parquet_rows(path: Path, name: str) -> Iterator[RawRow]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches():
            for number, row in enumerate(batch.to_pylist(), start=number + 1):  # noqa: B020
                yield RawRow(f"{name}:{number}", row)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: cannot read the Parquet file ({_first_line(error)})") from error


def _data_files(folder: Path, split: str) -> list[Path]:
    """The data files in a folder, those named after the split if there are any ("train-00000.parquet")."""
    endings = (*FORMATS, *COMPRESSED)
    found = [path for path in sorted(folder.rglob("*")) if path.name.lower().endswith(endings)]
    found = [path for path in found if not path.name.endswith(REJECTED) and not path.name.startswith(".")]
    of_split = [path for path in found if split in re.split(r"[._-]", path.name)]
    if not found:
        raise UserError(f"{folder}: the folder holds no data files; their names end in {', '.join(endings)}")
    return of_split or found


def _saved_dataset(folder: Path, split: str) -> Iterator[RawRow]:
    import datasets

    try:
        loaded = datasets.load_from_disk(str(folder))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: cannot load the datasets folder ({_first_line(error)})") from error
    if isinstance(loaded, datasets.DatasetDict):
        if split not in loaded:
            raise UserError(f"{folder}: there is no split {split!r}; {nearest(split, loaded)}")
        loaded = loaded[split]
    yield from _dataset_rows(loaded, folder.name)


def _hub_rows(name: str, split: str) -> Iterator[RawRow]:
    if not HUB_NAME.fullmatch(name) or name.lower().endswith((*FORMATS, *COMPRESSED)):
        siblings = [path.name for path in Path(name).parent.glob("*")]
        hint = f"; {nearest(Path(name).name, siblings)}" if 0 < len(siblings) <= 20 else ""
        raise UserError(f"{name}: there is no such file or folder{hint}")
    import datasets

    path, _, config = name.partition(":")
    if not hub_answers():
        datasets.config.HF_HUB_OFFLINE = True  # only what was downloaded before, at once
    try:
        loaded = datasets.load_dataset(path, config or None, split=split)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{name}: there is no such file or folder here, and the dataset of that name cannot be loaded "
            f"from the hub ({_first_line(error)})"
        ) from error
    yield from _dataset_rows(loaded, name)


def _dataset_rows(dataset: Iterator[Mapping[str, Any]], name: str) -> Iterator[RawRow]:
    for number, row in enumerate(dataset, start=1):
        yield RawRow(f"{name}:{number}", dict(row))


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
