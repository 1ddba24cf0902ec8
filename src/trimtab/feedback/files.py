"""From a file, a folder or a dataset's name to rows, each with its place for error messages."""

import gzip
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

from trimtab.errors import UserError, nearest
from trimtab.feedback.json_rows import RawRow, array_rows, line_rows
from trimtab.feedback.mapped import CHUNK
from trimtab.feedback.records import printable, shown_name
from trimtab.feedback.text_rows import UTF_16, csv_rows, lines, texts
from trimtab.hub import hub_answers

FORMATS = (".json", ".jsonl", ".csv", ".parquet")
COMPRESSED = (".json.gz", ".jsonl.gz", ".csv.gz")
ENDINGS = (*FORMATS, *COMPRESSED, ".arrow")
REJECTED = ".rejected.jsonl"  # the end of the name of files that hold rows left out

# A packed file may be small and never end. Text packs 3 to 20 times, the same long system prompt in every row
# up to a few hundred times, and gzip at most 1,030 times. Below UNPACKED nobody counts.
MOST_PACKED = 500
UNPACKED = 64 * 2**20  # bytes
# In Parquet a run of equal values takes no room, so that a file of a kilobyte may hold any number of rows.
MOST_ROWS_A_BYTE = 100
FEW_ROWS = 1_000_000

MOST_ENTRIES = 30_000  # below a folder

PART = 2**20  # bytes of a text that are read at once

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
    """One of ENDINGS. Raises UserError for a name that ends otherwise."""
    for ending in ENDINGS:
        if path.name.lower().endswith(ending):
            return ending
    raise UserError(f"{shown_name(path)}: the name must end in one of {', '.join(ENDINGS)}")


def _file_rows(path: Path, name: str) -> Iterator[RawRow]:
    ending = file_format(path)
    if not path.is_file():
        raise UserError(
            f"{shown_name(path)}: it is no regular file"
        )  # nobody knows where a pipe or a device ends
    if ending in (".parquet", ".arrow"):
        yield from (_parquet_rows if ending == ".parquet" else _arrow_rows)(path, name)
        return
    parts = _parts(path)
    head = b"".join(_until_text(parts))
    if ending.startswith(".csv"):
        yield from csv_rows(texts(chain([head], parts), name), name)
    elif array := ARRAY.match(head.decode("utf-16" if head[:2] in UTF_16 else "utf-8-sig", "ignore")):
        content = "".join(texts(chain([head], parts), name))  # as one text: it is a single value
        yield from array_rows(content, name, array.end())
    else:
        yield from line_rows(lines(texts(chain([head], parts), name)), name)


def _parts(path: Path) -> Iterator[bytes]:
    """A file's bytes, unpacked, a megabyte at a time."""
    is_packed = path.name.lower().endswith(".gz")
    try:
        if is_packed:  # a first look, so that nobody waits for millions of rows to be refused
            with path.open("rb") as file:
                any(file.tell() > PART for _ in _unpacked(file, path))
        with path.open("rb") as file:
            yield from _unpacked(file, path) if is_packed else iter(lambda: file.read(PART), b"")
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{shown_name(path)}: cannot read the file ({error})") from error


def _unpacked(packed: IO[bytes], path: Path) -> Iterator[bytes]:
    size = 0
    with gzip.GzipFile(fileobj=packed) as file:
        while part := file.read(PART):
            size += len(part)
            if size > UNPACKED and size > MOST_PACKED * packed.tell():
                raise UserError(
                    f"{shown_name(path)}: it unpacks to more than {MOST_PACKED} times its size, as no "
                    "feedback does; if it is meant, unpack it first"
                )
            yield part


def _until_text(parts: Iterator[bytes]) -> Iterator[bytes]:
    """The first parts, up to one that holds more than white space."""
    for part in parts:
        yield part
        if part.strip():
            break


def _parquet_rows(path: Path, name: str) -> Iterator[RawRow]:
    import pyarrow.parquet

    with _readable(path, "Parquet file"):
        file = pyarrow.parquet.ParquetFile(path)
        if problem := _implausible(file.schema_arrow.names, file.metadata.num_rows, path.stat().st_size):
            raise UserError(f"{shown_name(path)}: {problem}")
        yield from _batch_rows(file.iter_batches(CHUNK), name)


def _arrow_rows(path: Path, name: str) -> Iterator[RawRow]:
    """Of both forms: the file, and the stream that `datasets` writes."""
    import pyarrow

    def small_batches() -> Iterator[Any]:
        for batch in map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader:
            if problem := _implausible(reader.schema.names, batch.num_rows, path.stat().st_size):
                raise UserError(f"{shown_name(path)}: {problem}")
            batch.validate(full=True)  # what points elsewhere would end the process
            yield from (batch.slice(start, CHUNK) for start in range(0, batch.num_rows, CHUNK))

    with _readable(path, "Arrow file"):
        content = pyarrow.memory_map(str(path))
        is_file = content.read(6) == b"ARROW1"
        content.seek(0)
        reader = (pyarrow.ipc.open_file if is_file else pyarrow.ipc.open_stream)(content)
        yield from _batch_rows(small_batches(), name)


@contextmanager
def _readable(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:  # on damaged bytes the library fails in ways of its own
        raise UserError(f"{shown_name(path)}: cannot read the {what} ({_first_line(error)})") from error


def _batch_rows(batches: Iterator[Any], name: str) -> Iterator[RawRow]:
    rows = (row for batch in batches for row in batch.to_pylist())
    return (RawRow(f"{name}:{number}", row) for number, row in enumerate(rows, start=1))


def _implausible(names: list[str], rows: int, size: int) -> str:
    """What is wrong with so many rows in so many bytes, before any of them is unpacked."""
    if len(set(names)) < len(names):
        return "it names a column twice; rename one"
    if rows > FEW_ROWS + MOST_ROWS_A_BYTE * size:
        return f"it holds {rows:,} rows in {size:,} bytes, as no feedback does"
    return ""


def _data_files(folder: Path, split: str) -> list[Path]:
    """The data files in a folder, those named after the split if there are any ("train-00000.parquet")."""
    try:
        entries = list(islice(folder.rglob("*"), MOST_ENTRIES + 1))
    except OSError as error:
        raise UserError(f"{shown_name(folder)}: the folder cannot be read ({error.strerror})") from error
    if len(entries) > MOST_ENTRIES:
        raise UserError(
            f"{shown_name(folder)}: it holds more than {MOST_ENTRIES:,} files; name the one with the data"
        )
    found = [path for path in sorted(entries) if path.name.lower().endswith(ENDINGS)]
    found = [path for path in found if not path.name.endswith(REJECTED) and not path.name.startswith(".")]
    found = [path for path in found if not path.is_dir()]
    of_split = [path for path in found if split in re.split(r"[._-]", path.name)]
    if not found:
        raise UserError(
            f"{shown_name(folder)}: the folder holds no data files; their names end in {', '.join(ENDINGS)}"
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
    if not HUB_NAME.fullmatch(name) or name.lower().endswith(ENDINGS):
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


def _dataset_rows(dataset: Any, name: str) -> Iterator[RawRow]:
    # a saved format may leave columns out, or put them in another order than `column_names`
    rows = (
        dict(zip(batch, row, strict=True))
        for batch in dataset.iter(CHUNK)
        for row in zip(*batch.values(), strict=True)
    )
    return (RawRow(f"{name}:{number}", row) for number, row in enumerate(rows, start=1))


def _first_line(error: Exception) -> str:
    return printable(str(error).strip().split("\n")[0]) or type(error).__name__
