"""Advantages against the textbook's sums, taken episode by episode in plain Python, and literals."""

import math
import random
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from trimtab.objectives.advantages import (
    discounted,
    explained_variance,
    gae,
    group_relative,
    leave_one_out,
    returns_to_go,
    whiten,
)

STEPS = 15
IGNORED = 1e6  # V after a termination: no result may depend on it


@dataclass
class Episode:
    """n rewards; n + 1 values, the last of the state that the episode ends or is left in."""

    rewards: list[float]
    values: list[float]
    end: str  # terminated | truncated | open: the rollout stops, the episode would go on


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 7, 8, 33])
def test_discounted_sums_are_those_of_a_loop(steps: int) -> None:
    generator = torch.Generator().manual_seed(steps)
    values, shares = (torch.rand(3, steps, generator=generator, dtype=torch.float64) for _ in range(2))
    shares[0, steps // 2 :] = 0.0
    expected, running = torch.zeros_like(values), torch.zeros(3, dtype=torch.float64)
    for step in reversed(range(steps)):
        running = values[:, step] + shares[:, step] * running
        expected[:, step] = running
    given = values.clone(), shares.clone()
    torch.testing.assert_close(discounted(*given), expected, rtol=1e-13, atol=0)
    assert torch.equal(given[0], values) and torch.equal(given[1], shares)
    assert torch.autograd.gradcheck(discounted, [given[0].requires_grad_(), given[1].requires_grad_()])


def random_row(rng: random.Random) -> list[Episode]:
    """Episodes of 1 to 6 steps that fill a row of STEPS."""
    row, left = [], STEPS
    while left:
        length = min(rng.randint(1, 6), left)
        left -= length
        end = rng.choice(["terminated", "truncated"] if left else ["terminated", "truncated", "open"])
        numbers = [rng.gauss(0, 1) for _ in range(2 * length + 1)]
        row.append(Episode(numbers[:length], numbers[length:], end))
    return row


def random_rows(seed: int) -> list[list[Episode]]:
    rng = random.Random(seed)
    return [random_row(rng) for _ in range(6)]


def tensors(rows: list[list[Episode]]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """rewards, values, next_values, terminated, ended: [B, T]."""
    columns = []
    for row in rows:
        steps = []
        for episode in row:
            for t, reward in enumerate(episode.rewards):
                last = t == len(episode.rewards) - 1
                terminated = last and episode.end == "terminated"
                following = IGNORED if terminated else episode.values[t + 1]
                steps.append(
                    (reward, episode.values[t], following, terminated, last and episode.end != "open")
                )
        columns.append(list(zip(*steps, strict=True)))
    rewards, values, following, terminated, ended = (list(column) for column in zip(*columns, strict=True))
    numbers = (torch.tensor(x, dtype=torch.float64) for x in (rewards, values, following))
    return (*numbers, torch.tensor(terminated), torch.tensor(ended))  # type: ignore[return-value]


def summed_advantages(episode: Episode, gamma: float, lam: float) -> list[float]:
    """sum over l of (gamma lam)^l delta_{t+l}, with delta written out."""
    worth = [*episode.values[:-1], 0.0 if episode.end == "terminated" else episode.values[-1]]
    n = len(episode.rewards)
    deltas = [episode.rewards[t] + gamma * worth[t + 1] - worth[t] for t in range(n)]
    return [sum((gamma * lam) ** k * deltas[t + k] for k in range(n - t)) for t in range(n)]


def summed_returns(episode: Episode, gamma: float) -> list[float]:
    """sum over k of gamma^k r_{t+k}, and the value of the last state where the episode did not terminate."""
    last = 0.0 if episode.end == "terminated" else episode.values[-1]
    n = len(episode.rewards)
    return [
        sum(gamma**k * episode.rewards[t + k] for k in range(n - t)) + gamma ** (n - t) * last
        for t in range(n)
    ]


def as_rows(rows: list[list[list[float]]]) -> Tensor:
    return torch.tensor([[x for episode in row for x in episode] for row in rows], dtype=torch.float64)


def assert_exact(result: Tensor, expected: Tensor) -> None:
    """To float64's precision: a discount that was rounded to float32 is seen."""
    torch.testing.assert_close(result, expected, rtol=1e-13, atol=1e-13)


def left_over(next_values: Tensor, terminated: Tensor, ended: Tensor) -> Tensor:
    """`last`: V of the state in which an episode was cut off, or in which the rollout stops."""
    cut = ended.clone()
    cut[:, -1] = True
    return torch.where(cut & ~terminated, next_values, 0.0)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("gamma", "lam"), [(0.9, 0.7), (1.0, 0.95), (0.5, 1.0), (0.99, 0.0)])
def test_gae_is_the_sum_over_each_episode(seed: int, gamma: float, lam: float) -> None:
    rows = random_rows(seed)
    expected = as_rows([[summed_advantages(episode, gamma, lam) for episode in row] for row in rows])
    assert_exact(gae(*tensors(rows), gamma=gamma, lam=lam), expected)


def test_the_random_rows_hold_every_kind_of_end() -> None:
    ends = [episode.end for seed in (0, 1, 2) for row in random_rows(seed) for episode in row[:-1]]
    at_the_edge = {row[-1].end for seed in (0, 1, 2) for row in random_rows(seed)}
    assert min(ends.count("terminated"), ends.count("truncated")) >= 10
    assert at_the_edge == {"terminated", "truncated", "open"}


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
def test_returns_are_the_sum_over_each_episode(seed: int, gamma: float) -> None:
    rows = random_rows(seed)
    rewards, _, next_values, terminated, ended = tensors(rows)
    returns = returns_to_go(rewards, ~ended, gamma, left_over(next_values, terminated, ended))
    assert_exact(returns, as_rows([[summed_returns(episode, gamma) for episode in row] for row in rows]))


def test_returns_without_last_count_rewards_only() -> None:
    rewards = torch.tensor([[1.0, 2.0, 4.0, 8.0]])
    continues = torch.tensor([[1.0, 0.0, 1.0, 1.0]])  # an episode of two, one that the rollout cuts
    assert returns_to_go(rewards, continues, 0.5).tolist() == [[2.0, 2.0, 8.0, 8.0]]
    last = torch.tensor([[0.0, 0.0, 0.0, 6.0]])
    assert returns_to_go(rewards, continues, 0.5, last).tolist() == [[2.0, 2.0, 9.5, 11.0]]
    assert rewards.tolist() == [[1.0, 2.0, 4.0, 8.0]]  # left as it was


def test_gae_literals() -> None:
    """Two steps that terminate, then one that is cut off, then one at which the rollout stops."""
    rewards, values = torch.tensor([[1.0, 2.0, 4.0, 8.0]]), torch.tensor([[3.0, 1.0, 2.0, 5.0]])
    next_values = torch.tensor([[1.0, IGNORED, 6.0, 4.0]])
    terminated = torch.tensor([[False, True, False, False]])
    ended = torch.tensor([[False, True, True, False]])

    def estimate(lam: float) -> list[list[float]]:
        return gae(rewards, values, next_values, terminated, ended, gamma=0.5, lam=lam).tolist()

    # TD errors: 1 + 1/2 - 3, 2 - 1, 4 + 6/2 - 2, 8 + 4/2 - 5
    assert estimate(0.0) == [[-1.5, 1.0, 5.0, 5.0]]
    assert estimate(0.5) == [[-1.25, 1.0, 5.0, 5.0]]
    # returns 1 + 2/2 = 2, 2, 4 + 6/2 = 7, 8 + 4/2 = 10, minus the values
    assert estimate(1.0) == [[-1.0, 1.0, 5.0, 5.0]]


def test_with_lam_1_and_terminations_the_values_only_are_a_baseline() -> None:
    rng = random.Random(3)
    rows = random_rows(3)
    for row in rows:
        for episode in row:
            episode.end = "terminated"
    rewards, values, next_values, terminated, ended = tensors(rows)
    advantages = gae(rewards, values, next_values, terminated, ended, gamma=0.8, lam=1.0)
    expected = as_rows([[summed_returns(episode, 0.8) for episode in row] for row in rows])
    assert_exact(advantages + values, expected)
    for row in rows:
        for episode in row:
            episode.values = [rng.gauss(0, 1) for _ in episode.values]
    rewards, values, next_values, terminated, ended = tensors(rows)
    advantages = gae(rewards, values, next_values, terminated, ended, gamma=0.8, lam=1.0)
    assert_exact(advantages + values, expected)


def test_leave_one_out() -> None:
    scores = torch.tensor([[1.0, 2.0, 6.0], [0.0, 0.0, 3.0]])
    # 1 - 8/2, 2 - 7/2, 6 - 3/2; 0 - 3/2, 0 - 3/2, 3 - 0
    expected = torch.tensor([[-3.0, -1.5, 4.5], [-1.5, -1.5, 3.0]])
    torch.testing.assert_close(leave_one_out(scores), expected)


def test_group_relative() -> None:
    scores = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 3.0]], dtype=torch.float64)
    assert group_relative(scores, scale=False).tolist() == [[-1.0, 0.0, 1.0], [-1.0, -1.0, 2.0]]
    # deviations with G - 1: 1 and sqrt(3), and 1e-4 on top
    one, three = 1.0001, math.sqrt(3) + 1e-4
    scaled = group_relative(scores)
    assert scaled[0].tolist() == pytest.approx([-1 / one, 0.0, 1 / one])
    assert scaled[1].tolist() == pytest.approx([-1 / three, -1 / three, 2 / three])


@pytest.mark.parametrize("function", [leave_one_out, group_relative])
def test_one_response_cannot_be_compared(function: object) -> None:
    with pytest.raises(ValueError, match="at least two responses"):
        function(torch.tensor([[1.0], [2.0]]))  # type: ignore[operator]


@pytest.mark.parametrize("count", [3, 7, 8])
@pytest.mark.parametrize("score", [0.0, 0.1, -3.3, 1000.1])
def test_equal_scores_teach_exactly_nothing(count: int, score: float) -> None:
    """float32's mean of equal numbers is not always that number: the error must not be scaled up."""
    scores = torch.full((2, count), score)
    zeros = torch.zeros(2, count)
    assert torch.equal(leave_one_out(scores), zeros)
    assert torch.equal(group_relative(scores), zeros)
    assert torch.equal(whiten(scores, torch.ones(2, count, dtype=torch.bool)), zeros)


def test_whiten() -> None:
    values = torch.tensor([[1.0, float("nan")], [3.0, 5.0]])
    mask = torch.tensor([[True, False], [True, True]])
    torch.testing.assert_close(whiten(values, mask), torch.tensor([[-1.0, 0.0], [0.0, 1.0]]))
    alone = torch.tensor([[True, False], [False, False]])
    assert whiten(values, alone).tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_whitened_values_have_mean_0_and_deviation_1() -> None:
    generator = torch.Generator().manual_seed(0)
    values = 7 + 3 * torch.randn(5, 8, generator=generator, dtype=torch.float64)
    mask = torch.rand(5, 8, generator=generator) < 0.6
    whitened = whiten(values, mask)
    chosen = whitened[mask].tolist()
    assert sum(chosen) / len(chosen) == pytest.approx(0, abs=1e-12)
    assert sum(x * x for x in chosen) / (len(chosen) - 1) == pytest.approx(1, abs=1e-6)
    assert torch.equal(whitened[~mask], torch.zeros(int((~mask).sum()), dtype=torch.float64))
    order = values[mask].argsort()
    assert torch.equal(whitened[mask].argsort(), order)


def test_explained_variance() -> None:
    returns = torch.tensor([1.0, 2.0, 3.0])
    assert float(explained_variance(returns, returns)) == 1.0
    assert float(explained_variance(torch.full((3,), 5.0), returns)) == pytest.approx(0.0, abs=1e-6)
    assert float(explained_variance(returns + 10, returns)) == 1.0  # a constant error is not seen
    # errors -2, 0, 2: variance 8/3 against 2/3
    assert float(explained_variance(returns.flip(0), returns)) == pytest.approx(-3.0)
    assert math.isnan(float(explained_variance(torch.randn(7), torch.full((7,), 0.1))))
