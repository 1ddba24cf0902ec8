"""Token by token through a language model, with room made beforehand for what it remembers.

transformers' cache grows by a copy of itself in every step, which on small models takes most of the time.
Where the trunk runs fused, keys and values are written in place instead:

    prompts     . . p p p | a b c _ _ _ _      padded to the left, so that all rows write the same column
                p p p p p | d e f _ _ _ _

On a CPU, where most of a step is reading keys and values from memory, a prompt's stand there once for all its
samples, which look at them together.
"""

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from trimtab.errors import UserError
from trimtab.feedback.sequences import Ids
from trimtab.policies.language import LanguagePolicy

ROOM = 128  # columns that are added at a time

flash_attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # gives the sums, too


class Decoding(Protocol):
    """B rows of tokens that grow together: read once, then step by step, each time with the logits [B, V]."""

    def read(self, prompts: list[Ids], samples: int) -> Tensor:
        """Reads every prompt once, for `samples` rows each that stand side by side."""

    def step(self, tokens: Tensor) -> Tensor:
        """Adds a token to each row: [B]."""

    def keep(self, rows: Tensor) -> None:
        """Forgets all but these rows."""


def decoding(policy: LanguagePolicy, most: int, samples: int = 1) -> Decoding:
    """What suits the policy's architecture, for `most` new tokens of so many samples to a prompt."""
    if not (policy.trunk.fused and policy.head_is_linear):
        return Transformers(policy)
    shared = samples > 1 and policy.device.type == "cpu"
    return (SharedPrompts if shared else InPlace)(policy, min(ROOM, most))


class InPlace:
    """The fused forward pass, with keys and values [B, G, T, D] of every layer written in place."""

    def __init__(self, policy: LanguagePolicy, room: int = ROOM) -> None:
        self.room = room
        self.trunk, self.head = policy.trunk, policy.trunk.hf.get_output_embeddings()
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

        hidden = self.trunk.fused_pass(tokens.flatten(), positions.flatten(), look)
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
        layers = iter(range(len(self.keys)))
        self.unseen = hiding(self.real, self.keys[0].dtype)

        def look(attention: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            layer = next(layers)
            self.keys[layer][:, :, now], self.values[layer][:, :, now] = key, value
            # all heads of a group look at the same keys: as queries side by side they need no copies
            query = query.unflatten(1, (key.shape[1], -1))
            return self._looked(layer, query, attention.scaling).flatten(1, 2)

        return self.head(self.trunk.fused_pass(tokens, self.positions, look)).float()

    def _looked(self, layer: int, query: Tensor, scale: float) -> Tensor:
        """[B, G, heads of a group, D] queries of the newest column -> what they find, in the same shape."""
        return scaled_dot_product_attention(query, *self._written(layer), attn_mask=self.unseen, scale=scale)

    def _written(self, layer: int) -> tuple[Tensor, Tensor]:
        return self.keys[layer][:, :, : self.columns], self.values[layer][:, :, : self.columns]

    def keep(self, rows: Tensor) -> None:
        for whole in (self.keys, self.values):
            for place, part in enumerate(whole):
                whole[place] = part[rows]
        self.real, self.positions = self.real[rows], self.positions[rows]


class SharedPrompts(InPlace):
    """Keys and values [P, G, T, D] of P prompts, each once, and [B, G, R, D] of what its rows have written.

    What attention finds in both is the mean of what it finds in each, weighted by the sums of exponentials
    (Juravsky et al. 2024, arXiv:2402.05099).
    """

    def read(self, prompts: list[Ids], samples: int) -> Tensor:
        self.prompts: list[tuple[Tensor, Tensor]] = []
        logits = super().read(prompts, samples)
        self.padding = hiding(self.real[::samples], self.keys[0].dtype)
        self.real, self.columns = self.real[:, :0], 0
        self._seat(torch.arange(len(prompts)).repeat_interleave(samples))
        return logits

    def _remember(self, key: Tensor, value: Tensor, samples: int) -> None:
        """A layer's keys and values of the prompts, [P, G, T, D], and room for those of the answers."""
        self.prompts.append((key.contiguous(), value.contiguous()))
        rows, heads, _, size = key.shape
        for whole in (self.keys, self.values):
            whole.append(key.new_empty(rows * samples, heads, self.room, size))

    def _seat(self, owner: Tensor) -> None:
        """From each row's prompt, [B]: which rows look at each, [P, S], and where a row is among these."""
        counts = owner.bincount()
        place = torch.arange(len(owner)) - (counts.cumsum(0) - counts)[owner]
        self.owner, most = owner, int(counts.max())
        self.place = owner * most + place
        self.seats = owner.new_zeros(len(counts) * most).index_copy_(0, self.place, torch.arange(len(owner)))
        self.seats = self.seats.view(len(counts), most)

    def _looked(self, layer: int, query: Tensor, scale: float) -> Tensor:
        """Each prompt is looked at by all its rows at once: [P, G, S x heads of a group, D]."""
        own, own_sum = flash_attention(query, *self._written(layer), scale=scale)
        together = query[self.seats].transpose(1, 2).flatten(2, 3)
        keys, values = self.prompts[layer]
        found = flash_attention(together, keys, values, attn_mask=self.padding, scale=scale)
        shared, shared_sum = self._by_row(found[0]), self._by_row(found[1][..., None])
        weight = (shared_sum - own_sum[..., None]).sigmoid_()
        return torch.lerp(own, shared, weight.to(own.dtype))

    def _by_row(self, found: Tensor) -> Tensor:
        """[P, G, S x heads of a group, D] -> [B, G, heads of a group, D]"""
        seats = self.seats.shape[1]
        return found.unflatten(2, (seats, -1)).transpose(1, 2).flatten(0, 1)[self.place]

    def keep(self, rows: Tensor) -> None:
        super().keep(rows)
        left, owner = self.owner[rows].unique(return_inverse=True)
        if len(left) < len(self.seats):
            self.prompts = [(key[left], value[left]) for key, value in self.prompts]
            self.padding = None if self.padding is None else self.padding[left]
        self._seat(owner)


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


def hiding(real: Tensor, dtype: torch.dtype) -> Tensor | None:
    """[B, T] as what attention adds to its scores, [B, 1, 1, T]; None where all is real."""
    if bool(real.all()):
        return None
    added = torch.zeros(real.shape, dtype=dtype, device=real.device)
    return added.masked_fill_(~real, -torch.inf)[:, None, None]


def left_padded(prompts: list[Ids], device: torch.device) -> tuple[Tensor, Tensor]:
    """Tokens and where they are real, both [B, T]."""
    longest = max(len(p) for p in prompts)
    tokens = torch.zeros(len(prompts), longest, dtype=torch.long)
    real = torch.zeros(len(prompts), longest, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        tokens[row, longest - len(prompt) :] = torch.tensor(list(prompt))
        real[row, longest - len(prompt) :] = True
    return tokens.to(device), real.to(device)
