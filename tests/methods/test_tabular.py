"""The methods in a world that is solved exactly: their gradients, and where training ends."""

from typing import Any

import numpy as np
import pytest
import torch
from tests.tabular import (
    BATCHES,
    COPIES,
    LARGEST_Z,
    LEAST_CHANCE,
    LOGITS,
    NAME,
    PI,
    STATES,
    STEPS,
    WORLD,
    Array,
    by_logit,
    chances_of,
    credited,
    made,
    table,
    unlikely,
)

from trimtab.control_jobs import ControlConfig
from trimtab.methods import trpo
from trimtab.online import train_online
from trimtab.policies.control import ControlPolicy
from trimtab.rollouts.environment import Environment, EnvironmentConfig
from trimtab.rollouts.rollout import Rollout
from trimtab.train import backward


def test_the_world_can_be_told_apart() -> None:
    """What a state is worth, and which action is best, differ enough for the tests below to see it."""
    assert np.ptp(WORLD.values(PI, 0.9)) > 1
    assert len(set((WORLD.action_values(PI, 0.9)).argmax(1))) > 1
    assert abs(WORLD.values(PI, 0.9)[0]) > 0.3  # that of the state which is shown after the end
    np.testing.assert_allclose(WORLD.moves.sum(-1), 1)


def test_linear_systems_and_sums_over_time_agree() -> None:
    """V and the visits by their systems of equations, against their sums over time."""
    here, value, visits = np.eye(STATES), np.zeros(STATES), np.zeros(STATES)
    for t in range(400):
        value += 0.9**t * here @ (PI * WORLD.rewards).sum(1)
        visits += WORLD.start @ here
        here = here @ WORLD.steps(PI)
    np.testing.assert_allclose(WORLD.values(PI, 0.9), value)
    np.testing.assert_allclose(WORLD.visits(PI), visits)
    # two episodes cannot begin within two steps: what is left of the first one, and an idle step
    np.testing.assert_allclose(WORLD.visits_within(PI, 2), WORLD.start + WORLD.start @ WORLD.steps(PI))


@pytest.mark.parametrize("gamma", [0.9, 1.0])
def test_the_policy_gradient_theorem(gamma: float) -> None:
    """The return's derivative weighs states by discounted visits (Sutton et al. 2000, th. 1)."""
    found = WORLD.gradient(PI, gamma, WORLD.visits(PI, gamma))
    np.testing.assert_allclose(found, WORLD.true_gradient(LOGITS, gamma), rtol=1e-9, atol=1e-12)


CASES: list[tuple[str, dict[str, Any], bool]] = [  # and whether whole episodes are collected
    ("reinforce", {"baseline": "none"}, True),
    ("reinforce", {"baseline": "mean"}, True),
    ("reinforce", {"baseline": "value"}, True),
    ("reinforce", {"baseline": "value"}, False),
    ("a2c", {"lam": 1.0}, True),
    ("a2c", {"lam": 0.9, "entropy_bonus": 0.3}, False),
    ("ppo", {"lam": 0.9, "whiten": False}, False),
    ("ppo", {"lam": 0.9, "whiten": False, "entropy_bonus": 0.3}, False),
    ("ppo_kl", {"lam": 0.5, "whiten": False}, False),
    ("trpo", {"lam": 0.9, "whiten": False}, True),
    ("trpo", {"lam": 0.9, "whiten": False}, False),
]
cases = pytest.mark.parametrize(("name", "parameters", "whole_episodes"), CASES)


def gradients(method: Any, policy: ControlPolicy, rollout: Rollout) -> tuple[Array, Array]:
    """Of batches of copies, for each copy: [K, S * A] of the actor's loss, [K, S] of the critic's."""
    of_actor, of_critic = [], []
    each, steps = COPIES // BATCHES, rollout.flattened()
    sizes = rollout.mask.sum(1).view(BATCHES, each).sum(1).tolist()
    for [batch] in steps.minibatches([[rows] for rows in torch.arange(steps.size).split(sizes)]):
        for vector in policy.parameters():
            vector.grad = None
        backward(method, policy, [batch])
        found = [v.grad if v.grad is None else v.grad * (batch.steps / each) for v in policy.parameters()]
        actors = surrogate_gradient(method, policy, batch) / each if method.name == "trpo" else found[0]
        assert actors is not None
        of_actor.append(by_logit(policy, actors).ravel())
        if policy.critic is not None:
            assert found[1] is not None
            of_critic.append(policy.critic.pieces(found[1])["0.weight"][0].double().numpy())
    return np.stack(of_actor), np.stack(of_critic) if of_critic else np.zeros((0, STATES))


def surrogate_gradient(method: Any, policy: ControlPolicy, batch: Rollout) -> torch.Tensor:
    """What TRPO makes its step of, the sum over steps; no step is made."""
    seen: list[torch.Tensor] = []

    def no_step(product: Any, gradient: torch.Tensor, **options: Any) -> torch.Tensor:
        seen.append(gradient)
        return torch.zeros_like(gradient)

    before = policy.actor.vector.detach().clone()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trpo, "natural_step", no_step)
        assert method.whole_step(policy, [batch])["step_norm"] == 0.0
    assert torch.equal(policy.actor.vector, before)
    return seen[0] * batch.steps


def expected_gradient(gamma: float, bonus: float, whole_episodes: bool) -> Array:
    """[S * A] of the loss, for each copy: states count as often as they are visited, whatever gamma is."""
    visits = WORLD.visits(PI) if whole_episodes else WORLD.visits_within(PI, STEPS)
    entropy = -(PI * np.log(PI)).sum(1, keepdims=True)
    of_entropy = -visits[:, None] * PI * (np.log(PI) + entropy)
    return -(WORLD.gradient(PI, gamma, visits) + bonus * of_entropy).ravel()


@cases
@pytest.mark.parametrize("gamma", [0.9, 1.0])
def test_mean_gradients_are_those_of_dynamic_programming(
    name: str, parameters: dict[str, Any], whole_episodes: bool, gamma: float
) -> None:
    """Q - V weighted by undiscounted visits, as in the field; and exact values are where the critic rests."""
    options = {"halvings": 0} if name == "trpo" else {}
    method = made(name, gamma=gamma, **parameters, **options)
    values = WORLD.values(PI, gamma) if method.needs_critic else None
    policy = table(LOGITS, values)
    of_actor, of_critic = gradients(method, policy, credited(method, policy, whole_episodes))
    expected = expected_gradient(gamma, parameters.get("entropy_bonus", 0.0), whole_episodes)
    z, chance = unlikely(of_actor, expected)
    assert z < LARGEST_Z and chance > LEAST_CHANCE
    off = float(np.linalg.norm(of_actor.mean(0) - expected) / np.linalg.norm(expected))
    assert off < 0.05
    if method.needs_critic:
        z, chance = unlikely(of_critic, np.zeros(STATES))
        assert z < LARGEST_Z and chance > LEAST_CHANCE
    if gamma == 1.0 and whole_episodes and not parameters.get("entropy_bonus"):
        true = -WORLD.true_gradient(LOGITS, 1.0).ravel()
        assert unlikely(of_actor, true)[0] < LARGEST_Z


def test_what_discounting_leaves_out_would_be_seen() -> None:
    """With gamma 0.9 it is not the derivative of the discounted return: later states count in full."""
    method = made("reinforce", baseline="none", gamma=0.9)
    policy = table(LOGITS)
    found, _ = gradients(method, policy, credited(method, policy, True))
    z, chance = unlikely(found, -WORLD.true_gradient(LOGITS, 0.9).ravel())
    assert z > 10 and chance < 1e-9


@pytest.mark.parametrize("lam", [0.0, 0.9, 1.0])
def test_a_critic_learns_the_values_of_a_policy_that_rests(lam: float) -> None:
    """Through the loop, cut rows, idle steps and all."""
    policy = table(LOGITS, np.zeros(STATES))
    config = EnvironmentConfig(env=NAME, envs=256, steps=6)
    source = Environment(policy, config, gamma=0.9, whole_episodes=False, seed=3)
    run = ControlConfig(
        total_steps=400_000,
        learning_rate=1e-12,
        critic_learning_rate=0.03,
        schedule="linear",
        max_grad_norm=0,
    )
    for _ in train_online(made("a2c", gamma=0.9, lam=lam), policy, source, run.run(config)):
        pass
    np.testing.assert_allclose(chances_of(policy), PI, atol=1e-6)
    tensors = policy.tensors()
    found = (tensors["critic.0.weight"][0] + tensors["critic.0.bias"]).numpy()
    np.testing.assert_allclose(found, WORLD.values(PI, 0.9), atol=0.1)


TRAINED: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("reinforce", {}, {"learning_rate": 0.1}),
    ("reinforce", {"baseline": "value"}, {"learning_rate": 0.2}),
    ("a2c", {}, {"learning_rate": 0.2}),
    ("ppo", {}, {"learning_rate": 0.03, "minibatch_size": 512}),
    ("ppo_kl", {}, {"learning_rate": 0.03, "minibatch_size": 512}),
    ("trpo", {"max_kl": 0.03}, {"learning_rate": 0.03, "critic_learning_rate": 0.1}),
]


@pytest.mark.parametrize(("name", "parameters", "options"), TRAINED)
def test_every_method_finds_the_optimal_policy(
    name: str, parameters: dict[str, Any], options: dict[str, Any]
) -> None:
    """Its return within 2 % of that of value iteration, from a policy that acts by chance."""
    gamma = 0.9
    method = made(name, gamma=gamma, **parameters)
    policy = table(None, np.zeros(STATES) if method.needs_critic else None)
    config = EnvironmentConfig(env=NAME, envs=128, steps=16)
    source = Environment(policy, config, gamma=gamma, whole_episodes=not method.needs_critic, seed=0)
    run = ControlConfig(total_steps=200_000, schedule="linear", **options)
    best, before = WORLD.best(gamma), WORLD.return_of(chances_of(policy), gamma)
    assert before < 0.6 * best
    for _ in train_online(method, policy, source, run.run(config)):
        pass
    assert WORLD.return_of(chances_of(policy), gamma) > 0.98 * best
