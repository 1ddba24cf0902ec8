"""Normalised observations and rewards against numpy over everything that was seen."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.control_environments import (
    COPIES,
    NATIVE,
    environment,
    kinds,
    linear,
    register,
    rows_of,
    told,
    whole_rows,
)

from trimtab.policies.moments import Moments

register()


def test_moments_are_those_of_all_chosen_observations_and_rest_within_a_collection() -> None:
    policy = linear(3)
    source = environment(NATIVE, policy, steps=6, normalise_observations=True)
    stories, seen = [told(copy) for copy in range(COPIES)], np.zeros((0, 3))
    for refresh in range(5):
        rows = rows_of(stories, 6)
        raw = np.array([[m.before for m in row] + [row[-1].after] for row in rows])
        found = source.collect(refresh).rollout.inputs.observations.numpy()
        if refresh == 0:
            np.testing.assert_array_equal(found, raw)
        else:
            expected = (raw - seen.mean(0)) / np.sqrt(seen.var(0) + 1e-8)
            np.testing.assert_allclose(found, expected.clip(-10, 10), rtol=1e-5, atol=1e-5)
        seen = np.concatenate([seen, [m.before for row in rows for m in row if m.chosen]])
        np.testing.assert_allclose(policy.moments.mean, seen.mean(0))
        np.testing.assert_allclose(policy.moments.variance, seen.var(0))
        assert policy.moments.count == len(seen)


def test_moments_keep_their_digits_far_from_zero() -> None:
    """A sum of squares would lose them all: 1e9 squared has 18 digits, and float64 has 16."""
    rng = np.random.default_rng(0)
    moments, parts = Moments.of(2), [1e9 + rng.normal(0, 0.1, (size, 2)) for size in (1, 50, 3, 0, 200)]
    for part in parts:
        moments.update(part)
    whole = np.concatenate(parts)
    np.testing.assert_allclose(moments.mean, whole.mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.variance, whole.var(0), rtol=1e-4)


@kinds
@pytest.mark.parametrize("whole_episodes", [False, True])
def test_rewards_are_divided_by_the_deviation_of_discounted_returns(name: str, whole_episodes: bool) -> None:
    """R <- gamma R + r from each episode's start; all of them so far, those of the collection too."""
    source = environment(name, steps=6, gamma=0.8, whole_episodes=whole_episodes, normalise_rewards=True)
    stories, seen = [told(copy) for copy in range(COPIES)], []
    discounted, starts = [0.0] * COPIES, [0] * COPIES
    for refresh in range(5):
        rows = whole_rows(starts) if whole_episodes else rows_of(stories, 6)
        starts = [int(row[-1].after[1]) + 1 for row in rows]
        for copy, row in enumerate(rows):
            for m in row:
                if m.chosen:
                    discounted[copy] = 0.8 * discounted[copy] + m.reward
                    seen.append(discounted[copy])
                    if m.ended:
                        discounted[copy] = 0.0
        rollout = source.collect(refresh).rollout
        expected = np.array([[m.reward if m.chosen else 0.0 for m in row] for row in rows]) / np.std(seen)
        assert abs(expected).max() < 10
        np.testing.assert_allclose(rollout.rewards.numpy(), expected, rtol=1e-5)
    metrics = source.describe(replace(rollout, old_logprobs=torch.zeros(rollout.mask.shape)))
    plain = environment(name, steps=6, whole_episodes=whole_episodes)
    for refresh in range(5):
        last = plain.collect(refresh).rollout
    unscaled = plain.describe(replace(last, old_logprobs=torch.zeros(last.mask.shape)))
    assert metrics == unscaled  # returns are told in the environment's own rewards


def test_scaled_rewards_are_bounded_and_keep_their_zero() -> None:
    moments = Moments(np.array([50.0]), np.array([4.0]), 10.0)
    assert moments.scale(np.array([0.0, -3.0, 1e6, -1e6])).tolist() == pytest.approx([0.0, -1.5, 10.0, -10.0])
