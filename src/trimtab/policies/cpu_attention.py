"""Packed attention on a CPU: torch's flash kernels, called on each rectangle without a graph between.

On short rows the backward kernel is slower in bf16 than in fp32 (11.3 against 3.2 ms on 16 rows of 64 tokens,
8.4 against 9.3 on two of 431), so these run in fp32. Keys of grouped queries are repeated within a rectangle
only.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

SHORT = 400  # keys below which bf16's backward pass runs in fp32

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True)
class Rectangle:
    """B sequences of like length: their queries, and the keys that these look at.

    Attributes:
        queries, keys: [B, Q] and [B, K] places in the packed row; a short row repeats its last place.
        real: which of the B x Q queries are no repetition.
        mask: [B or 1, 1, Q, K] true where a query may look; None where query i looks at keys up to i.
    """

    queries: Tensor
    keys: Tensor
    real: Tensor
    mask: Tensor | None

    @cached_property
    def bias(self) -> Tensor | None:
        """The mask as 0 and minus infinity, in float32, which is what the kernels take."""
        if self.mask is None:
            return None
        return torch.zeros(self.mask.shape, device=self.mask.device).masked_fill_(~self.mask, -torch.inf)

    def settings(self, dtype: torch.dtype) -> dict[str, Any]:
        """What the kernels are told of who looks at whom."""
        bias = None if self.bias is None else self.bias.to(dtype)
        return {"dropout_p": 0.0, "is_causal": bias is None, "attn_mask": bias}


def suits(query: Tensor) -> bool:
    """Whether these kernels take such tensors; transforms such as forward differentiation they do not."""
    plain = query.dtype in (torch.float32, torch.float64, torch.bfloat16)
    return query.device.type == "cpu" and plain and not torch._C._are_functorch_transforms_active()


def refuse_second_derivatives() -> None:
    """To be called by backward passes that autograd cannot differentiate.

    Raises RuntimeError within `create_graph=True`: the result would be wrong without a word.
    """
    if torch.is_grad_enabled():
        raise RuntimeError("packed rows have no second derivatives; set trunk.packed = False")


def cpu_attention(
    query: Tensor, key: Tensor, value: Tensor, rectangles: list[Rectangle], scale: float
) -> Tensor:
    """As `packing.attend`: every query stands in one rectangle."""
    return _Attention.apply(query, key, value, rectangles, scale)


def _rows(flat: Tensor, places: Tensor, heads: int) -> Tensor:
    """[N, G, D] at places [B, K] -> [B, heads, K, D]."""
    rows = flat.index_select(0, places.flatten()).unflatten(0, places.shape)
    if rows.shape[2] != heads:
        rows = rows.repeat_interleave(heads // rows.shape[2], 2)
    return rows.transpose(1, 2)


def _added(total: Tensor, places: Tensor, rows: Tensor) -> None:
    """Adds [B, heads, K, D] to [N, G, D] at these places, heads of a group together."""
    groups = total.shape[1]
    flat = rows.transpose(1, 2).flatten(0, 1)
    if flat.shape[1] != groups:
        flat = flat.unflatten(1, (groups, -1)).sum(2)
    total.index_add_(0, places.flatten(), flat.to(total.dtype))


class _Attention(torch.autograd.Function):
    """softmax(scale q k^T) v over each rectangle (Dao et al. 2022; Dao 2023)."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        query, key, value, rectangles, scale = inputs
        heads, out, sums = query.shape[1], torch.empty_like(query), []
        for r in rectangles:
            rows = _rows(query, r.queries, heads), _rows(key, r.keys, heads), _rows(value, r.keys, heads)
            found, lse = _forward(*rows, **r.settings(query.dtype), scale=scale)
            out[r.queries.flatten()[r.real]] = found.transpose(1, 2).flatten(0, 1)[r.real]
            sums.append(lse)
        ctx.save_for_backward(query, key, value, out, *sums)
        ctx.rectangles, ctx.scale = rectangles, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivatives()
        query, key, value, out, *sums = ctx.saved_tensors
        exact = torch.float32 if query.dtype == torch.bfloat16 else query.dtype
        totals = [torch.zeros_like(tensor, dtype=exact) for tensor in (query, key, value)]
        heads = query.shape[1]
        for r, lse in zip(ctx.rectangles, sums, strict=True):
            dtype = exact if r.keys.shape[1] < SHORT else query.dtype
            real = torch.zeros(r.queries.numel(), 1, 1, dtype=dtype).index_fill_(0, r.real, 1.0)
            grad = _rows(grads[0], r.queries, heads) * real.view(len(r.queries), 1, -1, 1)
            rows = (_rows(query, r.queries, heads), _rows(key, r.keys, heads), _rows(value, r.keys, heads))
            given = [tensor.to(dtype) for tensor in (grad, *rows, _rows(out, r.queries, heads))]
            found = _backward(*given, lse, **r.settings(dtype), scale=ctx.scale)
            for total, places, part in zip(totals, (r.queries, r.keys, r.keys), found, strict=True):
                _added(total, places, part)
        return (*(total.to(query.dtype) for total in totals), None, None)
