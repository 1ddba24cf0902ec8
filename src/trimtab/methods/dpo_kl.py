"""DPO plus lambda times the KL to the reference: what some tutorials call KTO."""

from dataclasses import dataclass

from torch import Tensor

from trimtab.feedback.batches import Pairs
from trimtab.methods.base import Method, Metrics, method
from trimtab.objectives.divergences import kl_from_reference
from trimtab.objectives.preference import dpo_kl
from trimtab.policies.base import Policy


@method("dpo_kl")
@dataclass(frozen=True, kw_only=True)
class DPOWithKL(Method[Pairs]):
    """DPO with an explicit KL(policy || reference), estimated on the responses of the pairs.

    The KL is taken token by token along the recorded responses, as if the reference had written
    them; it is right where they are samples of the reference.
    """

    stage = "preference"
    data = "pair"
    needs_reference = True
    strength = "kl_weight"
    learning_rate = 1e-6
    source = "Rafailov et al. 2023, eq. 7, + lambda KL (tutorials' 'KTO'; not Ethayarajh et al. 2024)"
    when = "DPO drifts too far from the reference and a larger beta costs too much of the preference."

    beta: float = 0.1
    """Strength of DPO's own leash to the reference."""
    kl_weight: float = 0.05
    """Lambda: weight of the KL, in loss per nat."""

    def __post_init__(self) -> None:
        self.check(beta=(1e-6, 1e3), kl_weight=(0.0, 1e3))

    def loss(self, policy: Policy, batch: Pairs) -> tuple[Tensor, Metrics]:
        log_ratios = batch.log_ratios(policy.logprobs(batch.sequences))
        chosen, rejected = batch.split(log_ratios.sum(-1))
        kl_chosen, kl_rejected = batch.split(kl_from_reference(log_ratios).sum(-1))
        kl = (kl_chosen + kl_rejected) / 2
        losses = dpo_kl(chosen, rejected, kl, beta=self.beta, kl_weight=self.kl_weight)
        return losses, {
            "margin": self.beta * (chosen - rejected),
            "accuracy": (chosen > rejected).float(),
            "kl": kl,
        }
