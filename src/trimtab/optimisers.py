"""Adam and gradient clipping for parameters in a few flat vectors, where torch's own cost more than the sums.

`torch.optim.AdamW` and `torch.nn.utils.clip_grad_norm_` take 60 microseconds a step each on two vectors of
9,000 numbers, whatever they compute; these take a third of that: Adam is the kernel that torch's own calls in
the end. Larger models have torch's.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

BETAS = (0.9, 0.999)
MOMENTS = ("mean", "square", "steps")


class FlatAdam:
    """AdamW (Kingma & Ba 2015, alg. 1; Loshchilov & Hutter 2019) with the interface of torch's.

    Args:
        groups: dictionaries of `params`, vectors in the CPU's memory, and their learning rate `lr`.
    """

    def __init__(self, groups: list[dict[str, Any]], *, weight_decay: float, eps: float) -> None:
        self.param_groups = groups
        self.weight_decay, self.eps = weight_decay, eps
        self.states = [[_State(parameter) for parameter in group["params"]] for group in groups]

    def state(self) -> list[list[dict[str, Any]]]:
        """Moments and steps of every vector, group by group."""
        return [[{n: getattr(state, n) for n in MOMENTS} for state in states] for states in self.states]

    def load(self, found: list[list[dict[str, Any]]]) -> None:
        """Goes on from what `state` gave."""
        for states, values in zip(self.states, found, strict=True):
            for state, value in zip(states, values, strict=True):
                for name in MOMENTS:
                    getattr(state, name).copy_(value[name])

    def step(self) -> None:
        """One step on all vectors that have a gradient."""
        for group, states in zip(self.param_groups, self.states, strict=True):
            moved = [(state, grad) for state in states if (grad := state.parameter.grad) is not None]
            if not moved:
                continue
            means, squares, steps = ([getattr(state, n) for state, _ in moved] for n in MOMENTS)
            torch._foreach_add_(steps, 1)
            torch._fused_adamw_(
                [state.values for state, _ in moved], [grad for _, grad in moved], means, squares, [], steps,
                lr=float(group["lr"]), beta1=BETAS[0], beta2=BETAS[1], weight_decay=self.weight_decay,
                eps=self.eps, amsgrad=False, maximize=False,
            )  # fmt: skip


class _State:
    """A vector's moments, and the steps that it made."""

    def __init__(self, parameter: Tensor) -> None:
        self.parameter = parameter
        self.values = parameter.detach()
        self.mean, self.square = torch.zeros_like(self.values), torch.zeros_like(self.values)
        self.steps = torch.zeros(())


def clip_flat_gradients(parameters: Sequence[Tensor], most: float) -> float:
    """Scales the gradients down to this norm, all together; returns the norm before."""
    gradients = [p.grad.numpy() for p in parameters if p.grad is not None]
    norm = math.sqrt(sum(float(np.dot(g, g)) for g in gradients))
    if norm > most:
        for gradient in gradients:
            np.multiply(gradient, most / (norm + 1e-6), out=gradient)
    return norm


def optimiser_state(optimiser: Any) -> Any:
    """What the optimiser knows of its parameters, for a checkpoint; learning rates are not in it."""
    if isinstance(optimiser, FlatAdam):
        return optimiser.state()
    return {str(number): values for number, values in optimiser.state_dict()["state"].items()}


def load_optimiser(optimiser: Any, state: Any) -> None:
    """Goes on from what `optimiser_state` gave."""
    if isinstance(optimiser, FlatAdam):
        optimiser.load(state)
        return
    numbered = {int(number): values for number, values in state.items()}
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": numbered, "param_groups": groups})
