"""The training loop of methods that learn from what the policy does: n times collect, then k updates.

collect   answers, or steps in an environment, and what they earned
evaluate  log-probs of policy and reference, values: of answers by the very passes that training will make
credit    rewards, then advantages: once for each collection
update    k epochs of minibatches: of whole answers, or of single steps; the coefficients adapt
"""

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from trimtab.errors import check_bounds, check_positive
from trimtab.feedback.batches import by_tokens
from trimtab.methods.base import OnlineMethod
from trimtab.objectives.advantages import explained_variance
from trimtab.objectives.policy_gradient import old_kl
from trimtab.optimisers import FlatAdam, clip_flat_gradients
from trimtab.policies.base import Evaluation
from trimtab.rollouts.rollout import Collection, Rollout, Sample
from trimtab.train import FP32, OptimiserConfig, backward, check_finite, peak_learning_rate, schedule_factor

Parts = list[Tensor]  # a minibatch: the row numbers of each of its micro-batches
Reference = Callable[[Any], Tensor]  # inputs -> the reference's log-probs [B, T]


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

    def share(self, refresh: int, source: "Source") -> float:
        """How much of the training lies behind when this refresh begins, 0 to 1; at 1 it is over."""
        return refresh / self.refreshes

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "refreshes", "epochs", "minibatch_size", "critic_learning_rate")
        check_bounds(self, minibatch_size=(1, math.inf))


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


@dataclass(frozen=True)
class Refresh:
    """One collection and what was learned from it."""

    metrics: dict[str, float]
    samples: list[Sample]
    coefficients: dict[str, float]


def train_online(
    method: OnlineMethod, policy: Any, source: Source, run: OnlineConfig, reference: Reference | None = None
) -> Iterator[Refresh]:
    """Trains `policy` (an Actor) in place; yields after each refresh.

    Raises UserError if a loss is not a finite number, or a reward fails.
    """
    epochs = run.epochs or method.epochs
    steps_a_refresh = epochs * math.ceil(source.rows / (run.minibatch_size or source.rows))
    learner = Learner(method, policy, run, steps_a_refresh)
    generator = torch.Generator().manual_seed(run.seed)
    coefficients = method.coefficients()
    for refresh in itertools.count():
        if (share := run.share(refresh, source)) >= 1:
            return
        start = time.perf_counter()
        collection = source.collect(refresh)
        rollout = collection.rollout
        plans = [_plan(rollout, run, generator) for _ in range(epochs)]
        rollout, metrics = _evaluated(policy, reference, rollout, plans[0])
        source.remember(rollout)
        rollout = source.with_rewards(rollout, coefficients["beta"] * method.reward_beta)
        rollout = method.advantages(replace(rollout, coefficients=coefficients))
        metrics |= source.describe(rollout) | _explained(rollout)
        if rollout.inputs.separable:
            rollout = rollout.flattened()
        metrics |= learner.update(share, rollout, plans)
        metrics |= {name: value for name, value in coefficients.items() if value}
        coefficients = method.adapt(coefficients, metrics.get("kl", 0.0), metrics.get("old_kl", 0.0))
        coefficients = method.scheduled(coefficients, run.share(refresh + 1, source))
        seconds = time.perf_counter() - start
        metrics |= {f"{source.unit}_per_second": metrics[source.unit] / seconds, "seconds": seconds}
        yield Refresh({"refresh": refresh + 1, **metrics}, collection.samples, coefficients)


class Learner:
    """Optimiser, schedule and the updates of one collection."""

    def __init__(self, method: OnlineMethod, policy: Any, run: OnlineConfig, steps_a_refresh: int) -> None:
        self.method = method
        self.policy = policy
        self.run = run
        self.steps = run.refreshes * steps_a_refresh
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

    def update(self, share: float, rollout: Rollout, plans: list[list[Parts]]) -> dict[str, float]:
        """The epochs on a collection, with this share of the training behind it; the last epoch's metrics."""
        whole = list(rollout.parts([rows for parts in plans[0] for rows in parts]))
        first = self.method.whole_step(self.policy, whole)
        with self._resting():
            return {**self._epochs(round(share * self.steps), rollout, plans, whole), **first}

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

    def _epochs(
        self, step: int, rollout: Rollout, plans: list[list[Parts]], whole: list[Rollout]
    ) -> dict[str, float]:
        """Updates number `step` and after; those that an early stop leaves out are counted all the same."""
        metrics: dict[str, float] = {}
        for plan in plans:
            steps = []
            batches = rollout.parts([rows for parts in plan for rows in parts])
            for parts in plan:
                steps.append(self._step(step, self.method.minibatch([next(batches) for _ in parts])))
                step += 1
                if self._too_far(steps[-1]):
                    return {**_means(steps), "stopped_early": 1.0}
            metrics = _means(steps)
        if self.method.measures_step:
            metrics["old_kl"] = _old_kl(self.policy, whole)
        return metrics

    def _step(self, step: int, batches: list[Rollout]) -> dict[str, Tensor | float]:
        """One optimiser step, which is left out where the policy has gone too far already."""
        factor = schedule_factor(self.run, step, self.steps)
        for group, rate in zip(self.optimiser.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        for parameter in self.policy.parameters():
            parameter.grad = None
        metrics: dict[str, Tensor | float] = {**backward(self.method, self.policy, batches)}
        most = self.run.max_grad_norm or math.inf
        groups = self.optimiser.param_groups
        metrics |= {group["norm"]: float(self.clip(group["params"], most)) for group in groups}
        check_finite(f"step {step + 1}", metrics, "" if self.policy.is_flat else FP32)
        metrics["learning_rate"] = groups[0]["lr"]
        if not self._too_far(metrics):
            self.optimiser.step()
        return metrics

    def _too_far(self, metrics: Mapping[str, Tensor | float]) -> bool:
        return self.method.may_stop and self.method.too_far(float(metrics.get("old_kl", 0.0)))


@torch.no_grad()
def _evaluated(
    policy: Any, reference: Reference | None, rollout: Rollout, plan: list[Parts]
) -> tuple[Rollout, dict[str, float]]:
    """The rollout with log-probs, reference log-probs and values, of answers in the parts of the first epoch.

    Old answers keep the log-probs of the policy that wrote them. Those of new ones are computed by the
    training's own forward pass, not taken from the sampling, so that the first ratio is exactly 1; how
    far the two differ is reported, if the sampling recorded any.
    """
    found: dict[str, Tensor] = {}

    def put(name: str, rows: Tensor, values: Tensor) -> None:
        whole = found.setdefault(name, values.new_zeros(rollout.mask.shape))
        whole[rows, : values.shape[1]] = values

    parts = [rows for parts in plan for rows in parts]
    for rows in [torch.arange(rollout.size)] if rollout.inputs.separable else parts:
        inputs = rollout.inputs.select(rows)
        out: Evaluation = policy.evaluate(inputs)
        put("old_logprobs", rows, out.logprobs)
        if out.values is not None:
            put("values", rows, out.values)
            put("next_values", rows, out.next_values)
        if reference is not None:
            put("ref_logprobs", rows, reference(inputs))
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
    explained = explained_variance(rollout.values[rollout.mask], rollout.returns[rollout.mask])
    return {"explained_variance": float(explained)}


@torch.no_grad()
def _old_kl(policy: Any, parts: list[Rollout]) -> float:
    """KL(old || policy as it is now), in nats a step."""
    kls = [old_kl(policy.evaluate(part.inputs).logprobs, part.old_logprobs)[part.mask] for part in parts]
    return float(torch.cat(kls).mean())


def _plan(rollout: Rollout, run: OnlineConfig, generator: torch.Generator) -> list[Parts]:
    """An epoch in minibatches: every step once, or every sequence in parts that hold `batch_tokens` each."""
    separable = rollout.inputs.separable
    count = rollout.steps if separable else rollout.size
    order = torch.randperm(count, generator=generator).to(rollout.mask.device)
    minibatches = order.split(run.minibatch_size or count)
    if separable:
        return [[rows] for rows in minibatches]
    lengths = rollout.inputs.lengths
    return [
        [rows[part] for part in by_tokens(lengths[rows].tolist(), run.batch_tokens)] for rows in minibatches
    ]


def _means(steps: list[dict[str, Tensor | float]]) -> dict[str, float]:
    return {name: float(sum(step[name] for step in steps)) / len(steps) for name in steps[0]}
