"""Gaussians and categorical distributions against torch.distributions, numbers by hand and the calculus."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributions import Categorical, Independent, Normal, kl_divergence

from trimtab.objectives.distributions import (
    CATEGORICAL,
    GAUSSIAN,
    Family,
    categorical_entropy,
    categorical_kl,
    gaussian_entropy,
    gaussian_fisher,
    gaussian_kl,
    gaussian_logprobs,
)

LOG_2_PI = 1.8378770664093453


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def normal(parameters: Tensor) -> Independent:
    """The same distribution by torch."""
    mean, log_std = parameters.chunk(2, -1)
    return Independent(Normal(mean, log_std.exp()), 1)


def random_gaussians(seed: int, *rows: int, size: int = 3) -> Tensor:
    """[*rows, 2 size] means and logarithms of standard deviations, from 0.1 to 10 and more."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*rows, 2 * size, generator=generator, dtype=torch.float64)


def random_categoricals(seed: int, rows: int) -> Tensor:
    """[M, 5] log-probs."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 5, generator=generator, dtype=torch.float64).log_softmax(-1)


@pytest.mark.parametrize("seed", range(3))
def test_gaussian_log_probs_are_those_of_torch(seed: int) -> None:
    parameters = random_gaussians(seed, 4, 7)
    actions = random_gaussians(seed + 10, 4, 7)[..., :3]
    found = gaussian_logprobs(parameters, actions)
    assert found.shape == (4, 7)
    torch.testing.assert_close(found, normal(parameters).log_prob(actions), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_gaussian_entropy_is_that_of_torch(seed: int) -> None:
    parameters = random_gaussians(seed, 6, 2)
    torch.testing.assert_close(gaussian_entropy(parameters), normal(parameters).entropy())


@pytest.mark.parametrize("seed", range(3))
def test_gaussian_kl_is_that_of_torch_in_both_directions(seed: int) -> None:
    one, other = random_gaussians(seed, 8), random_gaussians(seed + 10, 8)
    found, back = gaussian_kl(one, other), gaussian_kl(other, one)
    torch.testing.assert_close(found, kl_divergence(normal(one), normal(other)))
    torch.testing.assert_close(back, kl_divergence(normal(other), normal(one)))
    assert float((found - back).abs().min()) > 1e-3  # or the order of the arguments would not be seen


def test_gaussian_log_prob_by_hand() -> None:
    """Means 1 and -2, deviations 2 and 1/2: distances (3 - 1) / 2 = 1 and (-1 + 2) / (1/2) = 2."""
    parameters = tensor(1.0, -2.0, math.log(2), -math.log(2))
    # -(1 + 4) / 2 - log 2 + log 2 - 2 log(2 pi) / 2
    assert float(gaussian_logprobs(parameters, tensor(3.0, -1.0))) == pytest.approx(-2.5 - LOG_2_PI)
    assert float(gaussian_logprobs(tensor(0.0, 0.0), tensor(0.0))) == pytest.approx(-0.9189385332046727)


def test_gaussian_entropy_by_hand_may_be_negative() -> None:
    """(1 + log 2 pi) / 2 = 1.4189385... for each dimension, and the logarithms of the deviations."""
    assert float(gaussian_entropy(tensor(5.0, 0.0))) == pytest.approx(1.4189385332046727)
    assert float(gaussian_entropy(tensor(5.0, -7.0, 0.5, -1.5))) == pytest.approx(2 * 1.4189385332046727 - 1)
    assert float(gaussian_entropy(tensor(0.0, -3.0))) == pytest.approx(1.4189385332046727 - 3)


def test_gaussian_kl_by_hand() -> None:
    """From N(0, 1) to N(1, 2^2): log 2 + (1 + 1) / (2 * 4) - 1/2; back: -log 2 + (4 + 1) / 2 - 1/2."""
    one, other = tensor(0.0, 0.0), tensor(1.0, math.log(2))
    assert float(gaussian_kl(one, other)) == pytest.approx(math.log(2) - 0.25)
    assert float(gaussian_kl(other, one)) == pytest.approx(2 - math.log(2))
    assert float(gaussian_kl(other, other)) == 0.0


def test_gaussian_entropy_is_the_mean_of_minus_the_log_prob() -> None:
    """By quadrature: Hermite's rule with 8 nodes is exact for polynomials up to degree 15."""
    parameters = random_gaussians(5, 1, size=1)[0]
    nodes, weights = torch.from_numpy(_hermite(8))
    mean, log_std = parameters
    actions = (mean + log_std.exp() * nodes)[:, None]
    logprobs = gaussian_logprobs(parameters.expand(8, 2), actions)
    assert float(gaussian_entropy(parameters)) == pytest.approx(float(-(weights * logprobs).sum()), rel=1e-12)
    other = random_gaussians(6, 1, size=1)[0]
    log_ratio = logprobs - gaussian_logprobs(other.expand(8, 2), actions)
    assert float(gaussian_kl(parameters, other)) == pytest.approx(
        float((weights * log_ratio).sum()), rel=1e-12
    )


def _hermite(count: int) -> NDArray[np.float64]:
    """[2, count] nodes and weights for means under N(0, 1)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(count)
    return np.stack([nodes, weights / weights.sum()])


def along(family: Family, old: Tensor, direction: Tensor, h: float) -> float:
    """KL(old, old + h direction), summed over rows; rows of log-probs are kept distributions."""
    moved = old + h * direction
    if family is CATEGORICAL:
        moved = moved.log_softmax(-1)
    return float(family.kl(old, moved).sum())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("family", [CATEGORICAL, GAUSSIAN], ids=["categorical", "gaussian"])
def test_the_fisher_matrix_is_the_second_derivative_of_the_kl(family: Family, seed: int) -> None:
    """v F w by polarisation: (K(v + w) - K(v - w)) / 4, K(v) = KL(hv) + KL(-hv) over h^2, h small."""
    old = random_categoricals(seed, 4) if family is CATEGORICAL else random_gaussians(seed, 4)
    generator = torch.Generator().manual_seed(seed + 20)
    v, w = torch.randn(2, *old.shape, generator=generator, dtype=torch.float64)
    if family is CATEGORICAL:  # changes of log-probs that leave the sum of the probabilities at 1
        v, w = (x - (old.exp() * x).sum(-1, keepdim=True) for x in (v, w))
    h = 1e-3

    def curvature(direction: Tensor) -> float:
        return (along(family, old, direction, h) + along(family, old, direction, -h)) / h**2

    expected = (curvature(v + w) - curvature(v - w)) / 4
    assert float((w * family.fisher(old, v)).sum()) == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert float((v * family.fisher(old, v)).sum()) == pytest.approx(curvature(v), rel=1e-4)


def test_gaussian_fisher_by_hand() -> None:
    """Deviations 1/2 and 2: the means weigh 4 and 1/4, the logarithms of the deviations 2 each."""
    parameters = tensor(7.0, -3.0, -math.log(2), math.log(2)).expand(2, 4)
    tangent = torch.stack([tensor(1.0, 1.0, 1.0, 1.0), tensor(0.5, -8.0, 3.0, 0.0)])
    found = gaussian_fisher(parameters, tangent)
    torch.testing.assert_close(found, torch.stack([tensor(4.0, 0.25, 2.0, 2.0), tensor(2.0, -2.0, 6.0, 0.0)]))


def test_gaussian_fisher_is_the_mean_of_squared_scores() -> None:
    """E[g g^T] by quadrature over the actions, g = grad log p: no cross terms between the four numbers."""
    nodes, weights = torch.from_numpy(_hermite(6))
    parameters = tensor(0.3, -1.0, 0.4, -0.7)
    mean, log_std = parameters.chunk(2)
    expected = torch.zeros(4, 4, dtype=torch.float64)
    for i in range(6):
        for j in range(6):
            leaf = parameters.clone().requires_grad_()
            action = mean + log_std.exp() * torch.stack([nodes[i], nodes[j]])
            [score] = torch.autograd.grad(normal(leaf).log_prob(action), leaf)
            expected += weights[i] * weights[j] * torch.outer(score, score)
    found = gaussian_fisher(parameters.expand(4, 4), torch.eye(4, dtype=torch.float64))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_categorical_entropy_and_kl_are_those_of_torch(seed: int) -> None:
    one, other = random_categoricals(seed, 6), random_categoricals(seed + 10, 6)
    torch.testing.assert_close(categorical_entropy(one), Categorical(logits=one).entropy())
    expected = kl_divergence(Categorical(logits=one), Categorical(logits=other))
    torch.testing.assert_close(categorical_kl(one, other), expected)


def test_gradients_of_the_gaussian_are_those_of_torch() -> None:
    """Of log-prob, entropy and KL, with respect to means and log deviations."""
    start, actions, other = random_gaussians(1, 5), random_gaussians(2, 5)[:, :3], random_gaussians(3, 5)
    mine, peer = start.clone().requires_grad_(), start.clone().requires_grad_()
    found = gaussian_logprobs(mine, actions) + 3 * gaussian_entropy(mine) - gaussian_kl(mine, other)
    theirs = normal(peer)
    expected = theirs.log_prob(actions) + 3 * theirs.entropy() - kl_divergence(theirs, normal(other))
    [of_mine], [of_peer] = (torch.autograd.grad(x.sum(), y) for x, y in ((found, mine), (expected, peer)))
    torch.testing.assert_close(of_mine, of_peer, rtol=1e-10, atol=1e-10)
