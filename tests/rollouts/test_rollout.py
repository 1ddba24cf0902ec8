"""Rows of experience: chosen, joined, grouped, and credited by hand."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from trimtab.feedback.sequences import Sequences
from trimtab.policies.control import Steps
from trimtab.rollouts.rollout import Rollout

ROWS = [([5, 6], [7]), ([8], [9, 10, 11]), ([12, 13, 14], [15, 16]), ([17], [18])]


def rollout(rows: list[tuple[list[int], list[int]]] = ROWS, **fields: Tensor) -> Rollout:
    """Log-probs and rewards are numbered row by row: row.step."""
    inputs = Sequences.pack(rows)
    mask = inputs.mask
    number = torch.arange(len(rows))[:, None] + 0.1 * torch.arange(mask.shape[1])
    last = mask & ~torch.nn.functional.pad(mask[:, 1:], (0, 1))
    return Rollout(
        inputs=inputs,
        mask=mask,
        old_logprobs=-number * mask,
        rewards=number * mask,
        terminated=last,
        ended=last,
        score=torch.arange(len(rows)).float() * 10,
        fresh=torch.ones(len(rows), dtype=torch.bool),
        group_size=2,
        longest=9,
        coefficients={"beta": 0.3},
        **fields,
    )


def test_selected_rows_are_cut_to_the_longest_of_them() -> None:
    chosen = rollout().select(torch.tensor([2, 0]))
    assert chosen.size == 2
    assert chosen.mask.tolist() == [[True, True], [True, False]]
    torch.testing.assert_close(chosen.rewards, torch.tensor([[2.0, 2.1], [0.0, 0.0]]))
    assert chosen.terminated.tolist() == [[False, True], [True, False]]
    assert chosen.score.tolist() == [20.0, 0.0]
    assert chosen.inputs.tokens.tolist() == [12, 13, 14, 15, 16, 5, 6, 7]
    assert chosen.inputs.mask.shape == chosen.mask.shape


def test_what_is_of_the_whole_collection_stays_but_for_the_groups() -> None:
    chosen = rollout().select(torch.tensor([3]))
    assert (chosen.longest, chosen.coefficients, chosen.group_size) == (9, {"beta": 0.3}, 1)
    assert chosen.values is None


def test_what_was_added_is_selected_with_the_rest() -> None:
    whole = rollout(values=torch.ones(4, 3), advantages=torch.arange(4.0))
    chosen = whole.select(torch.tensor([1, 3]))
    assert chosen.values.shape == (2, 3)
    assert chosen.advantages.tolist() == [1.0, 3.0]  # of whole responses


def test_a_row_may_be_selected_twice() -> None:
    assert rollout().select(torch.tensor([3, 3])).inputs.tokens.tolist() == [17, 18, 17, 18]


@pytest.mark.parametrize("first", [[0, 1], [0, 3], [1, 0, 3]])
def test_joined_parts_are_the_whole_again(first: list[int]) -> None:
    whole = rollout()
    rest = [row for row in range(4) if row not in first]
    joined = Rollout.join([whole.select(torch.tensor(rows)) for rows in (first, rest)])
    expected = whole.select(torch.tensor(first + rest))
    for name in ("mask", "old_logprobs", "rewards", "terminated", "ended", "score", "fresh"):
        torch.testing.assert_close(getattr(joined, name), getattr(expected, name), rtol=0, atol=0)
    assert joined.inputs.tokens.tolist() == expected.inputs.tokens.tolist()
    assert joined.inputs.mask.tolist() == joined.mask.tolist()
    assert joined.values is None


def test_groups_are_neighbours() -> None:
    assert rollout().grouped(torch.tensor([1.0, 2.0, 3.0, 4.0])).tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_gae_and_returns_by_hand() -> None:
    """gamma 1/2, lambda 1/2, rewards 1, 0, 4 and values 2, 2, 2.

    The first row ends: deltas 1 + 1 - 2 = 0, 0 + 1 - 2 = -1, 4 - 2 = 2, so that advantages are, from
    behind, 2, -1 + 2/4 = -1/2, 0 - 1/8. The second is cut off in a state of value 8: its last delta is
    4 + 4 - 2 = 6, advantages 6, -1 + 6/4 = 1/2, 1/8.
    """
    inputs = Sequences.pack([([5], [6, 7, 8]), ([5], [6, 7, 8])])
    last = torch.tensor([[False, False, True]] * 2)
    values = torch.full((2, 3), 2.0)
    made = Rollout(
        inputs=inputs,
        mask=inputs.mask,
        old_logprobs=torch.zeros(2, 3),
        rewards=torch.tensor([[1.0, 0.0, 4.0]] * 2),
        terminated=last & torch.tensor([[True], [False]]),
        ended=last,
        score=torch.zeros(2),
        fresh=torch.ones(2, dtype=torch.bool),
        values=values,
        next_values=torch.tensor([[2.0, 2.0, 8.0]] * 2),
    ).with_gae(gamma=0.5, lam=0.5, whitened=False)
    expected = torch.tensor([[-0.125, -0.5, 2.0], [0.125, 0.5, 6.0]])
    torch.testing.assert_close(made.advantages, expected)
    torch.testing.assert_close(made.returns, expected + 2)


def test_whitened_advantages_leave_the_returns_as_they_are() -> None:
    whole = rollout(values=torch.ones(4, 3), next_values=torch.ones(4, 3))
    plain = whole.with_gae(gamma=1.0, lam=0.9, whitened=False)
    changed = whole.with_gae(gamma=1.0, lam=0.9, whitened=True)
    torch.testing.assert_close(plain.returns, changed.returns)
    chosen = changed.advantages[whole.mask]
    assert float(chosen.mean()) == pytest.approx(0, abs=1e-6)
    assert float(chosen.std()) == pytest.approx(1, abs=1e-6)
    assert float(changed.advantages[~whole.mask].abs().max()) == 0


def test_a_minibatch_is_whitened_as_one_whatever_parts_it_has() -> None:
    whole = rollout(values=torch.ones(4, 3), next_values=torch.ones(4, 3))
    whole = whole.with_gae(gamma=1.0, lam=0.9, whitened=False)
    chosen = whole.advantages[whole.mask].numpy()
    expected = (chosen - chosen.mean()) / (chosen.std(ddof=1) + 1e-8)
    everything = torch.arange(4)
    [[one]] = whole.minibatches([[everything]], whitened=True)
    assert one.advantages[whole.mask].tolist() == pytest.approx(expected.tolist(), abs=1e-6)
    assert float(one.advantages[~whole.mask].abs().max()) == 0
    halves = [torch.tensor([2, 0]), torch.tensor([3, 1])]
    [parts] = whole.minibatches([halves], whitened=True)
    for part, rows in zip(parts, halves, strict=True):
        torch.testing.assert_close(part.advantages, one.select(rows).advantages)


def test_minibatches_of_single_steps_are_whitened_each_on_its_own() -> None:
    """Of equal sizes, of several, and of one step, which stays as it is."""
    generator = torch.Generator().manual_seed(0)
    columns = {"advantages": torch.randn(3, 3, generator=generator), "returns": torch.arange(9.0).view(3, 3)}
    inputs = Steps(torch.randn(3, 4, 2, generator=generator), torch.zeros(3, 3))
    steps = replace(rollout([([1], [1, 2, 3])] * 3, **columns), inputs=inputs).flattened()
    for sizes in ([3, 3, 3], [4, 4, 1], [3, 1, 5]):
        order = torch.randperm(9, generator=generator).split(sizes)
        for [part], rows in zip(steps.minibatches([[r] for r in order], whitened=True), order, strict=True):
            assert part.returns[:, 0].tolist() == rows.tolist()
            expected = steps.advantages[rows]
            if len(rows) > 1:
                expected = (expected - expected.mean()) / (expected.std() + 1e-8)
            torch.testing.assert_close(part.advantages, expected)


def test_a_minibatch_of_a_single_step_keeps_its_advantage() -> None:
    alone = rollout(advantages=torch.full((4, 3), 2.5)).select(torch.tensor([0]))
    assert alone.steps == 1
    [[same]] = alone.minibatches([[torch.tensor([0])]], whitened=True)
    assert same.advantages.tolist() == [[2.5]]
