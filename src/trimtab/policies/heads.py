"""From a network's outputs to actions: categorical for discrete ones, Gaussian for continuous ones.

Each head exists twice: for numpy, with gradients in closed form, and for torch. Tests hold them together.
"""

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from trimtab.objectives.distributions import (
    CATEGORICAL,
    GAUSSIAN,
    LOG_2_PI,
    Family,
    categorical_entropy,
    gaussian_entropy,
    gaussian_logprobs,
)
from trimtab.policies.networks import Array


class Head(Protocol):
    """A kind of action.

    `outputs` [M, A] is what the network's body gives, `log_std` [A] the head's own parameter, if it has one.
    """

    family: Family
    size: int

    def module(self, body: nn.Module) -> nn.Module: ...
    def sample(self, outputs: Array, log_std: Any, rng: np.random.Generator) -> Array: ...
    def mode(self, outputs: Array) -> Array: ...
    def forward(self, outputs: Array, log_std: Any, actions: Array) -> tuple[Array, Array, Any]: ...
    def backward(self, kept: Any, of_logprobs: Any, of_entropy: Any) -> tuple[Array, Any]: ...
    def logprobs(self, distributions: Tensor, actions: Tensor) -> Tensor: ...
    def entropy(self, distributions: Tensor) -> Tensor: ...


class CategoricalHead:
    """One of `size` actions; a network's outputs are logits."""

    family = CATEGORICAL

    def __init__(self, size: int) -> None:
        self.size = size

    def module(self, body: nn.Module) -> nn.Module:
        """Observations -> log-probs [M, size]."""
        return _Categorical(body)

    def sample(self, outputs: Array, log_std: Any, rng: np.random.Generator) -> Array:
        """[M, size] logits -> [M] action numbers: the largest after Gumbel noise (Maddison et al. 2014)."""
        return (outputs + rng.gumbel(size=outputs.shape)).argmax(1)

    def mode(self, outputs: Array) -> Array:
        return outputs.argmax(1)

    def forward(self, outputs: Array, log_std: Any, actions: Array) -> tuple[Array, Array, Any]:
        """log-probs of the actions [M], entropies [M], and what `backward` needs."""
        # action by action in memory: over rows of a few numbers numpy's reductions take five times as long
        columns = np.asfortranarray(outputs)
        shifted = columns - np.maximum.reduce(columns, 1, keepdims=True)
        chances = np.exp(shifted)
        total = np.add.reduce(chances, 1, keepdims=True)
        chances /= total
        logprobs = shifted - np.log(total)
        entropy = -np.add.reduce(chances * logprobs, 1)
        places = np.arange(len(actions)) + len(actions) * actions  # of the actions in memory
        return _in_memory(logprobs)[places], entropy, (chances, logprobs, entropy, places)

    def backward(self, kept: Any, of_logprobs: Any, of_entropy: Any) -> tuple[Array, Any]:
        """d log p(a) / d logits = 1_a - p; d entropy / d logits = -p (log p + entropy)."""
        chances, logprobs, entropy, places = kept
        if of_logprobs is None:
            gradient = np.zeros_like(chances)
        else:
            gradient = chances * -of_logprobs
            _in_memory(gradient)[places] += of_logprobs[:, 0]
        if of_entropy is not None:
            gradient -= chances * (logprobs + entropy[:, None]) * of_entropy
        return np.ascontiguousarray(gradient), None

    def logprobs(self, distributions: Tensor, actions: Tensor) -> Tensor:
        return distributions.gather(-1, actions[..., None])[..., 0]

    def entropy(self, distributions: Tensor) -> Tensor:
        return categorical_entropy(distributions)


class GaussianHead:
    """`size` independent Gaussians; a network's outputs are the means, one log std serves all states."""

    family = GAUSSIAN

    def __init__(self, size: int, log_std: float) -> None:
        self.size = size
        self.log_std = log_std

    def module(self, body: nn.Module) -> nn.Module:
        """Observations -> means and log stds [M, 2 size]."""
        return _Gaussian(body, torch.full((self.size,), float(self.log_std)))

    def sample(self, outputs: Array, log_std: Any, rng: np.random.Generator) -> Array:
        noise = rng.standard_normal(outputs.shape, dtype=np.float32)
        return outputs + np.exp(log_std) * noise

    def mode(self, outputs: Array) -> Array:
        return outputs

    def forward(self, outputs: Array, log_std: Any, actions: Array) -> tuple[Array, Array, Any]:
        """log-probs of the actions [M], entropies [M], and what `backward` needs."""
        inverse = np.exp(-log_std)
        distance = (actions - outputs) * inverse
        normaliser = float(log_std.sum()) + 0.5 * LOG_2_PI * self.size
        logprobs = -0.5 * np.einsum("ij,ij->i", distance, distance) - outputs.dtype.type(normaliser)
        entropy = np.full_like(logprobs, normaliser + 0.5 * self.size)
        return logprobs, entropy, (distance, inverse)

    def backward(self, kept: Any, of_logprobs: Any, of_entropy: Any) -> tuple[Array, Any]:
        """d log p / dm = d / s and d log p / d log s = d^2 - 1, d = (a - m) / s; d entropy / d log s = 1."""
        distance, inverse = kept
        if of_logprobs is None:
            of_mean, of_log_std = np.zeros_like(distance), np.zeros_like(inverse)
        else:
            weighted = distance * of_logprobs
            of_mean = weighted * inverse
            of_log_std = np.einsum("ij,ij->j", weighted, distance) - of_logprobs.sum()
        if of_entropy is not None:
            of_log_std = of_log_std + of_entropy.sum()
        return of_mean, of_log_std

    def logprobs(self, distributions: Tensor, actions: Tensor) -> Tensor:
        return gaussian_logprobs(distributions, actions)

    def entropy(self, distributions: Tensor) -> Tensor:
        return gaussian_entropy(distributions)


def _in_memory(columns: Array) -> Array:
    """The numbers of an array in Fortran's order as they lie in memory: a view."""
    return columns.T.reshape(-1)


class _Categorical(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, observations: Tensor) -> Tensor:
        return self.body(observations).log_softmax(-1)


class _Gaussian(nn.Module):
    def __init__(self, body: nn.Module, log_std: Tensor) -> None:
        super().__init__()
        self.body = body
        self.log_std = nn.Parameter(log_std)

    def forward(self, observations: Tensor) -> Tensor:
        mean = self.body(observations)
        return torch.cat([mean, self.log_std.expand_as(mean)], -1)
