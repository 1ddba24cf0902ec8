"""What the heads draw against the log-probs that they claim, by tests of statistics."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from tests.control_steps import HEADS, made, random_steps

from trimtab.policies.control import Steps

heads = pytest.mark.parametrize("name", HEADS)


@pytest.mark.parametrize("closed", [True, False], ids=["closed form", "torch"])
def test_discrete_actions_come_as_often_as_their_log_probs_say(closed: bool) -> None:
    policy, count = made("discrete", hidden=(6,), closed_form=closed), 40_000
    for observation in (torch.tensor([0.3, -1.0, 2.0]), torch.zeros(3)):
        many = observation.repeat(count, 1)
        drawn = policy.act(many.numpy(), np.random.default_rng(1))
        assert drawn.shape == (count,) and drawn.min() >= 0
        every = policy.evaluate(Steps(observation.repeat(4, 1), torch.arange(4))).logprobs[:, 0].exp()
        frequencies = np.bincount(drawn, minlength=4)
        expected = count * every.detach().double().numpy()
        assert expected.min() > 100
        expected *= count / expected.sum()
        assert stats.chisquare(frequencies, expected).pvalue > 1e-3
        assert policy.act(many[:1].numpy(), None).tolist() == [int(every.argmax())]


@pytest.mark.parametrize("closed", [True, False], ids=["closed form", "torch"])
def test_continuous_actions_are_drawn_from_the_gaussian_of_their_log_probs(closed: bool) -> None:
    policy, count = made("gaussian", hidden=(6,), closed_form=closed), 40_000
    observation = torch.tensor([0.3, -1.0, 2.0])
    steps = observation.repeat(count, 1)
    drawn = policy.act(steps.numpy(), np.random.default_rng(1))
    assert drawn.shape == (count, 2) and drawn.dtype == np.float32
    # log p(a) of points on a line is a parabola: its top is the mean, its bend -1 / std^2
    mean, std = [], []
    for axis in torch.eye(2):
        points = torch.stack([-axis, torch.zeros(2), axis])
        low, middle, high = policy.evaluate(Steps(observation.repeat(3, 1), points)).logprobs[:, 0].tolist()
        std.append(1 / math.sqrt(2 * middle - low - high))
        mean.append((high - low) / 2 * std[-1] ** 2)
    assert max(abs(m) for m in mean) > 0.1
    standard = (drawn - mean) / std
    for column in standard.T:
        assert stats.kstest(column, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(standard.T)[0, 1]) < 4 / math.sqrt(count)
    assert policy.act(observation[None].numpy(), None)[0].tolist() == pytest.approx(mean, abs=1e-4)
    with torch.no_grad():
        out = policy.evaluate(Steps(steps, torch.from_numpy(drawn)), entropy=True)
    error = float(out.logprobs.std()) / math.sqrt(count)
    assert abs(float(out.logprobs.mean() + out.entropy[0, 0])) < 4 * error


@heads
def test_sampling_is_the_generators_alone(name: str) -> None:
    policy, seen = made(name), random_steps(name, 1).observations[0].numpy()
    one, same, other = (policy.act(seen, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
