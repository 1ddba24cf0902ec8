"""`trimtab train METHOD --env ENVIRONMENT`."""

import dataclasses
import time
from typing import Annotated, Any, get_type_hints

import tyro

from trimtab.cli.options import parse
from trimtab.cli.train import description_of, job_from, options_of
from trimtab.control_jobs import LANGUAGE_ONLY, ControlJob, check, live, run_control_job
from trimtab.errors import UserError
from trimtab.methods import METHODS, Method
from trimtab.methods.base import OnlineMethod
from trimtab.presets import preset
from trimtab.terminal import console, reporting


def run_control(
    method: type[Method[Any]], env: str, words: list[str], *, resume: bool = False, finish: bool = False
) -> int:
    """Trains one control policy."""
    if not method.online:
        able = [m for m in METHODS.values() if issubclass(m, OnlineMethod) and m.fewest_samples == 1]
        names = ", ".join(other.name for other in able)
        raise UserError(f"{method.name} learns from recorded feedback, not in an environment; take {names}")
    online: Any = method
    check(online)
    options = parse(
        options_of(ControlJob, _settings(method), {**preset(method.name, env), "env": env}),
        words,
        prog=f"trimtab train {method.name}",
        description=description_of(method),
        method=method.name,
    )
    job = job_from(ControlJob, options)
    start = time.monotonic()
    with reporting() as progress:
        done = live(run_control_job(job, progress, resume=resume, finish=finish))
    console.print(f"trained in {time.monotonic() - start:.0f} s  {done}", markup=False, soft_wrap=True)
    console.print(f"the policy is in {options.out}; trimtab play {options.out}", markup=False, soft_wrap=True)
    return 0


def _settings(method: type[Any]) -> type[Any]:
    """The method without the options that mean nothing in an environment."""
    hints = get_type_hints(method)
    unused = [
        (f.name, Annotated[hints[f.name], tyro.conf.Suppress], 0.0 if f.name == "beta" else f.default)
        for f in dataclasses.fields(method)
        if f.name in LANGUAGE_ONLY
    ]
    return dataclasses.make_dataclass(method.__name__, unused, bases=(method,), frozen=True, kw_only=True)
