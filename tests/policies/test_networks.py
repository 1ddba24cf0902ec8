"""How networks start, which are refused, and those that go through torch."""

import math
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from tests.control_steps import (
    HEADS,
    OBSERVATION,
    every_step,
    gradient_of,
    gradients,
    online_method,
    random_steps,
)
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, Normal

from trimtab.errors import UserError
from trimtab.policies.base import Evaluation
from trimtab.policies.control import ControlPolicy, NetworkConfig, Steps
from trimtab.policies.heads import CategoricalHead, GaussianHead
from trimtab.rollouts.rollout import Rollout

heads = pytest.mark.parametrize("name", HEADS)


@pytest.mark.parametrize("hidden", [(), (16,), (64, 32)])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_weights_start_orthogonal_with_their_gains(hidden: Any, activation: Any) -> None:
    """W W^T, or W^T W where W is tall, is gain^2 times the identity: 2 inside, 0.01^2 and 1 at the ends."""
    config = NetworkConfig(hidden=hidden, activation=activation, log_std=-0.5)
    policy = ControlPolicy(5, GaussianHead(3, config.log_std), config, seed=1)
    tensors = policy.tensors()
    for prefix, last in (("actor.body.", 1e-4), ("critic.", 1.0)):
        weights = [t for n, t in tensors.items() if n.startswith(prefix) and n.endswith("weight")]
        assert [w.shape[0] for w in weights] == [*hidden, 3 if prefix == "actor.body." else 1]
        for weight, square in zip(weights, [2.0] * len(hidden) + [last], strict=True):
            gram = weight @ weight.T if len(weight) <= weight.shape[1] else weight.T @ weight
            torch.testing.assert_close(gram / square, torch.eye(len(gram)), rtol=1e-5, atol=1e-5)
    assert all(not t.any() for n, t in tensors.items() if n.endswith("bias"))
    assert tensors["actor.log_std"].tolist() == [-0.5] * 3


def test_torchs_own_start_is_uniform_within_one_over_the_root_of_the_inputs() -> None:
    config = NetworkConfig(hidden=(400,), orthogonal=False)
    tensors = ControlPolicy(25, CategoricalHead(3), config).tensors()
    weight, bias = tensors["actor.body.0.weight"].flatten(), tensors["actor.body.0.bias"]
    for values in (weight, bias):
        assert stats.kstest(values.numpy(), "uniform", args=(-0.2, 0.4)).pvalue > 1e-3


def test_the_seed_decides_the_start_and_nothing_else_does() -> None:
    def vectors(seed: int) -> Tensor:
        policy = ControlPolicy(OBSERVATION, HEADS["discrete"], NetworkConfig(), seed=seed)
        return torch.cat([v.detach() for v in policy.parameters()])

    torch.manual_seed(1)
    first, drawn = vectors(7), torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3), drawn)  # making a policy draws nothing from torch's own generator
    assert torch.equal(vectors(7), first)
    assert not torch.equal(vectors(8), first)
    actor = ControlPolicy(OBSERVATION, HEADS["discrete"], NetworkConfig(), seed=7, has_critic=False).actor
    assert torch.equal(actor.vector, first[: actor.vector.numel()])


@pytest.mark.parametrize("bad", [{"hidden": (8, 0)}, {"hidden": (-1,)}, {"log_std": 9.0}])
def test_impossible_networks_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"hidden is|log_std is"):
        NetworkConfig(**bad)


class Bumps(nn.Module):
    """A network that no perceptron is: distances to centres, which are learned too."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.centres = nn.Parameter(torch.randn(12, OBSERVATION, generator=generator))
        self.heights = nn.Parameter(torch.randn(outputs, 12, generator=generator))

    def forward(self, observations: Tensor) -> Tensor:
        distances = (observations[:, None] - self.centres).square().sum(-1)
        return (-distances / 2).exp() @ self.heights.T


def tied(outputs: int) -> nn.Module:
    """A layer that stands at two places."""
    layer = nn.Linear(outputs, outputs)
    return nn.Sequential(nn.Linear(OBSERVATION, outputs), nn.Tanh(), layer, nn.Tanh(), layer)


def inside(*middle: nn.Module) -> Callable[[int], nn.Sequential]:
    """Two linear layers with something between them."""
    return lambda outputs: nn.Sequential(nn.Linear(OBSERVATION, 6), *deepcopy(middle), nn.Linear(6, outputs))


BODIES: dict[str, Callable[[int], nn.Module]] = {
    "bumps": Bumps,
    "a layer alone": lambda outputs: nn.Linear(OBSERVATION, outputs),
    "a perceptron": inside(nn.ReLU()),
    "squashed at its end": lambda outputs: nn.Sequential(inside(nn.Tanh())(outputs), nn.Tanh()),
    "squashed at the end of its layers": lambda outputs: inside(nn.Tanh())(outputs).append(nn.Tanh()),
    "squashed at its start": lambda outputs: nn.Sequential(nn.Tanh(), nn.Linear(OBSERVATION, outputs)),
    "two activations": inside(nn.Tanh(), nn.Linear(6, 6), nn.ReLU()),
    "another activation": inside(nn.LeakyReLU()),
    "a norm": inside(nn.LayerNorm(6), nn.Tanh()),
    "no bias": inside(nn.Tanh(), nn.Linear(6, 6, bias=False), nn.Tanh()),
    "a layer at two places": tied,
}


@heads
@pytest.mark.parametrize("which", BODIES)
def test_any_network_is_computed_as_it_stands(name: str, which: str) -> None:
    """Log-probs, and their gradient, from the module itself."""
    torch.manual_seed(0)
    body = BODIES[which](HEADS[name].size)
    own = deepcopy(body)
    policy = ControlPolicy(OBSERVATION, HEADS[name], NetworkConfig(), actor=body)
    steps = every_step(random_steps(name, 1))
    outputs = own(steps.observations)
    std = math.exp(-0.3)
    peer: Any = Categorical(logits=outputs) if name == "discrete" else Independent(Normal(outputs, std), 1)
    expected = peer.log_prob(steps.actions)
    torch.testing.assert_close(policy.evaluate(steps).logprobs[:, 0], expected)
    with torch.no_grad():
        torch.testing.assert_close(policy.evaluate(steps).logprobs[:, 0], expected)
    most_likely = policy.act(steps.observations.numpy(), None)
    torch.testing.assert_close(
        torch.from_numpy(most_likely), outputs.argmax(-1) if name == "discrete" else outputs.detach()
    )
    found, _ = gradient_of(policy, steps, lambda out: out.logprobs.square())
    expected.square().sum().backward()
    pieces = policy.actor.pieces(found)
    for parameter, peers in own.named_parameters():
        torch.testing.assert_close(pieces[f"body.{parameter}"], peers.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("which", ["elu", "bumps", "squashed at its end"])
def test_unusual_networks_learn(which: str) -> None:
    """A lottery with one step: action 2 is right where x_0 > 0, else action 1."""
    torch.manual_seed(0)
    body = BODIES[which](4) if which in BODIES else None
    network = NetworkConfig(hidden=(16,), activation="elu")
    policy = ControlPolicy(OBSERVATION, HEADS["discrete"], network, actor=body)
    ppo = online_method("ppo")
    optimiser = torch.optim.Adam(policy.parameters(), lr=0.02)
    rng = np.random.default_rng(0)

    def right(observations: np.ndarray) -> np.ndarray:
        return np.where(observations[:, 0] > 0, 2, 1)

    for _ in range(60):
        seen = rng.standard_normal((128, OBSERVATION), dtype=np.float32)
        drawn = policy.act(seen, rng)
        rewards = torch.from_numpy(2.0 * (drawn == right(seen)) - 1).float()[:, None]
        steps = Steps(torch.from_numpy(seen), torch.from_numpy(drawn))
        with torch.no_grad():
            out = policy.evaluate(steps)
        rollout = _bandit(steps, rewards, out, ppo.coefficients())
        gradients(ppo, policy, rollout)
        optimiser.step()
    seen = rng.standard_normal((2000, OBSERVATION), dtype=np.float32)
    assert float((policy.act(seen, None) == right(seen)).mean()) > 0.9


def _bandit(steps: Steps, rewards: Tensor, out: Evaluation, coefficients: Any) -> Rollout:
    """Episodes of one step each."""
    true = torch.ones(rewards.shape, dtype=torch.bool)
    return Rollout(
        inputs=steps,
        mask=true,
        old_logprobs=out.logprobs,
        rewards=rewards,
        terminated=true,
        ended=true,
        score=rewards[:, 0],
        fresh=true[:, 0],
        values=out.values,
        advantages=rewards - out.values,
        returns=rewards,
        coefficients=coefficients,
        dense=True,
    )
