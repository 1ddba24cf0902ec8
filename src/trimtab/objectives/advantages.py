"""Advantages: how much better an action, or a whole response, was than expected.

They are computed once for each collection of experience, never again inside the epochs. All [B, T]
tensors are rows of steps; `mask` is true where the policy chose, and what stands elsewhere is zero.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad


def discounted(values: Tensor, shares: Tensor) -> Tensor:
    """x_t = values_t + shares_t x_{t+1} for every t, in log2(T) rounds. [B, T].

    After k rounds a step knows the 2^k that follow, and takes what they know of the next 2^k (Hillis & Steele
    1986, Data parallel algorithms): a loop over T small sums takes several times as long.
    """
    found, reach = values.clone(), 1
    while reach < values.shape[1]:
        found = torch.addcmul(found, shares, pad(found[:, reach:], (0, reach)))
        shares = shares * pad(shares[:, reach:], (0, reach))
        reach *= 2
    return found


def returns_to_go(rewards: Tensor, continues: Tensor, gamma: float, last: Tensor | None = None) -> Tensor:
    """G_t = r_t + gamma G_{t+1}: what follows an action (Sutton & Barto 2018, eq. 3.9). [B, T].

    Args:
        rewards: [B, T].
        continues: [B, T] 1 where the next step belongs to the same episode, 0 where it ended.
        last: [B, T] what a cut-off episode would still have given, counted where it stands; None is zero.
    """
    rewards = rewards if last is None else rewards + gamma * last
    return discounted(rewards, gamma * continues.to(rewards.dtype))


def gae(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    terminated: Tensor,
    ended: Tensor,
    *,
    gamma: float,
    lam: float,
) -> Tensor:
    """Generalised advantage estimates (Schulman et al. 2016, arXiv:1506.02438, eq. 16). [B, T].

        delta_t = r_t + gamma V(s_{t+1}) (1 - terminated_t) - V(s_t)
        A_t     = delta_t + gamma lam (1 - ended_t) A_{t+1}

    Args:
        rewards, values: [B, T].
        next_values: [B, T] V(s_{t+1}): where an episode was cut off, of the state it was cut off in.
        terminated: [B, T] the episode came to its end here: nothing follows.
        ended: [B, T] terminated or cut off: the next step belongs to another episode.
    """
    deltas = (rewards + gamma * next_values * (~terminated) - values).detach()
    decays = gamma * lam * (~ended).to(deltas.dtype)
    return discounted(deltas, decays)


def leave_one_out(scores: Tensor) -> Tensor:
    """Each score minus the mean of the others in its group (Kool et al. 2019; RLOO). [P, G] -> [P, G].

    Raises:
        ValueError: the groups have one response only.
    """
    count = scores.shape[1]
    return _centred(scores) * (count / (count - 1))


def group_relative(scores: Tensor, *, scale: bool = True) -> Tensor:
    """(score - mean) / std within each group (Shao et al. 2024, arXiv:2402.03300, sec. 4.1.2). [P, G].

    Args:
        scale: divide by the group's standard deviation (with G - 1); Dr. GRPO leaves that out, since it
            weighs questions by how much their answers agree (Liu et al. 2025, arXiv:2503.20783, sec. 3.1).
    Raises:
        ValueError: the groups have one response only.
    """
    centred = _centred(scores)
    return centred / (centred.std(1, keepdim=True) + 1e-4) if scale else centred


def _centred(scores: Tensor) -> Tensor:
    """Each score minus the mean of its group: [P, G] -> [P, G]. Equal scores give exact zeros."""
    if scores.shape[1] < 2:
        raise ValueError("scores of a group need at least two responses to each prompt to be compared")
    # counted from the first: the mean of equal numbers may be off by a rounding error, which a division by
    # the deviation would blow up
    shifted = scores - scores[:, :1]
    return shifted - shifted.mean(1, keepdim=True)


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """Values of mean 0 and standard deviation 1 over the mask, 0 elsewhere. Any shape."""
    chosen = values[mask]
    chosen = chosen - chosen[:1]  # as in `_centred`: equal values give zeros, not scaled rounding errors
    chosen = chosen - chosen.mean()
    deviation = chosen.std() if len(chosen) > 1 else chosen.new_ones(())
    return torch.zeros_like(values).masked_scatter(mask, chosen / (deviation + 1e-8))


def explained_variance(values: Tensor, returns: Tensor) -> Tensor:
    """1 - Var(returns - values) / Var(returns) over [N] steps: 1 is perfect, 0 no better than a constant.

    NaN where all returns are the same.
    """
    variance = (returns - returns[:1]).var(correction=0)  # as in `_centred`: equal returns give exactly 0
    return torch.where(variance > 0, 1 - (returns - values).var(correction=0) / variance, torch.nan)
