"""Copies in a row against Gymnasium's own: the same steps, to the last bit, across the ends of episodes."""

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import SyncVectorEnv
from tests.control_environments import CARTPOLE, NATIVE, environment, linear, register

from trimtab.policies.heads import GaussianHead
from trimtab.rollouts import copies as module
from trimtab.rollouts.copies import Copies
from trimtab.rollouts.spaces import make_environments

register()


def both(name: str, count: int) -> tuple[Any, Any]:
    """Ours and Gymnasium's."""
    mine = Copies([lambda: gymnasium.make(name)] * count, copy=False)
    return mine, gymnasium.make_vec(name, count, "sync")


@pytest.mark.parametrize(
    ("name", "count", "steps", "ends"),
    [
        ("CartPole-v1", 4, 120, 12),
        ("CartPole-v1", 1, 120, 3),
        ("Pendulum-v1", 3, 420, 6),
        ("Acrobot-v1", 2, 520, 2),
        ("MountainCar-v0", 2, 220, 2),  # which computes with the number of the action
        ("FrozenLake-v1", 5, 60, 20),  # whose observations are numbers
        ("trimtab-tests/Scripted-v0", 3, 30, 20),
        ("trimtab-tests/Continuous-v0", 2, 30, 10),  # whose observations are matrices
        ("trimtab-tests/Numbered-v0", 2, 30, 10),
    ],
)
def test_every_step_is_that_of_gymnasiums_own(name: str, count: int, steps: int, ends: int) -> None:
    mine, theirs = both(name, count)
    for env in (mine, theirs):
        env.action_space.seed(3)
    np.testing.assert_array_equal(mine.reset(seed=0)[0], theirs.reset(seed=0)[0])
    ended = 0
    for step in range(steps):
        if step == 10:  # all copies begin anew, whichever of them was about to
            np.testing.assert_array_equal(mine.reset()[0], theirs.reset()[0])
        actions = mine.action_space.sample()
        *found, infos = mine.step(actions)
        *expected, _ = theirs.step(actions)
        for one, other in zip(found, expected, strict=True):
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other, strict=True)
        assert infos == {}
        ended += int((found[2] | found[3]).sum())
    assert ended >= ends


def test_what_a_step_gave_stays_as_it_was() -> None:
    mine, _ = both("Pendulum-v1", 2)
    mine.reset(seed=0)
    actions = np.zeros((2, 1), dtype=np.float32)
    given = mine.step(actions)[:4]
    kept = [array.copy() for array in given]
    mine.step(actions + 1)
    for array, before in zip(given, kept, strict=True):
        np.testing.assert_array_equal(array, before)


@pytest.mark.parametrize("whole_episodes", [False, True])
@pytest.mark.parametrize("name", [CARTPOLE, "Pendulum-v1"])
def test_collections_are_those_of_gymnasiums_own(
    name: str, whole_episodes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def collections() -> list[Any]:
        policy = linear(4) if name == CARTPOLE else linear(3, GaussianHead(1, 0.0))
        source = environment(name, policy, steps=250, copies=2, whole_episodes=whole_episodes)
        return [source.collect(refresh).rollout for refresh in range(3)]

    mine = collections()
    monkeypatch.setattr(module, "Copies", SyncVectorEnv)
    for found, expected in zip(mine, collections(), strict=True):
        for column in ("mask", "rewards", "terminated", "ended"):
            assert torch.equal(getattr(found, column), getattr(expected, column))
        assert torch.equal(found.inputs.observations, expected.inputs.observations)
        assert torch.equal(found.inputs.actions, expected.inputs.actions)
    assert sum(int(rollout.ended.sum()) for rollout in mine) >= 6


def test_a_vectorised_form_is_taken_where_it_is_worth_it() -> None:
    """CartPole's from eight copies on; that which an environment of somebody's own brings, always."""
    kinds = {count: type(make_environments("CartPole-v1", count)).__name__ for count in (1, 7, 8, 9)}
    assert kinds == {1: "Copies", 7: "Copies", 8: "CartPoleVectorEnv", 9: "CartPoleVectorEnv"}
    assert type(make_environments(NATIVE, 1)).__name__ == "ScriptedVector"
    assert type(make_environments("Pendulum-v1", 9)).__name__ == "Copies"


class Mistaken(gymnasium.Env[Any, Any]):
    """Images of whole numbers, it says; but its numbers lie between 0 and 1."""

    shown: Any = None

    def __init__(self) -> None:
        self.observation_space = gymnasium.spaces.Box(0, 255, (2,), np.uint8)
        self.action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        return np.zeros(2, np.uint8), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.shown, 0.0, False, False, {}


@pytest.mark.parametrize(("shown", "error"), [([0.5, 0.7], TypeError), ([[1], [2], [3]], ValueError)])
def test_observations_that_are_none_of_the_space_are_refused_as_gymnasium_does(
    shown: Any, error: Any
) -> None:
    for form in (Copies, SyncVectorEnv):
        envs = form([Mistaken] * 2, copy=False)
        envs.reset()
        for env in envs.envs:
            env.shown = np.array(shown, np.uint8 if error is ValueError else np.float64)
        with pytest.raises(error):
            envs.step(np.zeros(2, int))
