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
from trimtab.policies.cpu_attention import Rectangle, cpu_attention, suits

NAME = "trimtab_packed"
PADDING = 1.25  # keys of a rectangle for each token in it, at most
WORTH = 4  # a response longer than so many times its prompt is read with it: masks cost more than they save


@dataclass(frozen=True)
class Packing:
    """Which tokens of the sequences are read, and who looks at whom.

    Attributes:
        read: [N'] the tokens that are read, in their order; all but prompts that stand further up.
        slots: [N] where each token of the sequences stands among those.
        whole: [S] whether a sequence's prompt is read in it.
    """

    sequences: Sequences
    read: Tensor
    slots: Tensor
    whole: Tensor
    known: dict[int | None, list[Rectangle]] = field(default_factory=dict)

    @classmethod
    def of(cls, sequences: Sequences, *, shared: bool = True) -> "Packing":
        """Args: shared: read equal prompts once."""
        count = torch.arange(len(sequences), device=sequences.tokens.device)
        source = _first(sequences, count) if shared else count
        whole = source == count
        in_prompt = sequences.positions < sequences.prompt_lengths[sequences.owner]
        is_read = whole[sequences.owner] | ~in_prompt
        start = sequences.starts[torch.where(in_prompt, source[sequences.owner], sequences.owner)]
        slots = (is_read.cumsum(0) - 1)[start + sequences.positions]
        return cls(sequences, is_read.nonzero()[:, 0], slots, whole)

    def rectangles(self, window: int | None = None) -> list[Rectangle]:
        """All queries, each once, for layers that look no further back than `window`."""
        if window not in self.known:
            whole, rest = self.whole.nonzero()[:, 0], (~self.whole).nonzero()[:, 0]
            self.known[window] = [
                *self._rectangles(whole, window, causal=True),
                *self._rectangles(rest, window, causal=False),
            ]
        return self.known[window]

    def _rectangles(self, rows: Tensor, window: int | None, *, causal: bool) -> Iterator[Rectangle]:
        """Those of whole sequences, or those whose queries are responses alone."""
        sequences = self.sequences
        device, lengths = self.slots.device, sequences.lengths.tolist()
        responses = sequences.response_lengths.tolist()
        for group in _alike(rows.tolist(), lengths):
            longest = max(lengths[row] for row in group)
            numbers = torch.tensor(group, device=device)
            starts, last = sequences.starts[numbers, None], sequences.lengths[numbers, None] - 1
            place = torch.arange(longest, device=device)
            keys = self.slots[starts + place.minimum(last)]
            if causal:
                queries, places, of_query = keys, place[None], place[None]
            else:
                of_query = torch.arange(max(responses[row] for row in group), device=device)
                of_query = sequences.prompt_lengths[numbers, None] + of_query
                places = of_query.minimum(last)
                queries = self.slots[starts + places]
            mask = None
            if not causal or (window is not None and longest > window):
                distance = places[:, :, None] - place
                mask = (distance >= 0 if window is None else (distance >= 0) & (distance < window))[:, None]
            yield Rectangle(queries, keys, (of_query <= last).flatten().nonzero()[:, 0], mask)

    @cached_property
    def order(self) -> Tensor:
        """[N'] where the query of each packed token stands among those of all rectangles."""
        return torch.cat([r.queries.flatten()[r.real] for r in self.rectangles()]).argsort()


def _first(sequences: Sequences, count: Tensor) -> Tensor:
    """[S] the sequence in which the prompt of each is read: the first that has it, or its own."""
    first = count.new_full((int(sequences.prompts.max()) + 1,), len(count))
    first = first.scatter_reduce(0, sequences.prompts, count, "amin")[sequences.prompts]
    return torch.where(sequences.response_lengths > WORTH * sequences.prompt_lengths, count, first)


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
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))  # [N', heads, D]
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
    rectangles = packing.rectangles(window)
    if not dropout and suits(query):
        return cpu_attention(query, key, value, rectangles, scale)
    parts = []
    for rectangle in rectangles:
        q, k, v = query[rectangle.queries], key[rectangle.keys], value[rectangle.keys]
        if rectangle.mask is not None:  # with a mask, kernels do not take grouped queries
            k, v = (part.repeat_interleave(q.shape[2] // part.shape[2], 2) for part in (k, v))
        out = scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            attn_mask=rectangle.mask,
            dropout_p=dropout,
            is_causal=rectangle.mask is None,
            scale=scale,
            enable_gqa=q.shape[2] != k.shape[2],
        )
        parts.append(out.transpose(1, 2).flatten(0, 1).index_select(0, rectangle.real))
    return torch.cat(parts).index_select(0, packing.order)


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
