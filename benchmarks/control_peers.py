"""The same settings for trimtab and for Stable-Baselines3: what the two benchmarks of control share."""

import dataclasses
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trimtab.config import build
from trimtab.control_jobs import (
    ControlConfig,
    ControlJob,
)
from trimtab.control_jobs import build as build_control
from trimtab.methods import find
from trimtab.online import train_online
from trimtab.play import play
from trimtab.policies.control import NetworkConfig
from trimtab.rollouts.environment import EnvironmentConfig

Settings = dict[str, Any]


@dataclass(frozen=True)
class Trained:
    """A run's cost, and the returns of episodes after it.

    Attributes:
        seconds: of training alone, imports and the making of environments left out.
        play: (episodes, deterministic) -> their returns.
    """

    seconds: float
    steps: int
    play: Callable[[int, bool], list[float]]


def train_trimtab(method: str, settings: Settings, seed: int) -> Trained:
    """With trimtab. `settings` are options as `trimtab train METHOD --env` takes them, env among them."""
    job = job_of(method, settings, seed)
    policy, source = build_control(job)
    start = time.perf_counter()
    for _ in train_online(job.method, policy, source, job.run.run(job.environment)):
        pass
    seconds = time.perf_counter() - start

    def episodes(count: int, deterministic: bool) -> list[float]:
        env = job.environment.env
        return play(policy, source.spaces, env, count, seed=seed, deterministic=deterministic)

    return Trained(seconds, source.total_steps, episodes)


def job_of(method: str, settings: Settings, seed: int) -> ControlJob:
    """The job that these options describe."""

    def part(cls: Any, **more: Any) -> Any:
        names = {field.name for field in dataclasses.fields(cls)}
        return build(cls, {k: v for k, v in (settings | more).items() if k in names}, method)

    return ControlJob(
        part(find(method), beta=0.0),
        part(EnvironmentConfig),
        part(NetworkConfig),
        part(ControlConfig, seed=seed),
        Path(),
    )


def train_sb3(method: str, settings: Settings, seed: int) -> Trained:
    """With Stable-Baselines3 (sb3-contrib for TRPO); its PPO normalises advantages in each minibatch."""
    warnings.filterwarnings("ignore")
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.vec_env import VecNormalize

    job = job_of(method, settings, seed)
    env = make_vec_env(job.environment.env, n_envs=job.environment.envs, seed=seed)
    normalised = job.environment.normalise_observations
    if normalised:
        gamma, rewards = job.method.gamma, job.environment.normalise_rewards  # type: ignore[attr-defined]
        env = VecNormalize(env, gamma=gamma, norm_reward=rewards)
    model = _sb3_model(job, env)
    start = time.perf_counter()
    model.learn(job.run.total_steps)
    seconds = time.perf_counter() - start

    def episodes(count: int, deterministic: bool) -> list[float]:
        other = make_vec_env(job.environment.env, n_envs=1, seed=100_000 + 2 * seed + deterministic)
        if normalised:
            other = VecNormalize(other, training=False, norm_reward=False)
            other.obs_rms = env.obs_rms
        returns, _ = evaluate_policy(model, other, count, deterministic, return_episode_rewards=True)
        return [float(value) for value in returns]

    return Trained(seconds, int(model.num_timesteps), episodes)


def _sb3_model(job: ControlJob, env: Any) -> Any:
    """Its algorithm with the job's settings: losses of values count twice there, having no half."""
    from stable_baselines3 import A2C, PPO

    method: Any = job.method
    if method.name == "trpo":
        return _sb3_trpo(job, env)
    common = _sb3_common(job) | {
        "learning_rate": _falling(job.run.learning_rate, job.run.schedule),
        "ent_coef": method.entropy_bonus,
        "vf_coef": method.value_weight / 2,
        "max_grad_norm": job.run.max_grad_norm,
    }
    if method.name == "a2c":
        return A2C("MlpPolicy", env, use_rms_prop=False, **common)
    common |= {
        "batch_size": job.run.minibatch_size,
        "n_epochs": job.run.epochs or method.epochs,
        "clip_range": _falling(method.clip, method.clip_schedule),
        "clip_range_vf": method.value_clip,
    }
    return PPO("MlpPolicy", env, **common)


def _sb3_common(job: ControlJob) -> Settings:
    """What all three algorithms take."""
    from torch import nn

    method: Any = job.method
    return {
        "n_steps": job.environment.steps,
        "gamma": method.gamma,
        "gae_lambda": method.lam,
        "normalize_advantage": method.whiten,
        "seed": job.run.seed,
        "device": "cpu",
        "policy_kwargs": {
            "net_arch": {"pi": list(job.network.hidden), "vf": list(job.network.hidden)},
            "activation_fn": {"tanh": nn.Tanh, "relu": nn.ReLU}[job.network.activation],
            "log_std_init": job.network.log_std,
            "ortho_init": job.network.orthogonal,
        },
    }


def _sb3_trpo(job: ControlJob, env: Any) -> Any:
    """There the KL of a Gaussian is the mean over the action's dimensions, here it is the KL: their sum."""
    from sb3_contrib import TRPO

    method: Any = job.method
    dimensions = int(np.prod(env.action_space.shape)) or 1
    return TRPO(
        "MlpPolicy",
        env,
        learning_rate=_falling(job.run.critic_learning_rate, job.run.schedule),
        batch_size=job.run.minibatch_size,
        n_critic_updates=job.run.epochs or method.epochs,
        cg_damping=method.damping / dimensions,
        cg_max_steps=method.cg_iterations,
        target_kl=method.max_kl / dimensions,
        line_search_max_iter=method.halvings,
        **_sb3_common(job),
    )


def _falling(value: Any, schedule: str) -> Any:
    """A schedule as that library takes it: a function of the share that is left."""
    return (lambda left: value * left) if schedule == "linear" else value
