"""`trimtab train METHOD`."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import tyro

from trimtab.allocator import keep_freed_memory
from trimtab.cli.options import parse
from trimtab.errors import UserError
from trimtab.feedback.conversions import ViewOptions
from trimtab.jobs import DataConfig, Job, run_job, shown
from trimtab.methods import METHODS, Method, find
from trimtab.policies.load import ModelConfig
from trimtab.terminal import console, quiet_libraries, reporting
from trimtab.train import RunConfig


def run(words: list[str]) -> int:
    """Trains one model with one method."""
    if not words or words[0] in ("-h", "--help"):
        print("usage: trimtab train METHOD --model DIR_OR_NAME --data FILE --out FOLDER [OPTIONS]\n")
        print("METHOD is one of " + ", ".join(METHODS) + ".")
        print("`trimtab train METHOD --help` shows its options, `trimtab methods` what each is for.")
        return 0 if words else 2
    if words[0].startswith("-"):
        raise UserError(f"the method comes first: trimtab train METHOD {words[0]} ...")
    method = find(words[0])
    options = parse(
        _options(method),
        words[1:],
        prog=f"trimtab train {words[0]}",
        description=_description(method),
        method=words[0],
    )
    job = Job(**{f.name: getattr(options, f.name) for f in dataclasses.fields(Job)})
    quiet_libraries()
    keep_freed_memory()
    with reporting() as progress:
        last = run_job(job, progress)
    console.print(f"{int(last['step'])} steps in {last['seconds']:.0f} s  {shown(last)}", markup=False)
    console.print(f"the model is in {job.out}", markup=False, soft_wrap=True)
    return 0


def _description(method: type[Method[Any]]) -> str:
    what = (method.__doc__ or "").splitlines()[0]
    config = "--config FILE.yaml gives options by their names, as in the trimtab.yaml of a trained model."
    return f"{what}\n\n{method.when}\n\nSource: {method.source}.\n\n{config}"


def _options(method: type[Method[Any]]) -> type[Any]:
    """The options of a method's training as one dataclass, each under its own name."""

    def flat(cls: type[Any]) -> Any:
        return Annotated[cls, tyro.conf.arg(name="")]

    out = Annotated[Path, tyro.conf.arg(help="A new folder for the model, its options and its curve.")]
    return dataclasses.make_dataclass(
        "TrainOptions",
        [
            ("method", flat(method), dataclasses.field(default_factory=method)),
            ("model", flat(ModelConfig)),
            ("data", flat(DataConfig)),
            ("out", out),
            ("views", flat(ViewOptions), dataclasses.field(default_factory=ViewOptions)),
            ("run", flat(RunConfig), dataclasses.field(default_factory=RunConfig)),
        ],
        kw_only=True,
        frozen=True,
    )
