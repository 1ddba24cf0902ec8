"""What the YAML file of a comparison in environments says, and the runs that it asks for."""

import dataclasses
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from trimtab.compare.limits import check_runs, check_seeds
from trimtab.config import MOST_NAME, build, load_yaml, shown
from trimtab.control_jobs import (
    LANGUAGE_ONLY,
    ControlConfig,
    ControlJob,
    check,
)
from trimtab.errors import UserError, check_bounds, check_positive, nearest
from trimtab.methods import METHODS, find
from trimtab.methods.base import OnlineMethod
from trimtab.policies.control import NetworkConfig
from trimtab.presets import preset
from trimtab.rollouts.environment import EnvironmentConfig
from trimtab.rollouts.spaces import Spaces, make_environment

START = "start"  # the method name of runs that play without any training
PARTS: tuple[type[Any], ...] = (EnvironmentConfig, NetworkConfig, ControlConfig)
OWN = ("env", "seed")  # options that the comparison gives itself, by `envs` and `seeds`

Score = Literal["deterministic", "drawn", "training"]

T = TypeVar("T")


@dataclass(frozen=True)
class Evaluation:
    """How every run is measured after its training, with the most likely actions and with drawn ones."""

    episodes: int = 20
    """Of each kind."""

    def __post_init__(self) -> None:
        check_positive(self, "episodes")


@dataclass(frozen=True)
class ControlCompareConfig:
    """A comparison: methods x parameters x environments x seeds, with one evaluation."""

    envs: list[str]
    """Gymnasium names, such as CartPole-v1."""
    methods: dict[str, dict[str, Any] | None]
    """Method names with their parameters and with options of their runs; a list of values is swept."""
    name: str = "Comparison"
    settings: dict[str, Any] = field(default_factory=dict)
    """Options of every run, in place of the preset ones; those that a method has of its own win."""
    seeds: list[int] = field(default_factory=lambda: [0])
    evaluation: Evaluation = field(default_factory=Evaluation)
    score: Score = "deterministic"
    """By which mean return runs are judged: after training with the most likely actions or with drawn ones,
    or of the last 100 episodes of training."""
    jobs: int = 0
    """Runs at a time, with one thread each; 0 takes one for each core."""

    def __post_init__(self) -> None:
        if not self.methods:
            raise UserError("methods: name at least one method, such as ppo")
        _check_list("envs", self.envs)
        _check_list("seeds", self.seeds)
        check_seeds(self.seeds)
        check_bounds(self, jobs=(0, math.inf))
        for name in self.methods:
            _check_method(name)
        _check_settings(self)
        for env in self.envs:
            _check_environment(env)
        grid(self)  # every option of every run is checked before anything is trained

    def with_total_steps(self, steps: int) -> "ControlCompareConfig":
        """The same with so many steps in every run, whatever the methods have of their own."""
        methods: dict[str, dict[str, Any] | None] = {
            name: {key: value for key, value in (options or {}).items() if key != "total_steps"}
            for name, options in self.methods.items()
        }
        return dataclasses.replace(self, methods=methods, settings={**self.settings, "total_steps": steps})


@dataclass(frozen=True)
class Run:
    """One cell of the grid. A run of the method `start` plays without any training."""

    env: str
    method: str
    parameters: dict[str, Any]
    seed: int

    @property
    def key(self) -> str:
        """CartPole-v1/ppo/clip=0.2/seed=0."""
        given = [f"{name}={written(value)}" for name, value in sorted(self.parameters.items())]
        return "/".join([self.env, self.method, *given, f"seed={self.seed}"])

    @property
    def folder(self) -> str:
        return "runs/" + self.key.replace("/", "-").replace(":", "-")

    def job(self, settings: Mapping[str, Any], out: Path) -> ControlJob:
        """The training: presets, then settings, then parameters. Raises UserError for a wrong option."""
        options = {**preset(self.method, self.env), **settings, **self.parameters, "beta": 0.0}
        options |= {"env": self.env, "seed": self.seed}
        method: Any = find(self.method)
        own, environment, network, run = (_part(cls, options, self.method) for cls in (method, *PARTS))
        job = ControlJob(own, environment, network, run, out / self.folder)
        run.run(environment)  # what the training loop has to say against it
        return job


def grid(config: ControlCompareConfig) -> list[Run]:
    """Every run of the comparison, seeds outermost, so that a first answer comes early.

    In each environment and with each seed there is a run that plays untrained.

    Raises UserError for an unknown option, or a value out of bounds.
    """
    cells = [Run(env, START, {}, seed=0) for env in config.envs]
    cells += [cell for name in config.methods for cell in _cells(config, name)]
    check_runs("the comparison", (len(cells), len(config.seeds)))
    cells.sort(key=lambda cell: config.envs.index(cell.env))
    return [dataclasses.replace(cell, seed=seed) for seed in config.seeds for cell in cells]


def written(value: Any) -> str:
    """A value in the name of a run: 0.2, linear, 64x64."""
    if isinstance(value, list):
        return "x".join(map(written, value))
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def _cells(config: ControlCompareConfig, name: str) -> list[Run]:
    """A method's runs in every environment, with seed 0."""
    sweep = config.methods[name] or {}
    _check_names(sweep, find(name), f"methods: {name}")
    choices = [_choices(key, value, name) for key, value in sweep.items()]
    check_runs(f"methods: {name}", [len(config.envs), *map(len, choices)])
    runs = []
    for env in config.envs:
        for values in itertools.product(*choices):
            raw = Run(env, name, dict(zip(sweep, values, strict=True)), seed=0)
            options = _flat(raw.job(config.settings, Path()))
            runs.append(dataclasses.replace(raw, parameters={key: options[key] for key in sweep}))
    if len({run.key for run in runs}) < len(runs):
        raise UserError(f"methods: {name} has the same value twice")
    return runs


def _choices(key: str, value: Any, method: str) -> list[Any]:
    """The values to try. A list of sizes is one value for `hidden`, a list of such lists is a sweep."""
    one = not isinstance(value, list) or (key == "hidden" and not any(isinstance(v, list) for v in value))
    values = [value] if one else value
    if not values:
        raise UserError(f"methods: {method}: {key} is an empty list; give at least one value")
    return values


def _flat(job: ControlJob) -> dict[str, Any]:
    """The options of a job by their names, typed, as YAML would hold them."""
    parts: tuple[Any, ...] = (job.method, job.environment, job.network, job.run)
    options = {f.name: getattr(part, f.name) for part in parts for f in dataclasses.fields(part)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}


def _part(cls: type[T], options: Mapping[str, Any], where: str) -> T:
    """One of the dataclasses that a job is made of, from the options that are its own."""
    names = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    return build(cls, {key: value for key, value in options.items() if key in names}, where)


def _check_list(name: str, values: list[Any]) -> None:
    if not values or len(set(values)) < len(values):
        raise UserError(f"{name} is {shown(values)}; it must hold at least one, and none twice")


def _check_method(name: str) -> None:
    """Raises UserError for a method that does not exist, or cannot learn in an environment."""
    method: Any = find(name)
    if not method.online:
        others = [m for m in METHODS.values() if issubclass(m, OnlineMethod) and m.fewest_samples < 2]
        names = ", ".join(other.name for other in others)
        raise UserError(f"methods: {name} learns from recorded feedback, not in an environment; take {names}")
    check(method)


def _check_settings(config: ControlCompareConfig) -> None:
    """Raises UserError for a setting that a method of the comparison does not have, or a wrong value."""
    for name in config.methods:
        method = find(name)
        _check_names(config.settings, method, "settings", f" of {name}")
        options = {**config.settings, "env": ""}
        for cls in (method, *PARTS):
            _part(cls, options, "settings")


def _check_names(options: Mapping[str, Any], method: type[Any], where: str, whose: str = "") -> None:
    """Raises UserError for an option that the method's runs do not have."""
    names = {f.name for cls in (method, *PARTS) for f in dataclasses.fields(cls)}
    known = names - set(LANGUAGE_ONLY) - set(OWN)
    for key in options:
        if key in OWN:
            raise UserError(f"{where}: {key!r} is not given here; name it under `{key}s`")
        if key not in known:
            raise UserError(f"{where}: unknown option{whose} {shown(key)}; {nearest(str(key)[:80], known)}")


def _check_environment(env: str) -> None:
    """Raises UserError for an environment that cannot be had, or that no policy here can act in."""
    if not env.isprintable() or not 0 < len(env) <= MOST_NAME:
        raise UserError(f"envs: {shown(env)} is no name of an environment")
    try:
        environment = make_environment(env)
    except UserError as error:
        raise UserError(f"envs: {str(error).removeprefix('--env ')}") from None
    try:
        Spaces.of(environment, env)
    finally:
        environment.close()


def load_config(path: Path) -> ControlCompareConfig:
    """A comparison from its YAML file. Raises UserError that names the key that is wrong."""
    return build(ControlCompareConfig, load_yaml(path), str(path))
