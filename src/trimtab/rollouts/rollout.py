"""Experience: rows of steps that a policy took, and what came of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from trimtab.objectives.advantages import gae, whiten
from trimtab.policies.base import ABSENT


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """B rows of T steps: responses by tokens, or steps in environments. [B, T] but where said otherwise.

    Attributes:
        inputs: what the policy reads to evaluate the steps again; Sequences for language.
        mask: where the policy chose.
        old_logprobs: of the policy that chose, in nats.
        rewards: of each step; the price of the KL to the reference is in them.
        terminated: a response or an episode came to its end here, and nothing follows.
        ended: terminated or cut off: the next step belongs to another episode, or to none.
        fresh: [B] written by the policy as it is, not kept from before.
        score: [B] what the reward says of a whole response.
        ref_logprobs: of the frozen reference; None without one.
        values, next_values: of the states before and after each step; None without a critic.
        advantages, returns: what `Method.advantages` adds, once for each collection.
        group_size: rows with the same prompt stand together, so many at a time.
        longest: the most steps that a row can have.
        coefficients: what changes while training goes on, such as an adaptive `beta`.
    """

    inputs: Any
    mask: Tensor
    old_logprobs: Tensor
    rewards: Tensor
    terminated: Tensor
    ended: Tensor
    score: Tensor
    fresh: Tensor
    ref_logprobs: Tensor = ABSENT
    values: Tensor = ABSENT
    next_values: Tensor = ABSENT
    advantages: Tensor = ABSENT
    returns: Tensor = ABSENT
    group_size: int = 1
    longest: int = 1
    coefficients: Mapping[str, float] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """How many rows there are."""
        return len(self.mask)

    def select(self, rows: Tensor) -> "Rollout":
        """The rows of these numbers, cut to the longest of them. Groups are not kept together."""
        steps = int(self.mask[rows].any(0).nonzero().max()) + 1
        tensors: dict[str, Any] = {
            f.name: value[rows] if value.dim() == 1 else value[rows, :steps]
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), Tensor)
        }
        return replace(self, inputs=self.inputs.select(rows), group_size=1, **tensors)

    @classmethod
    def join(cls, parts: Sequence["Rollout"]) -> "Rollout":
        """The rows of all parts, which must have the same fields, one after the other."""
        steps = max(part.mask.shape[1] for part in parts)
        tensors: dict[str, Any] = {
            f.name: torch.cat([_widened(getattr(part, f.name), steps) for part in parts])
            for f in fields(cls)
            if isinstance(getattr(parts[0], f.name), Tensor)
        }
        inputs = type(parts[0].inputs).join([part.inputs for part in parts])
        return replace(parts[0], inputs=inputs, **tensors)

    def grouped(self, values: Tensor) -> Tensor:
        """[B] values as [P, G]: the responses to each prompt."""
        return values.view(-1, self.group_size)

    def with_gae(self, *, gamma: float, lam: float, whitened: bool) -> "Rollout":
        """Advantages by GAE, and the returns that a critic learns: advantages + values."""
        advantages = gae(
            self.rewards, self.values, self.next_values, self.terminated, self.ended, gamma=gamma, lam=lam
        )
        returns = advantages + self.values
        if whitened:
            advantages = whiten(advantages, self.mask)
        return replace(self, advantages=advantages, returns=returns)


def _widened(values: Tensor, steps: int) -> Tensor:
    """[B] as it is; [B, T] with zeros up to `steps`."""
    if values.dim() == 1:
        return values
    return torch.nn.functional.pad(values, (0, steps - values.shape[1]))
