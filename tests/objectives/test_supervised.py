"""Likelihood losses: weights are what the formula says, and bad responses are left out, not pushed away."""

import pytest
import torch

from trimtab.objectives.supervised import nll, score_weighted_nll


def test_nll() -> None:
    assert nll(torch.tensor([-0.5, 0.0])).tolist() == [0.5, 0.0]


def test_score_weighted_nll() -> None:
    logprobs = torch.tensor([-2.0, -2.0, -2.0], requires_grad=True)
    score, baseline = torch.tensor([1.5, 0.5, -3.0]), torch.tensor([0.5, 0.5, 0.5])
    losses = score_weighted_nll(logprobs, score, baseline, score_weight=0.5)
    assert losses.tolist() == [3.0, 2.0, 0.0]  # weights 1.5, 1 and max(0, -0.75)
    losses.sum().backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [-1.5, -1.0, 0.0]


def test_without_weight_it_is_the_likelihood() -> None:
    logprobs = torch.tensor([-2.0, -0.1])
    losses = score_weighted_nll(logprobs, torch.tensor([9.0, -9.0]), torch.zeros(2), score_weight=0.0)
    assert losses.tolist() == pytest.approx(nll(logprobs).tolist())
