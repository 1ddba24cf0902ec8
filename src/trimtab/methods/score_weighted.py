"""Likelihood plus an offline score: what some tutorials call ORPO."""

from dataclasses import dataclass

from torch import Tensor

from trimtab.feedback.batches import Scored
from trimtab.methods.base import Method, Metrics, method
from trimtab.objectives.supervised import score_weighted_nll
from trimtab.policies.base import Policy


@method("score_weighted")
@dataclass(frozen=True, kw_only=True)
class ScoreWeighted(Method[Scored]):
    """Imitation in which a response counts more the better its score is than the prompt's average."""

    stage = "preference"
    data = "score"
    strength = "score_weight"
    learning_rate = 5e-6
    source = "Williams 1992 (score function) on recorded responses (tutorials' 'ORPO'; not Hong et al. 2024)"
    when = "Every answer has a number, from a rater or a metric, and there is no reference to hold on to."

    score_weight: float = 1.0
    """How much a score one standard deviation above the baseline adds to a response's weight of 1."""

    def __post_init__(self) -> None:
        self.check(score_weight=(0.0, 1e3))

    def loss(self, policy: Policy, batch: Scored) -> tuple[Tensor, Metrics]:
        logprobs = policy.logprobs(batch.sequences).sum(-1)
        losses = score_weighted_nll(logprobs, batch.score, batch.baseline, score_weight=self.score_weight)
        return losses, {"nll": -logprobs, "score": batch.score}
