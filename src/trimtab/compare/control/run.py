"""Runs a comparison in environments: every cell of the grid, each to its line in results.jsonl."""

import dataclasses
import json
import os
import platform
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from trimtab.atomic import atomic_text
from trimtab.compare.control.config import START, ControlCompareConfig, Score, grid
from trimtab.compare.control.worker import Cell
from trimtab.compare.processes import run_all
from trimtab.compare.results import claim, load_results
from trimtab.errors import UserError
from trimtab.runs import Progress, alone

FREE = frozenset({"envs", "methods", "seeds", "name", "jobs", "score"})  # to change between two calls


def compare_control(config: ControlCompareConfig, out: Path, progress: Progress) -> None:
    """Carries out a comparison in OUT, or what is left of it.

    Raises UserError if OUT holds another comparison; failed runs do not raise.
    """
    out.mkdir(parents=True, exist_ok=True)
    lock = out / ".lock"
    lock.touch()
    with alone(lock):
        _carry_out(config, out, progress)


def _carry_out(config: ControlCompareConfig, out: Path, progress: Progress) -> None:
    claim(out, config, free=FREE)
    cells = [Cell(run, config.settings, config.evaluation.episodes, out.resolve()) for run in grid(config)]
    _check_options(cells, out)
    _describe(config, out)
    # For networks so small more threads cost time. The library of matrix products reads this as it is loaded.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    run_all(cells, out, _jobs(config), progress, partial(_note, config.score))


def _check_options(cells: list[Cell], out: Path) -> None:
    """Raises UserError if a finished run had other options than it would have now, by another preset say."""
    done = {result.key: result.config for result in load_results(out) if result.status == "done"}
    for cell in cells:
        before, now = done.get(cell.run.key, {}), cell.options()
        if changed := [name for name in before if name in now and before[name] != now[name]]:
            raise UserError(
                f"{out}: the run {cell.run.key} was made with another {', '.join(changed)}; "
                "choose another --out, or delete the folder to start anew"
            )


def _note(score: Score, row: dict[str, Any]) -> str:
    found = row["metrics"].get("drawn" if row["method"] == START else score)
    return f"no {score} return" if found is None else f"return {found:.4g}"


def _jobs(config: ControlCompareConfig) -> int:
    return config.jobs or os.cpu_count() or 1


def _describe(config: ControlCompareConfig, out: Path) -> None:
    """comparison.json: what the report says about the comparison as a whole."""
    about = {
        "name": config.name,
        "envs": config.envs,
        "settings": config.settings,
        "score": config.score,
        "evaluation": dataclasses.asdict(config.evaluation),
        "versions": {name: version(name) for name in ("trimtab", "torch", "numpy", "gymnasium")},
        "machine": {
            "cores": os.cpu_count(),
            "runs_at_a_time": _jobs(config),
            "processor": platform.machine(),
        },
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    atomic_text(out / "comparison.json", json.dumps(about, indent=1, ensure_ascii=False))
