"""Identity preference optimisation."""

from dataclasses import dataclass

from torch import Tensor

from trimtab.feedback.batches import Pairs
from trimtab.methods.base import Method, Metrics, method
from trimtab.objectives.logprobs import masked_mean, masked_sum
from trimtab.objectives.preference import ipo
from trimtab.policies.base import Policy


@method("ipo")
@dataclass(frozen=True, kw_only=True)
class IPO(Method[Pairs]):
    """Regression of the gap between log-ratios on 1 / (2 beta): cannot run away on sure pairs."""

    stage = "preference"
    data = "pair"
    needs_reference = True
    strength = "beta"
    learning_rate = 1e-6
    source = "Azar et al. 2023, arXiv:2310.12036, eq. 17"
    when = "A/B choices that hardly ever disagree, where DPO overfits."

    beta: float = 0.1
    """The paper's tau: the gap between chosen and rejected is driven to 1 / (2 beta)."""
    per_token: bool = False
    """Average log-ratios over a response's tokens (as TRL does) instead of the paper's sum."""

    def __post_init__(self) -> None:
        self.check(beta=(1e-6, 1e3))

    def loss(self, policy: Policy, batch: Pairs) -> tuple[Tensor, Metrics]:
        log_ratios = batch.log_ratios(policy.logprobs(batch.sequences))
        reduce = masked_mean if self.per_token else masked_sum
        chosen, rejected = batch.split(reduce(log_ratios, batch.sequences.mask))
        losses = ipo(chosen, rejected, beta=self.beta)
        return losses, {"margin": chosen - rejected, "accuracy": (chosen > rejected).float()}
