"""Token by token through a language model, with room made beforehand for what it remembers.

transformers' cache grows by a copy of itself in every step, which on small models takes most of the time.
Where the trunk runs fused, keys and values are written in place instead:

    prompts     . . p p p | a b c _ _ _ _      padded to the left, so that all rows write the same column
                p p p p p | d e f _ _ _ _
"""

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from trimtab.errors import UserError
from trimtab.feedback.sequences import Ids
from trimtab.policies.fused import fused_hidden
from trimtab.policies.language import LanguagePolicy

ROOM = 128  # columns that are added at a time


class Decoding(Protocol):
    """B rows of tokens that grow together: read once, then step by step, each time with the logits [B, V]."""

    def read(self, prompts: list[Ids], samples: int) -> Tensor:
        """Reads every prompt once, for `samples` rows each that stand side by side."""

    def step(self, tokens: Tensor) -> Tensor:
        """Adds a token to each row: [B]."""

    def keep(self, rows: Tensor) -> None:
        """Forgets all but these rows."""


def decoding(policy: LanguagePolicy, most: int) -> Decoding:
    """What suits the policy's architecture, for `most` new tokens."""
    in_place = policy.trunk.fused and policy.head_is_linear
    return InPlace(policy, min(ROOM, most)) if in_place else Transformers(policy)


class InPlace:
    """The fused forward pass, with keys and values [B, G, T, D] of every layer written in place."""

    def __init__(self, policy: LanguagePolicy, room: int = ROOM) -> None:
        self.room = room
        self.decoder, self.head = policy.trunk.decoder, policy.trunk.hf.get_output_embeddings()
        self.device = policy.device
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.columns = 0

    def read(self, prompts: list[Ids], samples: int) -> Tensor:
        tokens, real = left_padded(prompts, self.device)
        rows, self.columns = tokens.shape
        positions = (real.cumsum(-1) - 1).clamp(min=0)
        causal = torch.ones(self.columns, self.columns, dtype=torch.bool, device=self.device).tril_()
        # padding looks at itself: a row that looks at nothing would be no number
        seen = causal & real[:, None] | torch.eye(self.columns, dtype=torch.bool, device=self.device)
        mask = None if bool(real.all()) else seen[:, None]

        def look(attention: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            q, k, v = (part.unflatten(0, (rows, -1)).transpose(1, 2) for part in (query, key, value))
            self._remember(k, v, samples)
            groups = q.shape[1] // k.shape[1]
            k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
            out = scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=mask is None, scale=attention.scaling
            )
            return out.transpose(1, 2).flatten(0, 1)

        hidden = fused_hidden(self.decoder, tokens.flatten(), positions.flatten(), look)
        self.real = real.repeat_interleave(samples, 0)
        self.positions = positions[:, -1].repeat_interleave(samples)
        last = hidden.unflatten(0, (rows, -1))[:, -1]
        return self.head(last).float().repeat_interleave(samples, 0)

    def _remember(self, key: Tensor, value: Tensor, samples: int) -> None:
        """A layer's keys and values of the prompts, [P, G, T, D], for all samples and with room for more."""
        for whole, part in ((self.keys, key), (self.values, value)):
            rows, heads, columns, size = part.shape
            grown = part.new_empty(rows * samples, heads, columns + self.room, size)
            grown[:, :, :columns] = part.repeat_interleave(samples, 0)
            whole.append(grown)

    def step(self, tokens: Tensor) -> Tensor:
        if self.columns == self.keys[0].shape[2]:
            for whole in (self.keys, self.values):
                for place, part in enumerate(whole):
                    whole[place] = torch.nn.functional.pad(part, (0, 0, 0, self.room))
        self.positions = self.positions + 1
        self.real = torch.nn.functional.pad(self.real, (0, 1), value=True)
        now, self.columns = self.columns, self.columns + 1
        layers = iter(zip(self.keys, self.values, strict=True))
        mask: Tensor | None = None

        def look(attention: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            nonlocal mask
            keys, values = next(layers)
            keys[:, :, now], values[:, :, now] = key, value
            if mask is None:
                mask = torch.zeros(self.real.shape, dtype=query.dtype, device=self.device)
                mask = mask.masked_fill_(~self.real, -torch.inf)[:, None, None]
            # all heads of a group look at the same keys: as queries side by side they need no copies
            q = query.unflatten(1, (key.shape[1], -1))
            k, v = keys[:, :, : self.columns], values[:, :, : self.columns]
            out = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=attention.scaling)
            return out.flatten(1, 2)

        return self.head(fused_hidden(self.decoder, tokens, self.positions, look)).float()

    def keep(self, rows: Tensor) -> None:
        for whole in (self.keys, self.values):
            for place, part in enumerate(whole):
                whole[place] = part[rows]
        self.real, self.positions = self.real[rows], self.positions[rows]


class Transformers:
    """The model's own forward pass and cache."""

    def __init__(self, policy: LanguagePolicy) -> None:
        self.policy = policy
        self.cache: Any = None

    def read(self, prompts: list[Ids], samples: int) -> Tensor:
        tokens, self.real = left_padded(prompts, self.policy.device)
        logits = self._forward(tokens)
        self.real = self.real.repeat_interleave(samples, 0)
        self.cache.batch_repeat_interleave(samples)
        return logits.repeat_interleave(samples, 0)

    def step(self, tokens: Tensor) -> Tensor:
        self.real = torch.nn.functional.pad(self.real, (0, 1), value=True)
        return self._forward(tokens[:, None])

    def keep(self, rows: Tensor) -> None:
        self.real = self.real[rows]
        self.cache.batch_select_indices(rows)

    def _forward(self, tokens: Tensor) -> Tensor:
        out = self.policy.model(
            input_ids=tokens,
            attention_mask=None if bool(self.real.all()) else self.real,
            position_ids=(self.real.cumsum(-1) - 1).clamp(min=0)[:, -tokens.shape[1] :],
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self.cache = getattr(out, "past_key_values", None)
        if self.cache is None:
            name = type(self.policy.trunk.hf).__name__
            raise UserError(f"{name} has no key-value cache; responses are generated only by models with one")
        return out.logits[:, -1].float()


def left_padded(prompts: list[Ids], device: torch.device) -> tuple[Tensor, Tensor]:
    """Tokens and where they are real, both [B, T]."""
    longest = max(len(p) for p in prompts)
    tokens = torch.zeros(len(prompts), longest, dtype=torch.long)
    real = torch.zeros(len(prompts), longest, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        tokens[row, longest - len(prompt) :] = torch.tensor(list(prompt))
        real[row, longest - len(prompt) :] = True
    return tokens.to(device), real.to(device)
