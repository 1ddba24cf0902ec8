"""Files and folders that are there whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A folder to write into, which takes the name `path` only once it is complete and on the disk.

    What stood there before is replaced. After an interruption the old folder, or none, is left; after an
    error what was written is deleted, so that a full disk is not left full.
    """
    part = path.with_name(f".{path.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        for file in part.rglob("*"):
            _to_disk(file)
        _to_disk(part)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    shutil.rmtree(path, ignore_errors=True)
    part.rename(path)
    _to_disk(path.parent)


@contextmanager
def added_files(path: Path) -> Iterator[Path]:
    """A folder to write into; what is in it then joins the folder `path`, each file whole or not at all."""
    with atomic_folder(path / ".new") as part:
        yield part
    for file in sorted((path / ".new").iterdir()):
        target = path / file.name
        if target.is_dir():
            shutil.rmtree(target)
        file.replace(target)
    (path / ".new").rmdir()
    _to_disk(path)


def atomic_text(path: Path, text: str) -> None:
    """Writes a file that holds either what it held before or all of the text, whatever interrupts."""
    with atomic_file(path) as file:
        file.write(text.encode("utf-8"))


@contextmanager
def atomic_file(path: Path, *, shared: bool = False) -> Iterator[IO[bytes]]:
    """A file to write into, which takes the name `path` only once it is complete and on the disk.

    Args:
        shared: several processes may write this file at once; what one that is killed leaves stays there.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part" if shared else f".{path.name}.part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    part.replace(path)
    _to_disk(path.parent)


def _to_disk(path: Path) -> None:
    """Returns when a file's content, or a folder's names, would survive a power cut."""
    if path.is_dir() and os.name == "nt":  # Windows opens no folders
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
