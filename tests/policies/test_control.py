"""Control policies against torch.distributions, TRPO's products against matrices, files, moments."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.control_steps import (
    HEADS,
    NETWORKS,
    OBSERVATION,
    PRECISIONS,
    assert_near,
    both,
    every_step,
    experience,
    gradients,
    made,
    online_method,
    random_steps,
)
from torch import Tensor
from torch.distributions import Categorical, Independent, Normal
from torch.nn import functional

from trimtab.objectives.trust_region import fisher_vector_product
from trimtab.policies.control import ControlPolicy, NetworkConfig, Steps
from trimtab.policies.heads import CategoricalHead, GaussianHead
from trimtab.policies.moments import Moments

OTHERS: list[dict[str, Any]] = [{"activation": activation} for activation in ("elu", "silu", "gelu")]
heads = pytest.mark.parametrize("name", HEADS)
networks = pytest.mark.parametrize(
    "network", NETWORKS, ids=lambda network: "-".join(map(str, network.values()))
)
precisions = pytest.mark.parametrize("precision", PRECISIONS, ids=["float32", "float64"])


def by_hand(policy: ControlPolicy, observations: Tensor, activation: str) -> tuple[Any, Tensor]:
    """The distribution of actions by torch.distributions, and the values, from the policy's tensors alone."""
    tensors = policy.tensors()

    def network(prefix: str) -> Tensor:
        weights = [t for n, t in tensors.items() if n.startswith(prefix) and n.endswith("weight")]
        biases = [t for n, t in tensors.items() if n.startswith(prefix) and n.endswith("bias")]
        x = observations
        for place, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            x = x @ weight.T + bias
            if place < len(weights) - 1:
                x = getattr(functional, activation)(x)
        return x

    outputs = network("actor.")
    if "actor.log_std" in tensors:
        std = tensors["actor.log_std"].exp().expand_as(outputs)
        return Independent(Normal(outputs, std), 1), network("critic.")[..., 0]
    return Categorical(logits=outputs), network("critic.")[..., 0]


@heads
@pytest.mark.parametrize("network", [*NETWORKS, *OTHERS], ids=str)
@precisions
@pytest.mark.parametrize("closed", [True, False], ids=["closed form", "torch"])
def test_log_probs_entropies_and_values_are_those_of_torch_distributions(
    name: str, network: dict[str, Any], precision: tuple[torch.dtype, float], closed: bool
) -> None:
    dtype, bound = precision
    policy = made(name, dtype, closed_form=closed, **network)
    steps, activation = random_steps(name, 0, dtype), network.get("activation", "tanh")
    distribution, values = by_hand(policy, steps.observations[:, :-1], activation)
    _, next_values = by_hand(policy, steps.observations[:, 1:], activation)
    with torch.set_grad_enabled(not closed):  # with gradients to come, evaluation is torch's
        out = policy.evaluate(steps, entropy=True)
    assert_near(out.logprobs.detach(), distribution.log_prob(steps.actions), bound)
    assert_near(out.entropy.detach(), distribution.entropy(), bound)
    assert_near(out.values.detach(), values, bound)
    assert_near(out.next_values.detach(), next_values, bound)
    assert policy.evaluate(steps).entropy is None


@heads
def test_single_steps_are_evaluated_like_rows_of_steps(name: str) -> None:
    policy, steps = made(name), random_steps(name, 1)
    mask = torch.rand(steps.actions.shape[:2], generator=torch.Generator().manual_seed(0)) < 0.7
    rows = policy.evaluate(steps, entropy=True)
    single = policy.evaluate(steps.flattened(mask), entropy=True)
    for of_rows, of_singles in (
        (rows.logprobs, single.logprobs),
        (rows.entropy, single.entropy),
        (rows.values, single.values),
    ):
        assert of_singles.shape == (int(mask.sum()), 1)
        torch.testing.assert_close(of_singles[:, 0], of_rows[mask])
    assert single.next_values is None
    assert made(name, critic=False).evaluate(steps).values is None


@heads
@pytest.mark.parametrize("how", ["optimiser", "load", "trpo"])
def test_the_hand_written_passes_see_every_change_of_the_parameters(name: str, how: str) -> None:
    policy, torchs = both(name, dtype=torch.float64)
    trpo: Any = online_method("trpo")
    rollout = experience(trpo, torchs, name, seed=3)
    with torch.no_grad():
        before = policy.evaluate(rollout.inputs).logprobs.clone()
    if how == "optimiser":
        optimiser = torch.optim.AdamW(policy.parameters(), lr=0.05, fused=True)
        gradients(online_method("a2c"), policy, rollout)
        optimiser.step()
    elif how == "load":
        policy.load({n: t + 0.1 for n, t in policy.tensors().items()})
    else:
        assert trpo.whole_step(policy, [rollout])["step_accepted"] == 1.0
    torchs.load(policy.tensors())
    with torch.no_grad():
        mine, theirs = (p.evaluate(rollout.inputs) for p in (policy, torchs))
    assert float((mine.logprobs - before).abs().max()) > 1e-3
    torch.testing.assert_close(mine.logprobs, theirs.logprobs, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(mine.values, theirs.values, rtol=1e-10, atol=1e-12)


@heads
def test_a_trpo_step_is_the_same_by_both_ways(name: str) -> None:
    trpo: Any = online_method("trpo", damping=0.01)
    policies = both(name, dtype=torch.float64)
    rollout = experience(trpo, policies[1], name, seed=9)
    found = [trpo.whole_step(policy, [rollout]) for policy in policies]
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    assert found[0]["step_accepted"] == 1.0 and 0 < found[0]["old_kl"] <= trpo.max_kl
    torch.testing.assert_close(policies[0].actor.vector, policies[1].actor.vector, rtol=1e-6, atol=1e-8)


def quadrature(name: str, distributions: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Actions [M] or [M, A] and their weights [M], in sum 1: all discrete ones, or nodes of Hermite's rule.

    Squared scores of a Gaussian are polynomials of degree 4, for which 4 nodes are exact.
    """
    if name == "discrete":
        return [(torch.full((len(distributions),), a), p) for a, p in enumerate(distributions.exp().T)]
    mean, log_std = distributions.chunk(2, -1)
    nodes, weights = np.polynomial.hermite_e.hermegauss(4)
    weights = weights / weights.sum()
    return [
        (mean + log_std.exp() * torch.tensor([nodes[i], nodes[j]]), torch.tensor(weights[i] * weights[j]))
        for i in range(4)
        for j in range(4)
    ]


@heads
@pytest.mark.parametrize("hidden", [(), (4,)])
@pytest.mark.parametrize("closed", [True, False], ids=["closed form", "torch"])
def test_the_fisher_product_is_that_of_the_matrix(name: str, hidden: Any, closed: bool) -> None:
    """F = sum over steps and actions of p g g^T, g = grad log p by torch, from the policy's log-probs."""
    policy = made(name, torch.float64, hidden=hidden, closed_form=closed)
    steps = random_steps(name, 11, torch.float64)
    steps = Steps(steps.observations[:, 0], steps.actions[:, 0])
    distributions = policy.distributions(steps).detach()
    size = policy.actor.vector.numel()
    matrix = torch.zeros(size, size, dtype=torch.float64)
    for actions, weights in quadrature(name, distributions):
        logprobs = policy.evaluate(Steps(steps.observations, actions)).logprobs[:, 0]
        for logprob, weight in zip(logprobs, weights.expand(len(logprobs)), strict=True):
            [score] = torch.autograd.grad(logprob, policy.actor.vector, retain_graph=True)
            matrix += weight * torch.outer(score, score)
    vector = torch.randn(size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    product = fisher_vector_product(
        partial(policy.distributions_with, inputs=steps),
        policy.family.fisher,
        {**policy.named_parameters()},
        {"actor": vector},
    )
    assert_near(product["actor"], matrix @ vector, 1e-10)


@heads
def test_distributions_with_other_parameters_are_those_after_a_move(name: str) -> None:
    policy, steps = made(name, torch.float64), random_steps(name, 12, torch.float64)
    single = every_step(steps)
    other = policy.actor.vector.detach() + 0.1
    before = policy.distributions(single).detach()
    found = policy.distributions_with({"actor": other}, single).detach()
    torch.testing.assert_close(policy.distributions(single).detach(), before)
    with torch.no_grad():
        policy.actor.vector.copy_(other)
    torch.testing.assert_close(policy.distributions(single).detach(), found)
    assert float((found - before).abs().max()) > 1e-2
    logprobs = policy.head.logprobs(found, single.actions)
    torch.testing.assert_close(policy.evaluate(single).logprobs[:, 0].detach(), logprobs)


@heads
@pytest.mark.parametrize("activation", ["tanh", "elu"])
def test_a_saved_policy_acts_bit_for_bit_the_same(name: str, activation: Any, tmp_path: Path) -> None:
    policy = made(name, activation=activation)
    generator = np.random.default_rng(0)
    policy.moments.update(generator.normal(3.0, 7.0, (100, OBSERVATION)))
    policy.normalises = True
    policy.save(tmp_path / "new")
    other = ControlPolicy(
        OBSERVATION, HEADS[name], NetworkConfig(hidden=(8, 5), activation=activation), seed=9
    )
    raw = generator.normal(3.0, 7.0, (50, OBSERVATION)).astype(np.float32)

    def acts(by: ControlPolicy) -> list[np.ndarray]:
        seen = by.normalised(raw)
        return [by.act(seen, None), by.act(seen, np.random.default_rng(5))]

    def same(one: Any, two: Any) -> bool:
        return all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))

    other.normalises = True
    assert not same(acts(other), acts(policy))
    other.load(load_file(tmp_path / "new" / "policy.safetensors"))
    assert same(acts(other), acts(policy))
    steps = random_steps(name, 0)
    assert torch.equal(other.evaluate(steps).values, policy.evaluate(steps).values)
    assert torch.equal(other.evaluate(steps).logprobs, policy.evaluate(steps).logprobs)
    assert other.moments.count == 100


@pytest.mark.parametrize(
    "other",
    [
        ControlPolicy(OBSERVATION, HEADS["discrete"], NetworkConfig(hidden=(8, 6))),
        ControlPolicy(OBSERVATION, HEADS["discrete"], NetworkConfig(hidden=(8,))),
        ControlPolicy(OBSERVATION, CategoricalHead(3), NetworkConfig(hidden=(8, 5))),
        ControlPolicy(OBSERVATION + 1, HEADS["discrete"], NetworkConfig(hidden=(8, 5))),
        ControlPolicy(OBSERVATION, HEADS["discrete"], NetworkConfig(hidden=(8, 5)), has_critic=False),
    ],
    ids=["wider", "shallower", "fewer actions", "longer observations", "no critic"],
)
def test_the_tensors_of_another_policy_are_refused(other: ControlPolicy) -> None:
    with pytest.raises((KeyError, ValueError)):
        made("discrete").load(other.tensors())


@pytest.mark.parametrize("one", [CategoricalHead(1), GaussianHead(1, 0.0)], ids=["discrete", "gaussian"])
def test_a_policy_with_one_output_is_not_spread_over_many(one: Any) -> None:
    """Copying a tensor [1, H] to [A, H] would repeat it."""
    network = NetworkConfig(hidden=(8, 5))
    name = "discrete" if isinstance(one, CategoricalHead) else "gaussian"
    with pytest.raises((KeyError, ValueError)):
        made(name).load(ControlPolicy(OBSERVATION, one, network).tensors())


def test_normalised_observations_by_hand() -> None:
    """Mean (1, 2, 3), variance (4, 1/4, 1): distances in deviations, kept within 10."""
    policy = made("discrete")
    seen = np.array([[3.0, 2.0, 2.0], [1.0, 2.5, -1e6]])
    assert policy.normalised(seen).tolist() == seen.astype(np.float32).tolist()
    policy.normalises = True
    policy.moments = Moments(np.array([1.0, 2.0, 3.0]), np.array([4.0, 0.25, 1.0]), 5.0)
    found = policy.normalised(seen)
    assert found.dtype == np.float32
    assert found.tolist() == [pytest.approx([1.0, 0.0, -1.0]), pytest.approx([0.0, 1.0, -10.0])]
