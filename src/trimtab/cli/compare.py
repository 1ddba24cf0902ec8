"""`trimtab compare FILE.yaml`: methods on feedback, or with the key `envs` in environments."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from trimtab.allocator import keep_freed_memory
from trimtab.cli.options import parse
from trimtab.compare.config import CompareConfig, load_config
from trimtab.compare.report import write_report
from trimtab.compare.results import load_results
from trimtab.compare.run import compare
from trimtab.compare.summary import START
from trimtab.compare.table import summary_table
from trimtab.config import load_yaml
from trimtab.errors import UserError
from trimtab.terminal import console, quiet_libraries, reporting

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Options:
    """Compares methods on one dataset or in environments, with one evaluation; writes one report."""

    file: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """The comparison as YAML, with the key `envs` in environments; or reviews for the built-in example."""
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
    total_steps: int | None = None
    """Steps of each run in an environment, instead of the file's."""
    jobs: int | None = None
    """Runs at a time."""


LANGUAGE_ONLY = ("steps", "refreshes", "prompts")  # options that mean nothing in an environment


def run(words: list[str]) -> int:
    """Runs a comparison and writes its report."""
    options = parse(Options, words, prog="trimtab compare")
    file = built_in() if options.file == "reviews" and not Path("reviews").exists() else Path(options.file)
    out = options.out or Path("runs") / file.stem
    keys = load_yaml(file)
    if "env" in keys:
        raise UserError(f"{file}: unknown key 'env'; did you mean 'envs', a list?")
    if "envs" in keys:
        return _in_environments(file, options, out)
    if options.total_steps is not None:
        raise UserError(
            f"--total-steps: {file} compares methods on feedback; take --steps for those that learn from "
            "recorded feedback, --refreshes for the others"
        )
    config = _overridden(load_config(file), options)
    quiet_libraries()
    keep_freed_memory()
    with reporting() as progress:
        compare(config, out, progress)
    return _ended(out, write_report(out), summary_table(out))


def _in_environments(file: Path, options: Options, out: Path) -> int:
    """The same in environments, whose code loads no language model."""
    from trimtab.compare.control.config import load_config
    from trimtab.compare.control.report import write_control_report
    from trimtab.compare.control.run import compare_control
    from trimtab.compare.control.table import control_table

    for name in LANGUAGE_ONLY:
        if getattr(options, name) is not None:
            raise UserError(f"--{name}: {file} compares methods in environments; take --total-steps")
    config = dataclasses.replace(load_config(file), **_common(options))
    if options.methods:
        config = dataclasses.replace(config, methods=_chosen(config.methods, options.methods))
    if options.total_steps is not None:
        config = config.with_total_steps(options.total_steps)
    with reporting() as progress:
        compare_control(config, out, progress)
    return _ended(out, write_control_report(out), control_table(out))


def _ended(out: Path, report: Path, table: "Table") -> int:
    """Shows the table and where the report is; 1 if no run that trains was done."""
    console.print(table)
    console.print(f"the report is in {report}", markup=False, soft_wrap=True)
    return 0 if any(r.status == "done" for r in load_results(out) if r.method != START) else 1


def built_in() -> Path:
    """The comparison on the built-in film reviews."""
    from trimtab.examples.reviews import COMPARISON

    return COMPARISON


def _overridden(config: CompareConfig, options: Options) -> CompareConfig:
    changes: dict[str, Any] = _common(options)
    if options.steps is not None:
        changes["budget"] = dataclasses.replace(config.budget, steps=options.steps)
    if options.refreshes is not None:
        changes["online"] = dataclasses.replace(config.online, refreshes=options.refreshes)
    if options.prompts is not None:
        changes["evaluation"] = dataclasses.replace(config.evaluation, prompts=options.prompts)
    if options.methods:
        changes["methods"] = _chosen(config.methods, options.methods)
    return dataclasses.replace(config, **changes)


def _common(options: Options) -> dict[str, Any]:
    """What stands in for the file's values in every comparison."""
    changes: dict[str, Any] = {"seeds": options.seeds} if options.seeds else {}
    return changes | ({} if options.jobs is None else {"jobs": options.jobs})


def _chosen(methods: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """These methods only, with what the file says of them."""
    return {name: methods.get(name, {}) for name in names}
