"""Folders that are there whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A folder to write into, which takes the name `path` only once it is complete and on the disk.

    What stood there before is replaced. After an interruption the old folder, or none, is left.
    """
    part = path.with_name(f".{path.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    yield part
    for file in part.rglob("*"):
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
    shutil.rmtree(path, ignore_errors=True)
    part.rename(path)


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


def atomic_text(path: Path, text: str) -> None:
    """Writes a file that holds either what it held before or all of the text, whatever interrupts."""
    part = path.with_name(f".{path.name}.part")
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
