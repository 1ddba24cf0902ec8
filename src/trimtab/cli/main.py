"""Finds the command, runs it, and turns what the user got wrong into one sentence."""

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module

from trimtab.errors import UserError, nearest, ran_out_of_memory, storage_failed
from trimtab.interruption import Stopped

HELP = """trimtab steers a model with feedback, and shows which method works best on yours.

  trimtab compare FILE.yaml       train with every method, measure, write one report
  trimtab doctor                  look at data, tokens, numbers and memory before training does
  trimtab train METHOD            train one model with one method
  trimtab resume RUN              go on with a run that was stopped or killed
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
  trimtab doctor --model DIR_OR_NAME --data feedback.jsonl --method dpo
  trimtab train dpo --model DIR_OR_NAME --data feedback.jsonl --out runs/dpo
  trimtab train ppo --env CartPole-v1 --out runs/cartpole

Every command takes --help.
"""

COMMANDS = {
    "compare": "compare",
    "doctor": "doctor",
    "train": "train",
    "evaluate": "evaluate",
    "generate": "generate",
    "play": "play",
    "report": "report",
    "data": "data",
    "methods": "methods",
    "resume": "resume",
}

LESS_MEMORY = {
    "train": "a smaller --batch-tokens or --max-length, --lora-rank 16 instead of all weights, "
    "--gradient-checkpointing, or fewer --generate-batch; `trimtab doctor` says what fits",
    "train --env": "fewer --envs or --steps, or a smaller --minibatch-size",
    "resume": "a machine with more, or `trimtab train` anew with a smaller --batch-tokens",
    "compare": "fewer --jobs, or in its file a smaller batch_tokens or max_length, or lora_rank: 16",
    "evaluate": "a smaller --max-new-tokens, or a smaller model",
    "generate": "a smaller --max-new-tokens, fewer --samples, or a smaller model",
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
    return _run(words)


def _run(words: list[str]) -> int:
    """Runs a command; what goes wrong is said on stderr, once its memory is free again."""
    from trimtab.terminal import set_up_logging

    set_up_logging()
    try:
        if words[0] not in COMMANDS:
            raise UserError(f"unknown command {words[0]!r}; {nearest(words[0], COMMANDS)}")
        return _command(words[0])(words[1:])
    except UserError as error:
        status, said = 2, str(error)
    except Stopped as stop:
        status, said = stop.status, f"stopped; {stop}"
    except KeyboardInterrupt:
        again = "; the same command goes on where it stopped" if words[0] == "compare" else ""
        status, said = 130, f"interrupted{again}"
    except BrokenPipeError:  # whoever read the output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left to write goes nowhere
        return 1
    except Exception as error:
        status, said = 1, _explained(error, words)
    print(f"trimtab: {said}", file=sys.stderr)
    return status


def _explained(error: Exception, words: list[str]) -> str:
    """What memory or a disk could not do, in a sentence; anything else is a defect, with its traceback."""
    asked = ran_out_of_memory(error)
    if asked is not None:
        control = words[0] == "train" and any(word.partition("=")[0] == "--env" for word in words)
        remedy = LESS_MEMORY.get("train --env" if control else words[0], "again with less at once")
        return f"there is not enough memory{asked and f' ({asked} more were asked for)'}; try {remedy}"
    return storage_failed(error, _output(words)) or (
        "this is a defect of trimtab, not of your input; please report it in trimtab's issue tracker, "
        "with the command and all that follows\n" + "".join(traceback.format_exception(error)).rstrip()
    )


def _output(words: list[str]) -> str:
    """The folder or file that the command line wants written."""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        option, equals, value = word.partition("=")
        if option == "--out":
            return value if equals else following
    return "the output"


def _command(name: str) -> Callable[[list[str]], int]:
    """Commands are imported when they are asked for: `trimtab --help` needs no torch."""
    return import_module(f"trimtab.cli.{COMMANDS[name]}").run
