"""Checkpoints: the whole state of a training, written so that any moment may be the last.

RUN/checkpoints/000120-0000/state.json          numbers, text, and the names of the tensors
RUN/checkpoints/000120-0000/tensors.safetensors
RUN/checkpoints/000120-0000/sums.json           SHA-256 of both

A checkpoint is written beside, brought to the disk, and then given its name. Reading it back checks the sums:
a damaged one is named in a warning, and the one before it is taken.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from trimtab.atomic import atomic_folder
from trimtab.errors import UserError
from trimtab.states import joined, split

log = logging.getLogger("trimtab")

FOLDER, SUMS, STATE, TENSORS = "checkpoints", "sums.json", "state.json", "tensors.safetensors"


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of a run.

    Args:
        run: its folder.
        keep: how many are kept; older ones are deleted once a newer one is on the disk.
    """

    run: Path
    keep: int = 2

    @property
    def folder(self) -> Path:
        return self.run / FOLDER

    def save(self, name: str, state: Any) -> None:
        """Writes a state. Names sort by time. An OSError, as of a full disk, loses nothing.

        A checkpoint of this name stays beside it: to replace one is to have none for a moment.
        """
        plain, tensors = split(state)
        for half in self.folder.glob(".*.part"):  # what a killed process was writing
            shutil.rmtree(half, ignore_errors=True)
        names = (name, *(f"{name}-{number:03d}" for number in range(1, 1000)))
        free = next(other for other in names if not (self.folder / other).exists())
        with atomic_folder(self.folder / free) as part:
            (part / STATE).write_text(json.dumps(plain), encoding="utf-8")
            _write(tensors, part / TENSORS)
            sums = {file: _sum(part / file) for file in (STATE, TENSORS)}
            (part / SUMS).write_text(json.dumps(sums), encoding="utf-8")
        later = [other for other in self.names() if other > free]  # damaged: the run went on from before them
        older = [other for other in self.names() if other <= free][: -self.keep]
        for gone in later + older:
            shutil.rmtree(self.folder / gone, ignore_errors=True)

    def newest(self) -> tuple[str, Any] | None:
        """(name, state) of the newest that is whole; None if there is none at all.

        Raises UserError if there are some and all of them are damaged.
        """
        names = self.names()
        for name in reversed(names):
            try:
                return name, _read(self.folder / name)
            except DamagedError as error:
                log.warning("%s is damaged (%s); the one before it is used", self.folder / name, error)
        if names:
            raise UserError(
                f"{self.folder}: every checkpoint is damaged, so the run cannot go on; start it anew with "
                "another --out, and look at the disk"
            )
        return None

    def clear(self) -> None:
        """Deletes all of them: the run is complete. After a kill meanwhile none is left by half."""
        gone = self.run / f".{FOLDER}.part"
        shutil.rmtree(gone, ignore_errors=True)
        with suppress(FileNotFoundError):
            self.folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)

    def names(self) -> list[str]:
        """Of those that were written whole, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(entry.name for entry in self.folder.iterdir() if not entry.name.startswith("."))


class DamagedError(Exception):
    """What is wrong with a checkpoint, in a few words."""


def _read(folder: Path) -> Any:
    from safetensors.torch import load_file

    try:
        sums = json.loads((folder / SUMS).read_text(encoding="utf-8"))
        for file in (STATE, TENSORS):
            if _sum(folder / file) != sums[file]:
                raise DamagedError(f"{file} is not what was written")
        plain = json.loads((folder / STATE).read_text(encoding="utf-8"))
        tensors = load_file(folder / TENSORS)
    except OSError as error:
        raise DamagedError(f"{error.strerror}: {error.filename}") from error
    except (ValueError, KeyError, TypeError) as error:  # the file of sums itself
        raise DamagedError(f"{SUMS} is not what was written") from error
    try:
        return joined(plain, tensors)
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{folder}: written by another version of trimtab; install that one to go on, or start anew"
        ) from error


def _write(tensors: dict[str, Tensor], file: Path) -> None:
    """Raises OSError where safetensors, written in Rust, has the system's number in its text alone."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(tensors, file)
    except SafetensorError as error:
        found = re.search(r"\(os error (\d+)\)", str(error))
        if found is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(file)) from error


def _sum(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
