"""The training loop of methods that learn from what the policy does: n times collect, then k updates.

collect   answers, or steps in an environment, and what they earned
evaluate  log-probs of policy and reference, values: by the very passes that training will make
credit    rewards, then advantages: once for each collection
update    k epochs of minibatches; the coefficients adapt
"""

import math
import time
from collections.abc import Callable, Iterator
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
from trimtab.policies.base import Evaluation
from trimtab.rollouts.collect import Collection, Sample
from trimtab.rollouts.rollout import Rollout
from trimtab.train import OptimiserConfig, backward, check_finite, peak_learning_rate, schedule_factor

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

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "refreshes", "epochs", "minibatch_size", "critic_learning_rate")
        check_bounds(self, minibatch_size=(1, math.inf))


class Source(Protocol):
    """Where experience comes from."""

    @property
    def rows(self) -> int: ...
    def collect(self, refresh: int) -> Collection: ...
    def remember(self, rollout: Rollout) -> None: ...
    def with_rewards(self, rollout: Rollout, beta: float) -> Rollout: ...


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
    learner = Learner(method, policy, run, epochs * math.ceil(source.rows / _minibatch(run, source)))
    generator = torch.Generator().manual_seed(run.seed)
    coefficients = method.coefficients()
    for refresh in range(run.refreshes):
        start = time.perf_counter()
        collection = source.collect(refresh)
        rollout = collection.rollout
        plans = [_plan(rollout, run, _minibatch(run, source), generator) for _ in range(epochs)]
        rollout, metrics = _evaluated(policy, reference, rollout, plans[0])
        source.remember(rollout)
        rollout = source.with_rewards(rollout, coefficients["beta"] * method.reward_beta)
        rollout = method.advantages(replace(rollout, coefficients=coefficients))
        metrics |= _described(rollout) | learner.update(rollout, plans)
        metrics |= {name: value for name, value in coefficients.items() if value}
        adapted = method.adapt(coefficients, metrics.get("kl", 0.0), metrics.get("old_kl", 0.0))
        seconds = time.perf_counter() - start
        metrics |= {"tokens_per_second": metrics["tokens"] / seconds, "seconds": seconds}
        coefficients = adapted
        yield Refresh({"refresh": refresh + 1, **metrics}, collection.samples, coefficients)


class Learner:
    """Optimiser, schedule and the updates of one collection."""

    def __init__(self, method: OnlineMethod, policy: Any, run: OnlineConfig, steps_a_refresh: int) -> None:
        self.method = method
        self.policy = policy
        self.run = run
        groups: list[dict[str, Any]] = []
        if method.trains_actor:
            actor = list(policy.named_parameters().values())
            groups.append({"params": actor, "lr": peak_learning_rate(method, run, policy)})
        if critic := policy.critic_parameters():
            groups.append({"params": critic, "lr": run.critic_learning_rate or policy.critic_learning_rate})
        self.optimiser = torch.optim.AdamW(groups, weight_decay=run.weight_decay, fused=True)
        steps = run.refreshes * steps_a_refresh
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimiser, lambda step: schedule_factor(run, step, steps)
        )

    def update(self, rollout: Rollout, plans: list[list[Parts]]) -> dict[str, float]:
        """The epochs on one collection; returns the last epoch's metrics."""
        whole = [rollout.select(rows) for parts in plans[0] for rows in parts]
        first = self.method.whole_step(self.policy, whole)
        with self._resting():
            return {**self._epochs(rollout, plans, whole), **first}

    @contextmanager
    def _resting(self) -> Iterator[None]:
        """No gradients for what the optimiser does not train: TRPO's policy has moved already."""
        resting = [] if self.method.trains_actor else list(self.policy.named_parameters().values())
        for parameter in resting:
            parameter.requires_grad_(False)
        yield
        for parameter in resting:
            parameter.requires_grad_(True)

    def _epochs(self, rollout: Rollout, plans: list[list[Parts]], whole: list[Rollout]) -> dict[str, float]:
        metrics: dict[str, float] = {}
        left = sum(len(plan) for plan in plans)
        for plan in plans:
            steps = []
            for parts in plan:
                step = self._step([rollout.select(rows) for rows in parts])
                steps.append(step)
                left -= 1
                if self.method.too_far(step.get("old_kl", 0.0)):
                    for _ in range(left):  # the learning rate falls as if all steps had been made
                        self.schedule.step()
                    return {**_means(steps), "stopped_early": 1.0}
            metrics = _means(steps)
        if self.method.measures_step:
            metrics["old_kl"] = _old_kl(self.policy, whole)
        return metrics

    def _step(self, batches: list[Rollout]) -> dict[str, float]:
        """One optimiser step, which is left out where the policy has gone too far already."""
        for parameter in self.policy.parameters():
            parameter.grad = None
        metrics = backward(self.method, self.policy, batches)
        most = self.run.max_grad_norm or math.inf
        groups = self.optimiser.param_groups
        norms = [torch.nn.utils.clip_grad_norm_(group["params"], most) for group in groups]
        metrics["grad_norm"] = float(norms[0])
        check_finite(f"step {self.schedule.last_epoch + 1}", metrics)
        metrics["learning_rate"] = self.optimiser.param_groups[0]["lr"]
        if not self.method.too_far(metrics.get("old_kl", 0.0)):
            self.optimiser.step()
        self.schedule.step()
        return metrics


@torch.no_grad()
def _evaluated(
    policy: Any, reference: Reference | None, rollout: Rollout, plan: list[Parts]
) -> tuple[Rollout, dict[str, float]]:
    """The rollout with log-probs, reference log-probs and values, computed in the parts of the first epoch.

    Old answers keep the log-probs of the policy that wrote them. Those of new ones are computed by the
    training's own forward pass, not taken from the sampling, so that the first ratio is exactly 1; how
    far the two differ is reported.
    """
    found: dict[str, Tensor] = {}

    def put(name: str, rows: Tensor, values: Tensor) -> None:
        whole = found.setdefault(name, torch.zeros_like(rollout.old_logprobs))
        whole[rows, : values.shape[1]] = values

    for rows in (rows for parts in plan for rows in parts):
        inputs = rollout.inputs.select(rows)
        out: Evaluation = policy.evaluate(inputs)
        put("old_logprobs", rows, out.logprobs)
        if out.values is not None:
            put("values", rows, out.values)
            put("next_values", rows, out.next_values)
        if reference is not None:
            put("ref_logprobs", rows, reference(inputs))
    new = rollout.mask & rollout.fresh[:, None]
    gap = float((found["old_logprobs"] - rollout.old_logprobs)[new].abs().max())
    found["old_logprobs"] = torch.where(new, found["old_logprobs"], rollout.old_logprobs)
    return replace(rollout, **found), {"sampling_gap": gap}  # type: ignore[arg-type]


def _described(rollout: Rollout) -> dict[str, float]:
    """What the new answers of a collection were like."""
    fresh, mask = rollout.fresh, rollout.mask & rollout.fresh[:, None]
    tokens = mask.sum(-1)[fresh].float()
    metrics = {
        "score": float(rollout.score[fresh].mean()),
        "entropy": -float(rollout.old_logprobs[mask].mean()),  # a sample's surprise, on average
        "length": float(tokens.mean()),
        "tokens": float(tokens.sum()),
    }
    if rollout.ref_logprobs is not None:
        log_ratios = (rollout.old_logprobs - rollout.ref_logprobs).masked_fill(~mask, 0.0)
        metrics["kl"] = float(log_ratios.sum(-1)[fresh].mean())
    if rollout.values is not None and rollout.returns is not None:
        explained = explained_variance(rollout.values[rollout.mask], rollout.returns[rollout.mask])
        metrics["explained_variance"] = float(explained)
    return metrics


@torch.no_grad()
def _old_kl(policy: Any, parts: list[Rollout]) -> float:
    """KL(old || policy as it is now), in nats a step."""
    kls = [old_kl(policy.evaluate(part.inputs).logprobs, part.old_logprobs)[part.mask] for part in parts]
    return float(torch.cat(kls).mean())


def _plan(rollout: Rollout, run: OnlineConfig, minibatch: int, generator: torch.Generator) -> list[Parts]:
    """An epoch: every row once, in minibatches of parts of like length that hold `batch_tokens` each."""
    lengths = rollout.inputs.lengths
    order = torch.randperm(len(lengths), generator=generator).to(lengths.device)
    return [
        [rows[part] for part in by_tokens(lengths[rows].tolist(), run.batch_tokens)]
        for rows in order.split(minibatch)
    ]


def _minibatch(run: OnlineConfig, source: Source) -> int:
    return min(run.minibatch_size or source.rows, source.rows)


def _means(steps: list[dict[str, float]]) -> dict[str, float]:
    return {name: sum(step[name] for step in steps) / len(steps) for name in steps[0]}
