"""Batches: what each kind of feedback gives to a method, with typed fields.

A batch holds packed sequences and, where a method needs them, the reference's log-probs of the same
sequences: they are data, computed once.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from trimtab.feedback.compact import Example, Examples, TokenRows
from trimtab.feedback.records import Kind
from trimtab.feedback.sequences import Ids, Sequences


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Sequences, and the reference's log-probs of them ([S, R], or None)."""

    kind: ClassVar[Kind]
    sequences: Sequences
    ref_logprobs: Tensor | None = None

    @property
    def size(self) -> int:
        """How many pieces of feedback there are."""
        return len(self.sequences)

    def log_ratios(self, logprobs: Tensor) -> Tensor:
        """Policy over reference for each token: [S, R]; zero beyond a response's end."""
        if self.ref_logprobs is None:
            raise ValueError("this batch has no reference log-probs")
        return logprobs - self.ref_logprobs


@dataclass(frozen=True, kw_only=True)
class Demonstrations(Batch):
    """Responses to imitate."""

    kind: ClassVar[Kind] = "demonstration"

    @classmethod
    def of(cls, examples: Sequence[Example], sequences: Sequences, ref: Tensor | None) -> Self:
        return cls(sequences=sequences, ref_logprobs=ref)


@dataclass(frozen=True, kw_only=True)
class Pairs(Batch):
    """B pairs as 2B sequences: the chosen ones, then the rejected ones. margin: [B]."""

    kind: ClassVar[Kind] = "pair"
    margin: Tensor

    @classmethod
    def of(cls, examples: Sequence[Example], sequences: Sequences, ref: Tensor | None) -> Self:
        margin = torch.tensor([e.margin for e in examples], device=sequences.tokens.device)
        return cls(sequences=sequences, ref_logprobs=ref, margin=margin)

    @property
    def size(self) -> int:
        return len(self.margin)

    def split(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Values of the 2B sequences as those of the chosen and of the rejected ones."""
        return values[: self.size], values[self.size :]


@dataclass(frozen=True, kw_only=True)
class Thumbs(Batch):
    """Responses judged alone. desirable: [B] bool.

    `mismatched` holds each prompt with the response to another prompt; `kl` is the reference point
    that KTO estimates on them, once for an optimiser step.
    """

    kind: ClassVar[Kind] = "thumbs"
    desirable: Tensor
    mismatched: Sequences | None = None
    mismatched_ref_logprobs: Tensor | None = None
    kl: Tensor | None = None

    @classmethod
    def of(cls, examples: Sequence[Example], sequences: Sequences, ref: Tensor | None) -> Self:
        desirable = torch.tensor([e.desirable for e in examples], device=sequences.tokens.device)
        return cls(sequences=sequences, ref_logprobs=ref, desirable=desirable)


@dataclass(frozen=True, kw_only=True)
class Rankings(Batch):
    """B rankings of up to K responses. ranks, present: [B, K]; sequences row by row."""

    kind: ClassVar[Kind] = "ranking"
    ranks: Tensor
    present: Tensor

    @classmethod
    def of(cls, examples: Sequence[Example], sequences: Sequences, ref: Tensor | None) -> Self:
        device = sequences.tokens.device
        counts = torch.tensor([len(e.ranks) for e in examples], device=device)
        present = torch.arange(int(counts.max()), device=device) < counts[:, None]
        flat = torch.tensor([rank for e in examples for rank in e.ranks], device=device)
        ranks = torch.zeros_like(present, dtype=torch.long).masked_scatter(present, flat)
        return cls(sequences=sequences, ref_logprobs=ref, ranks=ranks, present=present)

    @property
    def size(self) -> int:
        return len(self.ranks)

    def rows(self, values: Tensor) -> Tensor:
        """Values of the S sequences as rows of rankings: [S] -> [B, K], zero where absent."""
        return values.new_zeros(self.present.shape).masked_scatter(self.present, values)


@dataclass(frozen=True, kw_only=True)
class Scored(Batch):
    """Responses with a score each. score, baseline: [B]."""

    kind: ClassVar[Kind] = "score"
    score: Tensor
    baseline: Tensor

    @classmethod
    def of(cls, examples: Sequence[Example], sequences: Sequences, ref: Tensor | None) -> Self:
        fields = torch.tensor([[e.score, e.baseline] for e in examples], device=sequences.tokens.device)
        return cls(sequences=sequences, ref_logprobs=ref, score=fields[:, 0], baseline=fields[:, 1])


BATCH_TYPES: dict[Kind, type[Demonstrations | Pairs | Thumbs | Rankings | Scored]] = {
    t.kind: t for t in (Demonstrations, Pairs, Thumbs, Rankings, Scored)
}


@dataclass
class Table:
    """All tokenised feedback of one kind. Responses that recur share a row.

    Attributes:
        kind: what each example is.
        rows: (prompt tokens, response tokens) of every distinct sequence.
        examples: the pieces of feedback, naming their rows.
        ref_logprobs: for each row the reference's log-probs of the response, once computed.

    Rows and examples are lists, or what takes less room: TokenRows and Examples.
    """

    kind: Kind
    rows: Sequence[tuple[Ids, Ids]]
    examples: Sequence[Example]
    ref_logprobs: Sequence[Tensor] | None = None

    def __len__(self) -> int:
        return len(self.examples)

    def fingerprint(self) -> str:
        """Of the rows and the examples, however they are held."""
        digest = hashlib.sha256()
        TokenRows.of(self.rows).add_to(digest)
        Examples.of(self.examples).add_to(digest)
        return digest.hexdigest()[:32]

    def sequences(self, rows: Sequence[int], device: torch.device | str = "cpu") -> Sequences:
        return Sequences.pack([self.rows[row] for row in rows], device)

    def batch(self, indices: Sequence[int], device: torch.device | str = "cpu") -> Batch:
        """The typed batch of these examples."""
        examples = [self.examples[i] for i in indices]
        if self.kind == "pair":  # chosen first, then rejected
            rows = [e.rows[side] for side in (0, 1) for e in examples]
        else:
            rows = [row for e in examples for row in e.rows]
        sequences, ref = self._with_reference(rows, device)
        batch = BATCH_TYPES[self.kind].of(examples, sequences, ref)
        if isinstance(batch, Thumbs) and examples[0].mismatched >= 0:
            mismatched, mismatched_ref = self._with_reference([e.mismatched for e in examples], device)
            return Thumbs(
                sequences=sequences,
                ref_logprobs=ref,
                desirable=batch.desirable,
                mismatched=mismatched,
                mismatched_ref_logprobs=mismatched_ref,
            )
        return batch

    def _with_reference(
        self, rows: Sequence[int], device: torch.device | str
    ) -> tuple[Sequences, Tensor | None]:
        sequences = self.sequences(rows, device)
        if self.ref_logprobs is None:
            return sequences, None
        return sequences, sequences.unpack(torch.cat([self.ref_logprobs[row] for row in rows]).to(device))


def by_tokens(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Places in batches of like length with at most `batch_tokens` tokens (or one place)."""
    batch: list[int] = []
    room = batch_tokens
    for place in sorted(range(len(lengths)), key=lambda place: lengths[place]):
        if batch and lengths[place] > room:
            yield batch
            batch, room = [], batch_tokens
        batch.append(place)
        room -= lengths[place]
    if batch:
        yield batch


def by_prompt(rows: Sequence[tuple[Ids, Ids]], most: int, *, shared: bool = True) -> Iterator[list[int]]:
    """Batches in which equal prompts meet, which are read once, or of like length if they are not `shared`.

    So many tokens are read at once, or one row; with every prompt counted in each of its rows, twice as many:
    hidden states, and keys while attention works, are there for each row.
    """
    groups: list[list[int]] = []
    tokens: list[tuple[int, int]] = []  # of a group's prompt, and of its responses together
    of_prompt: dict[int, int] = {}  # hash of a prompt -> its last group

    def size(prompt: int, responses: int, count: int) -> int:
        return max(prompt + responses, (count * prompt + responses + 1) // 2)

    for row, (prompt, response) in enumerate(rows):
        place = of_prompt.get(key := hash(tuple(prompt))) if shared else None
        joined = len(response) + (0 if place is None else tokens[place][1])
        if place is None or size(len(prompt), joined, len(groups[place]) + 1) > most:
            place, joined = len(groups), len(response)
            groups.append([])
            tokens.append((0, 0))
            if shared:
                of_prompt[key] = place
        groups[place].append(row)
        tokens[place] = len(prompt), joined
    sizes = [size(*of, len(group)) for of, group in zip(tokens, groups, strict=True)]
    for places in by_tokens(sizes, most):
        yield [row for place in places for row in groups[place]]
