"""Runs of a comparison in processes of their own, so that one that dies takes no other with it.

A comparison that was interrupted goes on where it stopped; a run that fails is written down with its
reason, and the others go on.
"""

import logging
import multiprocessing
import os
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Protocol

from trimtab.allocator import keep_freed_memory
from trimtab.compare.results import append_result, load_results
from trimtab.errors import UserError, ran_out_of_memory, storage_failed
from trimtab.runs import Progress

log = logging.getLogger("trimtab")


class Cell(Protocol):
    """One run, with all that it needs to know; it is pickled, and carried out in another process."""

    @property
    def folder(self) -> Path:
        """What it writes into."""

    def identity(self) -> dict[str, Any]:
        """What its line in results.jsonl begins with: key, method, seed, ..."""

    def carry_out(self) -> dict[str, Any]:
        """Its whole line, once it is done."""


def run_all(
    cells: Sequence[Cell], out: Path, jobs: int, progress: Progress, note: Callable[[dict[str, Any]], str]
) -> None:
    """Carries out the cells that OUT/results.jsonl does not have as done, and appends their lines.

    Args:
        note: says in a few words what a finished run's line holds.
    """
    done = {result.key for result in load_results(out) if result.status == "done"}
    left = [cell for cell in cells if cell.identity()["key"] not in done]
    progress("runs", len(cells) - len(left), len(cells))
    warned: set[str] = set()
    for finished, row in enumerate(rows(left, jobs), start=len(cells) - len(left) + 1):
        append_result(out, row)
        said = f"failed: {row['error']}" if row["status"] == "failed" else note(row)
        progress("runs", finished, len(cells), f"{row['key']}: {said}", milestone=True)
        for warning in row.get("warnings", []):  # most runs have the same ones: each is said once
            if warning not in warned:
                log.warning("%s: %s", row["key"], warning)
                warned.add(warning)


def rows(cells: Sequence[Cell], jobs: int) -> Iterator[dict[str, Any]]:
    """Each cell's line as it finishes.

    A worker that dies takes all that run beside it with it. Those are tried again, each alone, so that
    only the one that cannot be run fails.
    """
    waiting = list(reversed(cells))
    while waiting:
        killed: list[Cell] = []
        running: dict[Future[dict[str, Any]], Cell] = {}
        with _pool(jobs) as pool:
            while running or (waiting and not killed):
                while waiting and not killed and len(running) < jobs:
                    cell = waiting.pop()
                    running[pool.submit(attempt, cell)] = cell
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    cell = running.pop(future)
                    if isinstance(future.exception(), BrokenProcessPool):
                        killed.append(cell)
                    else:
                        yield future.result()
        for cell in killed:
            yield _killed(cell) if len(killed) == 1 else _alone(cell)


def _alone(cell: Cell) -> dict[str, Any]:
    with _pool(1) as pool:
        try:
            return pool.submit(attempt, cell).result()
        except BrokenProcessPool:
            return _killed(cell)


def _killed(cell: Cell) -> dict[str, Any]:
    return failure(cell, "its process was killed, most likely for want of memory; try fewer --jobs")


def _pool(jobs: int) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")  # a fork would copy the state of torch's threads
    return ProcessPoolExecutor(jobs, mp_context=context, initializer=_begin_worker)


def _begin_worker() -> None:
    """Keeps the worker silent, and ends it when the comparison is killed."""
    keep_freed_memory()
    log.propagate = False
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


class _Warnings(logging.Handler):
    """Keeps the warnings of one run for its line."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def attempt(cell: Cell) -> dict[str, Any]:
    """The line of a run, whether it worked or not."""
    warnings = _Warnings()
    log.addHandler(warnings)
    try:
        return {**_attempt(cell), "warnings": warnings.texts}
    finally:
        log.removeHandler(warnings)


def _attempt(cell: Cell) -> dict[str, Any]:
    try:
        return cell.carry_out()
    except UserError as error:
        return failure(cell, str(error))
    except Exception as error:  # a failed run is a result: it is shown with its reason
        if ran_out_of_memory(error) is not None:
            return failure(cell, "there was not enough memory; try fewer --jobs, or smaller batches")
        if (said := storage_failed(error, str(cell.folder))) is not None:
            return failure(cell, said)
        cell.folder.mkdir(parents=True, exist_ok=True)
        (cell.folder / "error.txt").write_text(traceback.format_exc())
        return failure(cell, f"{type(error).__name__}: {error}")


def failure(cell: Cell, reason: str) -> dict[str, Any]:
    """The line of a run that failed."""
    return {**cell.identity(), "status": "failed", "error": reason}
