"""Kahneman-Tversky optimisation: thumbs up and down."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trimtab.errors import UserError
from trimtab.feedback.batches import Thumbs
from trimtab.methods.base import Method, Metrics, method
from trimtab.objectives.preference import kto
from trimtab.policies.base import Policy


@method("kto")
@dataclass(frozen=True, kw_only=True)
class KTO(Method[Thumbs]):
    """Gains and losses against a reference point, which is the KL of the policy to the reference."""

    stage = "preference"
    data = "thumbs"
    needs_reference = True
    needs_mismatched = True
    strength = "beta"
    learning_rate = 1e-6
    source = "Ethayarajh et al. 2024, arXiv:2402.01306, eq. 8"
    when = "Only thumbs up or down, one answer a prompt; also when ups and downs are unbalanced."

    beta: float = 0.1
    """How soon gains and losses saturate; small lets the policy go far."""
    desirable_weight: float = 1.0
    """Weight of thumbs up. The paper keeps weight x count of ups and downs within 1:1 to 4:3."""
    undesirable_weight: float = 1.0
    """Weight of thumbs down."""

    def __post_init__(self) -> None:
        self.check(beta=(1e-6, 1e3), desirable_weight=(0, 1e3), undesirable_weight=(0, 1e3))

    def prepare(self, policy: Policy, batches: list[Thumbs]) -> list[Thumbs]:
        """Estimates the reference point once for the whole step, on mismatched pairs (sec. 4.1)."""
        total, count = torch.zeros((), device=policy.device), 0
        for batch in batches:
            if batch.mismatched is None or batch.mismatched_ref_logprobs is None:
                raise UserError("kto: this batch has no mismatched pairs")
            log_ratios = policy.logprobs(batch.mismatched) - batch.mismatched_ref_logprobs
            total, count = total + log_ratios.sum(), count + batch.size
        kl = (total / count).clamp(min=0.0)
        return [replace(batch, kl=kl) for batch in batches]

    def loss(self, policy: Policy, batch: Thumbs) -> tuple[Tensor, Metrics]:
        log_ratio = batch.log_ratios(policy.logprobs(batch.sequences)).sum(-1)
        assert batch.kl is not None, "prepare runs before loss"
        losses = kto(
            log_ratio,
            batch.desirable,
            batch.kl,
            beta=self.beta,
            desirable_weight=self.desirable_weight,
            undesirable_weight=self.undesirable_weight,
        )
        return losses, {
            "desirable": self.beta * log_ratio[batch.desirable],
            "undesirable": self.beta * log_ratio[~batch.desirable],
            "reference_point": batch.kl[None],
        }
