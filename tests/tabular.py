"""A world of five states and three actions whose values, visits and gradients are solved for, not sampled."""

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Discrete
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray
from scipy.stats import f as f_distribution

from trimtab.methods import find
from trimtab.policies.control import ControlPolicy, NetworkConfig
from trimtab.policies.heads import CategoricalHead
from trimtab.rollouts.environment import Environment, EnvironmentConfig
from trimtab.rollouts.rollout import Rollout

Array = NDArray[np.floating[Any]]
STATES, ACTIONS = 5, 3
NAME = "trimtab-tests/Tabular-v0"
SPREAD = 0.5  # a reward is its mean plus or minus this, with even chances


@dataclass(frozen=True)
class World:
    """What happens after each action. From every state an episode may end.

    Attributes:
        start: [S] chances of the first state.
        moves: [S, A, S + 1] chances of the next state; the last place is the end.
        rewards: [S, A] means.
    """

    start: Array
    moves: Array
    rewards: Array

    @classmethod
    def draw(cls, seed: int) -> "World":
        rng = np.random.default_rng(seed)
        moves = rng.dirichlet(np.full(STATES, 0.4), (STATES, ACTIONS))
        ends = rng.uniform(0.08, 0.3, (STATES, ACTIONS, 1))
        moves = np.concatenate([moves * (1 - ends), ends], -1)
        return cls(rng.dirichlet(np.ones(STATES)), moves, rng.normal(0.3, 1.0, (STATES, ACTIONS)))

    def steps(self, pi: Array) -> Array:
        """[S, S] chances of the next state under a policy [S, A]; what is missing in a row is the end."""
        return np.einsum("sa,sat->st", pi, self.moves[..., :STATES])

    def values(self, pi: Array, gamma: float) -> Array:
        """[S] V = r + gamma P V."""
        return np.linalg.solve(np.eye(STATES) - gamma * self.steps(pi), (pi * self.rewards).sum(1))

    def action_values(self, pi: Array, gamma: float) -> Array:
        """[S, A] Q = R + gamma P V."""
        return self.rewards + gamma * self.moves[..., :STATES] @ self.values(pi, gamma)

    def return_of(self, pi: Array, gamma: float) -> float:
        return float(self.start @ self.values(pi, gamma))

    def best(self, gamma: float) -> float:
        """The return of the optimal policy, by value iteration."""
        values = np.zeros(STATES)
        for _ in range(2000):
            values = (self.rewards + gamma * self.moves[..., :STATES] @ values).max(1)
        return float(self.start @ values)

    def visits(self, pi: Array, gamma: float = 1.0) -> Array:
        """[S] how often an episode comes through each state, later visits counting gamma^t."""
        return np.linalg.solve(np.eye(STATES) - gamma * self.steps(pi).T, self.start)

    def visits_within(self, pi: Array, count: int) -> Array:
        """[S] the same for so many steps on end, each episode followed by an idle step and the next one."""
        here, idle, total = self.start, 0.0, np.zeros(STATES)
        for _ in range(count):
            total = total + here
            here, idle = (
                here @ self.steps(pi) + idle * self.start,
                float(here.sum() - (here @ self.steps(pi)).sum()),
            )
        return total

    def gradient(self, pi: Array, gamma: float, visits: Array) -> Array:
        """[S, A] sum over actions of Q dpi / d logits, summed over visits: N(s) pi (Q - V)."""
        advantages = self.action_values(pi, gamma) - self.values(pi, gamma)[:, None]
        return visits[:, None] * pi * advantages

    def true_gradient(self, logits: Array, gamma: float) -> Array:
        """[S, A] of the return, by differentiation through the linear system."""
        table = torch.tensor(logits, requires_grad=True)
        pi, moves = table.softmax(-1), torch.tensor(self.moves[..., :STATES])
        system = torch.eye(STATES).double() - gamma * torch.einsum("sa,sat->st", pi, moves)
        values = torch.linalg.solve(system, (pi * torch.tensor(self.rewards)).sum(1))
        return torch.autograd.grad(torch.tensor(self.start) @ values, table)[0].numpy()


class TabularVector(VectorEnv[Any, Any, Any]):
    """Many copies of a world at once. What is observed after the end is state 0, which means nothing."""

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(self, num_envs: int, world: World) -> None:
        self.num_envs, self.world = num_envs, world
        self.single_observation_space, self.single_action_space = Discrete(STATES), Discrete(ACTIONS)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.rows = np.arange(num_envs)

    def drawn(self, chances: Array) -> NDArray[Any]:
        """One place of each row of [E, N]."""
        return (chances.cumsum(1)[:, :-1] < self.np_random.random((self.num_envs, 1))).sum(1)

    def begun(self) -> NDArray[Any]:
        return self.drawn(np.broadcast_to(self.world.start, (self.num_envs, STATES)))

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.over = np.zeros(self.num_envs, dtype=bool)
        self.states = self.begun()
        return self.states.copy(), {}

    def step(self, actions: Any) -> Any:
        moved = self.drawn(self.world.moves[self.states, actions])
        signs = self.np_random.integers(0, 2, self.num_envs) * 2 - 1
        rewards = self.world.rewards[self.states, actions] + SPREAD * signs
        ended = (moved == STATES) & ~self.over
        self.states = np.where(self.over, self.begun(), np.where(ended, 0, moved))
        rewards[self.over] = 0.0
        self.over = ended
        return self.states.copy(), rewards, ended, np.zeros_like(ended), {}


def register(world: World) -> None:
    """Makes this world known to Gymnasium."""
    maker: Any = TabularVector
    gymnasium.registry.pop(NAME, None)
    gymnasium.register(NAME, vector_entry_point=maker, kwargs={"world": world})


WORLD = World.draw(seed=1)
LOGITS = np.random.default_rng(5).normal(0, 0.8, (STATES, ACTIONS))
PI = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
WRONG = np.array([3.0, -2.0, 0.5, 1.0, -1.0])  # values of a critic that has learned nothing
COPIES, STEPS, BATCHES = 16_000, 12, 400
LARGEST_Z, LEAST_CHANCE = 4.0, 1e-3
register(WORLD)


def table(logits: Array | None = None, values: Array | None = None) -> ControlPolicy:
    """A policy without hidden layers: logits [S, A], values [S]; no values, no critic."""
    network = NetworkConfig(hidden=())
    policy = ControlPolicy(STATES, CategoricalHead(ACTIONS), network, has_critic=values is not None)
    tensors = {name: torch.zeros_like(tensor) for name, tensor in policy.tensors().items()}
    if logits is not None:
        tensors["actor.body.0.weight"] = torch.tensor(logits.T.copy(), dtype=torch.float32)
    if values is not None:
        tensors["critic.0.weight"] = torch.tensor(values[None], dtype=torch.float32)
    policy.load(tensors | {"observations.variance": torch.ones(STATES, dtype=torch.float64)})
    return policy


def chances_of(policy: ControlPolicy) -> Array:
    """[S, A] what a policy does in each state."""
    tensors = policy.tensors()
    logits = tensors["actor.body.0.weight"].T + tensors["actor.body.0.bias"]
    return logits.double().softmax(-1).numpy()


def by_logit(policy: ControlPolicy, gradient: torch.Tensor) -> Array:
    """[S, A] the gradient of each state's logits; that of the biases must be its sum over states."""
    pieces = policy.actor.pieces(gradient)
    found = pieces["body.0.weight"].T.double().numpy()
    np.testing.assert_allclose(pieces["body.0.bias"].numpy(), found.sum(0), rtol=1e-3, atol=1e-3)
    return found


def unlikely(draws: Array, expected: Array) -> tuple[float, float]:
    """How far the mean of [K, N] independent draws is from [N] what it should be.

    Returns:
        the largest distance of a component, in standard errors of its own; the chance that all of them are as
        far off as this (Hotelling's T^2), directions in which nothing varies left out.
    """
    count, off = len(draws), draws.mean(0) - expected
    error = draws.std(0, ddof=1) / np.sqrt(count)
    spread, axes = np.linalg.eigh(np.cov(draws.T))
    axes, spread = axes[:, spread > 1e-9 * spread.max()], spread[spread > 1e-9 * spread.max()]
    free = len(spread)
    t_squared = count * float(((off @ axes) ** 2 / spread).sum())
    chance = f_distribution.sf(t_squared * (count - free) / (free * (count - 1)), free, count - free)
    return float(np.abs(off / error).max()), float(chance)


@cache
def collected(whole_episodes: bool) -> Rollout:
    """What many copies did under PI: an episode of each, or STEPS steps of each."""
    source = Environment(
        table(LOGITS),
        EnvironmentConfig(env=NAME, envs=COPIES, steps=STEPS),
        gamma=1.0,
        whole_episodes=whole_episodes,
        seed=1,
    )
    return source.collect(0).rollout


def credited(method: Any, policy: ControlPolicy, whole_episodes: bool) -> Rollout:
    rollout = collected(whole_episodes)
    with torch.no_grad():
        out = policy.evaluate(rollout.inputs)
    rollout = replace(
        rollout,
        old_logprobs=out.logprobs,
        values=out.values,
        next_values=out.next_values,
        coefficients=method.coefficients(),
    )
    return method.advantages(rollout)


def made(name: str, **parameters: Any) -> Any:
    cls: Any = find(name)
    return cls(**parameters)
