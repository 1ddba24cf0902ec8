"""Direct preference optimisation."""

from dataclasses import dataclass

from torch import Tensor

from trimtab.feedback.batches import Pairs
from trimtab.methods.base import Method, Metrics, method
from trimtab.objectives.preference import dpo
from trimtab.policies.base import Policy


@method("dpo")
@dataclass(frozen=True, kw_only=True)
class DPO(Method[Pairs]):
    """The reward that a policy implies, beta log(pi / ref), fitted to pairs by Bradley-Terry."""

    stage = "preference"
    data = "pair"
    needs_reference = True
    strength = "beta"
    learning_rate = 1e-6
    source = "Rafailov et al. 2023, arXiv:2305.18290, eq. 7"
    when = "A/B choices and no wish for a reward model: the first method to try."

    beta: float = 0.1
    """Strength of the leash to the reference: small lets the policy go far."""
    label_smoothing: float = 0.0
    """Share of the choices that is taken to be wrong (conservative DPO)."""

    def __post_init__(self) -> None:
        self.check(beta=(1e-6, 1e3), label_smoothing=(0.0, 0.5))

    def loss(self, policy: Policy, batch: Pairs) -> tuple[Tensor, Metrics]:
        log_ratio = batch.log_ratios(policy.logprobs(batch.sequences)).sum(-1)
        chosen, rejected = batch.split(log_ratio)
        losses = dpo(chosen, rejected, beta=self.beta, label_smoothing=self.label_smoothing)
        return losses, {
            "margin": self.beta * (chosen - rejected),
            "accuracy": (chosen > rejected).float(),
            "chosen": self.beta * chosen,
        }
