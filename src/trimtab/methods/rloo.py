"""RLOO: REINFORCE on whole responses, each compared with the others to its prompt."""

from dataclasses import dataclass, replace

from torch import Tensor

from trimtab.methods.base import Metrics, OnlineMethod, method
from trimtab.objectives.advantages import leave_one_out
from trimtab.objectives.logprobs import masked_sum
from trimtab.objectives.policy_gradient import clip_fraction, old_kl, ppo_clip
from trimtab.policies.base import Actor
from trimtab.rollouts.rollout import Rollout


@method("rloo")
@dataclass(frozen=True, kw_only=True)
class RLOO(OnlineMethod):
    """The baseline of a response is the mean score of the other responses to the same prompt."""

    fewest_samples = 2
    learning_rate = 5e-6
    source = "Kool et al. 2019; Ahmadian et al. 2024, arXiv:2402.14740, sec. 3.3"
    when = "Online learning without a critic, and without GRPO's biases: several answers to each prompt."

    clip: float = 0.2
    """Bound of the whole response's ratio, where the same answers serve for several updates."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(clip=(1e-6, 1e3))

    def advantages(self, rollout: Rollout) -> Rollout:
        scores = rollout.grouped(masked_sum(rollout.rewards, rollout.mask))
        return replace(rollout, advantages=leave_one_out(scores).flatten())

    def loss(self, policy: Actor, batch: Rollout) -> tuple[Tensor, Metrics]:
        of_tokens = policy.evaluate(batch.inputs).logprobs
        logprobs = masked_sum(of_tokens, batch.mask)
        old_logprobs = masked_sum(batch.old_logprobs, batch.mask)
        losses = ppo_clip(logprobs, old_logprobs, batch.advantages, clip=self.clip)
        return losses, {
            "old_kl": old_kl(of_tokens, batch.old_logprobs)[batch.mask],
            "clip_fraction": clip_fraction(logprobs, old_logprobs, batch.advantages, clip=self.clip),
        }
