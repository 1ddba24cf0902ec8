"""Experience: rows of steps that a policy took, and what came of them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from trimtab.feedback.records import Prompt
from trimtab.objectives.advantages import gae, whiten
from trimtab.policies.base import ABSENT
from trimtab.policies.control import cut
from trimtab.stateful import stateful

GATHERED = 2**20  # numbers of observations that are copied at once, if a rollout has no more; 4 MB
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
        measured: a loss on it gives metrics, too; those of all but the last epoch nobody reads.
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
    measured: bool = True

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
        places = self.mask.flatten().nonzero()[:, 0]  # once: a mask of truth values is searched each time
        tensors: dict[str, Any] = {
            name: None
            if (value := getattr(self, name)) is None
            else value.reshape(-1, 1).index_select(0, places)
            for name in STEP_COLUMNS
        }
        unread = dict.fromkeys(("rewards", "terminated", "ended", "score", "fresh", "next_values"), ABSENT)
        mask = self.mask.new_ones(len(tensors["old_logprobs"]), 1)
        inputs = self.inputs.flattened(self.mask)
        return replace(self, inputs=inputs, mask=mask, dense=True, group_size=1, **tensors, **unread)

    def minibatches(
        self, plan: Iterable[Sequence[Tensor]], *, whitened: bool = False
    ) -> Iterator[list["Rollout"]]:
        """The parts of each minibatch, given their rows; single steps are gathered for many of them at once.

        Args:
            whitened: advantages have mean 0 and standard deviation 1 in each; that of a single step stays.
        """
        if self.dense:
            width = max(1, self.inputs.observations[:1].numel())
            for rows in _together([rows for [rows] in plan], max(self.size, GATHERED // width)):
                yield from ([part] for part in self._gathered(rows, whitened))
            return
        for minibatch in plan:
            parts = [self.select(rows) for rows in minibatch]
            yield _whitened(parts) if whitened else parts

    def _gathered(self, rows: list[Tensor], whitened: bool) -> Iterator["Rollout"]:
        order, sizes = torch.cat(rows), [len(part) for part in rows]
        columns: dict[str, Sequence[Tensor]] = {
            n: cut(value, order, sizes) for n in STEP_COLUMNS if (value := getattr(self, n)) is not None
        }
        if whitened:
            columns["advantages"] = _whitened_steps(columns["advantages"])
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


def _whitened(parts: list[Rollout]) -> list[Rollout]:
    if sum(part.steps for part in parts) == 1:
        return parts
    deviation, mean = torch.std_mean(torch.cat([part.chosen(part.advantages) for part in parts]))
    advantages = [(part.advantages - mean).div_(deviation + 1e-8) * part.mask for part in parts]
    return [_changed(part, advantages=values) for part, values in zip(parts, advantages, strict=True)]


def _whitened_steps(minibatches: Sequence[Tensor]) -> Sequence[Tensor]:
    """Each [B, 1]; those of the same size in one go."""
    if len({len(steps) for steps in minibatches}) > 1:
        return [steps for alone in minibatches for steps in _whitened_steps([alone])]
    stacked = torch.stack(list(minibatches))
    if stacked.shape[1] == 1:
        return minibatches
    deviation, mean = torch.std_mean(stacked, 1, keepdim=True)
    return (stacked - mean).div_(deviation + 1e-8).unbind()


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


def _together(rows: Sequence[Tensor], most: int) -> Iterator[list[Tensor]]:
    """Neighbours that hold at most so many numbers together, one of them at least."""
    some: list[Tensor] = []
    room = most
    for part in rows:
        if some and len(part) > room:
            yield some
            some, room = [], most
        some.append(part)
        room -= len(part)
    if some:
        yield some


def _widened(values: Tensor, steps: int) -> Tensor:
    """[B] as it is; [B, T] with zeros up to `steps`."""
    if values.dim() == 1:
        return values
    return torch.nn.functional.pad(values, (0, steps - values.shape[1]))
