"""The training loop of methods that learn from recorded feedback."""

import logging
import math
import random
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from trimtab.errors import UserError, check_bounds, check_positive
from trimtab.feedback.batches import Batch, Table, by_tokens
from trimtab.feedback.records import Record
from trimtab.feedback.tokenise import PLAIN_CHAT_TEMPLATE, add_mismatched, tokenise
from trimtab.feedback.views import ViewOptions, convert
from trimtab.methods import Method
from trimtab.policies.base import Trainable

log = logging.getLogger("trimtab")

FP32 = ", or --precision fp32"


@dataclass(frozen=True)
class OptimiserConfig:
    """How fast is trained, and how much at once."""

    learning_rate: float | None = None
    """Of AdamW; the method's own if not given, times 10 for adapters."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls, to zero, after the warm-up."""
    warmup: float = 0.1
    """Share of the steps in which the learning rate rises."""
    weight_decay: float = 0.0
    """Of AdamW."""
    adam_eps: float = 1e-8
    """Of AdamW: added to the square root that gradients are divided by."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm; 0 leaves them."""
    batch_tokens: int = 8192
    """Tokens in memory at once; a step's batch is cut into as many parts as that takes."""
    max_length: int = 1024
    """Tokens of prompt and response together."""
    seed: int = 0
    """Of the data's order and every other random choice."""

    def __post_init__(self) -> None:
        check_positive(self, "batch_tokens", "learning_rate", "adam_eps")
        check_bounds(self, warmup=(0, 1), weight_decay=(0, math.inf), max_grad_norm=(0, math.inf))
        check_bounds(self, max_length=(2, math.inf), seed=(0, math.inf))


@dataclass(frozen=True)
class RunConfig(OptimiserConfig):
    """How long and how fast is trained on recorded feedback."""

    epochs: float = 1.0
    """Passes over the data."""
    steps: int | None = None
    """Optimiser steps; wins over epochs."""
    batch_size: int = 32
    """Pieces of feedback for one optimiser step (pairs, thumbs, rankings, ...)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "epochs", "steps", "batch_size")


def make_table(
    method: Method[Any],
    records: Sequence[Record],
    tokenizer: Any,
    run: RunConfig,
    views: ViewOptions | None = None,
) -> Table:
    """The feedback as the method takes it, tokenised. A conversation without template gets one."""
    if tokenizer.chat_template is None and any(not isinstance(r.prompt, str) for r in records):
        tokenizer.chat_template = PLAIN_CHAT_TEMPLATE
    wanted = convert(list(records), method.data, views or ViewOptions())
    table = tokenise(wanted, tokenizer, max_length=run.max_length)
    if method.needs_mismatched:
        add_mismatched(table, run.seed)
    return table


def total_steps(run: RunConfig, examples: int) -> int:
    """Optimiser steps of a run over this many pieces of feedback."""
    return run.steps or max(1, math.ceil(run.epochs * examples / run.batch_size))


def train(method: Method[Any], policy: Trainable, table: Table, run: RunConfig) -> Iterator[dict[str, float]]:
    """Trains `policy` in place; yields each step's metrics, averaged over the whole step.

    The loss of a step is the mean over all its units, whatever parts it was computed in.

    Raises UserError if the loss is not a finite number.
    """
    steps = total_steps(run, len(table))
    parameters = policy.parameters()
    optimiser = torch.optim.AdamW(
        parameters,
        lr=peak_learning_rate(method, run, policy),
        weight_decay=run.weight_decay,
        eps=run.adam_eps,
        fused=True,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: schedule_factor(run, step, steps))
    start = time.perf_counter()
    order = _order(len(table), run)
    for step in range(1, steps + 1):
        batches = _parts(table, [next(order) for _ in range(min(run.batch_size, len(table)))], run, policy)
        with torch.no_grad():
            batches = method.prepare(policy, batches)
        metrics = {name: float(value) for name, value in backward(method, policy, batches).items()}
        norm = torch.nn.utils.clip_grad_norm_(parameters, run.max_grad_norm or math.inf)
        metrics["grad_norm"] = float(norm)
        check_finite(f"step {step}", metrics, FP32)
        metrics["learning_rate"] = optimiser.param_groups[0]["lr"]
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        schedule.step()
        yield {"step": step, **metrics, "seconds": time.perf_counter() - start}


def peak_learning_rate(method: Method[Any], run: OptimiserConfig, policy: Trainable) -> float:
    """The run's learning rate, or the method's own: ten times as large for adapters (Schulman 2025)."""
    if run.learning_rate is not None:
        return run.learning_rate
    return method.learning_rate * (10.0 if getattr(policy, "has_adapter", False) else 1.0)


def backward(method: Method[Any], policy: Trainable, batches: list[Any]) -> dict[str, Tensor]:
    """Adds a step's gradient; returns its loss and the means of the metrics, each a number as a tensor.

    The loss is the mean over all units of all parts: how a step is cut into parts changes nothing.
    """
    closed = getattr(policy, "closed", None)
    if closed is not None and type(method) not in closed.beyond:
        try:
            return closed.backward(method, batches)
        except (NotImplementedError, TypeError) as error:  # an operator without a rule is a TypeError
            log.info("%s: gradients come from torch, which is slower: %s", type(method).__name__, error)
            closed.beyond.add(type(method))
    units = sum(method.units(batch) for batch in batches)
    values: dict[str, list[Tensor]] = defaultdict(list)
    for batch in batches:
        losses, metrics = method.loss(policy, batch)
        losses.backward(torch.full_like(losses, 1 / units))  # the mean's, without its nodes in the graph
        values["loss"].append(losses.detach().sum() / units)
        for name, value in metrics.items():
            values[name].append(value.detach())
    loss = torch.stack(values.pop("loss")).sum()
    return {"loss": loss, **{name: mean for name, v in values.items() if (mean := _mean(v)) is not None}}


def _mean(parts: list[Tensor]) -> Tensor | None:
    """The mean over all numbers of all parts; None if there are none."""
    whole = parts[0] if len(parts) == 1 else torch.cat([part.flatten() for part in parts])
    return whole.float().mean() if whole.numel() else None


def check_finite(step: str, metrics: Mapping[str, Tensor | float], advice: str = "") -> None:
    """Raises UserError if the loss or a gradient is not a finite number; `advice` ends its sentence."""
    of_gradients = [metrics.get(name, 0.0) for name in ("grad_norm", "critic_grad_norm")]
    if not math.isfinite(metrics["loss"] + sum(of_gradients)):
        raise UserError(
            f"{step}: the loss or its gradient is not a finite number; try a smaller --learning-rate{advice}"
        )


def _parts(table: Table, indices: list[int], run: RunConfig, policy: Trainable) -> list[Batch]:
    """A step's examples in batches of like length, each within `batch_tokens` (or one example)."""

    def tokens(i: int) -> int:
        example = table.examples[i]
        rows = example.rows + ((example.mismatched,) if example.mismatched >= 0 else ())
        return sum(len(part) for row in rows for part in table.rows[row])

    parts = by_tokens([tokens(i) for i in indices], run.batch_tokens)
    return [table.batch([indices[place] for place in part], policy.device) for part in parts]


def _order(count: int, run: RunConfig) -> Iterator[int]:
    """Every example once an epoch, each epoch in an order of its own, given by (seed, epoch)."""
    epoch = 0
    while True:
        order = list(range(count))
        random.Random(f"{run.seed} {epoch}").shuffle(order)
        yield from order
        epoch += 1


def schedule_factor(run: OptimiserConfig, step: int, steps: int) -> float:
    """Share of the peak learning rate in this step, counted from 0."""
    warmup = max(1, round(run.warmup * steps))
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    if run.schedule == "constant":
        return 1.0
    return 1 - progress if run.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
