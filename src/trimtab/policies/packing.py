"""Attention over packed rows: several sequences in one row, none seeing another.

    tokens    a a a a b b c c c          one row through every linear layer: no padding
    attention a a a a                    its own rectangle in each attention: causal, and
              b b . .                    what pads the end of a row is never looked at
              c c c .

transformers' AttentionInterface takes the function below for any decoder. Without packing (padded
batches, generation) it is transformers' own SDPA attention.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from trimtab.feedback.sequences import Sequences

NAME = "trimtab_packed"


@dataclass(frozen=True)
class Packing:
    """Where each of N packed tokens stands in S rows of T places."""

    slots: Tensor  # [N]
    rows: int
    longest: int

    @classmethod
    def of(cls, sequences: Sequences) -> "Packing":
        longest = int(sequences.lengths.max())
        return cls(sequences.owner * longest + sequences.positions, len(sequences), longest)

    def spread(self, packed: Tensor) -> Tensor:
        """[1, heads, N, D] -> [S, heads, T, D], zero where a row has ended."""
        _, heads, _, dim = packed.shape
        rows = packed.new_zeros(self.rows * self.longest, heads, dim)
        rows = rows.index_copy(0, self.slots, packed[0].transpose(0, 1))
        return rows.view(self.rows, self.longest, heads, dim).transpose(1, 2)

    def gather(self, rows: Tensor) -> Tensor:
        """[S, heads, T, D] -> [1, N, heads, D]."""
        _, heads, _, dim = rows.shape
        return rows.transpose(1, 2).reshape(-1, heads, dim)[self.slots][None]


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packing: Packing | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each packed sequence, or plain SDPA where nothing is packed."""
    if packing is None:
        kwargs["sliding_window"] = sliding_window
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    window = None
    if sliding_window is not None and packing.longest > sliding_window:
        place = torch.arange(packing.longest, device=query.device)
        distance = place[:, None] - place[None, :]
        window = ((distance >= 0) & (distance < sliding_window))[None, None]
    query, key, value = packing.spread(query), packing.spread(key), packing.spread(value)
    out, _ = sdpa_attention_forward(module, query, key, value, window, **kwargs)
    return packing.gather(out.transpose(1, 2)), None


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
