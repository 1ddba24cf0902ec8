"""Experience and advantages in a world that is solved exactly, enumerated and sampled."""

from itertools import product

import numpy as np
import pytest
import torch
from tests.tabular import (
    ACTIONS,
    BATCHES,
    COPIES,
    LARGEST_Z,
    LEAST_CHANCE,
    LOGITS,
    PI,
    SPREAD,
    STATES,
    STEPS,
    WORLD,
    WRONG,
    Array,
    collected,
    credited,
    made,
    table,
    unlikely,
)

from trimtab.objectives.advantages import gae
from trimtab.rollouts.rollout import Rollout


def test_what_was_collected_comes_from_the_world() -> None:
    """Visits, actions and rewards: chances by the linear systems, counts by the environment."""
    for whole_episodes, visits in ((True, WORLD.visits(PI)), (False, WORLD.visits_within(PI, STEPS))):
        rollout = collected(whole_episodes)
        cells = cells_of(rollout)
        counts = torch.stack([(cells == cell).sum(1) for cell in range(STATES * ACTIONS)], 1).double()
        expected = (visits[:, None] * PI).ravel()
        z, chance = unlikely(counts.numpy(), expected)
        assert z < LARGEST_Z and chance > LEAST_CHANCE
        for cell in range(STATES * ACTIONS):
            rewards = rollout.rewards[cells == cell].numpy()
            error = 5 * SPREAD / np.sqrt(len(rewards))
            assert rewards.mean() == pytest.approx(WORLD.rewards.ravel()[cell], abs=error)


def cells_of(rollout: Rollout) -> torch.Tensor:
    """[B, T] state and action as one number; -1 where the policy did not choose."""
    states = rollout.inputs.observations[:, :-1].argmax(-1)
    return torch.where(rollout.mask, states * ACTIONS + rollout.inputs.actions, -1)


def test_with_lam_1_advantages_are_returns_less_values_and_with_lam_0_the_errors_of_one_step() -> None:
    """On sampled episodes, one after the other in plain Python, with a critic that is wrong."""
    policy, gamma = table(LOGITS, WRONG), 0.9
    ones, zeros = (credited(made("a2c", gamma=gamma, lam=lam), policy, True) for lam in (1.0, 0.0))
    for row in range(200):
        length = int(ones.mask[row].sum())
        rewards = ones.rewards[row, :length].tolist()
        worth = [WRONG[s] for s in ones.inputs.observations[row, :length].argmax(-1).tolist()] + [0.0]
        assert bool(ones.terminated[row, length - 1])
        returns = [sum(gamma**k * r for k, r in enumerate(rewards[t:])) for t in range(length)]
        less_values = [g - v for g, v in zip(returns, worth[:-1], strict=True)]
        assert ones.advantages[row, :length].tolist() == pytest.approx(less_values, rel=1e-4, abs=1e-4)
        assert ones.returns[row, :length].tolist() == pytest.approx(returns, rel=1e-4, abs=1e-4)
        errors = [rewards[t] + gamma * worth[t + 1] - worth[t] for t in range(length)]
        assert zeros.advantages[row, :length].tolist() == pytest.approx(errors, rel=1e-4, abs=1e-4)


def every_way(steps: int) -> tuple[dict[str, torch.Tensor], Array]:
    """Everything that can happen in so many steps from each state and action, as rows; and their chances.

    A reward is its mean plus or minus SPREAD. After the end a row stays there, with nothing to come.
    """
    rows: list[tuple[list[tuple[int, int, float, int]], float]] = [
        ([(s, a, float(WORLD.rewards[s, a] + SPREAD * sign), t)], 0.5 * WORLD.moves[s, a, t])
        for s, a, sign, t in product(range(STATES), range(ACTIONS), (-1, 1), range(STATES + 1))
    ]
    for _ in range(steps - 1):
        longer = []
        for way, chance in rows:
            s = way[-1][3]
            if s == STATES:
                longer.append(([*way, (s, 0, 0.0, s)], chance))
                continue
            for a, sign, t in product(range(ACTIONS), (-1, 1), range(STATES + 1)):
                step = (s, a, float(WORLD.rewards[s, a] + SPREAD * sign), t)
                longer.append(([*way, step], chance * PI[s, a] * 0.5 * WORLD.moves[s, a, t]))
        rows = longer
    numbers = torch.tensor([way for way, _ in rows], dtype=torch.float64)  # [B, T, 4]
    states, actions, rewards, nexts = numbers.unbind(-1)
    tensors = {"states": states.long(), "actions": actions.long(), "rewards": rewards, "nexts": nexts.long()}
    return tensors, np.array([chance for _, chance in rows])


@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95, 1.0])
def test_the_expectation_of_gae_with_exact_values_is_that_of_the_advantage(lam: float) -> None:
    """All that can happen in two steps, after which the rows are cut off: Q - V, for every lam."""
    gamma = 0.9
    ways, chances = every_way(2)
    values = torch.tensor([*WORLD.values(PI, gamma), 0.0])
    nonsense = torch.tensor([*WORLD.values(PI, gamma), 1e3])  # of what follows the end
    terminated = ways["nexts"] == STATES
    ended = terminated.clone()
    ended[:, -1] = True
    found = gae(
        ways["rewards"],
        values[ways["states"]],
        nonsense[ways["nexts"]],
        terminated,
        ended,
        gamma=gamma,
        lam=lam,
    )[:, 0].numpy()
    cells = (ways["states"] * ACTIONS + ways["actions"])[:, 0].numpy()
    total = np.bincount(cells, chances)
    np.testing.assert_allclose(total, 1)
    expected = WORLD.action_values(PI, gamma) - WORLD.values(PI, gamma)[:, None]
    np.testing.assert_allclose(np.bincount(cells, chances * found), expected.ravel(), atol=1e-12)
    variance = np.bincount(cells, chances * (found - expected.ravel()[cells]) ** 2)
    assert variance.min() > 0.2  # so that it is the expectation alone which agrees


def expected_gae(critic: Array, gamma: float, lam: float) -> Array:
    """[S, A] of any critic U: d + gamma lam P (1 - gamma lam P_pi)^-1 d_pi, d = R + gamma P U - U."""
    errors = WORLD.rewards + gamma * WORLD.moves[..., :STATES] @ critic - critic[:, None]
    later = np.linalg.solve(np.eye(STATES) - gamma * lam * WORLD.steps(PI), (PI * errors).sum(1))
    return errors + gamma * lam * WORLD.moves[..., :STATES] @ later


def test_the_expectation_of_gae_by_its_linear_system() -> None:
    """Exact values make it Q - V for every lam; with lam 1 every critic is a baseline, and only then."""
    exact, q = WORLD.values(PI, 0.9), WORLD.action_values(PI, 0.9)
    for lam in (0.0, 0.6, 1.0):
        np.testing.assert_allclose(expected_gae(exact, 0.9, lam), q - exact[:, None], atol=1e-12)
    np.testing.assert_allclose(expected_gae(WRONG, 0.9, 1.0), q - WRONG[:, None], atol=1e-12)
    assert abs(expected_gae(WRONG, 0.9, 0.6) - (q - WRONG[:, None])).max() > 1


@pytest.mark.parametrize("lam", [0.0, 0.6, 0.95, 1.0])
@pytest.mark.parametrize(
    ("critic", "whole_episodes"), [("exact", True), ("exact", False), ("wrong", True)], ids=str
)
def test_sampled_advantages_have_their_expectation(critic: str, whole_episodes: bool, lam: float) -> None:
    """In every state and action; exact values also where a row was cut off."""
    values = WORLD.values(PI, 0.9) if critic == "exact" else WRONG
    rollout = credited(made("a2c", gamma=0.9, lam=lam), table(LOGITS, values), whole_episodes)
    cells = cells_of(rollout)
    off = rollout.advantages - torch.tensor(expected_gae(values, 0.9, lam).ravel())[cells]
    of_batches = [
        np.bincount(part.flatten() + 1, o.flatten(), STATES * ACTIONS + 1)[1:]
        for part, o in zip(cells.split(COPIES // BATCHES), off.split(COPIES // BATCHES), strict=True)
    ]
    z, chance = unlikely(np.stack(of_batches), np.zeros(STATES * ACTIONS))
    assert z < LARGEST_Z and chance > LEAST_CHANCE
