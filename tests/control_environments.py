"""Gymnasium environments that follow a script, and the same script told step by step in plain Python."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from gymnasium.spaces import Dict as DictSpace
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from trimtab.policies.control import ControlPolicy, NetworkConfig
from trimtab.policies.heads import CategoricalHead, Head
from trimtab.rollouts.environment import Environment, EnvironmentConfig

SCRIPTS = (
    ((3, "terminated"), (2, "truncated"), (4, "terminated"), (1, "terminated")),
    ((5, "truncated"), (1, "terminated"), (1, "truncated"), (2, "both")),
    ((7, "truncated"), (6, "terminated")),
)
"""For each copy its episodes, over and over: how many steps, and how they end."""
COPIES = len(SCRIPTS)
NONSENSE = 99.0  # what an environment of its own vectorised form rewards the step with that nobody chose


def end_of(copy: int, episode: int) -> tuple[int, str]:
    script = SCRIPTS[copy]
    return script[episode % len(script)]


def reward_of(copy: int, episode: int, step: int) -> float:
    """Of the step that leads to number `step`, counted from 1: no two in a short run are the same."""
    return step * step - 2.5 * episode + 7.0 * copy - 4.0


@dataclass(frozen=True)
class Moment:
    """One step of a vectorised environment, in one copy. Observations are (copy, episode, step)."""

    before: tuple[float, ...]
    after: tuple[float, ...]
    chosen: bool = False  # by the policy, rather than the start of the next episode
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False

    @property
    def ended(self) -> bool:
        return self.terminated or self.truncated


def told(copy: int, episode: int = 0) -> Iterator[Moment]:
    """What must happen in this copy from the start of this episode on, without end."""
    while True:
        length, end = end_of(copy, episode)
        for step in range(1, length + 1):
            last = step == length
            yield Moment(
                before=(copy, episode, step - 1),
                after=(copy, episode, step),
                chosen=True,
                reward=reward_of(copy, episode, step),
                terminated=last and end != "truncated",
                truncated=last and end != "terminated",
            )
        yield Moment((copy, episode, length), (copy, episode + 1, 0))
        episode += 1


def rows_of(stories: list[Iterator[Moment]], steps: int) -> list[list[Moment]]:
    """The next steps of every copy."""
    return [list(islice(story, steps)) for story in stories]


def whole_rows(starts: list[int]) -> list[list[Moment]]:
    """An episode of every copy, these numbers; all told to the end of the longest."""
    stories = [told(copy, episode) for copy, episode in enumerate(starts)]
    rows = rows_of(stories, 20)
    lengths = [next(i for i, m in enumerate(row) if m.ended) + 1 for row in rows]
    return [
        [m if i < length else replace(m, chosen=False) for i, m in enumerate(row[: max(lengths)])]
        for row, length in zip(rows, lengths, strict=True)
    ]


class Scripted(gymnasium.Env[Any, Any]):
    """Follows the script of the copy whose number it is seeded with; keeps the actions that it is given."""

    received: list[Any] = []  # by all copies, one after the other  # noqa: RUF012
    observation_space: Any = Box(-np.inf, np.inf, (3,), np.float32)
    action_space: Any = Discrete(2)

    def __init__(self, render_mode: Any = None) -> None:
        self.copy, self.episode, self.step_number = 0, -1, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        if seed is not None:
            self.copy, self.episode = seed, -1
        self.episode += 1
        self.step_number = 0
        return self.seen(), {}

    def seen(self) -> Any:
        return np.array([self.copy, self.episode, self.step_number], dtype=np.float32)

    def step(self, action: Any) -> Any:
        self.received.append(np.array(action))
        self.step_number += 1
        length, end = end_of(self.copy, self.episode)
        last = self.step_number == length
        reward = reward_of(self.copy, self.episode, self.step_number)
        return self.seen(), reward, last and end != "truncated", last and end != "terminated", {}


class ScriptedVector(VectorEnv[Any, Any, Any]):
    """The same in a vectorised form of its own, whose step between two episodes is rewarded with nonsense."""

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(self, num_envs: int, **options: Any) -> None:
        self.num_envs = num_envs
        self.copies = [Scripted() for _ in range(num_envs)]
        self.single_observation_space = Scripted.observation_space
        self.single_action_space = Scripted.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.over = np.zeros(num_envs, dtype=bool)

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        self.over[:] = False
        seeds = [None if seed is None else seed + i for i in range(self.num_envs)]
        return np.stack([env.reset(seed=s)[0] for env, s in zip(self.copies, seeds, strict=True)]), {}

    def step(self, actions: Any) -> Any:
        rows = [
            (env.reset()[0], NONSENSE, False, False) if over else env.step(action)[:4]
            for env, over, action in zip(self.copies, self.over, actions, strict=True)
        ]
        seen, rewards, terminated, truncated = (np.array(column) for column in zip(*rows, strict=True))
        self.over = terminated | truncated
        return seen, rewards, terminated, truncated, {}


class Numbered(Scripted):
    """Observations are numbers from 0 to 6: steps; actions are numbers from 5 to 7."""

    observation_space = Discrete(8)
    action_space = Discrete(3, start=5)

    def seen(self) -> Any:
        return self.step_number


class NumberedFromTwo(Numbered):
    """Observations are numbers from 2 on."""

    observation_space = Discrete(8, start=2)

    def seen(self) -> Any:
        return self.step_number + 2


class Continuous(Scripted):
    """Observations are matrices, so are actions; these have bounds of their own each."""

    observation_space = Box(-100, 100, (3, 1), np.float64)
    action_space = Box(np.array([[-0.5], [-np.inf]]), np.array([[0.25], [1.0]]), dtype=np.float64)

    def seen(self) -> Any:
        return np.array([[self.copy], [self.episode], [self.step_number]], dtype=np.float64)


class Endless(Scripted):
    """No episode ever ends."""

    def step(self, action: Any) -> Any:
        return self.seen(), 1.0, False, False, {}


class Bare(Scripted):
    """Cannot be drawn, and does not know that it might be asked."""

    def __init__(self) -> None:
        super().__init__()


class TwoEyes(Scripted):
    observation_space = DictSpace({"left": Discrete(2), "right": Discrete(2)})


class TwoHands(Scripted):
    action_space = MultiDiscrete([2, 3])


NAMES: dict[str, type[Scripted]] = {
    f"trimtab-tests/{cls.__name__}-v0": cls
    for cls in (Scripted, Numbered, NumberedFromTwo, Continuous, Endless, Bare, TwoEyes, TwoHands)
}
SCRIPTED, NATIVE = "trimtab-tests/Scripted-v0", "trimtab-tests/ScriptedVector-v0"
CARTPOLE = "trimtab-tests/CartPoleInARow-v0"  # without the vectorised form that CartPole-v1 has
CARTPOLE_CLASS = "gymnasium.envs.classic_control:CartPoleEnv"


kinds = pytest.mark.parametrize(
    "name", [SCRIPTED, NATIVE], ids=["copies in a row", "its own vectorised form"]
)


def _callable(cls: Any) -> Any:
    return cls


def register() -> None:
    """Makes the environments known to Gymnasium; once is enough, twice does no harm."""
    for name, cls in NAMES.items():
        if name not in gymnasium.registry:
            gymnasium.register(name, entry_point=_callable(cls), disable_env_checker=True)
    if CARTPOLE not in gymnasium.registry:
        gymnasium.register(CARTPOLE, entry_point=CARTPOLE_CLASS, max_episode_steps=500)
    if NATIVE not in gymnasium.registry:
        ours, vector = _callable(Scripted), _callable(ScriptedVector)
        gymnasium.register(NATIVE, entry_point=ours, vector_entry_point=vector)


def linear(
    size: int, head: Head | None = None, weights: tuple[float, ...] = (), bias: float = 0.0
) -> ControlPolicy:
    """A policy without hidden layers: every action as likely as the others, V(s) = weights . s + bias."""
    policy = ControlPolicy(size, head or CategoricalHead(2), NetworkConfig(hidden=(), orthogonal=False))
    tensors = {name: torch.zeros_like(t) if "actor" in name else t for name, t in policy.tensors().items()}
    critic = {
        "critic.0.weight": torch.tensor([weights or (0.0,) * size]),
        "critic.0.bias": torch.tensor([bias]),
    }
    policy.load(tensors | critic)
    return policy


def environment(
    name: str = SCRIPTED,
    policy: ControlPolicy | None = None,
    *,
    steps: int = 7,
    copies: int = COPIES,
    gamma: float = 0.9,
    whole_episodes: bool = False,
    **options: bool,
) -> Environment:
    """Copies of an environment; seeded with 0, so that copy i follows script i."""
    config = EnvironmentConfig(env=name, envs=copies, steps=steps, **options)
    return Environment(policy or linear(3), config, gamma=gamma, whole_episodes=whole_episodes, seed=0)
