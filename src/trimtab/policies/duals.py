"""Dual numbers: forward differentiation of losses that are sums over steps.

Every step's loss depends on its own log-prob, entropy and value alone. A dual array carries its derivatives
with respect to these along (Wengert 1964), through the very objective functions that language models train
with: `__torch_function__` answers torch's functions. On small batches torch's graph takes ten times as long.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from trimtab.policies.networks import Array

Slopes = dict[str, Any]  # input -> derivative of each number with respect to its own number of that input
ONE = 1.0  # the slope of an input with respect to itself: this very object


class NoRuleError(TypeError):
    """Something that dual numbers cannot differentiate, as Python's own TypeError for an operator says."""


class Dual:
    """An array of numbers and their derivatives; without derivatives it is constant.

    What has no rule here raises NoRuleError, upon which `train.backward` turns to torch: nothing is
    differentiated wrongly in silence.
    """

    __slots__ = ("slopes", "value")
    __hash__ = None  # type: ignore[assignment]
    __array_ufunc__ = None  # numpy's arrays leave operations with duals to the duals

    def __init__(self, value: Array, slopes: Slopes) -> None:
        self.value = value
        self.slopes = slopes

    def __add__(self, other: Any) -> "Dual":
        if type(other) is not Dual:
            return Dual(self.value + other, self.slopes)
        return Dual(self.value + other.value, _sum(self.slopes, other.slopes))

    def __neg__(self) -> "Dual":
        return Dual(-self.value, _negative(self.slopes))

    def __sub__(self, other: Any) -> "Dual":
        if type(other) is not Dual:
            return Dual(self.value - other, self.slopes)
        return Dual(self.value - other.value, _sum(self.slopes, _negative(other.slopes)))

    def __rsub__(self, other: Any) -> "Dual":
        return Dual(other - self.value, _negative(self.slopes))

    def __mul__(self, other: Any) -> "Dual":
        if type(other) is not Dual:
            return Dual(self.value * other, _scaled(self.slopes, other))
        slopes = _sum(_scaled(self.slopes, other.value), _scaled(other.slopes, self.value))
        return Dual(self.value * other.value, slopes)

    __radd__, __rmul__ = __add__, __mul__

    def __truediv__(self, number: float) -> "Dual":
        return self * (1 / number)

    def __gt__(self, other: Any) -> "Dual":
        return Dual(self.value > _parts(other)[0], {})

    def __eq__(self, other: object) -> Any:
        raise NoRuleError("dual numbers are not compared for equality")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise NoRuleError(f"{name} has no rule for dual numbers")

    def exp(self) -> "Dual":
        value = np.exp(self.value)
        return Dual(value, _scaled(self.slopes, value))

    def expm1(self) -> "Dual":
        value = np.expm1(self.value)
        return Dual(value, _scaled(self.slopes, value + 1) if self.slopes else {})

    def square(self) -> "Dual":
        return Dual(
            self.value * self.value, _scaled(self.slopes, self.value + self.value) if self.slopes else {}
        )

    def clamp(self, low: float, high: float) -> "Dual":
        value = np.minimum(np.maximum(self.value, low), high)
        if not self.slopes:
            return Dual(value, {})
        return Dual(value, _scaled(self.slopes, (value == self.value).astype(value.dtype)))

    def maximum(self, other: Any) -> "Dual":
        value, slopes = _parts(other)
        mine = self.value >= value
        merged = {
            name: np.where(mine, self.slopes.get(name, 0.0), slopes.get(name, 0.0))
            for name in {**self.slopes, **slopes}
        }
        return Dual(np.maximum(self.value, value), merged)

    def sum(self, dim: int) -> "Dual":
        """Over a dimension of size 1, which single steps have for time."""
        if self.value.shape[dim] != 1:
            raise NoRuleError("sums over several steps mix their derivatives")
        slopes = {n: s.squeeze(dim) if isinstance(s, np.ndarray) else s for n, s in self.slopes.items()}
        return Dual(self.value.squeeze(dim), slopes)

    def masked_fill(self, mask: Any, number: float) -> "Dual":
        mask = np.asarray(_parts(mask)[0])
        slopes = {n: np.where(mask, 0.0, s) for n, s in self.slopes.items()}
        return Dual(np.where(mask, number, self.value), slopes)

    def detach(self) -> "Dual":
        return Dual(self.value, {})

    def float(self) -> "Dual":
        return Dual(self.value.astype(np.float32), self.slopes)

    def flatten(self) -> "Dual":
        slopes = {n: s.ravel() if isinstance(s, np.ndarray) else s for n, s in self.slopes.items()}
        return Dual(self.value.ravel(), slopes)

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> "Dual":
        name = _KNOWN.get(function)
        if name is None:
            raise NoRuleError(f"{function.__name__} has no rule for dual numbers")
        first, *rest = args
        first = first if isinstance(first, Dual) else Dual(first, {})
        return getattr(first, name)(*rest, **(kwargs or {}))


_KNOWN: dict[Any, str] = {torch.maximum: "maximum", torch.exp: "exp", torch.expm1: "expm1"}


def _sum(slopes: Slopes, others: Slopes) -> Slopes:
    """The slopes of a sum. None is ever changed in place, since several duals may hold it."""
    if not slopes or not others:
        return slopes or others
    merged = {**slopes}
    for name, slope in others.items():
        merged[name] = merged[name] + slope if name in merged else slope
    return merged


def _negative(slopes: Slopes) -> Slopes:
    return {name: -slope for name, slope in slopes.items()} if slopes else slopes


def _scaled(slopes: Slopes, factor: Any) -> Slopes:
    """The slopes times a factor. Most are those of an input itself: 1, with which nothing is multiplied."""
    if not slopes:
        return slopes
    plain = isinstance(factor, np.ndarray) and factor.dtype.kind == "f"  # truth values would be added as such
    return {n: factor if plain and slope is ONE else slope * factor for n, slope in slopes.items()}


def _parts(other: Any) -> tuple[Any, Slopes]:
    return (other.value, other.slopes) if isinstance(other, Dual) else (other, {})
