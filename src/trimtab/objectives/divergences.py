"""Kullback-Leibler divergences, estimated from the log-probs of sampled actions.

The estimators are Schulman's ("Approximating KL divergence", 2020). They differ in bias and
variance, and as losses also in their gradient, so that each is a name of its own here.
"""

from torch import Tensor


def kl_k1(log_ratio: Tensor) -> Tensor:
    """k1 = log pi - log ref of tokens sampled from pi: unbiased for KL(pi || ref). Any shape.

    As a loss its gradient is wrong (zero in expectation); as a detached reward penalty it is right.
    """
    return log_ratio


def kl_k2(log_ratio: Tensor) -> Tensor:
    """k2 = (log pi - log ref)^2 / 2: biased, but its gradient is that of KL(pi || ref). Any shape."""
    return 0.5 * log_ratio.square()


def kl_k3(log_ratio: Tensor) -> Tensor:
    """k3 = exp(-log_ratio) - 1 + log_ratio: unbiased and non-negative for tokens sampled from pi.

    As a loss its gradient is that of KL(ref || pi), another divergence.
    """
    return (-log_ratio).expm1() + log_ratio


def kl_from_reference(log_ratio: Tensor) -> Tensor:
    """w log w - w + 1 with w = pi/ref, for tokens sampled from the *reference*. Any shape.

    Importance weighting turns KL(pi || ref) = E_pi[log w] into E_ref[w log w]; adding 1 - w, whose
    mean is zero, makes every term non-negative without changing the expectation. Value and gradient
    are both unbiased, which is what offline data needs.
    """
    weight = log_ratio.exp()
    return weight * log_ratio - weight + 1.0
