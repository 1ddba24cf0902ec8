"""Odds ratio preference optimisation: imitation and preference in one step, without a reference."""

from dataclasses import dataclass

from torch import Tensor

from trimtab.feedback.batches import Pairs
from trimtab.methods.base import Method, Metrics, method
from trimtab.objectives.logprobs import masked_mean
from trimtab.objectives.preference import log_odds, orpo
from trimtab.policies.base import Policy


@method("orpo")
@dataclass(frozen=True, kw_only=True)
class ORPO(Method[Pairs]):
    """Likelihood of the chosen response, and its odds against those of the rejected one."""

    stage = "preference"
    data = "pair"
    strength = "beta"
    learning_rate = 5e-6
    source = "Hong et al. 2024, arXiv:2403.07691, eq. 6 and 7"
    when = "A/B choices and a model that was not fine-tuned yet: one stage instead of two."

    beta: float = 0.1
    """The paper's lambda, weight of the odds ratio: large moves further from plain imitation."""

    def __post_init__(self) -> None:
        self.check(beta=(0.0, 1e3))

    def loss(self, policy: Policy, batch: Pairs) -> tuple[Tensor, Metrics]:
        means = masked_mean(policy.logprobs(batch.sequences), batch.sequences.mask)
        chosen, rejected = batch.split(means)
        losses = orpo(chosen, rejected, beta=self.beta)
        return losses, {
            "log_odds_ratio": log_odds(chosen) - log_odds(rejected),
            "accuracy": (chosen > rejected).float(),
            "nll": -chosen,
        }
