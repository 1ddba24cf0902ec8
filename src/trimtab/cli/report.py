"""`trimtab report FOLDER`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from trimtab.cli.options import parse
from trimtab.compare.report import write_report
from trimtab.compare.results import load_about
from trimtab.compare.table import summary_table
from trimtab.terminal import console


@dataclass(frozen=True)
class Options:
    """Writes a comparison's report.html again from its results, finished or not."""

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """The folder that `trimtab compare` wrote."""


def run(words: list[str]) -> int:
    """Writes the report and prints the table."""
    folder = parse(Options, words, prog="trimtab report").folder
    if "envs" in load_about(folder, needed=()):
        from trimtab.compare.control.report import write_control_report
        from trimtab.compare.control.table import control_table

        report, table = write_control_report(folder), control_table(folder)
    else:
        report, table = write_report(folder), summary_table(folder)
    console.print(table)
    console.print(f"the report is in {report}", markup=False, soft_wrap=True)
    return 0
