"""Runs a comparison: the stages once, then every cell of the grid, each to its line in results.jsonl."""

import dataclasses
import json
import os
import platform
import shutil
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from trimtab.atomic import atomic_text
from trimtab.compare.config import CompareConfig, Run, grid
from trimtab.compare.processes import run_all
from trimtab.compare.results import claim, load_results
from trimtab.compare.stages import Stages
from trimtab.compare.summary import START, load_comparison
from trimtab.compare.worker import Cell, model_folder
from trimtab.policies.load import resolve_device
from trimtab.runs import Progress, alone

FREE = frozenset({"methods", "seeds", "name", "jobs", "keep"})  # to change between two calls


def compare(config: CompareConfig, out: Path, progress: Progress) -> None:
    """Carries out a comparison in OUT, or what is left of it.

    Raises UserError if OUT holds another comparison, or a stage fails; failed runs do not raise.
    """
    out.mkdir(parents=True, exist_ok=True)
    lock = out / ".lock"
    lock.touch()
    with alone(lock):
        _carry_out(config, out, progress)


def _carry_out(config: CompareConfig, out: Path, progress: Progress) -> None:
    claim(out, config, free=FREE)
    stages = Stages(config, out, progress).run()
    _describe(config, out, stages)
    reward = config.reward_names[0]

    def note(row: dict[str, Any]) -> str:
        return f"{reward} {row['metrics'][reward]['mean']:.3g}"

    run_all(_cells(config, out), out, _jobs(config), progress, note)
    _prune(config, out)


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
