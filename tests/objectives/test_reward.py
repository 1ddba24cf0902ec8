"""Reward model losses against hand-computed numbers and the enumeration of all rankings."""

import math
from itertools import permutations

import pytest
import torch
from torch import Tensor

from trimtab.objectives.reward import bradley_terry, plackett_luce


def ranks_of(order: tuple[int, ...]) -> list[int]:
    """The rank of each response, given the responses from best to worst."""
    return [order.index(i) for i in range(len(order))]


def all_present(ranks: Tensor) -> Tensor:
    return torch.ones_like(ranks, dtype=torch.bool)


def test_bradley_terry() -> None:
    chosen, rejected = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 0.0])
    assert bradley_terry(chosen, rejected).tolist() == pytest.approx(
        [math.log(1 + math.exp(-2)), math.log(2)]
    )
    margin = torch.tensor([1.5, 1.0])
    expected = [math.log(1 + math.exp(-0.5)), math.log(1 + math.exp(1.0))]
    assert bradley_terry(chosen, rejected, margin).tolist() == pytest.approx(expected)


def test_plackett_luce_literal() -> None:
    # weights 3, 2, 1 in this order: 3/6 * 2/3
    scores = torch.tensor([[3.0, 2.0, 1.0]]).log()
    loss = plackett_luce(scores, torch.tensor([[0, 1, 2]]), torch.ones(1, 3, dtype=torch.bool))
    assert loss.tolist() == pytest.approx([math.log(3)])


def test_probabilities_of_all_rankings_sum_to_one() -> None:
    ranks = torch.tensor([ranks_of(order) for order in permutations(range(4))])
    scores = torch.tensor([[0.3, -1.2, 2.0, 0.1]], dtype=torch.float64).expand(len(ranks), -1)
    probabilities = (-plackett_luce(scores, ranks, all_present(ranks))).exp()
    assert len(probabilities) == 24
    assert float(probabilities.sum()) == pytest.approx(1.0)


def test_two_responses_are_bradley_terry() -> None:
    scores = torch.tensor([[0.4, 1.7], [0.4, 1.7]])
    ranks = torch.tensor([[0, 1], [1, 0]])
    expected = bradley_terry(torch.tensor([0.4, 1.7]), torch.tensor([1.7, 0.4]))
    torch.testing.assert_close(plackett_luce(scores, ranks, all_present(ranks)), expected)


def test_absent_responses_do_not_count() -> None:
    ranks, mask = torch.tensor([[1, 0, 0]]), torch.tensor([[True, True, False]])
    losses = [
        plackett_luce(torch.tensor([[0.4, 1.7, absent]]), ranks, mask).tolist() for absent in (0.0, 50.0)
    ]
    assert losses[0] == losses[1] == pytest.approx([math.log(1 + math.exp(0.4 - 1.7))])


def test_responses_that_tie_never_compete() -> None:
    """A = B > C: A beats C and B beats C; nothing is said of A and B."""
    scores = torch.tensor([[1.0, 0.5, -0.3]], requires_grad=True)
    ranks = torch.tensor([[0, 0, 1]])
    loss = plackett_luce(scores, ranks, all_present(ranks))
    assert float(loss.detach()) == pytest.approx(math.log(1 + math.exp(-1.3)) + math.log(1 + math.exp(-0.8)))
    everything_ties = plackett_luce(scores, torch.zeros(1, 3, dtype=torch.long), all_present(ranks))
    assert everything_ties.tolist() == [0.0]


def test_gradients_by_finite_differences() -> None:
    scores = torch.tensor([[0.1, -0.5, 1.0], [2.0, 0.3, 0.0]], dtype=torch.float64, requires_grad=True)
    ranks, mask = torch.tensor([[2, 0, 1], [0, 1, 0]]), torch.tensor([[True] * 3, [True, True, False]])
    assert torch.autograd.gradcheck(lambda s: plackett_luce(s, ranks, mask), scores)
