"""`trimtab train METHOD`."""

import dataclasses
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from trimtab.allocator import keep_freed_memory
from trimtab.cli.options import parse, value_of
from trimtab.config import build
from trimtab.errors import UserError
from trimtab.methods import METHODS, Method, find
from trimtab.terminal import console, quiet_libraries, reporting

T = TypeVar("T")


def run(words: list[str]) -> int:
    """Trains one model, or one control policy, with one method."""
    if not words or words[0] in ("-h", "--help"):
        print("usage: trimtab train METHOD --model DIR_OR_NAME --data FILE --out FOLDER [OPTIONS]")
        print("       trimtab train METHOD --env ENVIRONMENT --out FOLDER [OPTIONS]\n")
        online = ", ".join(name for name, method in METHODS.items() if method.online)
        print("METHOD is one of " + ", ".join(METHODS) + ".")
        print(f"Those that learn online ({online}) need a --reward too.")
        print("`trimtab train METHOD --help` shows its options, `trimtab methods` what each is for.")
        print("`trimtab train METHOD --env CartPole-v1 --help` shows those in an environment of Gymnasium.")
        return 0 if words else 2
    if words[0].startswith("-"):
        raise UserError(f"the method comes first: trimtab train METHOD {words[0]} ...")
    return carry_out(find(words[0]), words[1:])


def carry_out(
    method: type[Method[Any]], words: list[str], *, resume: bool = False, finish: bool = False
) -> int:
    """Trains with a method and these options; goes on with what is in --out, or only finishes it."""
    if (env := value_of("env", words)) is not None:
        from trimtab.cli.train_control import run_control

        return run_control(method, env, words, resume=resume, finish=finish)
    from trimtab.jobs import Job, run_job, shown
    from trimtab.online_jobs import OnlineJob, live, run_online_job

    options = parse(
        options_of(OnlineJob if method.online else Job, method),
        words,
        prog=f"trimtab train {method.name}",
        description=description_of(method),
        method=method.name,
    )
    quiet_libraries()
    keep_freed_memory()
    start = time.monotonic()
    again = {"resume": resume, "finish": finish}
    with reporting() as progress:
        if method.online:
            done = live(run_online_job(job_from(OnlineJob, options), progress, **again))
        else:
            done = shown(run_job(job_from(Job, options), progress, **again))
    console.print(f"trained in {time.monotonic() - start:.0f} s  {done}", markup=False, soft_wrap=True)
    console.print(f"the model is in {options.out}", markup=False, soft_wrap=True)
    return 0


def job_from(cls: type[T], options: Any) -> T:
    """A job from its options."""
    return cls(**{f.name: getattr(options, f.name) for f in dataclasses.fields(cls)})  # type: ignore[arg-type]


def description_of(method: type[Method[Any]]) -> str:
    """What the help says of a method."""
    what = (method.__doc__ or "").splitlines()[0]
    config = "--config FILE.yaml gives options by their names, as in the trimtab.yaml of a trained model."
    return f"{what}\n\n{method.when}\n\nSource: {method.source}.\n\n{config}"


def options_of(job: type[Any], method: type[Any], defaults: Mapping[str, Any] | None = None) -> type[Any]:
    """The options of a job with a method as one dataclass, each under its own name.

    Args:
        defaults: in place of the job's own.
    """
    fields: list[Any] = []
    for part in dataclasses.fields(job):
        if part.name == "out":
            help_text = "A new folder for what was trained, its options and its curve."
            fields.append(("out", Annotated[Path, tyro.conf.arg(help=help_text)]))
            continue
        cls: Any = method if part.name == "method" else part.type
        flat = Annotated[cls, tyro.conf.arg(name="")]
        names = {field.name for field in dataclasses.fields(cls)}
        values = {name: value for name, value in (defaults or {}).items() if name in names}
        required = any(_is_required(f) and f.name not in values for f in dataclasses.fields(cls))
        make = dataclasses.field(default_factory=partial(build, cls, values, part.name))
        fields.append((part.name, flat) if required else (part.name, flat, make))
    return dataclasses.make_dataclass("TrainOptions", fields, kw_only=True, frozen=True)


def _is_required(field: "dataclasses.Field[Any]") -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
