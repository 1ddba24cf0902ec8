"""A run's folder while it trains: options, curve, checkpoints, and the way back into it.

RUN/trimtab.yaml     every option; `trimtab resume RUN` reads them again
RUN/metrics.jsonl    the curve, a line a step or refresh
RUN/checkpoints/     the whole state (`checkpoint`), deleted once the run is complete
RUN/state.json       where the training stands; it is there once the run is complete
"""

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import yaml

from trimtab.atomic import added_files, atomic_text
from trimtab.checkpoint import Checkpoints
from trimtab.errors import UserError, check_bounds, check_positive
from trimtab.inspection import FOLDER, write_inspection
from trimtab.interruption import Interruption, Stopped
from trimtab.resuming import DONE, found_again, machine, of_folders
from trimtab.runs import alone, refuse_existing
from trimtab.states import random_states, set_random_states
from trimtab.train import NonFiniteError
from trimtab.writing import Curves, LogTo, library

SECONDS = 600.0  # between two checkpoints, where --save-every does not say
SHARE = 0.05  # of the time, and no more, is then spent on writing them


@dataclass(frozen=True)
class SaveConfig:
    """When the whole state is written, so that `trimtab resume` can go on from there."""

    save_every: int | None = None
    """Steps, or collections, from one checkpoint to the next; one every ten minutes if not given."""
    keep: int = 2
    """How many checkpoints are kept."""

    def __post_init__(self) -> None:
        check_positive(self, "save_every")
        check_bounds(self, keep=(1, math.inf))


class NotSavedError(UserError):
    """A checkpoint could not be written."""


class Resumable(Protocol):
    """A training whose state can be taken between any two of its events, and given back; see `train`."""

    intact: bool

    def events(self) -> Iterator[Any]: ...
    def progress(self) -> tuple[int, int]: ...
    def state(self) -> dict[str, Any]: ...
    def load(self, state: dict[str, Any]) -> None: ...


class Part(Protocol):
    """Something beside the training that goes on, too: sample answers, warnings that were given."""

    def state(self) -> Any: ...
    def load(self, state: Any) -> None: ...


@dataclass
class Recorder:
    """Keeps a run's folder. Used within `recording`.

    Attributes:
        out: the folder.
        options: what trimtab.yaml holds.
        prints: fingerprints of data and models, by what they are of.
        found: the state of the checkpoint that the run goes on from; None at its beginning.
        last: the metrics of the last event.
    """

    out: Path
    options: dict[str, Any]
    log_to: LogTo
    config: SaveConfig
    prints: dict[str, str]
    found: dict[str, Any] | None = None
    last: dict[str, float] = field(default_factory=dict)
    parts: dict[str, Part] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.checkpoints = Checkpoints(self.out, self.config.keep)
        self.curves = Curves(self.out, self.log_to, self.options, (self.found or {}).get("curves"))
        self.last = (self.found or {}).get("last", {})
        self.saved, self.since, self.cost = time.monotonic(), 0, 0.0
        self.random = random_states()

    def add(self, name: str, part: Part) -> None:
        """Something whose state is part of every checkpoint."""
        self.parts[name] = part
        if self.found is not None:
            part.load(self.found["parts"][name])

    def follow(
        self,
        training: Resumable,
        metrics: Callable[[Any], dict[str, float]],
        policy: Any,
        *,
        finish: bool = False,
    ) -> Iterator[Any]:
        """The events of a training that are not None, each written down; checkpoints whenever one is due.

        Args:
            finish: only go back to where the checkpoint was written.
        Raises Stopped after a signal, and UserError if the training fails: both with a checkpoint, where one
        can be had.
        """
        if self.found is not None:
            training.load(self.found.pop("training"))  # its tensors are not held on to
            self.random = self.found["random"]
            set_random_states(self.random)
        elif finish:
            raise UserError(f"{self.out} has no checkpoint: there is nothing to finish")
        if finish:
            return
        with Interruption() as interruption:
            try:
                for event in self._events(training):
                    if event is not None:
                        self.last = metrics(event)
                        self.curves.write(self.last)
                        self.since += 1
                        yield event
                    if interruption.asked is not None:
                        self.save(training)
                        raise Stopped(self._again(), interruption.asked)
                    if self._due(event is not None):
                        self.save(training)
            except NotSavedError:
                raise
            except UserError as error:
                raise self._failed(training, error, policy) from error

    def _events(self, training: Resumable) -> Iterator[Any]:
        """Those of the training; takes note of the random streams before and after each collection."""
        for event in training.events():
            if event is not None or not training.progress()[1]:
                self.random = random_states()
            yield event

    def _due(self, whole: bool) -> bool:
        if self.config.save_every is None:
            return time.monotonic() - self.saved > max(SECONDS, self.cost / SHARE)
        return whole and self.since % self.config.save_every == 0

    def save(self, training: Resumable) -> None:
        """Writes a checkpoint. Raises UserError if it cannot be written; those before it stay."""
        state = {
            "training": training.state(),
            "random": self.random,
            "curves": self.curves.state(),
            "parts": {name: part.state() for name, part in self.parts.items()},
            "last": self.last,
            "options": self.options,
            "prints": self.prints,
            "machine": machine(),
        }
        behind, updates = training.progress()
        start = time.monotonic()
        try:
            self.checkpoints.save(f"{behind:08d}-{updates:06d}", state)
        except OSError as error:
            before = "the one before it is still there" if self.checkpoints.names() else "there is none yet"
            raise NotSavedError(
                f"{self.checkpoints.folder}: a checkpoint could not be written ({error.strerror}); {before}; "
                f"mend that, then: trimtab resume {self.out}"
            ) from error
        self.saved = time.monotonic()
        self.cost = self.saved - start

    def _again(self) -> str:
        return f"trimtab resume {self.out} goes on from here"

    def _failed(self, training: Resumable, error: UserError, policy: Any) -> UserError:
        """The sentence with where to look and how to go on."""
        said, mended = str(error), "Once that is mended, "
        again = ""
        if training.intact and any(training.progress()):
            try:
                self.save(training)
                again = self._again()
            except NotSavedError as full:
                said += f"; and {full}"
        if isinstance(error, NonFiniteError):
            mended = f"With non_finite: skip in {self.out / 'trimtab.yaml'} such steps are left out, and "
            with suppress(OSError, RuntimeError, MemoryError):  # the disk or the memory may be what failed
                said += f"; what was computed is in {write_inspection(self.out, error, policy)}"
        return UserError(f"{said}. {mended}{again}" if again else said)

    def finish(self, training: Resumable, save: Callable[[Path], None], state: dict[str, Any]) -> None:
        """Writes the model and where the training stands; the checkpoints are needed no more.

        An OSError leaves a checkpoint of the end, if there is room for one.
        """
        try:
            with added_files(self.out) as folder:
                save(folder)
            atomic_text(self.out / DONE, json.dumps(state, indent=1))
        except OSError:
            with suppress(NotSavedError):
                self.save(training)
            raise
        self.checkpoints.clear()


@contextmanager
def recording(
    out: Path,
    options: dict[str, Any],
    log_to: LogTo,
    config: SaveConfig,
    prints: dict[str, str],
    *,
    resume: bool,
) -> Iterator[Recorder]:
    """A run's folder, made for a new run or opened again. One in which nothing was learned is deleted.

    Raises UserError if the run cannot go on: its data, its model or its options are not what they were.
    """
    library(log_to)
    prints = prints | of_folders(options)
    created, held = not out.exists(), False
    if not resume:
        refuse_existing(out)
        out.mkdir(parents=True, exist_ok=True)
        _begin(out / "trimtab.yaml", yaml.safe_dump(options, sort_keys=False, allow_unicode=True))
    recorder = None
    try:
        with alone(out / "trimtab.yaml"):
            held = True
            found = found_again(out, options, prints) if resume else None
            recorder = Recorder(out, options, log_to, config, prints, found)
            with recorder.curves:
                yield recorder
    except BaseException:
        learned = resume or (recorder is not None and recorder.last)
        if held and not learned and not _left(out):
            _clear(out, created)
        raise


def _begin(file: Path, options: str) -> None:
    """Writes the options. Raises UserError in one of two processes that begin at the same moment."""
    try:
        file.touch(exist_ok=False)
    except FileExistsError as error:
        raise UserError(f"{file.parent}: another process began there; choose another --out") from error
    try:
        atomic_text(file, options)
    except BaseException:
        file.unlink()
        raise


def _left(out: Path) -> bool:
    """Whether there is something to go on from, or to look at."""
    return (out / FOLDER).exists() or bool(Checkpoints(out).names())


def _clear(out: Path, created: bool) -> None:
    """Nothing was learned: the same command shall work once the cause is mended."""
    for file in ("trimtab.yaml", "metrics.jsonl", "samples.md"):
        (out / file).unlink(missing_ok=True)
    for folder in ("checkpoints", "tensorboard", "wandb"):
        shutil.rmtree(out / folder, ignore_errors=True)
    if created:
        shutil.rmtree(out)
