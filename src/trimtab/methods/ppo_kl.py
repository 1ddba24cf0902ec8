"""PPO with a penalty on the KL to the old policy."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from trimtab.methods.base import CriticMethod, Metrics, method
from trimtab.objectives.coefficients import schulman
from trimtab.objectives.policy_gradient import old_kl, ppo_kl, value_loss
from trimtab.policies.base import Actor
from trimtab.rollouts.rollout import Rollout


@method("ppo_kl")
@dataclass(frozen=True, kw_only=True)
class PPOWithKL(CriticMethod):
    """Several updates on the same answers; going away from the policy that wrote them has a price.

    Two KLs are at work: `beta` prices the way from the frozen reference, in the rewards; `kl_penalty`
    prices the way of one update, from the policy that wrote the answers.
    """

    epochs = 4
    learning_rate = 5e-6
    source = "Schulman et al. 2017, arXiv:1707.06347, eq. 8 and sec. 4"
    when = "To compare with PPO's clipping, which is simpler and mostly as good."

    kl_penalty: float = 1.0
    """Price of a nat a step away from the old policy; where it starts, if it adapts."""
    old_kl_target: float | None = 0.01
    """Halve or double kl_penalty to keep the KL near this, in nats a step; none keeps it fixed."""
    value_weight: float = 0.1
    """Of the critic's loss."""
    entropy_bonus: float = 0.0
    """Reward for a nat of entropy."""
    whiten_minibatches: bool = False
    """Bring advantages to mean 0 and standard deviation 1 in every minibatch, not in the whole collection."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(kl_penalty=(0.0, 1e6), value_weight=(0.0, 1e3))
        self.check(entropy_bonus=(0.0, 1e3))
        if self.old_kl_target is not None:
            self.check(old_kl_target=(1e-9, 1e6))

    @property
    def measures_step(self) -> bool:
        return self.old_kl_target is not None

    @property
    def whitens_minibatches(self) -> bool:
        return self.whiten_minibatches

    def coefficients(self) -> dict[str, float]:
        return {**super().coefficients(), "kl_penalty": self.kl_penalty}

    def adapt(self, coefficients: Mapping[str, float], kl: float, old_kl: float) -> dict[str, float]:
        adapted = super().adapt(coefficients, kl, old_kl)
        if self.old_kl_target is not None:
            adapted["kl_penalty"] = schulman(coefficients["kl_penalty"], old_kl, self.old_kl_target)
        return adapted

    def loss(self, policy: Actor, batch: Rollout) -> tuple[Tensor, Metrics]:
        out = policy.evaluate(batch.inputs, entropy=self.entropy_bonus > 0)
        ratio = (out.logprobs, batch.old_logprobs)
        losses = ppo_kl(*ratio, batch.advantages, kl_penalty=batch.coefficients["kl_penalty"])
        losses = losses + self.value_weight * value_loss(out.values, batch.values, batch.returns)
        if out.entropy is not None:
            losses = losses - self.entropy_bonus * out.entropy
        losses = batch.chosen(losses)
        if not batch.measured:
            return losses, {}
        return losses, {"old_kl": batch.chosen(old_kl(out.logprobs.detach(), batch.old_logprobs))}
