"""`trimtab data show` and `trimtab data convert`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from trimtab.cli.options import parse
from trimtab.data import load_records
from trimtab.errors import UserError, nearest
from trimtab.feedback.conversions import ViewOptions
from trimtab.feedback.inspect import show, summary
from trimtab.feedback.readers import scan
from trimtab.feedback.records import Kind
from trimtab.feedback.views import convert
from trimtab.feedback.writers import write
from trimtab.terminal import console

HELP = """usage: trimtab data show FILE
       trimtab data convert FILE OUT [--to KIND] [--shape SHAPE]

FILE is JSON, JSONL, CSV (each also .gz), Parquet or Arrow, a folder, a hub name, or reviews.
"""


@dataclass(frozen=True)
class ShowOptions:
    """What is in a file of feedback: kinds, counts, lengths, examples, and rows that look wrong."""

    file: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """A file, a folder or a hub name."""
    split: str = "train"
    """Which split of a dataset."""


@dataclass(frozen=True)
class ConvertOptions:
    """Writes feedback in another shape, or as another kind where that is sound."""

    file: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """A file, a folder, a hub name, or reviews."""
    target: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """A .jsonl, .json, .csv (each also .gz) or .parquet file."""
    views: Annotated[ViewOptions, tyro.conf.arg(name="")]
    to: Kind | None = None
    """The kind of feedback; as it is if not given."""
    shape: Literal["trl", "sharegpt", "alpaca"] = "trl"
    """The layout of the rows."""
    split: str = "train"
    """Which split of a dataset."""
    bad_rows: Literal["stop", "skip"] = "stop"
    """What a bad row does: stop, or be left out and written to a file."""
    overwrite: bool = False
    """Replace the file if it exists."""


def run(words: list[str]) -> int:
    """Runs the sub-command."""
    if not words or words[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0 if words else 2
    commands = {"show": _show, "convert": _convert}
    if words[0] not in commands:
        raise UserError(f"unknown command 'data {words[0]}'; {nearest(words[0], commands)}")
    return commands[words[0]](words[1:])


def _show(words: list[str]) -> int:
    options = parse(ShowOptions, words, prog="trimtab data show")
    console.print(show(summary(scan(options.file, options.split))))
    return 0


def _convert(words: list[str]) -> int:
    options = parse(ConvertOptions, words, prog="trimtab data convert")
    records = load_records(
        options.file,
        split=options.split,
        bad_rows=options.bad_rows,
        rejects=Path(f"{options.target}.rejected.jsonl"),
    )
    if options.to is not None:
        records = convert(records, options.to, options.views)
    write(records, options.target, options.shape, overwrite=options.overwrite)
    console.print(f"{len(records)} records are in {options.target}", markup=False)
    return 0
