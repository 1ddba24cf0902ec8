"""REINFORCE: the policy gradient itself."""

from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from trimtab.methods.base import Metrics, OnlineMethod, method
from trimtab.objectives.advantages import returns_to_go
from trimtab.objectives.logprobs import masked_sum
from trimtab.objectives.policy_gradient import old_kl, reinforce, value_loss
from trimtab.policies.base import Actor
from trimtab.rollouts.rollout import Rollout


@method("reinforce")
@dataclass(frozen=True, kw_only=True)
class Reinforce(OnlineMethod):
    """log-probs weighted by the return that followed, less a baseline."""

    learning_rate = 5e-6
    source = "Williams 1992; Sutton & Barto 2018, sec. 13.3 and 13.4"
    when = "To see the policy gradient bare, or to have the fewest knobs: one, and no critic."

    baseline: Literal["none", "mean", "value"] = "mean"
    """What the return is compared with: nothing, the mean return of the collection, or a learned value."""
    gamma: float = 1.0
    """Discount of later rewards."""
    value_weight: float = 0.1
    """Of the critic's loss, with baseline=value."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(gamma=(0.0, 1.0), value_weight=(0.0, 1e3))

    @property
    def needs_critic(self) -> bool:
        return self.baseline == "value"

    def advantages(self, rollout: Rollout) -> Rollout:
        last = None
        if rollout.next_values is not None:  # what was cut off would have gone on
            last = rollout.next_values * (rollout.ended & ~rollout.terminated)
        returns = returns_to_go(rollout.rewards, (~rollout.ended).float(), self.gamma, last)
        baseline: Tensor | float = 0.0
        if self.baseline == "mean":
            baseline = returns[rollout.mask].mean()
        elif self.baseline == "value":
            baseline = rollout.values
        return replace(rollout, advantages=(returns - baseline) * rollout.mask, returns=returns)

    def loss(self, policy: Actor, batch: Rollout) -> tuple[Tensor, Metrics]:
        out = policy.evaluate(batch.inputs)
        losses = reinforce(out.logprobs, batch.old_logprobs, batch.advantages)
        if out.values is not None:
            losses = losses + self.value_weight * value_loss(out.values, batch.values, batch.returns)
        return masked_sum(losses, batch.mask), {
            "old_kl": batch.chosen(old_kl(out.logprobs.detach(), batch.old_logprobs))
        }
