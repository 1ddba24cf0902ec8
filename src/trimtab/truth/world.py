"""The small world: two prompts, three letters and an end token, every response enumerated."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trimtab.feedback.sequences import Ids, Sequences

END, VOCABULARY, LONGEST, PROMPTS = 0, 4, 3, 2
PREFIXES = VOCABULARY ** (LONGEST - 1)  # codes of what stands before a token, see `prefix_codes`
GRAIN = 8  # the reference's probabilities are multiples of 1/8, a response's of 1/512

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class World:
    """A reference policy and a reward of every response.

    Attributes:
        conditionals: [P, PREFIXES, V] the reference's probability of each next token.
        reward: [P, Y].
    """

    conditionals: Array
    reward: Array

    @classmethod
    def draw(cls, seed: int) -> "World":
        """A random reference, every token of which has at least probability 1/8, and normal rewards."""
        rng = np.random.default_rng(seed)
        extra = rng.multinomial(GRAIN - VOCABULARY, np.full(VOCABULARY, 0.25), size=(PROMPTS, PREFIXES))
        return cls((1 + extra) / GRAIN, rng.normal(size=(PROMPTS, len(RESPONSES))))

    @cached_property
    def reference(self) -> Array:
        """[P, Y] the reference's probability of each response."""
        steps = [[(code(y[:t]), y[t]) for t in range(len(y))] for y in RESPONSES]
        return np.array([[np.prod([p[s] for s in places]) for places in steps] for p in self.conditionals])

    @property
    def preference(self) -> Array:
        """[P, Y, Y] Bradley-Terry probability that the first response is preferred to the second."""
        return 1 / (1 + np.exp(self.reward[:, None, :] - self.reward[:, :, None]))

    @property
    def approval(self) -> Array:
        """[P, Y] probability of a thumb up: sigmoid(reward)."""
        return 1 / (1 + np.exp(-self.reward))

    @property
    def demonstrated(self) -> Array:
        """[P, Y] the distribution of the demonstrations: the reference, tilted towards reward."""
        weight = self.reference * np.exp(self.reward)
        return np.asarray(weight / weight.sum(-1, keepdims=True))


def _enumerate() -> list[tuple[int, ...]]:
    """Every response: closed by the end token, or cut at LONGEST tokens."""
    closed: list[tuple[int, ...]] = []
    growing: list[tuple[int, ...]] = [()]
    for _ in range(LONGEST):
        grown = [(*y, token) for y in growing for token in range(VOCABULARY)]
        closed += [y for y in grown if y[-1] == END]
        growing = [y for y in grown if y[-1] != END]
    return closed + growing


def code(tokens: Sequence[int]) -> int:
    """A number for these tokens: their digits to base VOCABULARY."""
    number = 0
    for token in tokens:
        number = number * VOCABULARY + token
    return number


RESPONSES = _enumerate()
# A prompt is one letter; the end token in front of it lets a transformer without absolute positions tell
# the prompt "a" from the prompt "a" followed by "a", whose attention would average the same value.
ROWS: list[tuple[Ids, Ids]] = [((END, prompt + 1), y) for prompt in range(PROMPTS) for y in RESPONSES]
LENGTHS = np.array([len(y) for y in RESPONSES])
_INDEX = torch.zeros(VOCABULARY**LONGEST, dtype=torch.long)  # of a response, by its code padded with END
for _index, _y in enumerate(RESPONSES):
    _INDEX[code(_y) * VOCABULARY ** (LONGEST - len(_y))] = _index


class TabularPolicy:
    """A free distribution over the next token for every prompt and prefix; starts as the reference."""

    device = torch.device("cpu")

    def __init__(self, world: World) -> None:
        self.logits = torch.tensor(world.conditionals).log().requires_grad_()

    def parameters(self) -> list[Tensor]:
        return [self.logits]

    def logprobs(self, sequences: Sequences) -> Tensor:
        """Log-probs of the response tokens: [S, R] float64, zero beyond a response's end."""
        tokens, prefix = sequences.unpack(sequences.targets), prefix_codes(sequences)[:, :-1]
        logprobs = self.logits.log_softmax(-1)[prompts(sequences)[:, None], prefix, tokens]
        return logprobs.masked_fill(~sequences.mask, 0.0)


class TabularScorer:
    """A free score for every prompt and response; starts at zero."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.table = torch.zeros(PROMPTS, len(RESPONSES), dtype=torch.float64, requires_grad=True)

    def parameters(self) -> list[Tensor]:
        return [self.table]

    def scores(self, sequences: Sequences) -> Tensor:
        """[S] the entries of these responses."""
        tokens = sequences.unpack(sequences.targets)
        padded = torch.nn.functional.pad(tokens, (0, LONGEST - tokens.shape[1]), value=END)
        digits = VOCABULARY ** torch.arange(LONGEST - 1, -1, -1)
        return self.table[prompts(sequences), _INDEX[(padded * digits).sum(-1)]]


def prompts(sequences: Sequences) -> Tensor:
    """[S] which prompt each sequence has."""
    return sequences.tokens[sequences.starts + 1] - 1


def prefix_codes(sequences: Sequences) -> Tensor:
    """[S, R + 1] the code of what stands before each response token, and of the whole response."""
    tokens = sequences.unpack(sequences.targets)
    codes = tokens.new_zeros(len(tokens), tokens.shape[1] + 1)
    for place in range(tokens.shape[1]):
        codes[:, place + 1] = codes[:, place] * VOCABULARY + tokens[:, place]
    return codes


@torch.no_grad()
def distribution(policy: Any) -> Array:
    """[P, Y] the policy's probability of each response."""
    logprobs = policy.logprobs(Sequences.pack(ROWS)).sum(-1)
    return logprobs.double().exp().view(PROMPTS, -1).numpy()


def total_variation(a: Array, b: Array) -> float:
    """Half the absolute difference of two distributions [P, Y], for the worst prompt."""
    return float(0.5 * np.abs(a - b).sum(-1).max())
