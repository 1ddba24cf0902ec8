"""Networks of control policies: any module as a function of one vector, and multi-layer perceptrons by hand.

One flat vector holds all parameters of a network, so that the optimiser, the clipping of gradients and
trust-region steps handle one tensor. The hand-written passes of a perceptron share its memory with numpy:
for networks so small, most of torch's time is the bookkeeping of its graph.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parameters_to_vector

Array = NDArray[np.floating]
ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU, "elu": nn.ELU, "silu": nn.SiLU, "gelu": nn.GELU}
MANY = 32  # rows, from which on a product with a transposed copy is faster by more than the copy takes


def mlp(sizes: Sequence[int], activation: str, last_gain: float | None) -> nn.Sequential:
    """Linear layers of these sizes with an activation between them.

    Args:
        last_gain: orthogonal weights with gain sqrt(2), the last layer's with this one, and no biases at the
            start (Huang et al. 2022, detail 2); None leaves torch's initialisation.
    """
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), ACTIVATIONS[activation]()]
    body = nn.Sequential(*layers[:-1])
    if last_gain is not None:
        linear = [layer for layer in body.children() if isinstance(layer, nn.Linear)]
        for layer in linear:
            nn.init.orthogonal_(layer.weight, last_gain if layer is linear[-1] else math.sqrt(2))
            nn.init.zeros_(layer.bias)
    return body


class Flat:
    """A module as a function of one vector.

    Attributes:
        vector: [N] all parameters of the module, which follow it.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module.requires_grad_(False)
        self.vector = nn.Parameter(parameters_to_vector(module.parameters()))
        self.shapes = {name: p.shape for name, p in module.named_parameters()}

    def __call__(self, inputs: Tensor, vector: Tensor | None = None) -> Tensor:
        """The module's output; with another `vector` in place of its own if one is given."""
        return functional_call(self.module, self.pieces(self.vector if vector is None else vector), (inputs,))

    def pieces(self, vector: Tensor) -> dict[str, Tensor]:
        """The parameters by name, as views of a vector."""
        parts = vector.split([shape.numel() for shape in self.shapes.values()])
        return {n: part.view(shape) for (n, shape), part in zip(self.shapes.items(), parts, strict=True)}

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Takes over parameters by name. Raises KeyError or ValueError if they are not this module's."""
        pieces = self.pieces(self.vector)
        for name, piece in pieces.items():
            if tensors[name].shape != piece.shape:  # copying would spread one number over many
                raise ValueError(f"{name} is {tuple(tensors[name].shape)}, not {tuple(piece.shape)}")
        for name, piece in pieces.items():
            piece.copy_(tensors[name])


class Perceptron:
    """The forward and backward passes of an `mlp` with tanh or relu, in numpy, on a Flat's own memory.

    With h_0 = x, h_i = f(h_{i-1} W_i^T + b_i) and the last layer linear: from g = dL/dh_n go back by
    dL/dW_i = g^T h_{i-1}, dL/db_i = sum g, g <- g W_i f'(h_{i-1}), where f' is 1 - h^2 or h > 0.

    Attributes:
        values, gradients: every parameter of the Flat by name, and room for its gradient.
        gradient: [N] the same room as one tensor.
    """

    def __init__(self, flat: Flat, prefix: str = "") -> None:
        self.gradient = torch.zeros_like(flat.vector, requires_grad=False)
        self.values = {name: piece.numpy() for name, piece in flat.pieces(flat.vector.detach()).items()}
        self.gradients = {name: piece.numpy() for name, piece in flat.pieces(self.gradient).items()}
        body: Any = flat.module.get_submodule(prefix.rstrip("."))
        names = [f"{prefix}{n}" for n, layer in body.named_children() if isinstance(layer, nn.Linear)]
        self.layers = [self._layer(self.values, name) for name in names]
        self.layer_gradients = [self._layer(self.gradients, name) for name in names]
        self.tanh = any(isinstance(layer, nn.Tanh) for layer in body.children())

    @staticmethod
    def _layer(arrays: dict[str, Array], name: str) -> tuple[Array, Array]:
        return arrays[f"{name}.weight"], arrays[f"{name}.bias"]

    @staticmethod
    def suits(body: nn.Module) -> bool:
        """Whether these passes know how to compute this module."""
        if type(body) is not nn.Sequential:
            return False
        layers = list(body.children())
        if len(layers) != len(body) or len(layers) % 2 == 0:  # a layer stands twice, or an activation last
            return False
        between = {type(layer) for layer in layers[1::2]}
        # of the very type: a subclass may compute something else
        linear = all(type(layer) is nn.Linear and layer.bias is not None for layer in layers[::2])
        return linear and (between <= {nn.Tanh} or between <= {nn.ReLU})

    def forward(self, inputs: Array) -> tuple[Array, list[Array]]:
        """[M, I] -> outputs [M, K], and what goes into each layer, for `backward`."""
        hidden = [inputs]  # `dot` takes half as long as `@` where there are few rows, or a single output
        for weight, bias in self.layers[:-1]:
            across = weight.T if len(inputs) < MANY else weight.T.copy()
            out = hidden[-1].dot(across)
            out += bias
            hidden.append(np.tanh(out, out=out) if self.tanh else np.maximum(out, 0.0, out=out))
        weight, bias = self.layers[-1]
        out = hidden[-1].dot(weight.T)
        out += bias
        return out, hidden

    def backward(self, hidden: list[Array], gradient: Array) -> None:
        """Writes the gradient of every parameter, given that of the outputs [M, K]."""
        gradient = gradient.astype(self.layers[0][0].dtype, copy=False)
        ones = np.ones(len(gradient), dtype=gradient.dtype)  # a product with it sums faster than `sum`
        for place in reversed(range(len(self.layers))):
            before, (of_weight, of_bias) = hidden[place], self.layer_gradients[place]
            np.dot(gradient.T, before, of_weight)
            np.dot(ones, gradient, of_bias)
            if place:
                gradient = gradient.dot(self.layers[place][0])
                if self.tanh:
                    slope = before * before
                    gradient *= np.subtract(1.0, slope, slope)
                else:
                    gradient *= before > 0
