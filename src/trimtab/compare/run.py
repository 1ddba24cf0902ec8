"""Runs a comparison: the stages once, then every cell of the grid, each to its line in results.jsonl.

A comparison that was interrupted goes on where it stopped; a run that fails is written down with its
reason, and the others go on.
"""

import dataclasses
import json
import logging
import multiprocessing
import os
import platform
import shutil
import threading
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from trimtab.checkpoint import atomic_text
from trimtab.compare.config import CompareConfig, Run, grid
from trimtab.compare.results import append_result, load_results
from trimtab.compare.stages import Stages
from trimtab.compare.summary import START, load_comparison
from trimtab.compare.worker import Cell, model_folder, run_cell
from trimtab.errors import UserError
from trimtab.jobs import Progress
from trimtab.policies.load import resolve_device
from trimtab.terminal import quiet_libraries

log = logging.getLogger("trimtab")


def compare(config: CompareConfig, out: Path, progress: Progress) -> None:
    """Carries out a comparison in OUT, or what is left of it.

    Raises UserError if OUT holds another comparison, or a stage fails; failed runs do not raise.
    """
    out.mkdir(parents=True, exist_ok=True)
    _claim(config, out)
    stages = Stages(config, out, progress).run()
    _describe(config, out, stages)
    cells = _cells(config, out)
    done = {r.key for r in load_results(out) if r.status == "done"}
    left = [cell for cell in cells if cell.run.key not in done]
    progress("runs", len(cells) - len(left), len(cells))
    warned: set[str] = set()
    for finished, row in enumerate(_rows(left, _jobs(config)), start=len(cells) - len(left) + 1):
        append_result(out, row)
        progress("runs", finished, len(cells), _note(row, config.reward_names[0]), milestone=True)
        for warning in row.get("warnings", []):  # most runs have the same ones: each is said once
            if warning not in warned:
                log.warning("%s: %s", row["key"], warning)
                warned.add(warning)
    _prune(config, out)


def _note(row: dict[str, Any], reward: str) -> str:
    """dpo/beta=0.1/seed=0: gold 0.71."""
    if row["status"] == "failed":
        return f"{row['key']}: failed: {row['error']}"
    return f"{row['key']}: {reward} {row['metrics'][reward]['mean']:.3g}"


def _claim(config: CompareConfig, out: Path) -> None:
    """Writes the configuration into OUT, or checks that OUT was made by the same one.

    New methods, strengths and seeds may be added to a comparison: they do not change what is there.
    """
    file = out / "config.json"
    now = json.loads(json.dumps(dataclasses.asdict(config)))
    if file.exists():
        before = json.loads(file.read_text())
        free = {"methods", "seeds", "name", "jobs", "keep"}
        changed = [key for key in now if key not in free and before.get(key) != now[key]]
        if changed:
            raise UserError(
                f"{out} holds a comparison with another {', '.join(changed)}; "
                "choose another --out, or delete the folder to start anew"
            )
    atomic_text(file, json.dumps(now, indent=1))


def _cells(config: CompareConfig, out: Path) -> list[Cell]:
    """The starting model's evaluation and the grid, seed by seed."""
    runs = grid(config)
    starts = [Run(START, {}, None, seed) for seed in config.seeds]
    order = sorted([*starts, *runs], key=lambda run: config.seeds.index(run.seed))
    threads = 1 if resolve_device(config.device).type == "cpu" and _jobs(config) > 1 else 0
    return [Cell(config, run, out.resolve(), threads) for run in order]


def _jobs(config: CompareConfig) -> int:
    if config.jobs > 0:
        return config.jobs
    return (os.cpu_count() or 1) if resolve_device(config.device).type == "cpu" else 1


def _rows(cells: Sequence[Cell], jobs: int) -> Iterator[dict[str, Any]]:
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
    """Silences the libraries, and ends the worker when the comparison is killed."""
    quiet_libraries()
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
    log.handlers, log.propagate = [warnings], False
    return {**_attempt(cell), "warnings": warnings.texts}


def _attempt(cell: Cell) -> dict[str, Any]:
    try:
        return run_cell(cell)
    except UserError as error:
        return failure(cell, str(error))
    except Exception as error:  # a failed run is a result: it is shown with its reason
        (cell.out / cell.run.folder).mkdir(parents=True, exist_ok=True)
        (cell.out / cell.run.folder / "error.txt").write_text(traceback.format_exc())
        return failure(cell, f"{type(error).__name__}: {error}")


def failure(cell: Cell, reason: str) -> dict[str, Any]:
    """The line of a run that failed."""
    return {**cell.identity(), "status": "failed", "error": reason}


def _describe(config: CompareConfig, out: Path, stages: list[dict[str, Any]]) -> None:
    """comparison.json: what the report says about the comparison as a whole."""
    feedback = next(s["metrics"] for s in stages if s["name"] == "feedback")
    about = {
        "name": config.name,
        "data": {"source": config.data, **feedback},
        "base": config.model,
        "budget": dataclasses.asdict(config.budget),
        "rewards": config.reward_names,
        "primary_reward": config.reward_names[0],
        "evaluation": dataclasses.asdict(config.evaluation),
        "stages": stages,
        "versions": {name: version(name) for name in ("trimtab", "torch", "transformers", "peft")},
        "machine": {"cores": os.cpu_count(), "processor": platform.machine()},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    atomic_text(out / "comparison.json", json.dumps(about, indent=1, ensure_ascii=False))


def _prune(config: CompareConfig, out: Path) -> None:
    """Deletes the trained models that are not to be kept."""
    if config.keep == "all":
        return
    kept = set()
    if config.keep == "best":
        comparison = load_comparison(out)
        if comparison.ranking:
            kept = {result.folder for result in comparison.ranking[0].results}
    for result in load_results(out):
        if result.folder not in kept:
            shutil.rmtree(model_folder(out, result.folder), ignore_errors=True)
