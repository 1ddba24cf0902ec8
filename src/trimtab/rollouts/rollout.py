"""Experience: rows of steps that a policy took, and what came of them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from trimtab.feedback.records import Prompt
from trimtab.objectives.advantages import gae, whiten
from trimtab.policies.base import ABSENT
from trimtab.policies.control import cut
from trimtab.stateful import stateful

STEP_COLUMNS = ("old_logprobs", "ref_logprobs", "values", "advantages", "returns")  # what losses read


@stateful
@dataclass(frozen=True, kw_only=True)
class Rollout:
    """B rows of T steps: responses by tokens, or steps in environments. [B, T] but where said otherwise.

    Attributes:
        inputs: what the policy reads to evaluate the steps again; Sequences for language.
        mask: where the policy chose.
        old_logprobs: of the policy that chose, in nats; None until they are computed.
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
        dense: the mask is true everywhere.
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
    dense: bool = False

    @property
    def steps(self) -> int:
        """In how many steps the policy chose."""
        return self.mask.numel() if self.dense else int(self.mask.sum())

    def chosen(self, values: Tensor) -> Tensor:
        """[B, T] -> [steps]: where the policy chose."""
        return values.flatten() if self.dense else values[self.mask]

    @property
    def size(self) -> int:
        """How many rows there are."""
        return len(self.mask)

    def select(self, rows: Tensor) -> "Rollout":
        """The rows of these numbers, cut to the longest of them. Groups are not kept together."""
        steps = 1 if self.dense else int(self.mask[rows].any(0).nonzero().max()) + 1
        tensors: dict[str, Any] = {
            f.name: value[rows] if value.dim() == 1 else value[rows, :steps]
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), Tensor)
        }
        return replace(self, inputs=self.inputs.select(rows), group_size=1, **tensors)

    def flattened(self) -> "Rollout":
        """Every step where the policy chose as a row of its own, T = 1, with what losses read."""
        tensors: dict[str, Any] = {
            name: None if (value := getattr(self, name)) is None else value[self.mask][:, None]
            for name in STEP_COLUMNS
        }
        unread = dict.fromkeys(("rewards", "terminated", "ended", "score", "fresh", "next_values"), ABSENT)
        mask = self.mask.new_ones(len(tensors["old_logprobs"]), 1)
        inputs = self.inputs.flattened(self.mask)
        return replace(self, inputs=inputs, mask=mask, dense=True, group_size=1, **tensors, **unread)

    def parts(self, rows: Sequence[Tensor]) -> Iterator["Rollout"]:
        """`select` of each; single steps are gathered once for all."""
        if not self.dense:
            yield from map(self.select, rows)
            return
        order, sizes = torch.cat(list(rows)), [len(part) for part in rows]
        columns = {
            n: cut(value, order, sizes) for n in STEP_COLUMNS if (value := getattr(self, n)) is not None
        }
        masks = {size: self.mask.new_ones(size, 1) for size in set(sizes)}
        for size, inputs, *values in zip(
            sizes, self.inputs.cut(order, sizes), *columns.values(), strict=True
        ):
            yield _changed(self, inputs=inputs, mask=masks[size], **dict(zip(columns, values, strict=True)))

    def mapped(self, change: Callable[[Tensor], Any]) -> "Rollout":
        """The same with another form of the columns that losses read."""
        columns = {n: change(value) for n in STEP_COLUMNS if (value := getattr(self, n)) is not None}
        return _changed(self, **columns)

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


def whitened(parts: list[Rollout]) -> list[Rollout]:
    """The same with advantages of mean 0 and standard deviation 1 over all parts; a single step stays."""
    chosen = [part.advantages if part.dense else part.advantages[part.mask] for part in parts]
    if sum(map(len, chosen)) == 1:
        return parts
    deviation, mean = torch.std_mean(torch.cat(chosen) if len(chosen) > 1 else chosen[0])
    deviation = deviation + 1e-8

    def changed(part: Rollout) -> Rollout:
        advantages = (part.advantages - mean).div_(deviation)
        return _changed(part, advantages=advantages if part.dense else advantages * part.mask)

    return [changed(part) for part in parts]


@stateful
@dataclass(frozen=True)
class Sample:
    """One answer as a person reads it, with the score of each reward."""

    prompt: Prompt
    response: str
    score: float
    parts: dict[str, float]


@dataclass(frozen=True)
class Collection:
    """Steps to learn from, and of a language model the new answers as texts to read.

    Answers kept from before come first; the `rollout.old_logprobs` of new ones are those recorded while
    sampling, and `rollout.rewards` are zero. An environment gives rewards, and no log-probs yet.
    """

    rollout: Rollout
    samples: list[Sample]


def _changed(rollout: Rollout, **changes: Any) -> Rollout:
    """What `replace` gives, without a call of `__init__`: single steps are cut up by the thousand."""
    changed = object.__new__(type(rollout))
    changed.__dict__.update(rollout.__dict__, **changes)
    return changed


def _widened(values: Tensor, steps: int) -> Tensor:
    """[B] as it is; [B, T] with zeros up to `steps`."""
    if values.dim() == 1:
        return values
    return torch.nn.functional.pad(values, (0, steps - values.shape[1]))
