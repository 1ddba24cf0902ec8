"""Runs a comparison: the stages once, then every cell of the grid, each to its line in results.jsonl.

A comparison that was interrupted goes on where it stopped; a run that fails is written down with its
reason, and the others go on.
"""

import dataclasses
import json
import logging
import os
import platform
import shutil
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from trimtab.checkpoint import atomic_text
from trimtab.compare.config import CompareConfig, Run, grid
from trimtab.compare.processes import rows
from trimtab.compare.results import append_result, load_results
from trimtab.compare.stages import Stages
from trimtab.compare.summary import START, load_comparison
from trimtab.compare.worker import Cell, model_folder
from trimtab.errors import UserError
from trimtab.jobs import Progress
from trimtab.policies.load import resolve_device

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
    for finished, row in enumerate(rows(left, _jobs(config)), start=len(cells) - len(left) + 1):
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


def _describe(config: CompareConfig, out: Path, stages: list[dict[str, Any]]) -> None:
    """comparison.json: what the report says about the comparison as a whole."""
    feedback = next(s["metrics"] for s in stages if s["name"] == "feedback")
    about = {
        "name": config.name,
        "data": {"source": config.data, **feedback},
        "base": config.model,
        "budget": dataclasses.asdict(config.budget),
        "online": dataclasses.asdict(config.online) | {"reward": config.learned_reward},
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
