"""Supervised fine-tuning: imitate demonstrations."""

from dataclasses import dataclass

from torch import Tensor

from trimtab.feedback.batches import Demonstrations
from trimtab.methods.base import Method, Metrics, method
from trimtab.objectives.supervised import nll
from trimtab.policies.base import Policy


@method("sft")
@dataclass(frozen=True, kw_only=True)
class SFT(Method[Demonstrations]):
    """Negative log-likelihood of the responses' tokens, as in step 1 of Ouyang et al. 2022."""

    stage = "supervised"
    data = "demonstration"
    learning_rate = 2e-5
    source = "Ouyang et al. 2022, arXiv:2203.02155, sec. 3.5"
    when = "First, always: it teaches the form of an answer; every other method starts from it."

    def units(self, batch: Demonstrations) -> int:
        """Tokens: each counts the same, however long its response."""
        return int(batch.sequences.response_lengths.sum())

    def loss(self, policy: Policy, batch: Demonstrations) -> tuple[Tensor, Metrics]:
        losses = nll(policy.logprobs(batch.sequences))[batch.sequences.mask]
        return losses, {"nll": losses}
