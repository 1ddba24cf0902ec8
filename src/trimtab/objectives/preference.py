"""Losses on preferences. All take log-ratios [B] (policy over reference, summed over the response's
tokens) except `orpo`, which has no reference. All return unreduced losses [B].
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def dpo(chosen: Tensor, rejected: Tensor, *, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290, eq. 7).

    -log sigmoid(beta (chosen - rejected)); with label smoothing e the conservative form of
    Mitchell (2023, eq. 3): the label is taken to be wrong with probability e.

    Args:
        chosen, rejected: [B] log-ratios.
    """
    logits = beta * (chosen - rejected)
    return -(1 - label_smoothing) * F.logsigmoid(logits) - label_smoothing * F.logsigmoid(-logits)


def ipo(chosen: Tensor, rejected: Tensor, *, beta: float) -> Tensor:
    """Identity preference optimisation (Azar et al. 2023, arXiv:2310.12036, eq. 17; beta is its tau).

    (chosen - rejected - 1 / (2 beta))^2. The paper sums log-probs over the response; where the
    log-ratios are means per token, the target 1 / (2 beta) is one per token as well.

    Args:
        chosen, rejected: [B] log-ratios, sums or means.
    """
    return (chosen - rejected - 1 / (2 * beta)).square()


def kto(
    log_ratio: Tensor,
    desirable: Tensor,
    kl: Tensor,
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """Kahneman-Tversky optimisation (Ethayarajh et al. 2024, arXiv:2402.01306, eq. 8).

    weight * (1 - sigmoid(+-beta (log_ratio - kl))), + for desirable responses.

    Args:
        log_ratio: [B].
        desirable: [B] bool.
        kl: scalar reference point z0, estimated on mismatched pairs, >= 0, without gradient.
    """
    gain = beta * (log_ratio - kl.detach())
    value = torch.where(desirable, gain, -gain)
    weight = torch.where(desirable, desirable_weight, undesirable_weight)
    return weight * torch.sigmoid(-value)


def log_odds(mean_logprobs: Tensor) -> Tensor:
    """log(p / (1 - p)) from log p, [B] -> [B]; finite and exact near p = 1.

    log(1 - exp(x)) is computed as log(-expm1(x)) close to zero and log1p(-exp(x)) elsewhere
    (Maechler 2012). A log-prob of exactly 0 counts as -1e-6, where fp32 still tells p from 1.
    """
    x = mean_logprobs.clamp(max=-1e-6)
    close = x > -math.log(2)
    # each branch sees only the values it is good for: an infinite gradient times 0 would be NaN
    near = torch.log(-torch.expm1(torch.where(close, x, -1.0)))
    far = torch.log1p(-torch.exp(torch.where(close, -1.0, x)))
    return x - torch.where(close, near, far)


def orpo(chosen_mean: Tensor, rejected_mean: Tensor, *, beta: float) -> Tensor:
    """Odds ratio preference optimisation (Hong et al. 2024, arXiv:2403.07691, eq. 6 and 7).

    NLL of the chosen response + beta * -log sigmoid(log odds(chosen) - log odds(rejected)); the
    paper's lambda is called beta here, as in TRL: the strength of the preference term.

    Args:
        chosen_mean, rejected_mean: [B] log-probs averaged over the response's tokens.
    """
    return -chosen_mean - beta * F.logsigmoid(log_odds(chosen_mean) - log_odds(rejected_mean))


def dpo_kl(chosen: Tensor, rejected: Tensor, kl: Tensor, *, beta: float, kl_weight: float) -> Tensor:
    """DPO + kl_weight * KL(policy || reference): what some tutorials call KTO.

    Args:
        chosen, rejected: [B] log-ratios.
        kl: [B] differentiable estimate of the KL, in nats (`divergences.kl_from_reference`).
    """
    return dpo(chosen, rejected, beta=beta) + kl_weight * kl
