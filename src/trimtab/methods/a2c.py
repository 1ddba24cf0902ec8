"""A2C: advantage actor-critic."""

from dataclasses import dataclass

from torch import Tensor

from trimtab.methods.base import CriticMethod, Metrics, method
from trimtab.objectives.policy_gradient import old_kl, reinforce, value_loss
from trimtab.policies.base import Actor
from trimtab.rollouts.rollout import Rollout


@method("a2c")
@dataclass(frozen=True, kw_only=True)
class A2C(CriticMethod):
    """The policy gradient with advantages from a learned value, one update for each collection."""

    learning_rate = 5e-6
    source = "Mnih et al. 2016, arXiv:1602.01783, sec. 4; GAE: Schulman et al. 2016, eq. 16"
    when = "A critic, but none of PPO's reuse: every answer serves for one update."

    lam: float = 1.0
    """GAE's mixture: 1 trusts the returns, 0 the critic."""
    value_weight: float = 0.1
    """Of the critic's loss."""
    entropy_bonus: float = 0.0
    """Reward for a nat of entropy."""
    whiten: bool = False
    """Bring each collection's advantages to mean 0 and standard deviation 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(value_weight=(0.0, 1e3), entropy_bonus=(0.0, 1e3))

    def loss(self, policy: Actor, batch: Rollout) -> tuple[Tensor, Metrics]:
        out = policy.evaluate(batch.inputs, entropy=self.entropy_bonus > 0)
        losses = reinforce(out.logprobs, batch.old_logprobs, batch.advantages)
        losses = losses + self.value_weight * value_loss(out.values, batch.values, batch.returns)
        if out.entropy is not None:
            losses = losses - self.entropy_bonus * out.entropy
        return batch.chosen(losses), {
            "old_kl": batch.chosen(old_kl(out.logprobs.detach(), batch.old_logprobs))
        }
