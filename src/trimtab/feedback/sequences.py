"""Token sequences packed end to end: the one form in which text reaches a model."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import accumulate
from typing import ClassVar

import torch
from torch import Tensor

from trimtab.stateful import stateful

Ids = Sequence[int]


@stateful
@dataclass(frozen=True)
class Sequences:
    """S prompts, each with its response, in one row without padding.

    Masks come from lengths, never from token ids, so that EOS and padding may share an id.

    Attributes:
        tokens: [N] prompt and response of the first sequence, of the second, ...
        prompt_lengths, response_lengths: [S], each at least 1.
        prompts: [S] sequences with the same number here begin with the same prompt, which is then read once.
    """

    separable: ClassVar[bool] = False  # a token is read with all that stand before it

    tokens: Tensor
    prompt_lengths: Tensor
    response_lengths: Tensor
    prompts: Tensor

    @classmethod
    def pack(cls, rows: Sequence[tuple[Ids, Ids]], device: torch.device | str = "cpu") -> "Sequences":
        """Packs (prompt tokens, response tokens) pairs."""
        tokens = [token for prompt, response in rows for part in (prompt, response) for token in part]
        lengths = torch.tensor([[len(prompt), len(response)] for prompt, response in rows])
        if len(rows) == 0 or int(lengths.min()) < 1:
            raise ValueError("every sequence needs at least one prompt token and one response token")
        numbers: dict[tuple[int, ...], int] = {}
        prompts = torch.tensor([numbers.setdefault(tuple(prompt), len(numbers)) for prompt, _ in rows])
        packed = cls(torch.tensor(tokens), lengths[:, 0], lengths[:, 1], prompts)
        return packed.to(device)

    @classmethod
    def join(cls, parts: Sequence["Sequences"]) -> "Sequences":
        """The sequences of all parts, in order."""
        tokens, prompts, responses, numbers = (
            [getattr(part, field.name) for part in parts] for field in fields(cls)
        )
        firsts = accumulate((int(n.max()) + 1 for n in numbers), initial=0)
        numbers = [n + first for n, first in zip(numbers, firsts, strict=False)]
        return cls(torch.cat(tokens), torch.cat(prompts), torch.cat(responses), torch.cat(numbers))

    def __len__(self) -> int:
        return len(self.prompt_lengths)

    def select(self, rows: Tensor) -> "Sequences":
        """The sequences of these numbers, in this order: rows [S'] -> S' sequences."""
        lengths = self.lengths[rows]
        owner = torch.repeat_interleave(lengths)
        place = torch.arange(len(owner), device=owner.device) - (lengths.cumsum(0) - lengths)[owner]
        tokens = self.tokens[self.starts[rows][owner] + place]
        return Sequences(tokens, self.prompt_lengths[rows], self.response_lengths[rows], self.prompts[rows])

    def to(self, device: torch.device | str) -> "Sequences":
        return Sequences(*(getattr(self, field.name).to(device) for field in fields(self)))

    @cached_property
    def lengths(self) -> Tensor:
        """[S] tokens in each sequence."""
        return self.prompt_lengths + self.response_lengths

    @cached_property
    def starts(self) -> Tensor:
        """[S] where each sequence begins in `tokens`."""
        return self.lengths.cumsum(0) - self.lengths

    @cached_property
    def owner(self) -> Tensor:
        """[N] the sequence that each token belongs to."""
        return torch.repeat_interleave(self.lengths)

    @cached_property
    def positions(self) -> Tensor:
        """[N] each token's place in its own sequence, from 0."""
        return torch.arange(len(self.tokens), device=self.tokens.device) - self.starts[self.owner]

    @cached_property
    def mask(self) -> Tensor:
        """[S, R] true where a response has a token: the positions where the policy chose."""
        longest = int(self.response_lengths.max())
        return torch.arange(longest, device=self.tokens.device) < self.response_lengths[:, None]

    @cached_property
    def response_index(self) -> Tensor:
        """[M] where the response tokens stand in `tokens`, row by row."""
        return (self.positions >= self.prompt_lengths[self.owner]).nonzero()[:, 0]

    @cached_property
    def predicting_index(self) -> Tensor:
        """[M] the positions whose output predicts the response tokens: one earlier."""
        return self.response_index - 1

    @cached_property
    def state_index(self) -> Tensor:
        """[M + S] where the response tokens were chosen, and each response's last: R + 1 a row."""
        return (self.positions >= self.prompt_lengths[self.owner] - 1).nonzero()[:, 0]

    @cached_property
    def targets(self) -> Tensor:
        """[M] the response tokens."""
        return self.tokens[self.response_index]

    @cached_property
    def last_index(self) -> Tensor:
        """[S] where the last token of each response stands in `tokens`."""
        return self.starts + self.lengths - 1

    def unpack(self, flat: Tensor) -> Tensor:
        """Values of the M response tokens as rows: [M] -> [S, R], zero beyond a response's end."""
        return flat.new_zeros(self.mask.shape).masked_scatter(self.mask, flat)

    def unpack_states(self, flat: Tensor) -> Tensor:
        """Values of the M + S states as rows: [M + S] -> [S, R + 1], zero beyond a row's last."""
        longest = int(self.response_lengths.max()) + 1
        mask = torch.arange(longest, device=flat.device) <= self.response_lengths[:, None]
        return flat.new_zeros(mask.shape).masked_scatter(mask, flat)

    def padded(self, pad: int = 0) -> tuple[Tensor, Tensor]:
        """Right-padded tokens and attention mask, both [S, T]."""
        longest = int(self.lengths.max())
        mask = torch.arange(longest, device=self.tokens.device) < self.lengths[:, None]
        tokens = self.tokens.new_full(mask.shape, pad).masked_scatter(mask, self.tokens)
        return tokens, mask
