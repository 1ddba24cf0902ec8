"""Attention over packed rows: several sequences in one row, none seeing another, each prompt read once.

    tokens    p p p p a a b b b q q c    prompt p with the responses a and b, prompt q with c: one row
                                         through every linear layer, without padding
    attention p p p p a a -> p p p p a a     what is new of a sequence looks at the whole of it, causally;
                  b b b   -> p p p p b b b   a prompt that was read before is only looked at
                  q q c   -> q q c

Sequences of like length stand in one rectangle, padded at its end, where nothing looks. transformers'
AttentionInterface takes the function below for any decoder. Without packing (padded batches, generation) it
is transformers' own SDPA attention.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from trimtab.feedback.sequences import Sequences
from trimtab.policies.cpu_attention import Plan, cpu_attention, suits

NAME = "trimtab_packed"
PADDING = 1.25  # places of a rectangle for each token in it, at most


@dataclass(frozen=True)
class Rectangle:
    """B sequences of like length: their queries, and the keys that these look at.

    Attributes:
        queries, keys: [B, Q] and [B, K] places in the packed row; a short row repeats its last place.
        places: [B, Q] or [1, Q] each query's place in its own sequence; those of the keys are 0, 1, 2, ...
        real: [B, Q] false where a row has ended.
    """

    queries: Tensor
    keys: Tensor
    places: Tensor
    real: Tensor

    @property
    def is_square(self) -> bool:
        """Every query looks at the keys up to its own number: no mask is needed."""
        return self.queries.shape == self.keys.shape

    def mask(self, window: int | None) -> Tensor | None:
        """[B or 1, 1, Q, K] true where a query may look; None for the plain causal form."""
        if self.is_square and (window is None or self.keys.shape[1] <= window):
            return None
        distance = self.places[:, :, None] - torch.arange(self.keys.shape[1], device=self.keys.device)
        seen = distance >= 0
        if window is not None:
            seen &= distance < window
        return seen[:, None]


@dataclass(frozen=True)
class Packing:
    """Which tokens of the sequences are read, and who looks at whom.

    Attributes:
        read: [N'] the tokens that are read, in their order; all but prompts that stand further up.
        slots: [N] where each token of the sequences stands among those.
    """

    sequences: Sequences
    read: Tensor
    slots: Tensor
    fresh: Tensor  # [S] whether a sequence's prompt is read in it
    plans: dict[int | None, Plan] = field(default_factory=dict)

    @classmethod
    def of(cls, sequences: Sequences, *, shared: bool = True) -> "Packing":
        """Args: shared: read equal prompts once."""
        count = torch.arange(len(sequences), device=sequences.tokens.device)
        first = count
        if shared:
            numbers = sequences.prompts
            first = count.new_full((int(numbers.max()) + 1,), len(count))
            first = first.scatter_reduce(0, numbers, count, "amin")[numbers]
        fresh = first == count
        in_prompt = sequences.positions < sequences.prompt_lengths[sequences.owner]
        is_read = fresh[sequences.owner] | ~in_prompt
        source = sequences.starts[torch.where(in_prompt, first[sequences.owner], sequences.owner)]
        slots = (is_read.cumsum(0) - 1)[source + sequences.positions]
        return cls(sequences, is_read.nonzero()[:, 0], slots, fresh)

    @cached_property
    def rectangles(self) -> list[Rectangle]:
        """All queries, each once."""
        whole, rest = self.fresh.nonzero()[:, 0], (~self.fresh).nonzero()[:, 0]
        return [*self._rectangles(whole, whole=True), *self._rectangles(rest, whole=False)]

    def plan(self, window: int | None) -> Plan:
        """What to compute, for every layer that looks no further back than `window`."""
        if window not in self.plans:
            self.plans[window] = [(r.queries, r.keys, r.real, r.mask(window)) for r in self.rectangles]
        return self.plans[window]

    def _rectangles(self, rows: Tensor, *, whole: bool) -> Iterator[Rectangle]:
        sequences = self.sequences
        lengths, responses = sequences.lengths.tolist(), sequences.response_lengths.tolist()
        for group in _alike(rows.tolist(), lengths):
            longest = max(lengths[row] for row in group)
            chosen = torch.tensor(group, device=self.slots.device)
            ends = sequences.lengths[chosen, None] - 1
            place = torch.arange(longest, device=ends.device).minimum(ends)
            keys = self.slots[sequences.starts[chosen, None] + place]
            if whole:
                places = torch.arange(longest, device=ends.device)[None]
                yield Rectangle(keys, keys, places, places <= ends)
                continue
            answers = max(responses[row] for row in group)
            places = sequences.prompt_lengths[chosen, None] + torch.arange(answers, device=ends.device)
            queries = self.slots[sequences.starts[chosen, None] + places.minimum(ends)]
            yield Rectangle(queries, keys, places.minimum(ends), places <= ends)


def _alike(rows: list[int], lengths: list[int]) -> Iterator[list[int]]:
    """Rows in groups of like length: the longest times their number is at most PADDING times their tokens."""
    group: list[int] = []
    tokens = 0
    for row in sorted(rows, key=lambda row: lengths[row]):
        if group and lengths[row] * (len(group) + 1) > PADDING * (tokens + lengths[row]):
            yield group
            group, tokens = [], 0
        group.append(row)
        tokens += lengths[row]
    if group:
        yield group


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packing: Packing | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each packed sequence, or plain SDPA where nothing is packed."""
    if packing is None:
        kwargs |= {"scaling": scaling, "dropout": dropout, "sliding_window": sliding_window}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    if torch.is_autocast_enabled(query.device.type):  # which reaches torch's own attention only
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))  # [N, heads, D]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return attend(packing, q, k, v, scale, dropout=dropout, window=sliding_window)[None], None


def attend(
    packing: Packing,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    *,
    dropout: float = 0.0,
    window: int | None = None,
) -> Tensor:
    """[N', H, D] queries, [N', G, D] keys and values, H a multiple of G -> [N', H, D]."""
    plan = packing.plan(window)
    if not dropout and suits(query):
        return cpu_attention(query, key, value, plan, scale)
    out = torch.empty_like(query)
    for queries, keys, real, mask in plan:
        rows = scaled_dot_product_attention(
            query[queries].transpose(1, 2),
            key[keys].transpose(1, 2),
            value[keys].transpose(1, 2),
            attn_mask=mask,
            dropout_p=dropout,
            is_causal=mask is None,
            scale=scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        out = out.index_put((queries[real],), rows.transpose(1, 2)[real])
    return out


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
