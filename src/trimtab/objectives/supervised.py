"""Losses on demonstrations, and on responses that carry a score."""

from torch import Tensor


def nll(logprobs: Tensor) -> Tensor:
    """Negative log-likelihood of each token: [...] -> [...], in nats."""
    return -logprobs


def score_weighted_nll(logprobs: Tensor, score: Tensor, baseline: Tensor, *, score_weight: float) -> Tensor:
    """-(1 + score_weight (score - baseline)) log pi(y): likelihood plus an offline score. [B] -> [B].

    What some tutorials call ORPO. A score that does not depend on the policy has no gradient, so
    that "likelihood plus score" is taken as the score-function (REINFORCE) estimate of the expected
    score on the recorded responses (Williams 1992), centred by a baseline. For responses drawn from
    q, its minimum is pi(y) = q(y) max(0, 1 + score_weight (score - baseline)), normalised. Weights
    below zero are cut to zero: pushing a likelihood down has no minimum.

    Args:
        logprobs: [B] summed over the response.
        score, baseline: [B]; the baseline must not depend on the response.
    """
    weight = (1 + score_weight * (score - baseline)).clamp(min=0.0)
    return -weight * logprobs
