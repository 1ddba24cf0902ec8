"""Control policies away from their start, and random experience for them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trimtab.methods import find
from trimtab.policies.base import Evaluation
from trimtab.policies.control import ControlPolicy, NetworkConfig, Steps
from trimtab.policies.heads import CategoricalHead, GaussianHead, Head
from trimtab.rollouts.rollout import Rollout
from trimtab.train import backward

OBSERVATION = 3
HEADS: dict[str, Head] = {"discrete": CategoricalHead(4), "gaussian": GaussianHead(2, -0.3)}
ROWS, STEPS = 6, 9
NETWORKS: list[dict[str, Any]] = [
    {"activation": activation, "hidden": hidden}
    for activation in ("tanh", "relu")
    for hidden in ((8, 5), (7,))
]
NETWORKS.append({"hidden": ()})
PRECISIONS = [(torch.float32, 1e-6), (torch.float64, 1e-10)]  # and how far a sum in another order may be off


def made(name: str, dtype: torch.dtype = torch.float32, critic: bool = True, **network: Any) -> ControlPolicy:
    """A policy whose parameters are all away from their start, the same for the same shapes."""
    torch.set_default_dtype(dtype)
    try:
        config = NetworkConfig(**{"hidden": (8, 5), **network})
        policy = ControlPolicy(OBSERVATION, HEADS[name], config, has_critic=critic, seed=3)
    finally:
        torch.set_default_dtype(torch.float32)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for vector in policy.parameters():
            noise = 0.4 * torch.randn(vector.shape, generator=generator, dtype=torch.float64)
            vector.add_(noise.to(dtype))
    return policy


def random_steps(name: str, seed: int, dtype: torch.dtype = torch.float32) -> Steps:
    """[ROWS, STEPS] steps that the policy might have taken."""
    generator = torch.Generator().manual_seed(seed)
    observations = torch.randn(ROWS, STEPS + 1, OBSERVATION, generator=generator, dtype=torch.float64)
    size = HEADS[name].size
    if name == "discrete":
        actions = torch.randint(size, (ROWS, STEPS), generator=generator)
    else:
        actions = torch.randn(ROWS, STEPS, size, generator=generator, dtype=torch.float64).to(dtype)
    return Steps(observations.to(dtype), actions)


@torch.no_grad()
def experience(method: Any, policy: ControlPolicy, name: str, seed: int) -> Rollout:
    """Single steps with advantages, as in a later epoch: ratios off 1, values off the old ones."""
    dtype = policy.actor.vector.dtype
    observations, generator = (
        random_steps(name, seed, dtype).observations,
        torch.Generator().manual_seed(seed),
    )
    drawn = policy.act(observations[:, :-1].flatten(0, 1).numpy(), np.random.default_rng(seed))
    inputs = Steps(observations, torch.from_numpy(drawn).view(ROWS, STEPS, *drawn.shape[1:]))

    def noise(size: float) -> Tensor:
        return (size * torch.randn(ROWS, STEPS, generator=generator, dtype=torch.float64)).to(dtype)

    def chance(share: float) -> Tensor:
        return torch.rand(ROWS, STEPS, generator=generator) < share

    mask = ~chance(0.2)
    terminated = mask & chance(0.15)
    out = policy.evaluate(inputs)
    rollout = Rollout(
        inputs=inputs,
        mask=mask,
        old_logprobs=out.logprobs + noise(0.2),
        rewards=noise(1.0) * mask,
        terminated=terminated,
        ended=terminated | (mask & chance(0.15)),
        score=torch.zeros(ROWS),
        fresh=torch.ones(ROWS, dtype=torch.bool),
        coefficients=method.coefficients(),
    )
    if out.values is not None:
        rollout = replace(rollout, values=out.values + noise(0.2), next_values=out.next_values)
    return method.advantages(rollout).flattened()


def gradients(method: Any, policy: ControlPolicy, rollout: Rollout, *parts: int) -> list[Tensor]:
    """Of the method's loss, of actor and critic; computed in parts of so many steps."""
    rows = torch.arange(rollout.size).split(list(parts) or [rollout.size])
    for vector in policy.parameters():
        vector.grad = None
    backward(method, policy, [part for [part] in rollout.minibatches([[r] for r in rows])])
    found = [torch.zeros_like(v) if v.grad is None else v.grad.clone() for v in policy.parameters()]
    assert all(0 < float(g.abs().max()) < 100 for g in found[not method.trains_actor :])
    return found


class Only:
    """A method that is its loss alone: the sum over steps of a function of what the policy evaluates."""

    trains_actor = True

    def __init__(self, of: Callable[[Evaluation], Any]) -> None:
        self.of = of

    def units(self, batch: Rollout) -> int:
        return 1

    def loss(self, policy: Any, batch: Rollout) -> tuple[Any, dict[str, Any]]:
        return batch.chosen(self.of(policy.evaluate(batch.inputs, entropy=True))), {}


def singles(steps: Steps) -> Rollout:
    """Single steps with nothing but what the policy reads."""
    absent: Any = None
    mask = torch.ones(len(steps.actions), 1, dtype=torch.bool)
    return Rollout(
        inputs=steps,
        mask=mask,
        old_logprobs=absent,
        rewards=absent,
        terminated=absent,
        ended=absent,
        score=absent,
        fresh=absent,
        dense=True,
    )


def gradient_of(policy: ControlPolicy, steps: Steps, of: Callable[[Evaluation], Any]) -> list[Tensor]:
    """Of the sum over single steps of a function of what the policy evaluates; of actor and critic."""
    for vector in policy.parameters():
        vector.grad = None
    method: Any = Only(of)
    backward(method, policy, [singles(steps)])
    return [torch.zeros_like(v) if v.grad is None else v.grad.clone() for v in policy.parameters()]


def online_method(name: str, **parameters: Any) -> Any:
    made_of: Any = find(name)
    return made_of(**parameters)


def every_step(steps: Steps) -> Steps:
    """Rows of steps as single ones."""
    return steps.flattened(torch.ones(steps.actions.shape[:2], dtype=torch.bool))


def assert_near(found: Tensor, expected: Tensor, share: float) -> None:
    """Equal to within this share of the largest entry."""
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    off = float((found - expected).abs().max() / expected.abs().max())
    assert off <= share, f"off by {off:.1e} of the largest entry"


def both(name: str, critic: bool = True, **options: Any) -> list[ControlPolicy]:
    """The same policy with hand-written passes, and without."""
    return [made(name, critic=critic, closed_form=closed, **options) for closed in (True, False)]


@torch.no_grad()
def exact(policy: ControlPolicy, name: str, **network: Any) -> ControlPolicy:
    """The same policy in float64, by torch's graph."""
    critic = policy.critic is not None
    same = made(name, dtype=torch.float64, critic=critic, closed_form=False, **network)
    for vector, value in zip(same.parameters(), policy.parameters(), strict=True):
        vector.copy_(value)
    return same


def in_float64(rollout: Rollout) -> Rollout:
    """What losses read, the same numbers in float64."""
    inputs: Steps = rollout.inputs
    actions = inputs.actions.double() if inputs.actions.is_floating_point() else inputs.actions
    return replace(rollout.mapped(torch.Tensor.double), inputs=Steps(inputs.observations.double(), actions))
