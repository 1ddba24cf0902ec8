"""Gradients written by hand against torch's own, for every method, and for losses of any kind."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tests.control_steps import (
    HEADS,
    NETWORKS,
    PRECISIONS,
    Only,
    assert_near,
    both,
    every_step,
    exact,
    experience,
    gradient_of,
    gradients,
    in_float64,
    made,
    online_method,
    random_steps,
    singles,
)

from trimtab.objectives.policy_gradient import ppo_clip, surrogate, value_loss
from trimtab.policies.base import Evaluation
from trimtab.policies.control import ControlPolicy, NetworkConfig, Steps
from trimtab.policies.duals import ONE, Dual
from trimtab.policies.heads import CategoricalHead, GaussianHead
from trimtab.rollouts.rollout import Rollout
from trimtab.train import backward

Loss = tuple[str, dict[str, Any]]  # a method and its parameters
LOSSES: list[Loss] = [
    ("ppo", {"entropy_bonus": 0.3, "value_clip": 0.1, "value_weight": 0.5}),
    ("ppo", {"whiten": False}),
    ("ppo_kl", {"kl_penalty": 2.0, "entropy_bonus": 0.1}),
    ("a2c", {"entropy_bonus": 0.2}),
    ("a2c", {}),
    ("reinforce", {"baseline": "value", "gamma": 0.9}),
    ("reinforce", {"baseline": "mean"}),
    ("trpo", {}),
]
heads = pytest.mark.parametrize("name", HEADS)
networks = pytest.mark.parametrize(
    "network", NETWORKS, ids=lambda network: "-".join(map(str, network.values()))
)
precisions = pytest.mark.parametrize("precision", PRECISIONS, ids=["float32", "float64"])
losses = pytest.mark.parametrize("loss", LOSSES, ids=str)


@heads
@networks
@precisions
@losses
def test_the_gradients_of_every_method_are_those_of_torch(
    name: str, network: dict[str, Any], precision: tuple[torch.dtype, float], loss: Loss
) -> None:
    """Torch's in float64, on the very same numbers: its own float32 can be further off than the bound."""
    dtype, bound = precision
    learner = online_method(loss[0], **loss[1])
    mine, torchs = both(name, learner.needs_critic, dtype=dtype, **network)
    rollout = experience(learner, torchs, name, seed=5)
    in_truth = gradients(learner, exact(torchs, name, **network), in_float64(rollout))
    for found, expected in zip(gradients(learner, mine, rollout), in_truth, strict=True):
        assert found.dtype == dtype
        if loss[0] == "trpo" and not expected.any():  # the critic's loss says nothing of the actor
            assert not found.any()
        else:
            assert_near(found.double(), expected, bound)


@heads
@networks
@precisions
def test_the_gradient_of_the_surrogate_is_that_of_torch(
    name: str, network: dict[str, Any], precision: tuple[torch.dtype, float]
) -> None:
    dtype, bound = precision
    policies = both(name, dtype=dtype, **network)
    rollout = experience(online_method("trpo"), policies[1], name, seed=6)

    class Surrogate(Only):
        def __init__(self) -> None:
            pass

        def loss(self, policy: Any, batch: Rollout) -> Any:
            logprobs = policy.evaluate(batch.inputs).logprobs
            return batch.chosen(surrogate(logprobs, batch.old_logprobs, batch.advantages)), {}

    for policy in policies:
        method: Any = Surrogate()
        backward(method, policy, [rollout])
    found, expected = (policy.actor.vector.grad for policy in policies)
    assert found is not None and expected is not None
    assert_near(found, expected, bound)


@heads
@losses
@pytest.mark.parametrize("cut", [(20,), (1, 2), (10, 10, 10)])
def test_micro_batches_change_no_gradient(name: str, loss: Loss, cut: tuple[int, ...]) -> None:
    learner = online_method(loss[0], **loss[1])
    policy = made(name, torch.float64, critic=learner.needs_critic)
    rollout = experience(learner, policy, name, seed=7)
    whole = gradients(learner, policy, rollout)
    for found, expected in zip(
        gradients(learner, policy, rollout, *cut, rollout.size - sum(cut)), whole, strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@heads
@pytest.mark.parametrize("used", ["logprobs", "entropy", "values"])
def test_a_loss_may_use_any_part_alone(name: str, used: str) -> None:
    steps = every_step(random_steps(name, 8, torch.float64))
    found = [
        gradient_of(policy, steps, lambda out: 3.0 * getattr(out, used).square())
        for policy in both(name, dtype=torch.float64)
    ]
    moved = int(used == "values")
    assert_near(found[0][moved], found[1][moved], 1e-10)
    assert not found[0][1 - moved].any() and not found[1][1 - moved].any()


CLOSED = pytest.mark.parametrize("closed", [True, False], ids=["closed form", "torch"])


@CLOSED
def test_gradients_by_hand(closed: bool) -> None:
    """One input x = 2, two actions with logits (2w + b, 0): d log p(0) / db = 1 - p, times 2 for w."""
    policy = ControlPolicy(1, CategoricalHead(2), NetworkConfig(hidden=(), closed_form=closed))
    weight = torch.tensor([[math.log(3) / 2], [0.0]])
    policy.load(policy.tensors() | {"actor.body.0.weight": weight, "critic.0.weight": torch.tensor([[5.0]])})
    steps = Steps(torch.tensor([[2.0]]), torch.tensor([0]))
    out = policy.evaluate(steps)
    assert out.logprobs.tolist() == [[pytest.approx(math.log(0.75))]]  # exp(log 3) to 1
    assert out.values.tolist() == [[10.0]]
    actor, critic = gradient_of(policy, steps, lambda out: out.logprobs + 10 * out.values)
    assert actor.tolist() == pytest.approx([0.5, -0.5, 0.25, -0.25])
    assert critic.tolist() == [20.0, 10.0]
    actor, _ = gradient_of(policy, steps, lambda out: out.entropy)
    towards_even = 0.75 * 0.25 * math.log(3)  # p (1 - p) log(p / (1 - p))
    assert actor.tolist() == pytest.approx([-2 * towards_even, 2 * towards_even, -towards_even, towards_even])


@CLOSED
def test_gaussian_gradients_by_hand(closed: bool) -> None:
    """Mean 3x = 6, deviation 2, action 10: d = 2, so d/dm = d / s = 1 and d/d log s = d^2 - 1 = 3."""
    network = NetworkConfig(hidden=(), closed_form=closed)
    policy = ControlPolicy(1, GaussianHead(1, math.log(2)), network, has_critic=False)
    policy.load(policy.tensors() | {"actor.body.0.weight": torch.tensor([[3.0]])})
    steps = Steps(torch.tensor([[2.0]]), torch.tensor([[10.0]]))
    [found] = gradient_of(policy, steps, lambda out: out.logprobs + 100 * out.entropy)
    by_name = {n: float(piece) for n, piece in policy.actor.pieces(found).items()}
    assert by_name == pytest.approx({"body.0.weight": 2.0, "body.0.bias": 1.0, "log_std": 103.0})


def gradient_by_hand(of: Callable[[Evaluation], Any], closed: bool) -> float:
    """Of the first logit's bias, which is 0, as are all parameters: log p = -log 2 of both actions."""
    policy = ControlPolicy(1, CategoricalHead(2), NetworkConfig(hidden=(), closed_form=closed))
    policy.load({n: torch.zeros_like(t) for n, t in policy.tensors().items()})
    actor, _ = gradient_of(policy, Steps(torch.zeros(1, 1), torch.tensor([0])), of)
    return float(policy.actor.pieces(actor)["body.0.bias"][0])


@CLOSED
@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [
        (1.0, 3.0, -1.5),  # -ratio A (1 - p), p = 1/2
        (1.1, 3.0, -1.65),
        (1.3, 3.0, 0.0),  # clipped
        (1.3, -3.0, 1.95),  # a bad action that became likelier is not
        (0.7, -3.0, 0.0),
        (0.7, 3.0, -1.05),
    ],
)
def test_the_gradient_of_ppo_by_hand(ratio: float, advantage: float, expected: float, closed: bool) -> None:
    old = np.array([[math.log(0.5) - math.log(ratio)]], dtype=np.float32)
    of_step = np.full((1, 1), advantage, dtype=np.float32)

    def loss(out: Evaluation) -> Any:
        arrays: Any = (old, of_step) if closed else (torch.from_numpy(old), torch.from_numpy(of_step))
        return ppo_clip(out.logprobs, *arrays, clip=0.2)

    assert gradient_by_hand(loss, closed) == pytest.approx(expected, rel=1e-5)


LOSSES_OF_ANY_KIND: dict[str, Callable[[Any, Any], Any]] = {  # of log-probs and values
    "abs": lambda x, y: x.abs(),
    "torch.abs": lambda x, y: torch.abs(x),
    "power": lambda x, y: x**3,
    "product": lambda x, y: x * y * x,
    "quotient": lambda x, y: x / y,
    "quotient with a number": lambda x, y: 1 / y,
    "difference with a number": lambda x, y: 2 - y + 1 - x / 3,
    "square": lambda x, y: torch.square(x),
    "exp": lambda x, y: torch.exp(x * 0.1) + y.exp(),
    "expm1": lambda x, y: torch.expm1(x) * y,
    "log": lambda x, y: (x * x + 1).log(),
    "sigmoid": lambda x, y: torch.sigmoid(x),
    "logsigmoid": lambda x, y: torch.nn.functional.logsigmoid(x),
    "huber": lambda x, y: torch.nn.functional.huber_loss(x, y, reduction="none"),
    "minimum": torch.minimum,
    "maximum": lambda x, y: torch.maximum(x * 2, y),
    "maximum with itself held": lambda x, y: torch.maximum(x, x.detach() - 1) * y.detach(),
    "clamp": lambda x, y: x.clamp(-2.0, -1.0) * y.clamp(-0.3, 0.3),
    "clamp from above": lambda x, y: x.clamp(max=-1.0),
    "clamp from below": lambda x, y: x.clamp_min(-1.0),
    "where": lambda x, y: torch.where(x > -1.5, x, y),
    "weighted by a condition": lambda x, y: (x > -1.5) * x * y,
    "weighted by two conditions": lambda x, y: (x > -3.0) * x + (x > -1.5) * x + (y > 0.0) * y,
    "weighted by its contrary": lambda x, y: (x < -1.5) * x,
    "weighted by equality": lambda x, y: (x == x.detach()) * x,
    "filled by a condition": lambda x, y: x.masked_fill(y > 0.0, 0.0) + y,
    "indexed by a condition": lambda x, y: x * x[x > -1.5].sum(),
    "mean": lambda x, y: x * x.mean(),
    "sum": lambda x, y: x * x.sum(),
    "centred": lambda x, y: (x - x.mean()).square(),
    "cumulative": lambda x, y: x.cumsum(0),
    "flipped": lambda x, y: x * y.flip(0),
    "transposed": lambda x, y: x * y.T,
}


@pytest.mark.parametrize("which", LOSSES_OF_ANY_KIND)
def test_a_loss_of_any_kind_has_torchs_gradient_or_none(which: str) -> None:
    """What there is no rule for is refused with an error, never differentiated wrongly."""
    steps = every_step(random_steps("gaussian", 4, torch.float64))
    mine, torchs = both("gaussian", dtype=torch.float64)

    def of(out: Evaluation) -> Any:
        return LOSSES_OF_ANY_KIND[which](out.logprobs, out.values)

    expected = gradient_of(torchs, steps, of)
    try:
        found = gradient_of(mine, steps, of)
    except (AttributeError, TypeError, ValueError):
        return
    for of_mine, of_torch in zip(found, expected, strict=True):
        torch.testing.assert_close(of_mine, of_torch, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("which", ["weighted by two conditions", "filled by a condition", "clamp"])
def test_losses_with_conditions_are_differentiated_in_the_networks_precision(which: str) -> None:
    """By hand: torch is not called in for them."""
    steps = every_step(random_steps("gaussian", 4))
    mine, torchs = both("gaussian")

    def of(out: Evaluation) -> Any:
        return LOSSES_OF_ANY_KIND[which](out.logprobs, out.values)

    for found, expected in zip(gradient_of(mine, steps, of), gradient_of(torchs, steps, of), strict=True):
        assert_near(found, expected, 1e-5)
    assert mine.closed is not None and not mine.closed.beyond


def test_the_slopes_of_a_clipped_value_are_of_single_precision() -> None:
    """In double precision they would slow down the whole pass backwards."""
    values = np.array([[0.5], [2.0]], dtype=np.float32)
    old, returns = np.zeros_like(values), np.full_like(values, 3.0)
    loss: Any = value_loss(Dual(values, {"values": ONE}), old, returns, clip=1.0)  # type: ignore[arg-type]
    assert loss.slopes["values"].dtype == np.float32
    # V - return where V is near; beyond the bounds the larger error is the bound's, which does not move
    assert loss.slopes["values"].tolist() == [[-2.5], [0.0]]
    assert loss.value.tolist() == [[3.125], [2.0]]


@heads
def test_gradients_add_up_and_other_evaluations_do_not_disturb_them(name: str) -> None:
    policy, steps = made(name, torch.float64), every_step(random_steps(name, 1, torch.float64))
    other = every_step(random_steps(name, 2, torch.float64))

    def of(out: Evaluation) -> Any:
        return (out.logprobs + out.entropy).square() + out.values.square()

    one, two = gradient_of(policy, steps, of), gradient_of(policy, other, of)
    kept = [g.clone() for g in one]
    found = gradient_of(policy, steps, of)
    with torch.no_grad():
        before = policy.evaluate(other)
        logprobs = before.logprobs.clone()
        policy.act(steps.observations.numpy(), None)
        policy.evaluate(steps)
        assert torch.equal(before.logprobs, logprobs)
    method: Any = Only(of)
    backward(method, policy, [singles(other)])
    for vector, first, second in zip(policy.parameters(), one, two, strict=True):
        assert vector.grad is not None
        assert_near(vector.grad, first + second, 1e-12)
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(one, kept, found, strict=True))


def test_without_gradients_for_the_actor_the_critic_learns_all_the_same() -> None:
    """As in TRPO's epochs, after its step."""
    trpo, policies = online_method("trpo"), both("discrete", dtype=torch.float64)
    rollout, found = experience(trpo, policies[1], "discrete", seed=3), []
    for policy in policies:
        policy.actor.vector.requires_grad_(False)
        found.append(gradients(trpo, policy, rollout))
        policy.actor.vector.requires_grad_(True)
    assert not found[0][0].any() and not found[1][0].any()
    assert_near(found[0][1], found[1][1], 1e-10)


@losses
def test_loss_and_metrics_are_those_of_torch(loss: Loss) -> None:
    learner = online_method(loss[0], **loss[1])
    mine, torchs = both("gaussian", learner.needs_critic, dtype=torch.float64)
    rollout = experience(learner, torchs, "gaussian", seed=5)
    rows = torch.arange(rollout.size).split(7)
    parts = [part for [part] in rollout.minibatches([[some] for some in rows])]
    found, expected = (
        {name: float(value) for name, value in backward(learner, policy, parts).items()}
        for policy in (mine, torchs)
    )
    assert found == pytest.approx(expected, rel=1e-6)  # metrics are kept in float32
    assert len(found) == (1 if loss[0] == "trpo" else 3 if loss[0] == "ppo" else 2)
