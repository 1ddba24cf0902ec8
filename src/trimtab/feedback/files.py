"""From a file, a folder or a dataset's name to rows, each with its place for error messages."""

import csv
import gzip
import re
import sys
import zlib
from collections.abc import Iterator, Mapping
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import Any

from trimtab.errors import UserError, nearest
from trimtab.feedback.json_rows import RawRow, array_rows, line_rows
from trimtab.feedback.records import printable, shown_name
from trimtab.hub import hub_answers

FORMATS = (".json", ".jsonl", ".csv", ".parquet")
COMPRESSED = (".json.gz", ".jsonl.gz", ".csv.gz")
REJECTED = ".rejected.jsonl"  # the end of the name of files that hold rows left out

# A packed file may be small and never end. Text packs 3 to 20 times, the same long system prompt in every row
# up to a few hundred times, and gzip at most 1,030 times. Below UNPACKED nobody counts.
MOST_PACKED = 500
UNPACKED = 64 * 2**20  # bytes
# In Parquet a run of equal values takes no room, so that a file of a kilobyte may hold any number of rows.
MOST_ROWS_A_BYTE = 100
FEW_ROWS = 1_000_000

MOST_ENTRIES = 30_000  # below a folder

ARRAY = re.compile(r"\s*\[")

# Without a file of this name: "imdb", "openai/gsm8k", "openai/gsm8k:main".
HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?(:[\w.-]+)?")


def raw_rows(path_or_name: str, split: str = "train") -> Iterator[RawRow]:
    """The rows of a data file, of a folder of them, of a saved `datasets` folder, or of a dataset on the hub.

    Raises UserError if there is nothing of that name or a file cannot be read to its end.
    """
    path = Path(path_or_name)
    if not path_or_name:
        raise UserError("the name of the data is empty; give a file, a folder or a dataset's name")
    if not exists(path_or_name):
        yield from _hub_rows(path_or_name, split)
    elif path.is_dir():
        if any((path / name).is_file() for name in ("dataset_info.json", "dataset_dict.json")):
            yield from _saved_dataset(path, split)
        else:
            for file in _data_files(path, split):
                yield from _file_rows(file, shown_name(file.relative_to(path)))
    else:
        yield from _file_rows(path, shown_name(path.name))


def exists(name: str) -> bool:
    """Whether there is a file or folder of the name; none has a name that no file system takes."""
    try:
        return Path(name).exists()
    except OSError:  # too long
        return False


def file_format(path: Path) -> str:
    """One of FORMATS or COMPRESSED. Raises UserError for a name that ends otherwise."""
    name = path.name.lower()
    for ending in (*COMPRESSED, *FORMATS):
        if name.endswith(ending):
            return ending
    raise UserError(f"{shown_name(path)}: the name must end in one of {', '.join((*FORMATS, *COMPRESSED))}")


def _file_rows(path: Path, name: str) -> Iterator[RawRow]:
    ending = file_format(path)
    if not path.is_file():
        raise UserError(
            f"{shown_name(path)}: it is no regular file"
        )  # nobody knows where a pipe or a device ends
    if ending == ".parquet":
        yield from _parquet_rows(path, name)
        return
    content = _decode(_contents(path), name)
    if ending.startswith(".csv"):
        yield from _csv_rows(content, name)
    elif array := ARRAY.match(content):
        yield from array_rows(content, name, array.end())
    else:
        yield from line_rows(content, name)


def _contents(path: Path) -> bytes:
    try:
        return _unpacked(path) if path.name.lower().endswith(".gz") else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{shown_name(path)}: cannot read the file ({error})") from error


def _unpacked(path: Path) -> bytes:
    parts, size = [], 0
    with path.open("rb") as packed, gzip.GzipFile(fileobj=packed) as file:
        while part := file.read(2**20):
            parts.append(part)
            size += len(part)
            if size > UNPACKED and size > MOST_PACKED * packed.tell():
                raise UserError(
                    f"{shown_name(path)}: it unpacks to more than {MOST_PACKED} times its size, as no "
                    "feedback does; if it is meant, unpack it first"
                )
    return b"".join(parts)


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
    import pyarrow.parquet

    number = 0
    try:
        file = pyarrow.parquet.ParquetFile(path)
        if problem := _implausible(file, path.stat().st_size):
            raise UserError(f"{shown_name(path)}: {problem}")
        for batch in file.iter_batches():
            for number, row in enumerate(batch.to_pylist(), start=number + 1):  # noqa: B020
                yield RawRow(f"{name}:{number}", row)
    except (UserError, MemoryError):
        raise
    except Exception as error:  # on damaged bytes the library fails in ways of its own
        raise UserError(f"{shown_name(path)}: cannot read the Parquet file ({_first_line(error)})") from error


def _implausible(file: Any, size: int) -> str:
    """What is wrong with a Parquet file of so many bytes, before anything of it is unpacked."""
    names = file.schema_arrow.names
    if len(set(names)) < len(names):
        return "it names a column twice; rename one"
    if file.metadata.num_rows > FEW_ROWS + MOST_ROWS_A_BYTE * size:
        return f"it holds {file.metadata.num_rows:,} rows in {size:,} bytes, as no feedback does"
    return ""


def _data_files(folder: Path, split: str) -> list[Path]:
    """The data files in a folder, those named after the split if there are any ("train-00000.parquet")."""
    endings = (*FORMATS, *COMPRESSED)
    try:
        entries = list(islice(folder.rglob("*"), MOST_ENTRIES + 1))
    except OSError as error:
        raise UserError(f"{shown_name(folder)}: the folder cannot be read ({error.strerror})") from error
    if len(entries) > MOST_ENTRIES:
        raise UserError(
            f"{shown_name(folder)}: it holds more than {MOST_ENTRIES:,} files; name the one with the data"
        )
    found = [path for path in sorted(entries) if path.name.lower().endswith(endings)]
    found = [path for path in found if not path.name.endswith(REJECTED) and not path.name.startswith(".")]
    found = [path for path in found if not path.is_dir()]
    of_split = [path for path in found if split in re.split(r"[._-]", path.name)]
    if not found:
        raise UserError(
            f"{shown_name(folder)}: the folder holds no data files; their names end in {', '.join(endings)}"
        )
    return of_split or found


def _saved_dataset(folder: Path, split: str) -> Iterator[RawRow]:
    import datasets

    try:
        loaded = datasets.load_from_disk(str(folder))
        if isinstance(loaded, datasets.DatasetDict):
            if split not in loaded:
                raise UserError(
                    f"{shown_name(folder)}: there is no split {split!r}; {nearest(split, loaded)}"
                )
            loaded = loaded[split]
        yield from _dataset_rows(loaded, shown_name(folder.name))
    except (UserError, MemoryError):
        raise
    except Exception as error:  # as with Parquet; rows are read while they are asked for
        raise UserError(
            f"{shown_name(folder)}: cannot load the datasets folder ({_first_line(error)})"
        ) from error


def _hub_rows(name: str, split: str) -> Iterator[RawRow]:
    if not HUB_NAME.fullmatch(name) or name.lower().endswith((*FORMATS, *COMPRESSED)):
        siblings = [path.name for path in islice(Path(name).parent.glob("*"), 21)] if len(name) < 256 else []
        hint = f"; {nearest(Path(name).name, siblings)}" if 0 < len(siblings) <= 20 else ""
        raise UserError(f"{shown_name(name)}: there is no such file or folder{hint}")
    import datasets

    path, _, config = name.partition(":")
    if not hub_answers():
        datasets.config.HF_HUB_OFFLINE = True  # only what was downloaded before, at once
    try:
        loaded = datasets.load_dataset(path, config or None, split=split)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{shown_name(name)}: there is no such file or folder here, and the dataset of that name "
            f"cannot be loaded from the hub ({_first_line(error)})"
        ) from error
    yield from _dataset_rows(loaded, name)


def _dataset_rows(dataset: Iterator[Mapping[str, Any]], name: str) -> Iterator[RawRow]:
    for number, row in enumerate(dataset, start=1):
        yield RawRow(f"{name}:{number}", dict(row))


def _first_line(error: Exception) -> str:
    return printable(str(error).strip().split("\n")[0]) or type(error).__name__
