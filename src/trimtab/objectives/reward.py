"""Losses of reward models: from pairs and from rankings of several responses."""

import torch
import torch.nn.functional as F
from torch import Tensor


def bradley_terry(chosen: Tensor, rejected: Tensor, margin: Tensor | None = None) -> Tensor:
    """-log sigmoid(chosen - rejected - margin): [B] scores -> [B] losses.

    Bradley & Terry 1952; as a reward model's loss in Ouyang et al. 2022 (arXiv:2203.02155, eq. 1).
    The margin, larger where people were surer, is from Llama 2 (Touvron et al. 2023, eq. 2).
    """
    difference = chosen - rejected if margin is None else chosen - rejected - margin
    return -F.logsigmoid(difference)


def plackett_luce(scores: Tensor, ranks: Tensor, mask: Tensor) -> Tensor:
    """Negative log-likelihood of rankings (Plackett 1975, Luce 1959), per ranking.

    Every response is the winner among itself and those ranked strictly below it:
    -sum_i log( exp(s_i) / sum_{j = i or rank_j > rank_i} exp(s_j) ). With k = 2 this is
    Bradley-Terry. Responses of equal rank never compete with each other: a tie says nothing.

    Args:
        scores: [B, K].
        ranks: [B, K] integers, 0 is best.
        mask: [B, K] bool, false where a ranking has fewer than K responses.
    Returns:
        [B] losses.
    """
    below = (ranks[:, None, :] > ranks[:, :, None]) & mask[:, None, :]
    competes = below | torch.eye(scores.shape[1], dtype=torch.bool, device=scores.device)
    field = scores[:, None, :].masked_fill(~competes, float("-inf")).logsumexp(-1)
    return (field - scores).masked_fill(~mask, 0.0).sum(-1)
