"""GRPO: advantages from a group of answers instead of a critic."""

from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from trimtab.methods.base import Metrics, OnlineMethod, method
from trimtab.objectives.advantages import group_relative
from trimtab.objectives.logprobs import masked_mean, masked_sum
from trimtab.objectives.policy_gradient import clip_fraction, old_kl, ppo_clip, reference_kl
from trimtab.policies.base import Actor
from trimtab.rollouts.rollout import Rollout


@method("grpo")
@dataclass(frozen=True, kw_only=True)
class GRPO(OnlineMethod):
    """Each answer is compared with the others to its prompt; every token of it gets that advantage."""

    samples = 8
    fewest_samples = 2
    learning_rate = 5e-6
    source = "Shao et al. 2024, arXiv:2402.03300, eq. 3; Dr. GRPO: 2503.20783; DAPO: 2503.14476"
    when = "Answers that can be verified, and no memory for a critic: groups of eight and more."

    clip: float = 0.2
    """Bound of the ratio to the policy that wrote the answers."""
    clip_high: float | None = None
    """Another bound above (DAPO takes 0.28); none takes `clip`."""
    aggregation: Literal["grpo", "dr_grpo", "dapo"] = "grpo"
    """Which mean of the tokens' losses: of each answer (grpo), over a constant length, or over all tokens."""
    scale: bool = True
    """Divide advantages by the group's standard deviation; Dr. GRPO does not."""
    kl: Literal["loss", "reward"] = "loss"
    """Where the KL to the reference is paid: as a loss of each token, or in the score of the answer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(clip=(1e-6, 1e3))
        if self.clip_high is not None:
            self.check(clip_high=(1e-6, 1e3))

    @property
    def reward_beta(self) -> float:
        return 1.0 if self.kl == "reward" else 0.0

    def advantages(self, rollout: Rollout) -> Rollout:
        scores = rollout.grouped(masked_sum(rollout.rewards, rollout.mask))
        advantages = group_relative(scores, scale=self.scale).flatten()
        return replace(rollout, advantages=advantages[:, None] * rollout.mask)

    def units(self, batch: Rollout) -> int:
        return batch.steps if self.aggregation == "dapo" else batch.size

    def loss(self, policy: Actor, batch: Rollout) -> tuple[Tensor, Metrics]:
        ratio = (policy.evaluate(batch.inputs).logprobs, batch.old_logprobs)
        losses = ppo_clip(*ratio, batch.advantages, clip=self.clip, clip_high=self.clip_high)
        if self.kl == "loss" and batch.ref_logprobs is not None:
            losses = losses + batch.coefficients["beta"] * reference_kl(*ratio, batch.ref_logprobs)
        return self._aggregated(losses, batch), {
            "old_kl": batch.chosen(old_kl(*ratio)),
            "clip_fraction": batch.chosen(
                clip_fraction(*ratio, batch.advantages, clip=self.clip, clip_high=self.clip_high)
            ),
        }

    def _aggregated(self, losses: Tensor, batch: Rollout) -> Tensor:
        """[units]: one loss a response, or one a token."""
        if self.aggregation == "grpo":
            return masked_mean(losses, batch.mask)
        if self.aggregation == "dr_grpo":
            return masked_sum(losses, batch.mask) / batch.longest
        return batch.chosen(losses)
