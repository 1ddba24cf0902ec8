"""Policy-gradient losses, unreduced: which mean is taken of them stands in the method's file.

ratio = exp(logprobs - old_logprobs), old being the policy that chose. All tensors have the same shape:
[B, T] for steps, or [B] for whole responses with their log-probs summed.
"""

from torch import Tensor

from trimtab.objectives.divergences import kl_k3


def reinforce(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor) -> Tensor:
    """-log pi(a) A, weighted by the ratio, held fixed (Williams 1992; Degris et al. 2012 off policy).

    On fresh answers the ratio is 1. On answers of an older policy it makes up for how likely each action has
    become; not for the states that the older policy came through, nor for what it did afterwards.
    """
    weight = (logprobs - old_logprobs).exp().detach()
    return -weight * logprobs * advantages


def surrogate(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor) -> Tensor:
    """-ratio A: the loss that TRPO bounds (Schulman et al. 2015, arXiv:1502.05477, eq. 14)."""
    return -(logprobs - old_logprobs).exp() * advantages


def ppo_clip(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, *, clip: float, clip_high: float | None = None
) -> Tensor:
    """-min(ratio A, clip(ratio, 1 - clip, 1 + clip) A) (Schulman et al. 2017, arXiv:1707.06347, eq. 7).

    Args:
        clip_high: another bound above, 1 + clip_high (DAPO, Yu et al. 2025, arXiv:2503.14476, sec. 3.1).
    """
    ratio, costs = (logprobs - old_logprobs).exp(), -advantages
    clipped = ratio.clamp(1 - clip, 1 + (clip if clip_high is None else clip_high))
    return (ratio * costs).maximum(clipped * costs)


def clip_fraction(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, *, clip: float, clip_high: float | None = None
) -> Tensor:
    """1 where clipping took the gradient away, else 0."""
    ratio = (logprobs - old_logprobs).exp()
    clipped = ratio.clamp(1 - clip, 1 + (clip if clip_high is None else clip_high))
    return (ratio * advantages > clipped * advantages).float()


def ppo_kl(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, *, kl_penalty: float) -> Tensor:
    """-ratio A + kl_penalty KL(old || pi) (Schulman et al. 2017, eq. 8).

    The KL is taken on the sampled actions as ratio - 1 - log ratio: these come from the old policy, so
    that value and gradient are both unbiased.
    """
    return surrogate(logprobs, old_logprobs, advantages) + kl_penalty * old_kl(logprobs, old_logprobs)


def old_kl(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """KL(old || pi) on actions of the old policy: ratio - 1 - log ratio, never negative."""
    return kl_k3(old_logprobs - logprobs)


def reference_kl(logprobs: Tensor, old_logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """KL(pi || ref) as a loss on actions of the old policy: ratio times k3.

    Without the ratio, as in the GRPO paper (eq. 4), the gradient is that of KL(ref || pi); with it value
    and gradient are unbiased (DeepSeek-V3.2, arXiv:2512.02556, sec. 3.1). Each step's KL is that of its own
    action: what the action does to the KL of later steps is not in the gradient.
    """
    return (logprobs - old_logprobs).exp() * kl_k3(logprobs - ref_logprobs)


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, *, clip: float | None = None) -> Tensor:
    """(V - return)^2 / 2; with `clip` the larger of it and the error of V kept within old_values +- clip.

    The clipped form is that of OpenAI's baselines (see Huang et al. 2022, "The 37 implementation details of
    PPO", 9).
    """
    loss = (values - returns).square()
    if clip is not None:
        near = old_values + (values - old_values).clamp(-clip, clip)
        loss = loss.maximum((near - returns).square())
    return 0.5 * loss
