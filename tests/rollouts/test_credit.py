"""Advantages of scripted episodes, and what the loop learns from, against sums in plain Python."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tests.control_environments import (
    COPIES,
    NATIVE,
    Moment,
    environment,
    kinds,
    linear,
    register,
    rows_of,
    told,
    whole_rows,
)

from trimtab.control_jobs import ControlConfig
from trimtab.methods import find
from trimtab.online import train_online
from trimtab.policies.control import ControlPolicy, NetworkConfig
from trimtab.policies.heads import CategoricalHead
from trimtab.rollouts.rollout import Rollout

register()
GAMMA, LAM = 0.9, 0.7


def value(observation: tuple[float, ...]) -> float:
    """The critic of the tests below."""
    copy, episode, step = observation
    return 0.5 * copy - 1.5 * episode + 0.25 * step + 2.0


def critic() -> ControlPolicy:
    return linear(3, weights=(0.5, -1.5, 0.25), bias=2.0)


def episodes_of(row: list[Moment]) -> Iterator[list[Moment]]:
    """The steps of each episode, or of the part of it that was collected."""
    episode: list[Moment] = []
    for m in row:
        if m.chosen:
            episode.append(m)
        if m.ended or not m.chosen:
            yield episode
            episode = []
    yield episode


def advantages_of(episode: list[Moment], gamma: float, lam: float) -> dict[tuple[float, ...], float]:
    """sum of (gamma lam)^k delta by the state that a step began in; nothing follows a termination."""
    deltas = [m.reward + gamma * value(m.after) * (not m.terminated) - value(m.before) for m in episode]
    return {
        m.before: sum((gamma * lam) ** k * delta for k, delta in enumerate(deltas[t:]))
        for t, m in enumerate(episode)
    }


def expected_advantages(rows: list[list[Moment]], lam: float) -> dict[tuple[float, ...], float]:
    return {
        state: advantage
        for row in rows
        for episode in episodes_of(row)
        for state, advantage in advantages_of(episode, GAMMA, lam).items()
    }


def as_found(rollout: Rollout, name: str) -> dict[tuple[float, ...], float]:
    """A field by the state that the step began in, where the policy chose."""
    states = rollout.inputs.observations[:, :-1][rollout.mask].tolist()
    return dict(zip(map(tuple, states), getattr(rollout, name)[rollout.mask].tolist(), strict=True))


def credited(method: Any, policy: ControlPolicy, rollout: Rollout) -> Rollout:
    with torch.no_grad():
        out = policy.evaluate(rollout.inputs)
    return method.advantages(
        replace(rollout, old_logprobs=out.logprobs, values=out.values, next_values=out.next_values)
    )


@kinds
@pytest.mark.parametrize("steps", [1, 4, 7, 12])
def test_advantages_are_those_of_each_episode_by_itself(name: str, steps: int) -> None:
    """What was cut off, by a time limit or by the collection's end, has the value of its last state."""
    policy, stories = critic(), [told(copy) for copy in range(COPIES)]
    source = environment(name, policy, steps=steps)
    gae: Any = find("a2c")
    reinforce: Any = find("reinforce")
    for refresh in range(4):
        rows, rollout = rows_of(stories, steps), source.collect(refresh).rollout
        if not rollout.steps:
            continue
        found = as_found(credited(gae(gamma=GAMMA, lam=LAM), policy, rollout), "advantages")
        assert found == pytest.approx(expected_advantages(rows, LAM), rel=1e-5, abs=1e-5)
        returns = as_found(credited(gae(gamma=GAMMA, lam=LAM), policy, rollout), "returns")
        assert returns == pytest.approx({s: a + value(s) for s, a in found.items()}, rel=1e-5, abs=1e-5)
        bare = credited(reinforce(gamma=GAMMA, baseline="value"), policy, rollout)
        assert as_found(bare, "advantages") == pytest.approx(
            expected_advantages(rows, 1.0), rel=1e-5, abs=1e-5
        )


def test_next_values_are_those_of_the_state_that_follows() -> None:
    """After a truncation that is the last state of the episode, not the first of the next one."""
    policy = critic()
    source, stories = environment(NATIVE, policy, steps=12), [told(copy) for copy in range(COPIES)]
    rows, rollout = rows_of(stories, 12), source.collect(0).rollout
    out = policy.evaluate(rollout.inputs)
    expected = [[value(m.after) for m in row] for row in rows]
    np.testing.assert_allclose(out.next_values.detach().numpy(), expected, rtol=1e-6)
    truncated = [(i, t) for i, row in enumerate(rows) for t, m in enumerate(row) if m.truncated]
    assert len(truncated) > 3
    assert all(rows[i][t].after[2] > 0 for i, t in truncated)


class Watched:
    """A method that keeps the single steps that its loss is given."""

    def __init__(self, method: Any) -> None:
        self.method = method
        self.batches: list[Rollout] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.method, name)

    def loss(self, policy: Any, batch: Rollout) -> Any:
        self.batches.append(batch)
        return self.method.loss(policy, batch)


@kinds
def test_the_loop_learns_from_every_chosen_step_once_an_epoch_and_from_no_other(name: str) -> None:
    """In minibatches of 5, with the advantages of the script, at ratio 1 in the first of them."""
    policy, stories = critic(), [told(copy) for copy in range(COPIES)]
    source = environment(name, policy, steps=12)
    rows = rows_of(stories, 12)
    expected = expected_advantages(rows, LAM)
    ppo: Any = find("ppo")
    watched: Any = Watched(ppo(gamma=GAMMA, lam=LAM, whiten=False))
    config = ControlConfig(total_steps=1, epochs=2, minibatch_size=5, learning_rate=1e-9)
    [refresh] = train_online(watched, policy, source, config.run(source.config))
    assert refresh.metrics["steps"] == len(expected)
    assert refresh.metrics["clip_fraction"] == 0 and abs(refresh.metrics["old_kl"]) < 1e-9  # nothing moved
    seen = [
        (tuple(state), advantage, logprob)
        for batch in watched.batches
        for state, advantage, logprob in zip(
            batch.inputs.observations.tolist(),
            batch.advantages.value.ravel().tolist(),
            batch.old_logprobs.value.ravel().tolist(),
            strict=True,
        )
    ]
    for epoch in (seen[: len(expected)], seen[len(expected) :]):
        assert {state: advantage for state, advantage, _ in epoch} == pytest.approx(
            expected, rel=1e-5, abs=1e-5
        )
        assert len(epoch) == len(expected)
    assert [logprob for *_, logprob in seen] == pytest.approx([-np.log(2)] * len(seen))
    sizes = [batch.size for batch in watched.batches]
    assert max(sizes) == 5 and len(sizes) == 2 * -(-len(expected) // 5)


def test_without_a_critic_what_was_truncated_ends_with_nothing() -> None:
    policy = ControlPolicy(3, CategoricalHead(2), NetworkConfig(hidden=()), has_critic=False)
    source = environment(policy=policy, whole_episodes=True)
    rollout = source.collect(0).rollout
    reinforce: Any = find("reinforce")
    found = as_found(credited(reinforce(gamma=GAMMA, baseline="none"), policy, rollout), "advantages")
    expected = {
        m.before: sum(GAMMA**k * later.reward for k, later in enumerate(episode[t:]))
        for row in whole_rows([0] * COPIES)
        for episode in episodes_of(row)
        for t, m in enumerate(episode)
    }
    assert found == pytest.approx(expected, rel=1e-5)
    centred = as_found(credited(reinforce(gamma=GAMMA, baseline="mean"), policy, rollout), "advantages")
    mean = sum(expected.values()) / len(expected)
    assert centred == pytest.approx({s: g - mean for s, g in expected.items()}, rel=1e-5, abs=1e-4)


def test_the_learning_rate_falls_to_zero_and_not_beyond() -> None:
    """Steps that nobody chose do not count: there are more collections than total_steps / (envs * steps)."""
    policy = critic()
    source, rates = environment(policy=policy, steps=8), []
    a2c: Any = find("a2c")
    config = ControlConfig(
        total_steps=24 * 7, schedule="linear", learning_rate=1e-3, minibatch_size=4, epochs=3
    )
    for refresh in train_online(a2c(), policy, source, config.run(source.config)):
        rates.append(refresh.metrics["learning_rate"])
    assert source.total_steps >= 24 * 7
    assert rates == sorted(rates, reverse=True)
    assert rates[0] > 0.9e-3
    last: Any = Watched(a2c())
    assert min(rates) >= 0, last


def test_a_collection_of_whole_episodes_is_one_step_of_the_optimiser_unless_it_is_cut() -> None:
    policy = ControlPolicy(3, CategoricalHead(2), NetworkConfig(hidden=()), has_critic=False)
    source = environment(policy=policy, whole_episodes=True, steps=1)  # shorter than the episodes
    reinforce: Any = find("reinforce")
    watched: Any = Watched(reinforce())
    config = ControlConfig(total_steps=1)
    [refresh] = train_online(watched, policy, source, config.run(source.config))
    assert refresh.metrics["steps"] == 15
    assert [batch.size for batch in watched.batches] == [15]


@pytest.mark.parametrize("name", ["a2c", "ppo", "trpo"])
def test_a_collection_in_which_nothing_was_chosen_does_no_harm(name: str) -> None:
    """One copy and one step: between two episodes there is nothing to learn from."""
    policy = critic()
    source, cls = environment(policy=policy, steps=1, copies=1), find(name)
    method: Any = cls()
    config = ControlConfig(total_steps=12)
    steps = [r.metrics["steps"] for r in train_online(method, policy, source, config.run(source.config))]
    assert source.total_steps == sum(steps) == 12
    assert all(bool(vector.isfinite().all()) for vector in policy.parameters())
