"""Packed attention on a CPU: torch's flash kernels, called on each rectangle without a graph between.

On short rows the backward kernel is slower in bf16 than in fp32 (11.3 against 3.2 ms on 16 rows of 64 tokens,
8.4 against 9.3 on two of 431), so these run in fp32. Keys of grouped queries are repeated within a rectangle
only.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Plan = list[tuple[Tensor, Tensor, Tensor, Tensor | None]]  # queries [B, Q], keys [B, K], real [B, Q], mask

SHORT = 400  # keys below which bf16's backward pass runs in fp32

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def suits(query: Tensor) -> bool:
    """Whether these kernels take such tensors; transforms such as forward differentiation they do not."""
    plain = query.dtype in (torch.float32, torch.float64, torch.bfloat16)
    return query.device.type == "cpu" and plain and not torch._C._are_functorch_transforms_active()


def cpu_attention(query: Tensor, key: Tensor, value: Tensor, plan: Plan, scale: float) -> Tensor:
    """As `packing.attend`: every query stands in one rectangle of the plan."""
    return _Attention.apply(query, key, value, plan, scale)


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
    total.index_add_(0, places.flatten(), flat)


class _Attention(torch.autograd.Function):
    """softmax(scale q k^T) v over each rectangle (Dao et al. 2022; Dao 2023)."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        query, key, value, plan, scale = inputs
        heads, out, sums = query.shape[1], torch.empty_like(query), []
        for queries, keys, real, mask in plan:
            rows, lse = _forward(
                _rows(query, queries, heads),
                _rows(key, keys, heads),
                _rows(value, keys, heads),
                0.0,
                mask is None,
                attn_mask=_additive(mask, query.dtype),
                scale=scale,
            )
            out[queries[real]] = rows.transpose(1, 2)[real]
            sums.append(lse)
        ctx.save_for_backward(query, key, value, out)
        ctx.plan, ctx.scale, ctx.sums = plan, scale, sums
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out = ctx.saved_tensors
        sums = torch.float32 if query.dtype == torch.bfloat16 else query.dtype
        totals = [torch.zeros_like(tensor, dtype=sums) for tensor in (query, key, value)]
        heads = query.shape[1]
        for (queries, keys, real, mask), lse in zip(ctx.plan, ctx.sums, strict=True):
            dtype = sums if keys.shape[1] < SHORT else query.dtype
            grad = _rows(grads[0], queries, heads) * real[:, None, :, None]
            rows = [_rows(query, queries, heads), _rows(key, keys, heads), _rows(value, keys, heads)]
            rows = [tensor.to(dtype) for tensor in (grad, *rows, _rows(out, queries, heads))]
            found = _backward(
                *rows, lse, 0.0, mask is None, attn_mask=_additive(mask, dtype), scale=ctx.scale
            )
            for total, places, part in zip(totals, (queries, keys, keys), found, strict=True):
                _added(total, places, part.to(sums))
        return (*(total.to(query.dtype) for total in totals), None, None)


def _additive(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """True and false as 0 and minus infinity, which is what the kernels take."""
    if mask is None:
        return None
    return torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, -torch.inf)
