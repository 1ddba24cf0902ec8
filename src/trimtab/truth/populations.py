"""All feedback that the small world can give, as one batch, with the probability of each piece."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import permutations

import numpy as np
import torch
from torch import Tensor

from trimtab.feedback.batches import Batch, Example, Table
from trimtab.feedback.records import Kind
from trimtab.feedback.sequences import Sequences
from trimtab.feedback.tokenise import add_mismatched
from trimtab.truth.world import GRAIN, LENGTHS, LONGEST, PROMPTS, RESPONSES, ROWS, Array, TabularPolicy, World

COUNT = len(RESPONSES)


@dataclass(frozen=True)
class Population:
    """A batch and the weight [units] of each of its losses: how likely this piece of feedback is."""

    batch: Batch
    weights: Tensor


def pairs(world: World) -> Population:
    """Two responses from the reference, preferred by Bradley-Terry; both may be the same."""
    q, p = world.reference, world.preference
    weights = 2 * q[:, :, None] * q[:, None, :] * p / PROMPTS
    return _population(world, "pair", [(Example(rows=(i, j)), w) for (i, j), w in _flat_pairs(weights)])


def thumbs(world: World) -> Population:
    """Responses from the reference, judged up or down. Each is repeated in proportion to its
    probability, so that KTO's plain mean over mismatched pairs is the expectation as well.
    """
    copies = GRAIN**LONGEST
    repeats = np.rint(world.reference * copies).astype(int).ravel()
    pieces = [
        (Example(rows=(row,), desirable=up), (chance if up else 1 - chance) / copies / PROMPTS)
        for row, chance in enumerate(world.approval.ravel())
        for _ in range(repeats[row])
        for up in (True, False)
    ]
    return _population(world, "thumbs", pieces)


def scored(world: World) -> Population:
    """Responses from the reference with their rewards; the baseline is the prompt's expectation."""
    baseline = (world.reference * world.reward).sum(-1)
    pieces = [
        (Example(rows=(row,), score=score, baseline=baseline[row // COUNT]), weight / PROMPTS)
        for row, (score, weight) in enumerate(zip(world.reward.ravel(), world.reference.ravel(), strict=True))
    ]
    return _population(world, "score", pieces)


def demonstrations(world: World) -> Population:
    """Responses from the demonstrated distribution; each token counts for its response."""
    pieces = [
        (Example(rows=(row,)), weight / PROMPTS) for row, weight in enumerate(world.demonstrated.ravel())
    ]
    population = _population(world, "demonstration", pieces)
    lengths = torch.tensor(np.tile(LENGTHS, PROMPTS))
    return replace(population, weights=population.weights.repeat_interleave(lengths))


def rankings(world: World, size: int = 4) -> Population:
    """Every `size` neighbouring responses, ranked in each order with its Plackett-Luce probability."""
    pieces = []
    for prompt, start in np.ndindex(PROMPTS, COUNT):
        members = [(start + k) % COUNT for k in range(size)]
        for order in permutations(members):
            strength = np.exp(world.reward[prompt, list(order)])
            chance = np.prod([strength[k] / strength[k:].sum() for k in range(size)])
            rows = tuple(prompt * COUNT + member for member in members)
            ranks = tuple(order.index(member) for member in members)
            pieces.append((Example(rows=rows, ranks=ranks), float(chance) / COUNT / PROMPTS))
    return _population(world, "ranking", pieces)


POPULATIONS: dict[Kind, Callable[[World], Population]] = {
    "demonstration": demonstrations,
    "pair": pairs,
    "thumbs": thumbs,
    "score": scored,
    "ranking": rankings,
}


def _flat_pairs(weights: Array) -> list[tuple[tuple[int, int], float]]:
    """[P, Y, Y] weights as ((row, row), weight)."""
    return [
        ((prompt * COUNT + i, prompt * COUNT + j), float(weights[prompt, i, j]))
        for prompt, i, j in np.ndindex(*weights.shape)
    ]


def _population(world: World, kind: Kind, pieces: Sequence[tuple[Example, float]]) -> Population:
    table = Table(kind=kind, rows=list(ROWS), examples=[example for example, _ in pieces])
    if kind == "thumbs":
        add_mismatched(table, seed=0)
    _attach_reference(world, table)
    weights = torch.tensor([float(weight) for _, weight in pieces], dtype=torch.float64)
    return Population(table.batch(range(len(table))), weights)


@torch.no_grad()
def _attach_reference(world: World, table: Table) -> None:
    sequences = Sequences.pack(table.rows)
    logprobs = TabularPolicy(world).logprobs(sequences)
    table.ref_logprobs = list(logprobs[sequences.mask].split(sequences.response_lengths.tolist()))
