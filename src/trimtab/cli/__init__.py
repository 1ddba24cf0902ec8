"""The command line: `trimtab COMMAND ...`. A leaf: nothing imports it."""

from trimtab.cli.main import main

__all__ = ["main"]
