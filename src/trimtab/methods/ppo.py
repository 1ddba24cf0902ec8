"""PPO with the clipped objective."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from trimtab.methods.base import CriticMethod, Metrics, method
from trimtab.objectives.policy_gradient import clip_fraction, old_kl, ppo_clip, value_loss
from trimtab.policies.base import Actor
from trimtab.rollouts.rollout import Rollout


@method("ppo")
@dataclass(frozen=True, kw_only=True)
class PPO(CriticMethod):
    """Several updates on the same answers, no gain beyond a ratio of [1 - clip, 1 + clip]."""

    epochs = 4
    learning_rate = 5e-6
    source = "Schulman et al. 2017, arXiv:1707.06347, eq. 7 and 9; Ouyang et al. 2022, sec. 3.5"
    when = "A reward model and answers that are costly to write: the most learned from each of them."

    clip: float = 0.2
    """Bound of the ratio to the policy that chose."""
    clip_schedule: Literal["constant", "linear"] = "constant"
    """Whether the bound stays, or falls to zero with the training's progress."""
    value_weight: float = 0.1
    """Of the critic's loss."""
    value_clip: float | None = None
    """Keep new values within this distance of the old ones; none leaves them free."""
    entropy_bonus: float = 0.0
    """Reward for a nat of entropy."""
    whiten_minibatches: bool = False
    """Bring advantages to mean 0 and standard deviation 1 in every minibatch, not in the whole collection."""
    old_kl_stop: float | None = None
    """End a collection's epochs where the KL from the old policy exceeds this, in nats a step."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(clip=(1e-6, 1e3), value_weight=(0.0, 1e3))
        self.check(entropy_bonus=(0.0, 1e3))
        for name in ("value_clip", "old_kl_stop"):
            if getattr(self, name) is not None:
                self.check(**{name: (1e-9, 1e6)})

    @property
    def whitens_minibatches(self) -> bool:
        return self.whiten_minibatches

    def coefficients(self) -> dict[str, float]:
        return {**super().coefficients(), "clip": self.clip}

    def scheduled(self, coefficients: Mapping[str, float], progress: float) -> dict[str, float]:
        left = 1.0 if self.clip_schedule == "constant" else 1.0 - progress
        return {**coefficients, "clip": self.clip * left}

    def loss(self, policy: Actor, batch: Rollout) -> tuple[Tensor, Metrics]:
        out = policy.evaluate(batch.inputs, entropy=self.entropy_bonus > 0)
        ratio = (out.logprobs, batch.old_logprobs)
        clip = batch.coefficients["clip"]
        losses = ppo_clip(*ratio, batch.advantages, clip=clip)
        losses = losses + self.value_weight * value_loss(
            out.values, batch.values, batch.returns, clip=self.value_clip
        )
        if out.entropy is not None:
            losses = losses - self.entropy_bonus * out.entropy
        losses = batch.chosen(losses)
        if not batch.measured:
            return losses, {}
        ratio = (out.logprobs.detach(), batch.old_logprobs)
        return losses, {
            "old_kl": batch.chosen(old_kl(*ratio)),
            "clip_fraction": batch.chosen(clip_fraction(*ratio, batch.advantages, clip=clip)),
        }

    @property
    def may_stop(self) -> bool:
        return self.old_kl_stop is not None

    def too_far(self, old_kl: float) -> bool:
        return self.old_kl_stop is not None and old_kl > self.old_kl_stop
