"""Experience from environments that follow a script, against the script told step by step."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tests.control_environments import (
    CARTPOLE,
    COPIES,
    Moment,
    environment,
    kinds,
    linear,
    register,
    rows_of,
    told,
    whole_rows,
)

from trimtab.errors import UserError
from trimtab.rollouts import environment as module
from trimtab.rollouts.environment import Environment, EnvironmentConfig
from trimtab.rollouts.rollout import Rollout

register()
GAMMA, LAM = 0.9, 0.7


def assert_told(rollout: Rollout, rows: list[list[Moment]], cut: bool) -> None:
    """The rollout says what the script says; `cut`: the collection ended, whether or not an episode did."""
    steps = len(rows[0])
    assert rollout.mask.tolist() == [[m.chosen for m in row] for row in rows]
    assert rollout.steps == sum(m.chosen for row in rows for m in row)
    assert rollout.rewards.tolist() == [[m.reward if m.chosen else 0.0 for m in row] for row in rows]
    assert rollout.terminated.tolist() == [[m.terminated and m.chosen for m in row] for row in rows]
    ended = [[m.chosen and (m.ended or (cut and t == steps - 1)) for t, m in enumerate(row)] for row in rows]
    assert rollout.ended.tolist() == ended
    seen = [[m.before for m in row] + [row[-1].after] for row in rows]
    assert rollout.inputs.observations.tolist() == [[list(x) for x in row] for row in seen]


@kinds
def test_collections_follow_the_script_and_go_on_where_the_last_one_stopped(name: str) -> None:
    """The step between two episodes is masked, and its reward does not count."""
    source, stories = environment(name), [told(copy) for copy in range(COPIES)]
    edges = set()
    for refresh in range(6):
        rows = rows_of(stories, 7)
        rollout = source.collect(refresh).rollout
        assert_told(rollout, rows, cut=True)
        assert rollout.inputs.actions.shape == (COPIES, 7)
        edges |= {(row[-1].chosen, row[-1].terminated, row[-1].truncated) for row in rows}
    # a collection stopped amid an episode, at each of its ends, and between two
    assert edges >= {(True, False, False), (True, True, False), (True, False, True), (False, False, False)}


@kinds
def test_returns_lengths_and_steps_count_what_the_policy_chose(name: str) -> None:
    """Episodes go on from one collection to the next; those that are under way do not count."""
    source, stories = environment(name, steps=5), [told(copy) for copy in range(COPIES)]
    under_way = [(0.0, 0) for _ in range(COPIES)]
    finished: list[tuple[float, int]] = []
    steps = 0
    for refresh in range(5):
        rows = rows_of(stories, 5)
        for copy, row in enumerate(rows):
            for m in row:
                steps += m.chosen
                total, length = under_way[copy]
                under_way[copy] = (total + m.reward, length + m.chosen)
                if m.ended:
                    finished.append(under_way[copy])
                    under_way[copy] = (0.0, 0)
        rollout = source.collect(refresh).rollout
        metrics = source.describe(replace(rollout, old_logprobs=torch.zeros(rollout.mask.shape)))
        assert metrics["steps"] == sum(m.chosen for row in rows for m in row)
        assert metrics["total_steps"] == source.total_steps == steps
        assert metrics["episodes"] == len(finished)
        assert metrics["return"] == pytest.approx(np.mean([total for total, _ in finished]))
        assert metrics["episode_length"] == pytest.approx(np.mean([length for _, length in finished]))
    assert len(finished) > 10


def test_before_an_episode_ended_there_is_no_return() -> None:
    source = environment(steps=1, copies=2)
    rollout = source.collect(0).rollout
    metrics = source.describe(replace(rollout, old_logprobs=torch.full((2, 1), -0.5)))
    assert metrics == {"entropy": 0.5, "episodes": 0.0, "steps": 2.0, "total_steps": 2.0}


def test_the_return_is_the_mean_of_the_last_hundred_episodes_in_the_order_of_time() -> None:
    """Within a collection too: what ended first is forgotten first, in whatever copy it was."""
    source, stories = environment(steps=400), [told(copy) for copy in range(COPIES)]
    rows, ends = rows_of(stories, 400), []
    for copy, row in enumerate(rows):
        total = 0.0
        for step, m in enumerate(row):
            total += m.reward
            if m.ended:
                ends.append((step, copy, total))
                total = 0.0
    rollout = source.collect(0).rollout
    metrics = source.describe(replace(rollout, old_logprobs=torch.zeros(rollout.mask.shape)))
    assert metrics["episodes"] == len(ends) > 200
    assert metrics["return"] == pytest.approx(np.mean([total for _, _, total in sorted(ends)[-100:]]))


@kinds
def test_whole_episodes_are_one_of_each_copy_and_the_next_begin_afresh(name: str) -> None:
    """A copy whose episode is over goes on, unseen, until the longest has ended."""
    source = environment(name, whole_episodes=True, steps=2)
    starts, steps = [0] * COPIES, 0
    returns: list[float] = []
    for refresh in range(4):
        rows = whole_rows(starts)
        rollout = source.collect(refresh).rollout
        assert_told(rollout, rows, cut=False)
        assert [sum(row) for row in rollout.ended.tolist()] == [1] * COPIES
        assert rollout.longest == len(rows[0])
        steps += rollout.steps
        metrics = source.describe(replace(rollout, old_logprobs=torch.zeros(rollout.mask.shape)))
        assert metrics["episodes"] == COPIES * (refresh + 1)
        assert metrics["total_steps"] == steps
        returns += [sum(m.reward for m in row if m.chosen) for row in rows]
        assert metrics["return"] == pytest.approx(np.mean(returns))
        assert metrics["episode_length"] == pytest.approx(steps / len(returns))
        starts = [int(row[-1].after[1]) + 1 for row in rows]  # a reset, wherever the copy was


def test_an_endless_environment_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONGEST", 50)
    source = environment("trimtab-tests/Endless-v0", whole_episodes=True)
    with pytest.raises(
        UserError, match=r"^trimtab-tests/Endless-v0: an episode had no end after 50 steps; take"
    ):
        source.collect(0)


def test_a_number_of_steps_may_be_as_large_as_one_likes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound is that of episodes that are waited for."""
    monkeypatch.setattr(module, "LONGEST", 50)
    assert environment("trimtab-tests/Endless-v0", steps=60).collect(0).rollout.steps == 60 * COPIES


def test_the_seed_decides_everything() -> None:
    def collected(seed: int) -> list[Any]:
        config = EnvironmentConfig(env="CartPole-v1", envs=2, steps=40)
        source = Environment(linear(4), config, gamma=1.0, whole_episodes=False, seed=seed)
        return [source.collect(refresh).rollout.inputs.observations.tolist() for refresh in range(2)]

    one = collected(1)
    assert one == collected(1)
    assert one != collected(2)


def correlation(starts: np.ndarray, actions: np.ndarray) -> float:
    """The largest of a coordinate of CartPole's first states with the first actions, in standard errors."""
    found = [np.corrcoef(column, actions)[0, 1] for column in starts.T]
    return float(np.abs(found).max() * np.sqrt(len(actions)))


@pytest.mark.parametrize("seed", [0, 1])
def test_actions_are_not_drawn_from_the_numbers_that_the_environment_draws_from(seed: int) -> None:
    """Both are seeded alike; the same stream would tie what is done to where an episode begins."""
    config = EnvironmentConfig(env="CartPole-v1", envs=2000, steps=1)
    for refresh in range(2):
        source = Environment(linear(4), config, gamma=1.0, whole_episodes=False, seed=seed)
        inputs = source.collect(refresh).rollout.inputs
        assert correlation(inputs.observations[:, 0].numpy(), inputs.actions[:, 0].numpy()) < 4


def test_actions_in_one_copy_are_drawn_from_other_numbers_than_the_environment_too() -> None:
    config, firsts = EnvironmentConfig(env=CARTPOLE, envs=1, steps=1), []
    for seed in range(300):
        source = Environment(linear(4), config, gamma=1.0, whole_episodes=False, seed=seed)
        firsts.append(source.collect(0).rollout.inputs)
    starts = np.stack([first.observations[0, 0].numpy() for first in firsts])
    assert correlation(starts, np.array([int(first.actions[0, 0]) for first in firsts])) < 4


@pytest.mark.parametrize("bad", [{"envs": 0}, {"steps": -1}])
def test_impossible_collections_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"it must be a number above 0"):
        EnvironmentConfig(env="CartPole-v1", **bad)
