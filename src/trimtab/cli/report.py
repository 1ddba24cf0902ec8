"""`trimtab report FOLDER`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from trimtab.cli.options import parse
from trimtab.compare.report import write_report
from trimtab.compare.table import summary_table
from trimtab.terminal import console


@dataclass(frozen=True)
class Options:
    """Writes a comparison's report.html again from its results, finished or not."""

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """The folder that `trimtab compare` wrote."""


def run(words: list[str]) -> int:
    """Writes the report and prints the table."""
    options = parse(Options, words, prog="trimtab report")
    report = write_report(options.folder)
    console.print(summary_table(options.folder))
    console.print(f"the report is in {report}", markup=False, soft_wrap=True)
    return 0
