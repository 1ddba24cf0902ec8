"""What a comparison's YAML file says, and the runs that it asks for."""

import dataclasses
import itertools
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from trimtab.compare.limits import check_runs, check_seeds
from trimtab.compare.results import Strength
from trimtab.config import build, load_yaml, shown, typed
from trimtab.errors import UserError, check_bounds, check_positive, nearest
from trimtab.feedback.conversions import ViewOptions
from trimtab.methods import Method, find
from trimtab.rollouts.generate import Sampling
from trimtab.train import RunConfig

PROXY = "proxy"  # the name of the comparison's own reward model among the rewards
RESERVED = ("kl", "length", "ended", "distinct_1", "distinct_2")  # what is measured besides rewards


@dataclass(frozen=True)
class SFTStage:
    """Fine-tunes the model on demonstrations first; every method starts from the result."""

    data: str
    """Demonstrations: a file, a folder, a hub name, or reviews."""
    run: RunConfig = field(default_factory=RunConfig)


@dataclass(frozen=True)
class CollectStage:
    """Lets the starting model answer prompts and has a reward rank the answers: the feedback."""

    reward: str
    """Who ranks: a reward as in `trimtab evaluate --reward`."""
    prompts: int = 1000
    """How many of the training prompts are answered."""
    held_out_prompts: int = 200
    """How many held-out prompts are answered, to measure the reward model."""
    samples: int = 4
    """Answers to each prompt."""

    def __post_init__(self) -> None:
        check_positive(self, "prompts", "held_out_prompts")
        check_bounds(self, samples=(2, math.inf))


@dataclass(frozen=True)
class RewardModelStage:
    """Trains a reward model on the feedback for each seed; the first becomes the reward `proxy`."""

    method: Literal["reward_model", "reward_ranking"] = "reward_model"
    run: RunConfig = field(default_factory=RunConfig)


@dataclass(frozen=True)
class Budget:
    """What every run gets that learns from the recorded feedback."""

    steps: int = 100
    """Optimiser steps."""
    responses: int = 64
    """Responses in each step: 32 pairs, 64 thumbs, 16 rankings of four."""
    batch_tokens: int = 8192
    max_length: int = 1024

    def __post_init__(self) -> None:
        check_positive(self, "steps", "responses", "batch_tokens")
        check_bounds(self, max_length=(2, math.inf))


@dataclass(frozen=True)
class Online:
    """How the methods learn that write their own answers, to the prompts of the training feedback."""

    refreshes: int = 100
    """Times that answers are collected."""
    responses: int = 64
    """Answers in each collection, as many to a prompt as the method wants."""
    reward: str | None = None
    """Which of the rewards they learn from, by its name; proxy if there is one, else the first."""
    minibatch: int | None = None
    """Answers for one optimiser step; the whole collection if not given."""
    critic_learning_rate: float | None = None
    """Of the value head; its own if not given."""

    def __post_init__(self) -> None:
        check_positive(self, "refreshes", "responses", "minibatch", "critic_learning_rate")


@dataclass(frozen=True)
class Evaluation:
    """How every run is measured: one sampled answer to each held-out prompt."""

    prompts: int = 200
    max_new_tokens: int = 128
    temperature: float = 1.0
    batch_size: int = 128

    def __post_init__(self) -> None:
        check_positive(self, "prompts")
        self.sampling()

    def sampling(self) -> Sampling:
        return Sampling(self.max_new_tokens, self.temperature, self.batch_size)


@dataclass(frozen=True)
class CompareConfig:
    """A comparison: methods x strengths x seeds on one dataset, with one budget and one evaluation."""

    model: str
    """Folder or hub name of the model that all methods start from, or reviews."""
    data: str
    """Feedback (or, with `collect`, the prompts): a file, a folder, a hub name, or reviews."""
    methods: dict[str, dict[str, Any] | None]
    """Method names with their parameters; a list of values is swept. learning_rate may stand here too."""
    name: str = "Comparison"
    held_out: float = 0.1
    """Share of the prompts kept out of training for the evaluation; reviews has its own split."""
    sft: SFTStage | None = None
    collect: CollectStage | None = None
    reward_model: RewardModelStage | None = None
    rewards: dict[str, str] = field(default_factory=dict)
    """More rewards to report, by name; the first is the one that decides."""
    seeds: list[int] = field(default_factory=lambda: [0])
    budget: Budget = field(default_factory=Budget)
    online: Online = field(default_factory=Online)
    evaluation: Evaluation = field(default_factory=Evaluation)
    views: ViewOptions = field(default_factory=ViewOptions)
    keep: Literal["best", "all", "none"] = "best"
    """Which trained models stay on the disk."""
    jobs: int = 0
    """Runs at a time, with one thread each; 0 takes one for each core, or one on a GPU."""
    lora_rank: int = 0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    device: str = "auto"

    def __post_init__(self) -> None:
        if not self.methods:
            raise UserError("methods: name at least one method; `trimtab methods` lists them")
        if not self.rewards and self.reward_model is None:
            raise UserError("nothing to compare by: give `reward_model`, or a reward under `rewards`")
        for name in self.rewards:
            if name in RESERVED or (name == PROXY and self.reward_model is not None):
                raise UserError(f"rewards: the name {name!r} is taken by another measure; choose another")
        if self.online.reward is not None and self.online.reward not in self.reward_names:
            names = nearest(self.online.reward[:80], self.reward_names)
            raise UserError(f"online: there is no reward {shown(self.online.reward)}; {names}")
        _check_seeds(self.seeds)
        check_bounds(self, held_out=(0, 1), jobs=(0, math.inf), lora_rank=(0, math.inf))
        grid(self)  # every parameter is checked before anything is trained

    @property
    def reward_names(self) -> list[str]:
        return [*self.rewards, *([PROXY] if self.reward_model else [])]

    @property
    def learned_reward(self) -> str:
        """The name of the reward that online methods learn from."""
        return self.online.reward or (PROXY if self.reward_model else self.reward_names[0])


@dataclass(frozen=True)
class Run:
    """One cell of the grid. A run without method measures the starting model."""

    method: str
    parameters: dict[str, Any]
    strength: Strength | None
    seed: int
    learning_rate: float | None = None

    @property
    def key(self) -> str:
        """dpo/beta=0.1/seed=0."""
        swept = [f"{k}={v}" for k, v in sorted(self.parameters.items())]
        rate = [] if self.learning_rate is None else [f"learning_rate={self.learning_rate:g}"]
        return "/".join([self.method, *swept, *rate, f"seed={self.seed}"])

    @property
    def folder(self) -> str:
        return "runs/" + self.key.replace("/", "-")

    def build(self) -> Method[Any]:
        return build(find(self.method), self.parameters, self.method)


def grid(config: CompareConfig) -> list[Run]:
    """Every run of the comparison, seeds outermost, so that a first answer comes early.

    Raises UserError for an unknown method or parameter, or a value out of bounds.
    """
    cells = [cell for name, sweep in config.methods.items() for cell in _cells(name, sweep or {})]
    check_runs("the comparison", (len(cells), len(config.seeds)))
    return [dataclasses.replace(cell, seed=seed) for seed in config.seeds for cell in cells]


def _cells(name: str, sweep: dict[str, Any]) -> list[Run]:
    method = find(name)
    if method.trains != "policy":
        raise UserError(f"methods: {name} trains a reward model; put it under `reward_model`")
    values = {key: value if isinstance(value, list) else [value] for key, value in sweep.items()}
    rates = typed(list[float], values.pop("learning_rate", []), f"{name}: learning_rate")
    check_runs(f"methods: {name}", [len(rates) or 1, *map(len, values.values())])
    runs = []
    for rate in rates or [None]:
        RunConfig(learning_rate=rate)  # checks it
        for combination in itertools.product(*values.values()):
            built = build(method, dict(zip(values, combination, strict=True)), name)
            parameters = {key: getattr(built, key) for key in values}
            strength = Strength(method.strength, getattr(built, method.strength)) if method.strength else None
            runs.append(Run(name, parameters, strength, seed=0, learning_rate=rate))
    if len({run.key for run in runs}) < len(runs):
        raise UserError(f"methods: {name} has the same value twice")
    return runs


def _check_seeds(seeds: list[int]) -> None:
    if not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"seeds is {shown(seeds)}; it must hold at least one number, and none twice")
    check_seeds(seeds)


def load_config(path: Path) -> CompareConfig:
    """A comparison from its YAML file. Raises UserError that names the key that is wrong."""
    return build(CompareConfig, load_yaml(path), str(path))
