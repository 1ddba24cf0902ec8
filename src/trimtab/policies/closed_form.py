"""The gradient of a control policy's loss without torch's graph.

The loss of the method, as it stands in the method's file, is evaluated on dual numbers, which gives its
derivatives with respect to log-probs, entropies and values; from there two hand-written backward passes lead
to the parameters. Tests hold the result to torch's own.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from trimtab.policies.base import ABSENT, Evaluation
from trimtab.policies.duals import ONE, Dual, NoRuleError
from trimtab.policies.heads import Head
from trimtab.policies.networks import Array, Flat, Perceptron


class ClosedForm:
    """Forward and backward passes of two perceptrons with a head."""

    def __init__(self, head: Head, actor: Flat, critic: Flat | None) -> None:
        self.head = head
        self.beyond: set[type] = set()  # methods whose losses duals cannot differentiate
        self.vectors = [actor.vector, *([critic.vector] if critic else [])]
        self.actor = Perceptron(actor, "body.")
        self.critic = Perceptron(critic) if critic else None
        self.log_std = self.actor.values.get("log_std")

    def outputs(self, observations: Array) -> tuple[Array, Any]:
        """What the head makes actions of."""
        return self.actor.forward(observations)[0], self.log_std

    def evaluate(self, observations: Array, actions: Array, valued: Array) -> tuple[Any, Any, Any]:
        """Log-probs and entropies [M, 1] of observations [M, O], values [N, 1] of others [N, O] or None."""
        logprobs, entropy, _ = self.head.forward(*self.outputs(observations), actions)
        values = None if self.critic is None else self.critic.forward(valued)[0]
        return logprobs[:, None], entropy[:, None], values

    def backward(self, method: Any, batches: Sequence[Any]) -> dict[str, Any]:
        """As `train.backward`: adds a step's gradient, returns its loss and the means of the metrics."""
        units = sum(method.units(batch) for batch in batches)
        found: dict[str, list[Array]] = {}
        loss = 0.0
        for batch in batches:
            passes = _Passes(self, batch.inputs)
            losses, metrics = method.loss(passes, batch.mapped(_constant))
            passes.backward(losses.slopes, 1 / units)
            loss += float(np.add.reduce(losses.value)) / units
            for name, metric in metrics.items():
                found.setdefault(name, []).append(metric.value)
        return {"loss": loss, **{name: _mean(_joined(parts)) for name, parts in found.items()}}


class _Passes:
    """A policy as a loss sees it, for one batch: what it evaluates can be differentiated."""

    def __init__(self, closed: ClosedForm, inputs: Any) -> None:
        self.closed = closed
        self.inputs = inputs
        self.observations, self.actions = inputs.observations.numpy(), inputs.actions.numpy()
        self.of_actor: Any = None
        self.of_critic: Any = None

    def __getattr__(self, name: str) -> Any:
        raise NoRuleError(f"policy.{name} has no rule for dual numbers")

    def evaluate(self, inputs: Any, *, entropy: bool = False) -> Evaluation:
        if inputs is not self.inputs:
            raise NoRuleError("inputs of a loss's own have no rule for dual numbers")
        closed, trains_actor = self.closed, self.closed.vectors[0].requires_grad
        logprobs = spread = values = ABSENT
        if trains_actor:
            outputs, hidden = closed.actor.forward(self.observations)
            logprobs, spread, kept = closed.head.forward(outputs, closed.log_std, self.actions)
            self.of_actor = (hidden, kept)
            logprobs = Dual(logprobs[:, None], {"logprobs": ONE})
            spread = Dual(spread[:, None], {"entropy": ONE}) if entropy else ABSENT
        if closed.critic is not None:
            judged, self.of_critic = closed.critic.forward(self.observations)
            values = Dual(judged, {"values": ONE})
        return Evaluation(logprobs, spread, values)

    def backward(self, slopes: dict[str, Any], scale: float) -> None:
        """Adds the gradient of `scale` times the sum of losses with these derivatives."""
        closed, count, scale = self.closed, len(self.observations), self.observations.dtype.type(scale)
        wanted = {name: _column(slope, scale, count) for name, slope in slopes.items()}
        if "logprobs" in wanted or "entropy" in wanted:
            hidden, kept = self.of_actor
            of_outputs, of_log_std = closed.head.backward(kept, wanted.get("logprobs"), wanted.get("entropy"))
            before = _kept(closed.vectors[0])
            closed.actor.backward(hidden, of_outputs)
            if of_log_std is not None:
                closed.actor.gradients["log_std"][:] = of_log_std
            _add(closed.vectors[0], before, closed.actor.gradient)
        if closed.critic is not None and "values" in wanted:
            before = _kept(closed.vectors[1])
            closed.critic.backward(self.of_critic, wanted["values"])
            _add(closed.vectors[1], before, closed.critic.gradient)


def _constant(column: Tensor) -> Dual:
    """What is no rule for dual numbers is none for a batch's columns either: numpy's `std` is not torch's."""
    return Dual(column.numpy(), {})


def _column(slope: Any, scale: Any, count: int) -> Array:
    """A derivative for each step, times `scale`: [count, 1]."""
    scaled = slope * scale
    return scaled.reshape(count, 1) if isinstance(scaled, np.ndarray) else np.full((count, 1), scaled)


def _kept(vector: Tensor) -> Tensor | None:
    """The gradient of the parts before this one, whose memory this one's is about to be written into."""
    return None if vector.grad is None else vector.grad.clone()


def _add(vector: Tensor, before: Tensor | None, gradient: Tensor) -> None:
    """Makes this the vector's gradient, without a copy, with what it was before."""
    vector.grad = gradient if before is None else gradient.add_(before)


def _joined(parts: list[Array]) -> Array:
    return parts[0] if len(parts) == 1 else np.concatenate([part.ravel() for part in parts])


def _mean(values: Array) -> float:
    """What `mean` gives, which takes three times as long on a hundred numbers."""
    return float(np.add.reduce(values, None)) / values.size
