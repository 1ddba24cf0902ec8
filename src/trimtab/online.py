"""The training loop of methods that learn from what the policy does: n times collect, then k updates.

collect   answers, or steps in an environment, and what they earned
evaluate  log-probs of policy and reference, values: of answers by the very passes that training will make
credit    rewards, then advantages: once for each collection
update    k epochs of minibatches: of whole answers, or of single steps; the coefficients adapt
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from trimtab.learner import Learner, OnlineConfig, Parts, Work, plan_of, recut
from trimtab.methods.base import OnlineMethod
from trimtab.objectives.advantages import explained_variance
from trimtab.policies.base import Evaluation
from trimtab.rollouts.rollout import Collection, Rollout, Sample
from trimtab.room import ERRORS
from trimtab.states import moved
from trimtab.train import load_parameters

__all__ = ["OnlineConfig", "OnlineTraining", "Reference", "Refresh", "Source", "train_online"]

Reference = Callable[[Any], Tensor]  # inputs -> the reference's log-probs [B, T]


class Source(Protocol):
    """Where experience comes from.

    Attributes:
        rows: what an epoch goes through: the answers of a collection, or its steps.
        unit: what is counted a second: "tokens" or "steps".
    """

    unit: str

    @property
    def rows(self) -> int: ...
    def collect(self, refresh: int) -> Collection: ...
    def remember(self, rollout: Rollout) -> None: ...
    def with_rewards(self, rollout: Rollout, beta: float) -> Rollout: ...
    def describe(self, rollout: Rollout) -> dict[str, float]: ...


class ResumableSource(Source, Protocol):
    """One that can go on in another process.

    Attributes:
        repeats: a collection that failed has changed nothing, and can be made again.
    """

    repeats: bool

    def state(self) -> dict[str, Any]: ...
    def load(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class Refresh:
    """One collection and what was learned from it."""

    metrics: dict[str, float]
    samples: list[Sample]
    coefficients: dict[str, float]


class OnlineTraining:
    """Trains `policy` (an Actor) in place. Iterating yields after each refresh, and trains what is left.

    Attributes:
        refresh: how many lie behind.
        work: the collection in use; None between two.
        made_ahead: passes for the first update, in the policy's hands.
        intact: `state` can be taken, even after an error: no collection that cannot be repeated is under way.
    """

    def __init__(
        self,
        method: OnlineMethod,
        policy: Any,
        source: Source,
        run: OnlineConfig,
        reference: Reference | None = None,
    ) -> None:
        self.method, self.policy, self.source = method, policy, source
        self.run, self.reference = run, reference
        self.epochs = run.epochs or method.epochs
        self.learner = Learner(method, policy, run, self.epochs * self._minibatches())
        self.generator = torch.Generator().manual_seed(run.seed)
        self.coefficients = method.coefficients()
        self.parameters = policy.parameters()
        self.made_ahead: list[Any] = getattr(policy, "made_ahead", [])
        self.refresh = 0
        self.work: Work | None = None
        self.intact = True

    def _minibatches(self) -> int:
        return math.ceil(self.source.rows / (self.run.minibatch_size or self.source.rows))

    def __iter__(self) -> Iterator[Refresh]:
        return (event for event in self.events() if event is not None)

    def events(self) -> Iterator[Refresh | None]:
        """The refreshes as they end, and None after each collection and update: `state` can be taken then.

        Raises UserError if a loss is not a finite number, or a reward fails.
        """
        while self.work is not None or self.run.share(self.refresh, self.source) < 1:
            start = time.perf_counter()
            if self.work is None:
                self.intact = getattr(self.source, "repeats", False)
                self.work = self._collected()
                self.intact, self.work.seconds = True, time.perf_counter() - start
                yield None
            start = time.perf_counter() - self.work.seconds
            for _ in self.learner.update(self.work):
                self.work.seconds = time.perf_counter() - start
                if self.work.behind:  # the weights are others now
                    self.made_ahead.clear()
                yield None
            self.work.seconds = time.perf_counter() - start
            yield self._finished(self.work)

    def _collected(self) -> Work:
        """New experience with all that its updates need."""
        share = self.run.share(self.refresh, self.source)
        collection = self.source.collect(self.refresh)
        plans, rollout, metrics = self._evaluated(collection.rollout)
        self.source.remember(rollout)
        rollout = self.source.with_rewards(rollout, self.coefficients["beta"] * self.method.reward_beta)
        rollout = self.method.advantages(replace(rollout, coefficients=self.coefficients))
        if rollout.inputs.separable:
            rollout = rollout.flattened()
        metrics |= self.source.describe(rollout) | _explained(rollout)
        return Work(rollout=rollout, plans=plans, samples=collection.samples, metrics=metrics, share=share)

    def _evaluated(self, rollout: Rollout) -> tuple[list[list[Parts]], Rollout, dict[str, float]]:
        """The plans of the epochs, and what policy, reference and critic say, in parts that memory takes."""
        learner = self.learner
        drawn = (self.run, self.generator, learner.room.size)
        plans = [plan_of(rollout, *drawn) for _ in range(self.epochs)]
        while True:
            self.made_ahead.clear()
            ahead = self._ahead(rollout, plans[0][0])
            try:
                return plans, *_evaluated(self.policy, self.reference, rollout, plans[0], ahead)
            except ERRORS as error:
                learner.halve(error, [rollout])
            plans = recut(plans, rollout, learner.room.size)

    def _ahead(self, rollout: Rollout, first: Parts) -> int:
        """Of how many parts of the first update the pass is kept: no more tokens than are read at once.

        Old log-probs come from the pass that the first update would make once more, with the same weights;
        a step on the whole collection, before the first update, moves them. Entropies are not among them.
        """
        wants_entropy = getattr(self.method, "entropy_bonus", 0.0) > 0
        if self.method.has_whole_step or wants_entropy or not hasattr(self.policy, "evaluate_ahead"):
            return 0
        tokens = torch.stack([rollout.inputs.lengths[rows].sum() for rows in first]).cumsum(0)
        return int((tokens <= self.learner.room.size).sum())

    def _finished(self, work: Work) -> Refresh:
        """What came of a collection, once its last update is made."""
        self.work = None
        self.refresh += 1
        metrics = {**work.metrics, **work.learned, **(work.first or {})}
        metrics |= {name: value for name, value in self.coefficients.items() if value}
        adapted = self.method.adapt(self.coefficients, metrics.get("kl", 0.0), metrics.get("old_kl", 0.0))
        self.coefficients = self.method.scheduled(adapted, self.run.share(self.refresh, self.source))
        unit = self.source.unit
        metrics |= {f"{unit}_per_second": metrics[unit] / work.seconds, "seconds": work.seconds}
        if self.run.non_finite == "skip":
            metrics["skipped"] = self.learner.skipped
        return Refresh({"refresh": self.refresh, **metrics}, work.samples, self.coefficients)

    def progress(self) -> tuple[int, int]:
        """(refreshes behind, updates made in the next)."""
        return self.refresh, 0 if self.work is None else self.work.behind

    def state(self) -> dict[str, Any]:
        """All that the next update depends on, but random streams, of a ResumableSource."""
        source: Any = self.source
        return {
            "parameters": self.parameters,
            "learner": self.learner.state(),
            "generator": self.generator.get_state(),
            "coefficients": self.coefficients,
            "refresh": self.refresh,
            "work": self.work,
            "source": source.state(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Goes on from what `state` gave, as if it had never stopped."""
        source: Any = self.source
        load_parameters(self.parameters, state["parameters"])
        self.made_ahead.clear()
        self.learner.load(state["learner"])
        self.generator.set_state(state["generator"])
        self.coefficients, self.refresh = state["coefficients"], state["refresh"]
        self.work = moved(state["work"], self.policy.device)
        source.load(state["source"])


def train_online(
    method: OnlineMethod, policy: Any, source: Source, run: OnlineConfig, reference: Reference | None = None
) -> OnlineTraining:
    """Trains `policy` (an Actor) in place as it is iterated over; yields after each refresh.

    Raises UserError if a loss is not a finite number, or a reward fails.
    """
    return OnlineTraining(method, policy, source, run, reference)


@torch.no_grad()
def _evaluated(
    policy: Any, reference: Reference | None, rollout: Rollout, plan: list[Parts], ahead: int
) -> tuple[Rollout, dict[str, float]]:
    """The rollout with log-probs, reference log-probs and values, of answers in the parts of the first epoch.

    Old answers keep the log-probs of the policy that wrote them. Those of new ones are computed by the
    training's own forward pass, not taken from the sampling, so that the first ratio is exactly 1; how
    far the two differ is reported, if the sampling recorded any.

    Args:
        ahead: how many parts the first update need not compute again. They come last: what they keep for
            the backward pass then stands beside nothing else.
    """
    found: dict[str, Tensor] = {}
    whole = rollout.inputs.separable
    parts = [torch.arange(rollout.size)] if whole else [rows for parts in plan for rows in parts]
    inputs = [rollout.inputs] if whole else [rollout.inputs.select(rows) for rows in parts]

    def put(name: str, rows: Tensor, values: Tensor) -> None:
        if whole:
            found[name] = values
            return
        filled = found.setdefault(name, values.new_zeros(rollout.mask.shape))
        filled[rows, : values.shape[1]] = values

    if reference is not None:
        for rows, read in zip(parts, inputs, strict=True):
            put("ref_logprobs", rows, reference(read))
    for place in reversed(range(len(parts))):
        evaluate = policy.evaluate_ahead if place < ahead else policy.evaluate
        out: Evaluation = evaluate(inputs[place])
        put("old_logprobs", parts[place], out.logprobs)
        if out.values is not None:
            put("values", parts[place], out.values)
            put("next_values", parts[place], out.next_values)
    if rollout.old_logprobs is None:
        return replace(rollout, **found), {}
    new = rollout.mask & rollout.fresh[:, None]
    gap = float((found["old_logprobs"] - rollout.old_logprobs)[new].abs().max())
    found["old_logprobs"] = torch.where(new, found["old_logprobs"], rollout.old_logprobs)
    return replace(rollout, **found), {"sampling_gap": gap}  # type: ignore[arg-type]


def _explained(rollout: Rollout) -> dict[str, float]:
    """How much of the returns the critic foresaw."""
    if rollout.values is None or rollout.returns is None:
        return {}
    explained = explained_variance(rollout.chosen(rollout.values), rollout.chosen(rollout.returns))
    return {"explained_variance": float(explained)}
