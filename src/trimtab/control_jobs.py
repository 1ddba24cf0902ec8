"""One job of reinforcement learning in an environment, from its options to the folder that it leaves."""

import math
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from trimtab.errors import UserError, check_bounds, check_positive
from trimtab.methods.base import OnlineMethod
from trimtab.online import OnlineConfig, OnlineTraining, Source, train_online
from trimtab.policies.control import ControlPolicy, NetworkConfig
from trimtab.recorder import SaveConfig, recording
from trimtab.resuming import enter
from trimtab.rollouts.environment import Environment, EnvironmentConfig
from trimtab.rollouts.spaces import Spaces, make_environment
from trimtab.runs import Progress, flat_options
from trimtab.writing import LogConfig, library

LANGUAGE_ONLY = ("beta", "kl_target", "parameters")  # of methods: there is no reference here, nor a name


@dataclass(frozen=True)
class ControlConfig:
    """How long is trained in an environment, and how fast."""

    total_steps: int = 100_000
    """Steps in all copies together; the last collection is finished."""
    epochs: int | None = None
    """Passes over each collection: k; the method's own number if not given."""
    minibatch_size: int | None = None
    """Steps for one optimiser step; the whole collection if not given."""
    learning_rate: float = 3e-4
    """Of Adam, for actor and critic."""
    critic_learning_rate: float | None = None
    """Of the critic; as the actor's if not given."""
    schedule: Literal["cosine", "linear", "constant"] = "constant"
    """How the learning rate falls, to zero."""
    max_grad_norm: float = 0.5
    """Gradients are scaled down to this norm; 0 leaves them. Actor and critic together, or each by itself if
    the critic has a learning rate of its own."""
    adam_eps: float = 1e-5
    """Added to the square root that Adam divides by."""
    seed: int = 0
    """Of the networks, the environment, and every other random choice."""
    non_finite: Literal["stop", "skip"] = "stop"
    """What a loss or gradient does that is no finite number: stop before the step, or leave it out."""

    def __post_init__(self) -> None:
        check_positive(self, "total_steps", "epochs", "minibatch_size", "learning_rate")
        check_positive(self, "critic_learning_rate", "adam_eps")
        check_bounds(self, max_grad_norm=(0, math.inf), seed=(0, 2**31))

    def run(self, environment: EnvironmentConfig) -> "StepBudget":
        """The same for the training loop."""
        return StepBudget(
            refreshes=math.ceil(self.total_steps / (environment.envs * environment.steps)),
            total_steps=self.total_steps,
            epochs=self.epochs,
            minibatch_size=self.minibatch_size,
            learning_rate=self.learning_rate,
            critic_learning_rate=self.critic_learning_rate,
            schedule=self.schedule,
            warmup=0.0,
            max_grad_norm=self.max_grad_norm,
            adam_eps=self.adam_eps,
            seed=self.seed,
            non_finite=self.non_finite,
        )


@dataclass(frozen=True)
class StepBudget(OnlineConfig):
    """Training that ends with a number of steps."""

    total_steps: int = 1

    def share(self, refresh: int, source: Source) -> float:
        assert isinstance(source, Environment)
        return min(1.0, source.total_steps / self.total_steps)


@dataclass(frozen=True)
class ControlJob:
    """One method in one environment."""

    method: OnlineMethod
    environment: EnvironmentConfig
    network: NetworkConfig
    run: ControlConfig
    out: Path
    log: LogConfig = field(default_factory=LogConfig)
    save: SaveConfig = field(default_factory=SaveConfig)


def check(method: OnlineMethod | type[OnlineMethod]) -> None:
    """Raises UserError for a method that an environment cannot serve."""
    if method.fewest_samples > 1:
        raise UserError(
            f"{method.name} compares answers to the same prompt, which an environment has not; "
            "take ppo, or reinforce, which needs no critic either"
        )


def build(job: ControlJob) -> tuple[ControlPolicy, Environment]:
    """The policy and its environments. Raises UserError if the environment cannot be had."""
    config, method = job.environment, job.method
    environment = make_environment(config.env)
    spaces = Spaces.of(environment, config.env)
    environment.close()
    policy = ControlPolicy(
        spaces.size,
        spaces.head(job.network.log_std),
        job.network,
        has_critic=method.needs_critic,
        seed=job.run.seed,
    )
    gamma: float = getattr(method, "gamma", 1.0)
    source = Environment(
        policy, config, gamma=gamma, whole_episodes=not method.needs_critic, seed=job.run.seed
    )
    return policy, source


def run_control_job(
    job: ControlJob, progress: Progress, *, resume: bool = False, finish: bool = False
) -> dict[str, float]:
    """Trains; writes the policy, and while it trains the learning curve, into `job.out`.

    Args:
        resume: go on from the newest checkpoint in `job.out`.
        finish: train no further, and write the policy as the checkpoint has it.
    Returns the last refresh's metrics. Raises UserError before training if an option or the environment is
    wrong, or `out` already holds something.
    """
    enter(job.out, resume)
    check(job.method)
    library(job.log.log_to)
    policy, source = build(job)
    total = job.run.total_steps
    with one_thread(), closing(source), np.errstate(all="ignore"):  # the loop refuses what overflows
        training = train_online(job.method, policy, source, job.run.run(job.environment))
        options = control_options(job)
        with recording(job.out, options, job.log.log_to, job.save, {}, resume=resume) as recorder:
            for refresh in recorder.follow(training, lambda r: r.metrics, policy, finish=finish):
                done = min(source.total_steps, total)
                progress(f"training {job.method.name}", done, total, live(refresh.metrics))
            recorder.finish(training, policy.save, standing(training, source))
    return recorder.last


def standing(training: OnlineTraining, source: Environment) -> dict[str, Any]:
    """Where a training stands, for people and programs."""
    return {
        "refresh": training.refresh,
        "total_steps": source.total_steps,
        "coefficients": training.coefficients,
        "reward_variance": source.reward_moments.variance.tolist(),
        "reward_count": source.reward_moments.count,
    }


@contextmanager
def one_thread() -> Iterator[None]:
    """Networks so small are computed faster by one thread than by several that wait for each other."""
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)


def control_options(job: ControlJob) -> dict[str, Any]:
    """Every option under its own name, as the command line takes it."""
    options = {"method": job.method.name, **flat_options(job)}
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in options.items()
        if name not in LANGUAGE_ONLY
    }


def live(metrics: dict[str, float]) -> str:
    """A refresh's metrics in one line for a person to read."""
    shown = (
        ("return", "return {:.4g}"),
        ("episode_length", "length {:.0f}"),
        ("entropy", "entropy {:.3g}"),
        ("old_kl", "step {:.2g} nats"),
        ("clip_fraction", "clipped {:.1%}"),
        ("explained_variance", "explained {:.2f}"),
        ("steps_per_second", "{:,.0f} steps/s"),
    )
    known = [(metrics[name], text) for name, text in shown if name in metrics]
    return "  ".join(text.format(value) for value, text in known if not math.isnan(value))
