"""The training loop of methods that learn from recorded feedback."""

import logging
import math
import random
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor

from trimtab.errors import UserError, check_bounds, check_positive
from trimtab.feedback.batches import Batch, Table, by_tokens
from trimtab.feedback.mapped import has_conversations
from trimtab.feedback.records import Record
from trimtab.feedback.tokenise import PLAIN_CHAT_TEMPLATE, add_mismatched, tokenise
from trimtab.feedback.views import ViewOptions, stream
from trimtab.methods import Method
from trimtab.optimisers import load_optimiser, optimiser_state
from trimtab.policies.base import Trainable
from trimtab.room import ERRORS, Room

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
    """Tokens in memory at once; a step's batch is cut into as many parts as that takes. Halved where memory
    runs out."""
    max_length: int = 1024
    """Tokens of prompt and response together."""
    seed: int = 0
    """Of the data's order and every other random choice."""
    non_finite: Literal["stop", "skip"] = "stop"
    """What a loss or gradient does that is no finite number: stop before the step, or leave it out."""

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
    if tokenizer.chat_template is None and has_conversations(records):
        tokenizer.chat_template = PLAIN_CHAT_TEMPLATE
    table = tokenise(stream(records, method.data, views), tokenizer, max_length=run.max_length)
    if method.needs_mismatched:
        add_mismatched(table, run.seed)
    return table


def total_steps(run: RunConfig, examples: int) -> int:
    """Optimiser steps of a run over this many pieces of feedback."""
    return run.steps or max(1, math.ceil(run.epochs * examples / run.batch_size))


class Training:
    """Trains `policy` in place. Iterating yields each step's metrics, and trains what is left.

    The loss of a step is the mean over all its units, whatever parts it was computed in.

    Attributes:
        step: how many lie behind.
        intact: `state` can be taken, even after an error.
    """

    intact = True

    def __init__(self, method: Method[Any], policy: Trainable, table: Table, run: RunConfig) -> None:
        self.method, self.policy, self.table, self.run = method, policy, table, run
        self.steps = total_steps(run, len(table))
        self.parameters = policy.parameters()
        self.rate = peak_learning_rate(method, run, policy)
        self.optimiser = torch.optim.AdamW(
            self.parameters, lr=self.rate, weight_decay=run.weight_decay, eps=run.adam_eps, fused=True
        )
        self.room = Room(run.batch_tokens, "tokens")
        self.step = self.skipped = 0
        self.seconds = 0.0

    def __iter__(self) -> Iterator[dict[str, float]]:
        """Raises UserError if the loss is not a finite number."""
        start = time.perf_counter() - self.seconds
        size = min(self.run.batch_size, len(self.table))
        order = islice(_order(len(self.table), self.run), self.step * size, None)
        while self.step < self.steps:
            metrics = self._step([next(order) for _ in range(size)])
            self.step += 1
            self.seconds = time.perf_counter() - start
            yield {"step": self.step, **metrics, "seconds": self.seconds}

    def events(self) -> Iterator[dict[str, float]]:
        """The steps: between any two of them `state` can be taken."""
        return iter(self)

    def _step(self, indices: list[int]) -> dict[str, float]:
        """One optimiser step on these examples."""
        batches, found = self._gradient(indices)
        metrics = {name: float(value) for name, value in found.items()}
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.run.max_grad_norm or math.inf)
        metrics["grad_norm"] = float(norm)
        [group] = self.optimiser.param_groups
        group["lr"] = metrics["learning_rate"] = self.rate * schedule_factor(self.run, self.step, self.steps)
        finite = is_finite(metrics)
        if not finite and self.run.non_finite == "stop":
            raise NonFiniteError(f"step {self.step + 1}", metrics, batches, FP32)
        if finite:
            self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.skipped += not finite
        return metrics | ({"skipped": self.skipped} if self.run.non_finite == "skip" else {})

    def _gradient(self, indices: list[int]) -> tuple[list[Batch], dict[str, Tensor]]:
        """The step's parts, its loss and its metrics, in as many parts as memory takes."""
        tokens = [_tokens(self.table, i) for i in indices]
        while True:
            try:
                batches = parts_of(self.table, indices, self.room.size, self.policy.device)
                with torch.no_grad():
                    batches = self.method.prepare(self.policy, batches)
                return batches, backward(self.method, self.policy, batches)
            except ERRORS as error:
                self.room.halve(error, sum(tokens), max(tokens))
            self.optimiser.zero_grad(set_to_none=True)

    def progress(self) -> tuple[int, int]:
        """(steps behind, 0)."""
        return self.step, 0

    def state(self) -> dict[str, Any]:
        """All that the next step depends on but random streams, and data: its order follows from the step."""
        return {
            "parameters": self.parameters,
            "optimiser": optimiser_state(self.optimiser),
            "step": self.step,
            "skipped": self.skipped,
            "room": self.room.size,
            "seconds": self.seconds,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Goes on from what `state` gave, as if it had never stopped."""
        load_parameters(self.parameters, state["parameters"])
        load_optimiser(self.optimiser, state["optimiser"])
        self.step, self.skipped, self.seconds = state["step"], state["skipped"], state["seconds"]
        self.room.size = state["room"]


def train(method: Method[Any], policy: Trainable, table: Table, run: RunConfig) -> Training:
    """Trains `policy` in place as it is iterated over; yields each step's metrics."""
    return Training(method, policy, table, run)


@torch.no_grad()
def load_parameters(parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Takes over the values. Raises ValueError if they are of other parameters."""
    shapes = [[tuple(tensor.shape) for tensor in tensors] for tensors in (parameters, values)]
    if shapes[0] != shapes[1]:
        raise ValueError("the checkpoint is of another model")
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)


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
        except TypeError as error:  # a NoRuleError, or what Python says of an operator without a rule
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


class NonFiniteError(UserError):
    """The loss, or the norm of a gradient, is no finite number; no step was made with it.

    Attributes:
        metrics, batches: of the step.
    """

    def __init__(self, step: str, metrics: Mapping[str, Tensor | float], batches: list[Any], advice: str):
        super().__init__(
            f"{step}: the loss or its gradient is not a finite number; try a smaller --learning-rate{advice}"
        )
        self.metrics, self.batches = {name: float(value) for name, value in metrics.items()}, batches


def is_finite(metrics: Mapping[str, Tensor | float]) -> bool:
    """Whether the loss and the norms of the gradients are finite numbers."""
    of_gradients = [metrics.get(name, 0.0) for name in ("grad_norm", "critic_grad_norm")]
    return math.isfinite(metrics["loss"] + sum(of_gradients))


def parts_of(table: Table, indices: list[int], most: int, device: torch.device) -> list[Batch]:
    """A step's examples in batches of like length, each of at most so many tokens (or one example)."""
    parts = by_tokens([_tokens(table, i) for i in indices], most)
    return [table.batch([indices[place] for place in part], device) for part in parts]


def _tokens(table: Table, i: int) -> int:
    """Of an example's rows, with the one that a method may add from another prompt."""
    example = table.examples[i]
    rows = example.rows + ((example.mismatched,) if example.mismatched >= 0 else ())
    return sum(len(part) for row in rows for part in table.rows[row])


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
