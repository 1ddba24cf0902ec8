"""What every job shares: who is told how far it got, its options side by side, its folder."""

import dataclasses
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from trimtab.errors import UserError

log = logging.getLogger("trimtab")


class Progress(Protocol):
    """Is told how far something got. A milestone is worth a line of its own, however soon it comes."""

    def __call__(
        self, what: str, done: int, total: int, note: str = "", *, milestone: bool = False
    ) -> None: ...


def flat_options(job: Any) -> dict[str, Any]:
    """The fields of all dataclasses in a job, side by side, each under its own name."""
    options: dict[str, Any] = {}
    for field in dataclasses.fields(job):
        value = getattr(job, field.name)
        options |= dataclasses.asdict(value) if dataclasses.is_dataclass(value) else {field.name: str(value)}  # type: ignore[arg-type]
    return options


def refuse_existing(out: Path) -> None:
    """Raises UserError if there is something at `out`."""
    if (out / "trimtab.yaml").exists() and not (out / "state.json").exists():
        raise UserError(f"{out} holds a run that is not complete: trimtab resume {out}, or another --out")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} exists already; choose another --out, or delete it")


@contextmanager
def alone(file: Path) -> Iterator[None]:
    """Holds a run's own file as long as this process works in its folder.

    Raises UserError if another process does.
    """
    try:
        import fcntl
    except ImportError:  # Windows, where two processes would have to be kept apart by their user
        yield
        return
    with file.open("r+b") as handle:  # network disks lock only what may be written
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"{file.parent}: another process is training there; let it end, or stop it"
            ) from error
        except OSError as error:  # some network disks lock nothing
            log.info("%s cannot be locked: %s", file, error)
        yield
