"""The updates that a collection gives: k epochs of minibatches of whole answers, or of single steps."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor

from trimtab.errors import check_bounds, check_positive
from trimtab.feedback.batches import by_tokens
from trimtab.methods.base import OnlineMethod
from trimtab.objectives.policy_gradient import old_kl
from trimtab.optimisers import FlatAdam, clip_flat_gradients, load_optimiser, optimiser_state
from trimtab.rollouts.rollout import Rollout, Sample
from trimtab.room import ERRORS, Room
from trimtab.stateful import stateful
from trimtab.train import (
    FP32,
    NonFiniteError,
    OptimiserConfig,
    backward,
    is_finite,
    peak_learning_rate,
    schedule_factor,
)

Parts = list[Tensor]  # a minibatch: the row numbers of each of its micro-batches


@dataclass(frozen=True)
class OnlineConfig(OptimiserConfig):
    """How often is collected, and what is learned from each collection."""

    refreshes: int = 100
    """Times that answers are collected: n."""
    epochs: int | None = None
    """Passes over each collection: k; the method's own number if not given."""
    minibatch_size: int | None = None
    """Answers for one optimiser step; the whole collection if not given."""
    schedule: Literal["cosine", "linear", "constant"] = "linear"
    """How the learning rate falls, to zero, after the warm-up."""
    critic_learning_rate: float | None = None
    """Of the critic's own parameters; by its kind if not given."""

    def share(self, refresh: int, source: Any) -> float:
        """How much of the training lies behind when this refresh begins, 0 to 1; at 1 it is over."""
        return refresh / self.refreshes

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "refreshes", "epochs", "minibatch_size", "critic_learning_rate")
        check_bounds(self, minibatch_size=(1, math.inf))


@stateful
@dataclass(kw_only=True)
class Work:
    """A collection in use, and how far its updates have come.

    Attributes:
        rollout: with advantages; its single steps where they can be told apart.
        plans: for each epoch its minibatches, and of each of these the rows of its parts.
        samples: the new answers.
        metrics: of the collection.
        share: of the training that lay behind when it was collected, 0 to 1.
        seconds: spent on it.
        first: metrics of `Method.whole_step`; None before it.
        epoch, place: the minibatch that comes next.
        steps: metrics of the minibatches behind, in this epoch.
        learned: metrics of the last whole epoch.
    """

    rollout: Rollout
    plans: list[list[Parts]]
    samples: list[Sample]
    metrics: dict[str, float]
    share: float
    seconds: float = 0.0
    first: dict[str, float] | None = None
    epoch: int = 0
    place: int = 0
    steps: list[dict[str, Tensor | float]] = field(default_factory=list)
    learned: dict[str, float] = field(default_factory=dict)

    @property
    def behind(self) -> int:
        """Updates made, with those that this epoch has behind."""
        return sum(len(plan) for plan in self.plans[: self.epoch]) + self.place

    def whole(self) -> list[Rollout]:
        """Everything, in the parts of the first epoch."""
        return [part for parts in self.rollout.minibatches(self.plans[0]) for part in parts]

    def left(self, *, whitened: bool, measured: bool) -> Iterator[list[Rollout]]:
        """The minibatches that come next, to the end of the last epoch.

        Args:
            measured: whether metrics are wanted of all of them, not of the last epoch's alone.
        """
        plans = [self.plans[self.epoch][self.place :], *self.plans[self.epoch + 1 :]]
        early = replace(self.rollout, measured=measured)
        yield from early.minibatches(chain.from_iterable(plans[:-1]), whitened=whitened)
        yield from self.rollout.minibatches(plans[-1], whitened=whitened)


class Learner:
    """Optimiser, schedule and the updates of one collection."""

    def __init__(self, method: OnlineMethod, policy: Any, run: OnlineConfig, steps_a_refresh: int) -> None:
        self.method = method
        self.policy = policy
        self.run = run
        self.steps = run.refreshes * steps_a_refresh
        self.skipped = 0
        self.room = Room(run.batch_tokens, "tokens")
        rest = {"weight_decay": run.weight_decay, "eps": run.adam_eps}
        self.optimiser: Any = (
            FlatAdam(self._groups(), **rest)
            if policy.is_flat
            else torch.optim.AdamW(self._groups(), **rest, fused=True)  # type: ignore[arg-type]
        )
        self.clip = clip_flat_gradients if policy.is_flat else torch.nn.utils.clip_grad_norm_
        self.rates = [group["lr"] for group in self.optimiser.param_groups]

    def _groups(self) -> list[dict[str, Any]]:
        """What is trained, and at which rate. Each group's gradient is clipped as a whole, and has a name."""
        method, policy, run = self.method, self.policy, self.run
        actor = list(policy.named_parameters().values()) if method.trains_actor else []
        critic = policy.critic_parameters()
        rate = peak_learning_rate(method, run, policy)
        own_rate = run.critic_learning_rate or policy.critic_learning_rate
        if actor and own_rate is None:
            return [{"params": actor + critic, "lr": rate, "norm": "grad_norm"}]
        both = ((actor, rate, "grad_norm"), (critic, own_rate or rate, "critic_grad_norm"))
        return [{"params": params, "lr": rate, "norm": norm} for params, rate, norm in both if params]

    def update(self, work: Work) -> Iterator[None]:
        """What is left of the epochs on a collection; stops after each step, where `state` can be taken."""
        if work.first is None:
            wanted = self.method.has_whole_step
            work.first = self.method.whole_step(self.policy, work.whole()) if wanted else {}
            yield
        with self._resting():
            yield from self._epochs(work)

    @contextmanager
    def _resting(self) -> Iterator[None]:
        """No gradients for what the optimiser does not train: TRPO's policy has moved already."""
        resting = [] if self.method.trains_actor else list(self.policy.named_parameters().values())
        for parameter in resting:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in resting:
                parameter.requires_grad_(True)

    def _epochs(self, work: Work) -> Iterator[None]:
        """Those updates that an early stop leaves out are counted all the same."""
        method, first = self.method, round(work.share * self.steps)
        wanted = {"whitened": method.whitens_minibatches, "measured": method.may_stop}
        minibatches = work.left(**wanted)
        while work.epoch < len(work.plans):
            for _ in range(work.place, len(work.plans[work.epoch])):
                metrics = self._step(first + work.behind, next(minibatches))
                if metrics is None:
                    break
                work.steps.append(metrics)
                work.place += 1
                if self._too_far(work.steps[-1]):
                    work.learned = {**_means(work.steps), "stopped_early": 1.0}
                    return
                yield
            else:
                work.learned = _means(work.steps)
                work.epoch, work.place, work.steps = work.epoch + 1, 0, []
                continue
            work.plans = recut(work.plans, work.rollout, self.room.size)
            minibatches = work.left(**wanted)
        if method.measures_step:
            work.learned["old_kl"] = _old_kl(self.policy, work.whole())

    def _step(self, step: int, batches: list[Rollout]) -> dict[str, Tensor | float] | None:
        """One optimiser step, which is left out where the policy has gone too far already.

        Returns its metrics; None if memory ran out, and it must be made again in smaller parts.

        Raises NonFiniteError, or counts what it leaves out, if the loss or a gradient is not a finite number.
        """
        factor = schedule_factor(self.run, step, self.steps)
        for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        for parameter in self.policy.parameters():
            parameter.grad = None
        try:
            metrics: dict[str, Tensor | float] = {**backward(self.method, self.policy, batches)}
        except ERRORS as error:
            self.halve(error, batches)
            return None
        most = self.run.max_grad_norm or math.inf
        groups = self.optimiser.param_groups
        metrics |= {group["norm"]: float(self.clip(group["params"], most)) for group in groups}
        metrics["learning_rate"] = groups[0]["lr"]
        finite = is_finite(metrics)
        if not finite and self.run.non_finite == "stop":
            raise NonFiniteError(f"step {step + 1}", metrics, batches, "" if self.policy.is_flat else FP32)
        if finite and not self._too_far(metrics):
            self.optimiser.step()
        self.skipped += not finite
        return metrics

    def halve(self, error: BaseException, parts: list[Rollout]) -> None:
        """Less at once, after an error that says so. Raises it if it is another, or nothing can be halved."""
        if parts[0].inputs.separable:
            raise error
        lengths = torch.cat([part.inputs.lengths for part in parts])
        self.room.halve(error, int(lengths.sum()), int(lengths.max()))

    def _too_far(self, metrics: Mapping[str, Tensor | float]) -> bool:
        return self.method.may_stop and self.method.too_far(float(metrics.get("old_kl", 0.0)))

    def state(self) -> dict[str, Any]:
        """For a checkpoint; the rates follow from the step."""
        optimiser = optimiser_state(self.optimiser)
        return {"optimiser": optimiser, "skipped": self.skipped, "room": self.room.size}

    def load(self, state: dict[str, Any]) -> None:
        """Goes on from what `state` gave."""
        load_optimiser(self.optimiser, state["optimiser"])
        self.skipped, self.room.size = state["skipped"], state["room"]


@torch.no_grad()
def _old_kl(policy: Any, parts: list[Rollout]) -> float:
    """KL(old || policy as it is now), in nats a step."""
    kls = [old_kl(policy.evaluate(part.inputs).logprobs, part.old_logprobs)[part.mask] for part in parts]
    return float(torch.cat(kls).mean())


def plan_of(rollout: Rollout, run: OnlineConfig, generator: torch.Generator, tokens: int) -> list[Parts]:
    """An epoch in minibatches: every step once, or every sequence in parts that hold so many tokens each."""
    separable = rollout.inputs.separable
    count = rollout.steps if separable else rollout.size
    order = torch.randperm(count, generator=generator).to(rollout.mask.device)
    minibatches = order.split(run.minibatch_size or count)
    if separable:
        return [[rows] for rows in minibatches]
    return [_cut(rows, rollout, tokens) for rows in minibatches]


def recut(plans: list[list[Parts]], rollout: Rollout, tokens: int) -> list[list[Parts]]:
    """The same minibatches in other parts."""
    return [[_cut(torch.cat(parts), rollout, tokens) for parts in plan] for plan in plans]


def _cut(rows: Tensor, rollout: Rollout, tokens: int) -> Parts:
    return [rows[part] for part in by_tokens(rollout.inputs.lengths[rows].tolist(), tokens)]


def _means(steps: list[dict[str, Tensor | float]]) -> dict[str, float]:
    return {name: float(sum(step[name] for step in steps)) / len(steps) for name in steps[0]}
