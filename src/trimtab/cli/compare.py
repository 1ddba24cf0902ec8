"""`trimtab compare FILE.yaml`."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from trimtab.allocator import keep_freed_memory
from trimtab.cli.options import parse
from trimtab.compare.config import CompareConfig, load_config
from trimtab.compare.report import write_report
from trimtab.compare.results import load_results
from trimtab.compare.run import compare
from trimtab.compare.summary import START
from trimtab.compare.table import summary_table
from trimtab.terminal import console, quiet_libraries, reporting


@dataclass(frozen=True)
class Options:
    """Compares methods on one dataset, with one budget and one evaluation; writes one report."""

    file: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """The comparison as YAML, or reviews for the built-in example."""
    out: Path | None = None
    """Folder for results and report, runs/NAME of the file if not given. What is there goes on."""
    seeds: Annotated[list[int] | None, tyro.conf.arg(metavar="SEED [SEED ...]")] = None
    """Instead of the file's seeds."""
    methods: Annotated[list[str] | None, tyro.conf.arg(metavar="METHOD [METHOD ...]")] = None
    """Only these of the file's methods."""
    steps: int | None = None
    """Optimiser steps of each run on recorded feedback, instead of the file's budget."""
    refreshes: int | None = None
    """Collections of each run that learns from its own answers, instead of the file's."""
    prompts: int | None = None
    """Held-out prompts of the evaluation, instead of the file's."""
    jobs: int | None = None
    """Runs at a time."""


def run(words: list[str]) -> int:
    """Runs a comparison and writes its report."""
    options = parse(Options, words, prog="trimtab compare")
    file = built_in() if options.file == "reviews" and not Path("reviews").exists() else Path(options.file)
    config = _overridden(load_config(file), options)
    out = options.out or Path("runs") / file.stem
    quiet_libraries()
    keep_freed_memory()
    with reporting() as progress:
        compare(config, out, progress)
    report = write_report(out)
    console.print(summary_table(out))
    console.print(f"the report is in {report}", markup=False, soft_wrap=True)
    return 0 if any(r.status == "done" for r in load_results(out) if r.method != START) else 1


def built_in() -> Path:
    """The comparison on the built-in film reviews."""
    from trimtab.examples.reviews import COMPARISON

    return COMPARISON


def _overridden(config: CompareConfig, options: Options) -> CompareConfig:
    changes: dict[str, object] = {}
    if options.seeds:
        changes["seeds"] = options.seeds
    if options.jobs is not None:
        changes["jobs"] = options.jobs
    if options.steps is not None:
        changes["budget"] = dataclasses.replace(config.budget, steps=options.steps)
    if options.refreshes is not None:
        changes["online"] = dataclasses.replace(config.online, refreshes=options.refreshes)
    if options.prompts is not None:
        changes["evaluation"] = dataclasses.replace(config.evaluation, prompts=options.prompts)
    if options.methods:
        changes["methods"] = {name: config.methods.get(name, {}) for name in options.methods}
    return dataclasses.replace(config, **changes)  # type: ignore[arg-type]
