"""Distributions that actions are drawn from, by what their parameters [M, K] mean: closed forms in nats.

Categorical: K log-probs, one for each action. Gaussian, with independent dimensions: K/2 means, then K/2
logarithms of standard deviations.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

LOG_2_PI = math.log(2 * math.pi)


def categorical_kl(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Exact KL(pi || ref) of categorical distributions: log-probs [..., V] -> [...], in nats."""
    return (logprobs.exp() * (logprobs - ref_logprobs)).sum(-1)


def categorical_entropy(logprobs: Tensor) -> Tensor:
    """Entropy of categorical distributions: log-probs [..., V] -> [...], in nats."""
    return -(logprobs.exp() * logprobs).sum(-1)


def categorical_fisher(logprobs: Tensor, tangent: Tensor) -> Tensor:
    """F v for log-probs as parameters, F = diag(p): [M, V], [M, V] -> [M, V]."""
    return logprobs.exp() * tangent


def gaussian_logprobs(parameters: Tensor, actions: Tensor) -> Tensor:
    """log N(action; mean, std), summed over dimensions: [..., 2A], [..., A] -> [...], in nats."""
    mean, log_std = parameters.chunk(2, -1)
    distance = (actions - mean) * (-log_std).exp()
    return (-0.5 * distance.square() - log_std - 0.5 * LOG_2_PI).sum(-1)


def gaussian_entropy(parameters: Tensor) -> Tensor:
    """sum of log std + (1 + log 2 pi) / 2: [..., 2A] -> [...], in nats; it may be negative."""
    _, log_std = parameters.chunk(2, -1)
    return (log_std + 0.5 * (1 + LOG_2_PI)).sum(-1)


def gaussian_kl(parameters: Tensor, ref_parameters: Tensor) -> Tensor:
    """Exact KL(pi || ref) of diagonal Gaussians: [..., 2A] -> [...], in nats (Kullback 1959, ch. 9).

    sum of log(s_ref / s) + (s^2 + (m - m_ref)^2) / (2 s_ref^2) - 1/2
    """
    mean, log_std = parameters.chunk(2, -1)
    ref_mean, ref_log_std = ref_parameters.chunk(2, -1)
    spread = (2 * (log_std - ref_log_std)).exp()
    shift = (mean - ref_mean).square() * (-2 * ref_log_std).exp()
    return (ref_log_std - log_std + 0.5 * (spread + shift - 1)).sum(-1)


def gaussian_fisher(parameters: Tensor, tangent: Tensor) -> Tensor:
    """F v, F = diag(1 / s^2) for means and 2 for log s (Amari 1998): [M, 2A], [M, 2A] -> [M, 2A]."""
    _, log_std = parameters.chunk(2, -1)
    of_mean, of_log_std = tangent.chunk(2, -1)
    return torch.cat([of_mean * (-2 * log_std).exp(), 2 * of_log_std], -1)


@dataclass(frozen=True)
class Family:
    """What a trust region asks of a distribution.

    Attributes:
        kl: (old, new) parameters [M, K] -> [M].
        fisher: (parameters, v) -> F v: [M, K].
    """

    kl: Callable[[Tensor, Tensor], Tensor]
    fisher: Callable[[Tensor, Tensor], Tensor]


CATEGORICAL = Family(categorical_kl, categorical_fisher)
GAUSSIAN = Family(gaussian_kl, gaussian_fisher)
