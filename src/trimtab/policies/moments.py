"""Running mean and variance, for observations and rewards of every scale."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BOUND = 10.0  # normalised values beyond this, to either side, count as this
EPSILON = 1e-8


@dataclass
class Moments:
    """Mean and variance of all vectors seen so far, float64.

    Attributes:
        mean, variance: [O]; 0 and 1 before anything was seen.
        count: how many vectors were seen.
    """

    mean: NDArray[np.float64]
    variance: NDArray[np.float64]
    count: float = 0.0

    @classmethod
    def of(cls, size: int) -> "Moments":
        return cls(np.zeros(size), np.ones(size))

    def update(self, vectors: NDArray[np.floating]) -> None:
        """Adds vectors [M, O] (Chan, Golub & LeVeque 1979, eq. 2.1)."""
        count, before = len(vectors), self.count
        if not count:
            return
        vectors = vectors.astype(np.float64, copy=False)
        mean, variance = vectors.mean(0), vectors.var(0)
        shift, total = mean - self.mean, before + count
        spread = self.variance * before + variance * count + shift**2 * (before * count / total)
        self.mean, self.variance, self.count = self.mean + shift * (count / total), spread / total, total

    def normalise(self, vectors: NDArray[np.floating]) -> NDArray[np.float32]:
        """(vector - mean) / std, bounded: [..., O] -> [..., O] float32."""
        return _bounded((vectors - self.mean) / np.sqrt(self.variance + EPSILON)).astype(np.float32)

    def scale(self, values: NDArray[np.floating]) -> NDArray[np.floating]:
        """value / std, bounded: what rewards get, whose zero must stay."""
        return _bounded(values / np.sqrt(self.variance + EPSILON))

    def tensors(self) -> dict[str, Tensor]:
        count = torch.tensor(self.count, dtype=torch.float64)
        return {"mean": torch.tensor(self.mean), "variance": torch.tensor(self.variance), "count": count}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> "Moments":
        return cls(tensors["mean"].numpy(), tensors["variance"].numpy(), float(tensors["count"]))


def _bounded(values: NDArray[np.floating]) -> NDArray[np.floating]:
    """Within +-BOUND; on a few numbers `np.clip` takes five times as long."""
    return np.minimum(np.maximum(values, -BOUND), BOUND)
