"""Experience of a control policy: it acts in many copies of a Gymnasium environment at once."""

import logging
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trimtab.errors import UserError, check_bounds, check_positive
from trimtab.objectives import advantages
from trimtab.policies.base import ABSENT
from trimtab.policies.control import ControlPolicy, Steps
from trimtab.policies.moments import Moments
from trimtab.rollouts.replay import Replay
from trimtab.rollouts.rollout import Collection, Rollout
from trimtab.rollouts.spaces import Spaces, make_environments

log = logging.getLogger("trimtab")

LAST = 100  # episodes that the reported return is the mean of
MOST_COPIES = 1_000_000
COUNTED = ("observations", "starts", "running", "discounted", "episodes", "total_steps", "fresh")  # by name
LONGEST = 100_000  # steps after which an episode that does not end is given up


@dataclass(frozen=True)
class EnvironmentConfig:
    """Which environment, and how experience is collected in it."""

    env: str
    """Its Gymnasium name, such as CartPole-v1."""
    envs: int = 8
    """Copies of it that run side by side."""
    steps: int = 128
    """Steps in each copy for one collection. Methods without a critic take an episode of each instead."""
    normalise_observations: bool = False
    """Bring observations to mean 0 and variance 1, as seen so far."""
    normalise_rewards: bool = False
    """Divide rewards by the standard deviation of discounted returns, as seen so far."""

    def __post_init__(self) -> None:
        check_positive(self, "envs", "steps")
        check_bounds(self, envs=(1, MOST_COPIES))


class Environment:
    """A source of steps (`online.Source`).

    Gymnasium starts a new episode in the step after the last one of the old: that step does what no action
    asked for, and is masked. The observation before it is the one in which the old episode ended, so that
    `Steps.observations[:, t + 1]` always follows step t.

    Args:
        gamma: of the method: rewards are scaled by their discounted sums.
        whole_episodes: collect one episode in each copy rather than a number of steps.
    """

    unit = "steps"
    repeats = False

    def __init__(
        self,
        policy: ControlPolicy,
        config: EnvironmentConfig,
        *,
        gamma: float,
        whole_episodes: bool,
        seed: int,
    ) -> None:
        self.policy, self.config, self.gamma, self.seed = policy, config, gamma, seed
        self.whole_episodes = whole_episodes
        self.envs = make_environments(config.env, config.envs)
        self.spaces = Spaces.of(self.envs, config.env)
        first = seed * MOST_COPIES  # copies take neighbouring numbers: those of no other seed
        self.replay = Replay(self.envs, first)
        self.observations = self.spaces.vectors(self.envs.reset(seed=first)[0])
        self.starts = np.zeros(config.envs, dtype=bool)  # whose next step begins an episode: the dummy
        self.running = np.zeros((2, config.envs))  # return and length of the episodes that are under way
        self.discounted = np.zeros(config.envs)
        self.reward_moments = Moments.of(1)
        self.finished: deque[tuple[float, float]] = deque(maxlen=LAST)
        self.episodes = self.total_steps = 0
        self.fresh = True  # nothing was done since the last reset

    @property
    def rows(self) -> int:
        """Steps in a collection."""
        return self.config.envs * self.config.steps

    def collect(self, refresh: int) -> Collection:
        """`steps` steps, or an episode, of every copy. The policy keeps its statistics meanwhile."""
        # a stream of its own: (seed, 0) would be that of the environment's first states
        rng = np.random.default_rng((1, self.seed, refresh))
        if self.whole_episodes and not self.fresh:
            self.replay.before_reset()
            self.observations = self.spaces.vectors(self.envs.reset()[0])
            self.starts[:] = False
        self.fresh = False
        taken = _Taken()
        policy, now = self.policy, self.observations
        over = np.zeros(self.config.envs, dtype=bool)
        while self._goes_on(taken, over):
            actions = policy.act(policy.normalised(now), rng)
            done = self.spaces.actions(actions)
            self.replay.before_step(done, self.starts)
            raw, rewards, terminated, truncated, _ = self.envs.step(done)
            taken.unseen.append(over | self.starts if self.whole_episodes else self.starts)
            taken.observations.append(now)
            taken.actions.append(actions)
            taken.rewards.append(rewards.copy())
            taken.terminated.append(terminated.copy())
            taken.truncated.append(truncated.copy())
            now = self.spaces.vectors(raw)
            self.starts = terminated | truncated
            if self.whole_episodes:
                over = over | self.starts
        taken.observations.append(now)
        self.observations = now
        self.replay.forget()
        return Collection(self._rollout(taken), [])

    def _goes_on(self, taken: "_Taken", over: NDArray[Any]) -> bool:
        """Whether the collection does. Raises UserError if an episode does not end."""
        length = len(taken.unseen)
        if not self.whole_episodes:
            return length < self.config.steps or all(unseen.all() for unseen in taken.unseen)
        if length == LONGEST:
            raise UserError(
                f"{self.config.env}: an episode had no end after {LONGEST:,} steps; take a "
                "method with a critic, or an environment with a time limit"
            )
        return not over.all()

    def _rollout(self, taken: "_Taken") -> Rollout:
        mask = ~_rows(taken.unseen)
        observations = _rows(taken.observations)  # [E, T + 1, O]
        rewards = np.where(mask, _rows(taken.rewards), 0.0)
        self._check_finite(observations=observations, rewards=rewards)
        terminated, truncated = (_rows(flags) & mask for flags in (taken.terminated, taken.truncated))
        ended = terminated | truncated
        self._count(rewards, mask, ended)
        inputs = self.policy.normalised(observations)
        if self.config.normalise_rewards:
            rewards = self._scaled(rewards, mask, ended)
        if self.config.normalise_observations:  # from the next collection on
            self.policy.moments.update(observations[:, :-1][mask])
            self.policy.normalises = True
        if not self.whole_episodes:  # cut off by the collection's end
            ended[:, -1] |= mask[:, -1]
        actions = _rows(taken.actions)
        return Rollout(
            inputs=Steps(torch.from_numpy(inputs), torch.from_numpy(actions)),
            mask=torch.from_numpy(mask),
            old_logprobs=ABSENT,
            rewards=torch.from_numpy(rewards.astype(np.float32)),
            terminated=torch.from_numpy(terminated),
            ended=torch.from_numpy(ended),
            score=torch.zeros(len(mask)),
            fresh=torch.ones(len(mask), dtype=torch.bool),
            longest=mask.shape[1],
        )

    def _check_finite(self, **found: NDArray[Any]) -> None:
        """Raises UserError if the environment gave what is no number."""
        for name, values in found.items():
            if not np.isfinite(values).all():
                raise UserError(
                    f"{self.config.env}: it gave {name} that are not finite numbers; mend the environment"
                )

    def remember(self, rollout: Rollout) -> None:
        """Nothing is kept: what the policy would do now are other steps."""

    def with_rewards(self, rollout: Rollout, beta: float) -> Rollout:
        """The environment gave the rewards, and there is no reference to stay close to."""
        return rollout

    def describe(self, rollout: Rollout) -> dict[str, float]:
        """What the last episodes were like, and how much was done."""
        metrics = {
            "entropy": -float(rollout.chosen(rollout.old_logprobs).mean()),
            "episodes": float(self.episodes),
            "steps": float(rollout.steps),
            "total_steps": float(self.total_steps),
        }
        if self.finished:
            metrics["return"], metrics["episode_length"] = np.mean(self.finished, 0).tolist()
        return metrics

    def close(self) -> None:
        """Ends the environments."""
        self.envs.close()

    def state(self) -> dict[str, Any]:
        """Where the environments are, and all that was counted and averaged."""
        return {
            **{name: getattr(self, name) for name in COUNTED},
            "finished": list(self.finished),
            "reward_moments": self.reward_moments.tensors(),
            "observation_moments": self.policy.moments.tensors(),
            "normalises": self.policy.normalises,
            "replay": self.replay.state(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Goes on from what `state` gave. Copies that do not repeat themselves begin new episodes."""
        for name in COUNTED:
            setattr(self, name, state[name])
        self.finished.extend(state["finished"])
        self.reward_moments = Moments.from_tensors(state["reward_moments"])
        self.policy.moments = Moments.from_tensors(state["observation_moments"])
        self.policy.normalises = state["normalises"]
        strangers = [
            number
            for number, shown in enumerate(self.replay.load(state["replay"]))
            if not np.array_equal(self._vector(shown), self.observations[number])
        ]
        for number in strangers:
            self.observations[number] = self._vector(self.replay.anew(number))
            self.starts[number], self.discounted[number], self.running[:, number] = False, 0.0, 0.0
        self.replay.settle(self.starts)
        if strangers:
            log.warning(
                "%s: %d of %d copies did not come back to where they were, since the environment does not "
                "repeat itself; they begin new episodes, and the run goes on, but not as it would have",
                self.config.env,
                len(strangers),
                self.config.envs,
            )

    def _vector(self, observation: Any) -> NDArray[Any]:
        dtype = self.envs.single_observation_space.dtype
        return self.spaces.vectors(np.asarray(observation, dtype=dtype)[None])[0]

    def _count(self, rewards: NDArray[Any], mask: NDArray[Any], ended: NDArray[Any]) -> None:
        """Takes note of the episodes that ended, in the order of time: return and length [E, T]."""
        sums = np.stack([rewards, mask]).cumsum(2) + self.running[:, :, None]  # [2, E, T]
        spent = np.zeros_like(self.running)
        for step, env in zip(*np.nonzero(ended.T), strict=True):
            episode = sums[:, env, step] - spent[:, env]
            spent[:, env] = sums[:, env, step]
            self.finished.append((float(episode[0]), float(episode[1])))
            self.episodes += 1
        self.running = np.zeros_like(spent) if self.whole_episodes else sums[:, :, -1] - spent
        self.total_steps += int(mask.sum())

    def _scaled(self, rewards: NDArray[Any], mask: NDArray[Any], ended: NDArray[Any]) -> NDArray[Any]:
        """Rewards [E, T] over the standard deviation of discounted returns, these among them."""
        if self.whole_episodes:
            self.discounted[:] = 0.0
        first = rewards.astype(np.float64)
        first[:, 0] += self.gamma * self.discounted
        shares = self.gamma * np.roll(~ended, 1, 1)  # of the step before; nothing reads that of the first
        past = (torch.from_numpy(_backwards(x)) for x in (first, shares))
        returns = _backwards(advantages.discounted(*past).numpy())
        self.discounted = returns[:, -1] * ~ended[:, -1]
        self.reward_moments.update(returns[mask][:, None])
        return self.reward_moments.scale(rewards)


@dataclass
class _Taken:
    """What a collection is made of, step by step: each a list of [E, ...]."""

    observations: list[NDArray[Any]] = field(default_factory=list)
    actions: list[NDArray[Any]] = field(default_factory=list)
    unseen: list[NDArray[Any]] = field(default_factory=list)  # where the policy did not choose
    rewards: list[NDArray[Any]] = field(default_factory=list)
    terminated: list[NDArray[Any]] = field(default_factory=list)
    truncated: list[NDArray[Any]] = field(default_factory=list)


def _backwards(rows: NDArray[Any]) -> NDArray[Any]:
    """[E, T] with the last step first."""
    return np.ascontiguousarray(rows[:, ::-1])


def _rows(steps: list[NDArray[Any]]) -> NDArray[Any]:
    """T arrays [E, ...] as one [E, T, ...]."""
    return np.ascontiguousarray(np.array(steps).swapaxes(0, 1))
