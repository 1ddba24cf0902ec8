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
        value, slopes = _parts(other)
        merged = dict(self.slopes)
        for name, slope in slopes.items():
            merged[name] = merged[name] + slope if name in merged else slope
        return Dual(self.value + value, merged)

    def __neg__(self) -> "Dual":
        return Dual(-self.value, {name: -slope for name, slope in self.slopes.items()})

    def __sub__(self, other: Any) -> "Dual":
        return self + (-other)

    def __rsub__(self, other: Any) -> "Dual":
        return (-self) + other

    def __mul__(self, other: Any) -> "Dual":
        value, slopes = _parts(other)
        merged = {name: slope * value for name, slope in self.slopes.items()}
        for name, slope in slopes.items():
            scaled = self.value * slope
            merged[name] = merged[name] + scaled if name in merged else scaled
        return Dual(self.value * value, merged)

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

    def _mapped(self, value: Array, derivative: Any) -> "Dual":
        return Dual(value, {name: slope * derivative for name, slope in self.slopes.items()})

    def exp(self) -> "Dual":
        value = np.exp(self.value)
        return self._mapped(value, value)

    def expm1(self) -> "Dual":
        value = np.expm1(self.value)
        return self._mapped(value, value + 1) if self.slopes else Dual(value, {})

    def square(self) -> "Dual":
        return self._mapped(self.value * self.value, 2 * self.value)

    def clamp(self, low: float, high: float) -> "Dual":
        value = np.minimum(np.maximum(self.value, low), high)
        return self._mapped(value, value == self.value) if self.slopes else Dual(value, {})

    def maximum(self, other: Any) -> "Dual":
        value, slopes = _parts(other)
        mine = self.value >= value
        merged = {
            name: np.where(mine, self.slopes.get(name, 0.0), slopes.get(name, 0.0))
            for name in {*self.slopes, *slopes}
        }
        return Dual(np.maximum(self.value, value), merged)

    def sum(self, dim: int) -> "Dual":
        """Over a dimension of size 1, which single steps have for time."""
        if self.value.shape[dim] != 1:
            raise NoRuleError("sums over several steps mix their derivatives")
        squeezed = {n: s if np.isscalar(s) else np.squeeze(s, dim) for n, s in self.slopes.items()}
        return Dual(np.squeeze(self.value, dim), squeezed)

    def masked_fill(self, mask: Any, number: float) -> "Dual":
        mask = np.asarray(mask)
        slopes = {n: np.where(mask, 0.0, s) for n, s in self.slopes.items()}
        return Dual(np.where(mask, number, self.value), slopes)

    def detach(self) -> "Dual":
        return Dual(self.value, {})

    def float(self) -> "Dual":
        return Dual(self.value.astype(np.float32), self.slopes)

    def flatten(self) -> "Dual":
        return Dual(
            self.value.ravel(), {n: s if np.isscalar(s) else np.ravel(s) for n, s in self.slopes.items()}
        )

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


def _parts(other: Any) -> tuple[Any, Slopes]:
    return (other.value, other.slopes) if isinstance(other, Dual) else (other, {})
