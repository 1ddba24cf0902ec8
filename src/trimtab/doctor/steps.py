"""Checks of a training step: its loss and its gradient, whatever the parts that it is cut into."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from trimtab.doctor.bench import (
    GROUP,
    LONGEST,
    NEW_TOKENS,
    ROUNDED,
    Bench,
    exactly,
    reference_of,
    skipped,
    values,
)
from trimtab.doctor.findings import Finding
from trimtab.errors import UserError
from trimtab.feedback.views import convert
from trimtab.methods.base import OnlineMethod
from trimtab.online_jobs import CriticConfig, build_critic
from trimtab.policies.actor_critic import ActorCritic
from trimtab.reference import attach_reference
from trimtab.rollouts.collect import CollectConfig, Collector
from trimtab.rollouts.rewards import WeightedSum
from trimtab.train import backward


def micro_batches(bench: Bench) -> Finding:
    """Loss and norm of the gradient of all rows at once, and of each alone."""
    name = "micro-batches"
    if bench.method is None:
        return skipped(name, bench.why_no_table)
    try:
        with exactly(bench.model):
            learner, cuts = _cuts(bench)
            (loss, norm), *others = (_step(bench.method, learner, batches) for batches in cuts)
    except UserError as error:
        return skipped(name, f"no step could be made of a few rows: {error}")
    of_loss = max(abs(loss - other) for other, _ in others) / max(1.0, abs(loss))
    of_norm = max(abs(norm - other) for _, other in others) / max(norm, 1e-6)
    finite = all(math.isfinite(value) for pair in [(loss, norm), *others] for value in pair)
    found = max(of_loss, of_norm) if finite else math.inf
    tolerance = 1e-3 if bench.is_exact else ROUNDED
    parts = ", ".join(
        f"{other:.6g} and {other_norm:.4g} in {len(cut)}"
        for (other, other_norm), cut in zip(others, cuts[1:], strict=True)
    )
    said = (
        f"the loss and the norm of its gradient are {loss:.6g} and {norm:.4g} in one part, {parts}; "
        f"a difference of {tolerance:g} of them is admitted"
    )
    numbers = {"distance": found, "tolerance": tolerance, "of_loss": of_loss, "of_norm": of_norm}
    if found <= tolerance:
        return Finding(GROUP, name, "ok", said, values=numbers)
    means = "--batch-tokens would change what is learned, as it does with a mean of means"
    advice = (
        f"the loss of {bench.method.name} must give one number for each unit, and nothing averaged over parts"
    )
    return Finding(GROUP, name, "error", f"{said}: {means}", advice, values=numbers)


def finite_gradients(bench: Bench) -> Finding:
    """One backward pass in the run's precision: every weight, the loss and every gradient is a number."""
    name, model = "finite gradients", bench.model
    bad = [key for key, weight in model.model.named_parameters() if not bool(weight.isfinite().all())]
    if bad:
        said = f"{len(bad)} weights hold values that are not finite numbers, the first is {bad[0]}"
        return Finding(GROUP, name, "error", said, "load the model's files anew", values={"weights": bad})
    try:
        step, trained = _any_step(bench)
    except UserError as error:
        return skipped(name, f"no step could be made of a few rows: {error}")
    with _gradients(trained.values()):
        loss = step()
        norms = {key: float(p.grad.norm()) for key, p in trained.items() if p.grad is not None}
    bad = [key for key, norm in norms.items() if not math.isfinite(norm)]
    numbers = {"loss": loss, "weights": bad, "largest": max(norms.values(), default=0.0)}
    if bad or not math.isfinite(loss):
        said = f"the loss is {loss:.4g}, and {len(bad)} of {len(norms)} gradients are not finite numbers"
        said += f", the first of {bad[0]}" if bad else ""
        advice = "use --precision fp32; if that does not help, look for very large weights"
        return Finding(GROUP, name, "error", said, advice, values=numbers)
    if not any(norms.values()):
        said = f"the loss is {loss:.4g}, and its gradient is zero everywhere: nothing would be learned"
        advice = "look for frozen weights, and for feedback that says the same of everything"
        return Finding(GROUP, name, "error", said, advice, values=numbers)
    said = f"the loss is {loss:.4g}, the largest of {len(norms)} gradients has norm {max(norms.values()):.3g}"
    return Finding(GROUP, name, "ok", said, values=numbers)


@contextmanager
def _gradients(parameters: Any) -> Iterator[None]:
    """Gradients of this step alone, and none afterwards."""
    kept = list(parameters)
    for parameter in kept:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter in kept:
            parameter.grad = None


def _step(method: Any, learner: Any, batches: list[Any]) -> tuple[float, float]:
    """Loss of one step, and the norm of its gradient."""
    parameters = learner.parameters()
    with _gradients(parameters):
        loss = float(backward(method, learner, batches)["loss"])
        norms = [p.grad.double().norm() for p in parameters if p.grad is not None]
        return loss, float(torch.stack(norms).norm()) if norms else 0.0


def _any_step(bench: Bench) -> tuple[Callable[[], float], dict[str, Tensor]]:
    """A step of the method, or of plain likelihood without one, and the weights that it trains."""
    model = bench.model
    trained = {key: p for key, p in model.model.named_parameters() if p.requires_grad}
    if bench.method is None:

        def likelihood() -> float:
            loss = -values(model, bench.sequences).mean()
            loss.backward()
            return float(loss.detach())

        return likelihood, trained
    learner, [whole, *_] = _cuts(bench)
    if isinstance(learner, ActorCritic):
        trained |= {f"critic {i}": p for i, p in enumerate(learner.critic_parameters())}
    method = bench.method
    return lambda: float(backward(method, learner, whole)["loss"]), trained


def _ways(count: int) -> list[list[list[int]]]:
    """Rows in one part, in as many parts as there are, and in one of one row and one of all others."""
    rows = list(range(count))
    return [[rows], [[row] for row in rows], [part for part in (rows[:1], rows[1:]) if part]]


def _cuts(bench: Bench) -> tuple[Any, list[list[Any]]]:
    """Who learns, and the few rows as micro-batches, cut in `_ways`."""
    method, model = bench.method, bench.model
    if isinstance(method, OnlineMethod):
        return _online_cuts(bench, method)
    table = bench.table
    if method is None or table is None:
        raise UserError(bench.why_no_table)
    if method.needs_reference and table.ref_logprobs is None:
        attach_reference(table, reference_of(bench), batch_tokens=bench.run.batch_tokens)
    with torch.no_grad():
        batches = [[table.batch(part, model.device) for part in parts] for parts in _ways(len(table))]
        return model, [method.prepare(model, parts) for parts in batches]


@torch.no_grad()
def _online_cuts(bench: Bench, method: OnlineMethod) -> tuple[Any, list[list[Any]]]:
    """A collection of short answers with made-up scores, as micro-batches."""
    policy = bench.model
    prompts = convert(bench.records[:64], "prompt")
    collect = CollectConfig(prompts=2, max_new_tokens=NEW_TOKENS, temperature=bench.temperature)
    scores = WeightedSum(
        {"made up": lambda *asked: [float(i % 3) for i in range(len(asked[1]))]}, {"made up": 1.0}
    )
    samples = max(2, method.fewest_samples)
    seed, most = bench.run.seed, LONGEST + NEW_TOKENS
    source = Collector(policy, prompts, scores, collect, samples=samples, max_length=most, seed=seed)
    rollout = source.collect(0).rollout
    critic = build_critic(method, policy, bench.config, CriticConfig(), seed)
    learner = ActorCritic(policy, critic, bench.temperature)
    out = learner.evaluate(rollout.inputs)
    known: dict[str, Any] = {
        "old_logprobs": out.logprobs,
        "ref_logprobs": out.logprobs,
        "coefficients": method.coefficients(),
    }
    rollout = replace(rollout, values=out.values, next_values=out.next_values, **known)
    rollout = method.advantages(source.with_rewards(rollout, method.beta * method.reward_beta))
    ways = [[torch.tensor(part, device=policy.device) for part in parts] for parts in _ways(rollout.size)]
    return learner, list(rollout.minibatches(ways, whitened=method.whitens_minibatches))
