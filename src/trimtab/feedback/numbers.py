"""Numbers end to end, in memory while they are few and then in a file; marks, which tell what is equal."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from mmap import ACCESS_READ, mmap
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import numpy as np

from trimtab.errors import UserError
from trimtab.feedback.records import shown_name

FEW_BYTES = 2**22  # of numbers that stay in memory


def cache_folder() -> Path:
    """Where what can be computed anew is kept: $TRIMTAB_CACHE, or trimtab in the user's cache folder."""
    if folder := os.environ.get("TRIMTAB_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "trimtab"


@contextmanager
def onto_the_disk() -> Iterator[None]:
    """Raises UserError where a file cannot be made or written."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{shown_name(cache_folder())}: feedback that is too large for memory cannot be kept there "
            f"({error.strerror or error}); set TRIMTAB_CACHE to a folder with room"
        ) from error


def unnamed() -> IO[bytes]:
    """A file in the cache folder without a name."""
    with onto_the_disk():
        cache_folder().mkdir(parents=True, exist_ok=True)
        return TemporaryFile(dir=cache_folder(), prefix="feedback-")


def mapped(file: IO[bytes]) -> mmap:
    """All that was written to it so far."""
    with onto_the_disk():
        file.flush()
    return mmap(file.fileno(), 0, access=ACCESS_READ)


def room_for(count: int, dtype: Any) -> np.ndarray:
    """Room for so many numbers, to be written in any order: [count]."""
    size = count * np.dtype(dtype).itemsize
    if size <= FEW_BYTES:
        return np.empty(count, dtype)
    file = unnamed()
    with onto_the_disk():  # all at once: a disk that is full later on would end the process
        os.posix_fallocate(file.fileno(), 0, size) if hasattr(os, "posix_fallocate") else file.truncate(size)
    return np.asarray(np.memmap(file, dtype, "r+", shape=(count,)))


class Numbers:
    """Numbers of one type, end to end: in memory while they are few, then in a file."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = np.dtype(dtype)
        self._parts: list[np.ndarray] = []  # what is not in the file
        self._bytes = 0  # of the parts
        self._file: IO[bytes] | None = None
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def extend(self, numbers: Any) -> None:
        """Appends numbers, or tuples of a structured type."""
        part = np.ascontiguousarray(numbers, self.dtype)
        self._parts.append(part)
        self._count += len(part)
        self._bytes += part.nbytes
        if self._bytes > FEW_BYTES:
            self._file = self._file or unnamed()
            self._write(self._file)

    @property
    def array(self) -> np.ndarray:
        """All numbers so far; if they are in a file they cannot be changed."""
        if self._file is None:
            return np.concatenate([np.empty(0, self.dtype), *self._parts])
        self._write(self._file)
        return np.frombuffer(mapped(self._file), self.dtype)

    def _write(self, file: IO[bytes]) -> None:
        with onto_the_disk():
            for part in self._parts:
                file.write(part.data)
        self._parts, self._bytes = [], 0


MARK = np.dtype([("first", "<u8"), ("second", "<u8")])  # 16 bytes that stand for what is equal


def mark(thing: Any) -> bytes:
    """16 bytes for a thing that is written down in one way: equal for equal things alone."""
    data = thing if isinstance(thing, bytes) else repr(thing).encode("utf-8", "surrogatepass")
    return blake2b(data, digest_size=MARK.itemsize).digest()


def numbered(marks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(number of each mark [N], place of each number's first mark): numbers in order of first coming."""
    order = np.lexsort((marks["second"], marks["first"]))  # stable: in a run of equals the first comes first
    new = np.ones(len(marks), bool)
    new[1:] = marks[order][1:] != marks[order][:-1]
    firsts = order[new]
    rank = np.empty_like(firsts)
    rank[np.argsort(firsts)] = np.arange(len(firsts))
    numbers = np.empty_like(order)
    numbers[order] = rank[np.cumsum(new) - 1]
    return numbers, np.sort(firsts)
