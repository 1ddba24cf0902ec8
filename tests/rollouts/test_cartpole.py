"""CartPole in Gymnasium's own vectorised form and as copies in a row: both step as the single one does."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium.envs.classic_control import CartPoleEnv
from tests.control_environments import CARTPOLE, environment, linear, register

from trimtab.policies.control import ControlPolicy
from trimtab.rollouts.spaces import make_environments

register()


def balancing(strength: float) -> ControlPolicy:
    """Pushes towards where the pole falls; at strength 0 at random."""
    policy = linear(4)
    weight = strength * torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.2, 0.5, 4.0, 2.0]])
    policy.load(policy.tensors() | {"actor.body.0.weight": weight})
    return policy


@pytest.mark.parametrize(
    ("name", "copies", "form"),
    [("CartPole-v1", 8, "CartPoleVectorEnv"), ("CartPole-v1", 2, "Copies"), (CARTPOLE, 2, "Copies")],
)
@pytest.mark.parametrize(("strength", "steps"), [(0.0, 150), (5.0, 520)])
def test_cartpole_moves_as_its_equations_say(
    name: str, copies: int, form: str, strength: float, steps: int
) -> None:
    """Each chosen step is one of Gymnasium's single environment; every other is the start of an episode."""
    assert type(make_environments(name, copies)).__name__ == form
    source = environment(name, balancing(strength), steps=steps, copies=copies)
    rollout, single = source.collect(0).rollout, CartPoleEnv()
    single.reset()
    lengths, ends = [], {"terminated": 0, "truncated": 0}
    for row in range(copies):
        length = 0
        for t in range(steps):
            here, after = rollout.inputs.observations[row, t : t + 2].numpy()
            terminated, ended = bool(rollout.terminated[row, t]), bool(rollout.ended[row, t])
            if not rollout.mask[row, t]:
                assert t > 0 and rollout.ended[row, t - 1] and not terminated and not ended
                assert rollout.rewards[row, t] == 0
                assert abs(after).max() <= 0.05
                length = 0
                continue
            single.state, single.steps_beyond_terminated = here.astype(np.float64), None
            expected, reward, falls, *_ = single.step(int(rollout.inputs.actions[row, t]))
            np.testing.assert_allclose(after, expected, atol=1e-5)
            length += 1
            assert (float(rollout.rewards[row, t]), terminated) == (reward, falls)
            assert ended == (falls or length == 500 or t == steps - 1)
            if falls or length == 500:
                ends["terminated" if falls else "truncated"] += 1
                lengths.append(length)
    metrics = source.describe(replace(rollout, old_logprobs=torch.zeros(rollout.mask.shape)))
    assert ends["truncated" if strength else "terminated"] >= 2
    assert metrics["episodes"] == len(lengths)
    assert metrics["return"] == metrics["episode_length"] == pytest.approx(np.mean(lengths))
    assert metrics["steps"] == copies * steps - int((~rollout.mask).sum())
