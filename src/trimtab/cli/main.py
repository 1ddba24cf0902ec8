"""Finds the command, runs it, and turns what the user got wrong into one sentence."""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from trimtab.errors import UserError, nearest

HELP = """trimtab steers a model with feedback, and shows which method works best on yours.

  trimtab compare FILE.yaml       train with every method, measure, write one report
  trimtab train METHOD            train one model with one method
  trimtab evaluate MODEL          rewards, KL and lengths of a model's answers
  trimtab generate MODEL          answers to prompts
  trimtab play RUN                returns of a policy trained in an environment, and films of it
  trimtab report FOLDER           write a comparison's report again
  trimtab data show FILE          what is in a file of feedback, and what looks wrong
  trimtab data convert FILE OUT   write it in another shape, or as another kind of feedback
  trimtab methods                 the table of methods: data, needs, source, when to use it

First steps
  trimtab compare reviews                                  the built-in example, about 8 minutes
  trimtab data show feedback.jsonl
  trimtab train dpo --model DIR_OR_NAME --data feedback.jsonl --out runs/dpo
  trimtab train ppo --env CartPole-v1 --out runs/cartpole

Every command takes --help.
"""

COMMANDS = {
    "compare": "compare",
    "train": "train",
    "evaluate": "evaluate",
    "generate": "generate",
    "play": "play",
    "report": "report",
    "data": "data",
    "methods": "methods",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0 done, 1 failed, 2 wrong use, 130 interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0 if words else 2
    if words[0] in ("-V", "--version"):
        from importlib.metadata import version

        print(version("trimtab"))
        return 0
    from trimtab.terminal import errors, set_up_logging

    set_up_logging()
    try:
        if words[0] not in COMMANDS:
            raise UserError(f"unknown command {words[0]!r}; {nearest(words[0], COMMANDS)}")
        return _command(words[0])(words[1:])
    except UserError as error:
        errors.print(f"trimtab: {error}", markup=False)
        return 2
    except KeyboardInterrupt:
        again = "; the same command goes on where it stopped" if words[0] == "compare" else ""
        errors.print(f"trimtab: interrupted{again}")
        return 130


def _command(name: str) -> Callable[[list[str]], int]:
    """Commands are imported when they are asked for: `trimtab --help` needs no torch."""
    return import_module(f"trimtab.cli.{COMMANDS[name]}").run
