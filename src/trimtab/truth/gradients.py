"""The policy gradients of drawn responses against the derivative of what is to be maximised, enumerated."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from scipy.stats import f as f_distribution
from torch import Tensor

from trimtab.methods.a2c import A2C
from trimtab.methods.base import OnlineMethod
from trimtab.methods.ppo import PPO
from trimtab.rollouts.rollout import Rollout
from trimtab.truth.actor import EVERY, Drawn, TabularActor, online_method
from trimtab.truth.measured import titled
from trimtab.truth.reinforcement import BETA, reference_of
from trimtab.truth.world import (
    LONGEST,
    PROMPTS,
    RESPONSES,
    VOCABULARY,
    Array,
    World,
    code,
    distribution,
)

BATCHES, ROWS_EACH, GROUP = 400, 512, 4
LARGEST_Z, LEAST_CHANCE, ROUNDING = 4.0, 1e-3, 1e-12
KEPT = 1 - 1 / GROUP  # what a group's mean leaves of an advantage, the response being part of it


def regularised_reward(world: World, actor: TabularActor) -> Tensor:
    """E[r] - beta KL(pi || ref) over whole responses, the mean over prompts."""
    logprobs = actor.policy.logprobs(EVERY).sum(-1).view(PROMPTS, -1)
    rewards = torch.tensor(world.reward) - BETA * (logprobs - torch.tensor(world.reference).log())
    return (logprobs.exp() * rewards).sum() / PROMPTS


def reward_and_kl_of_each_token(world: World, actor: TabularActor) -> Tensor:
    """(1 - 1 / G) E[r] - beta E[KL of each token's choice], no heed being paid to where the tokens lead."""
    chances = actor.policy.logprobs(EVERY).sum(-1).exp()
    logprobs = actor.distributions(EVERY)
    log_ratio = logprobs - TabularActor(world).distributions(EVERY).detach()
    of_tokens = (logprobs.exp() * log_ratio).sum(-1)
    passed = chances.detach().repeat_interleave(EVERY.response_lengths)
    reward = chances @ torch.tensor(world.reward.ravel())
    return (KEPT * reward - BETA * (passed @ of_tokens)) / PROMPTS


@dataclass(frozen=True)
class GradientCase:
    """A method, and the objective whose derivative the mean of its losses has.

    Attributes:
        objective: (world, actor) -> a number, differentiable.
        scale: what the method multiplies the whole gradient by.
    """

    method: str
    parameters: dict[str, Any] = field(default_factory=dict)
    objective: Callable[[World, TabularActor], Tensor] = regularised_reward
    scale: float = 1.0

    @property
    def title(self) -> str:
        return titled(self.method, self.parameters)


GRADIENTS = [
    GradientCase("reinforce", {"baseline": "none"}),
    GradientCase("reinforce", {"baseline": "value"}),
    GradientCase("a2c", {"lam": 0.95}),
    GradientCase("a2c", {"lam": 0.0}),
    GradientCase("rloo"),
    GradientCase("grpo", {"kl": "reward", "aggregation": "dapo", "scale": False}, scale=KEPT),
    GradientCase(
        "grpo",
        {"kl": "loss", "aggregation": "dr_grpo", "scale": False},
        reward_and_kl_of_each_token,
        scale=1 / LONGEST,
    ),
]


@dataclass(frozen=True)
class Agreement:
    """A mean of drawn gradients, compared with the enumerated one.

    Attributes:
        error: length of the difference, as a share of the gradient's.
        largest_z: of a component, in standard errors of its own.
        chance: that drawing alone brings a difference as unlikely as this (Hotelling's T^2).
    """

    title: str
    error: float
    largest_z: float
    chance: float

    @property
    def cells(self) -> tuple[str, ...]:
        return self.title, f"{self.error:.4f}", f"{self.largest_z:.1f}", f"{self.chance:.2f}"

    @property
    def missed(self) -> bool:
        return not (self.largest_z < LARGEST_Z and self.chance > LEAST_CHANCE)


def agreement(case: GradientCase, world: World, seed: int = 0, batches: int = BATCHES) -> Agreement:
    """Draws batches of responses of a policy away from the reference, and compares."""
    actor = moved_actor(world, seed=1)
    [expected] = torch.autograd.grad(-case.scale * case.objective(world, actor), actor.policy.logits)
    source = Drawn(world, actor.policy, ROWS_EACH, GROUP, seed)
    method = online_method(case.method, beta=BETA, **case.parameters)
    gradients = torch.stack(
        [gradient(method, actor, credited(method, world, actor, source)) for _ in range(batches)]
    )
    return _compared(case.title, gradients.flatten(1).numpy(), expected.flatten().numpy())


def moved_actor(world: World, seed: int) -> TabularActor:
    """An actor away from the reference, its critic exact."""
    actor = TabularActor(world)
    noise = torch.randn(actor.policy.logits.shape, generator=torch.Generator().manual_seed(seed)).double()
    with torch.no_grad():
        actor.policy.logits.add_(noise * 0.3)
        actor.table.copy_(torch.tensor(exact_values(world, distribution(actor.policy))))
    return actor


def exact_values(world: World, pi: Array) -> Array:
    """[P, V^LONGEST] what is still to come after each prefix, by its code: reward less the price of KL."""
    begun = {prefix for y in RESPONSES for prefix in (y[:t] for t in range(len(y)))}
    values = np.zeros((PROMPTS, VOCABULARY**LONGEST))
    for prefix in begun:
        on = np.array([y[: len(prefix)] == prefix for y in RESPONSES])
        chance, ref = pi[:, on], world.reference[:, on]
        mass = chance.sum(-1, keepdims=True)
        log_ratio = np.log(chance / mass) - np.log(ref / ref.sum(-1, keepdims=True))
        of_each = world.reward[:, on] - BETA * log_ratio
        values[:, code(prefix)] = (chance / mass * of_each).sum(-1)
    return values


def credited(method: OnlineMethod, world: World, actor: TabularActor, source: Drawn) -> Rollout:
    """A collection with rewards and advantages."""
    rollout = source.collect(0).rollout
    with torch.no_grad():
        out = actor.evaluate(rollout.inputs)
    rollout = replace(
        rollout,
        ref_logprobs=reference_of(world)(rollout.inputs),
        values=out.values,
        next_values=out.next_values,
        coefficients=method.coefficients(),
    )
    return method.advantages(source.with_rewards(rollout, BETA * method.reward_beta))


def gradient(method: OnlineMethod, actor: Any, rollout: Rollout) -> Tensor:
    """[P, PREFIXES, V] of the sum of the losses, for a response."""
    losses, _ = method.loss(actor, rollout)
    return torch.autograd.grad(losses.sum() / rollout.size, actor.policy.logits)[0]


@dataclass(frozen=True)
class Equality:
    """Two gradients that must be the same: their largest difference, as a share of the largest entry."""

    title: str
    difference: float
    bound: float

    @property
    def cells(self) -> tuple[str, ...]:
        return self.title, f"{self.difference:.1g}", f"{self.bound:.1g}"

    @property
    def missed(self) -> bool:
        return not self.difference <= self.bound


def ppo_begins_as_a2c(world: World) -> Equality:
    """At ratio 1, on the same advantages, PPO's gradient is that of A2C."""
    actor = moved_actor(world, seed=2)
    ppo, a2c = PPO(beta=BETA, whiten=False), A2C(beta=BETA, lam=0.95)
    rollout = credited(ppo, world, actor, Drawn(world, actor.policy, ROWS_EACH))
    of_ppo, of_a2c = gradient(ppo, actor, rollout), gradient(a2c, actor, rollout)
    difference = float((of_ppo - of_a2c).abs().max() / of_a2c.abs().max())
    return Equality("ppo at ratio 1, a2c", difference, ROUNDING)


def _compared(title: str, gradients: Array, expected: Array) -> Agreement:
    """[K, N] gradients of K batches with the [N] that they should have in the mean."""
    count = len(gradients)
    off = gradients.mean(0) - expected
    error = gradients.std(0, ddof=1) / np.sqrt(count)
    live = error > 1e-12  # prefixes that no response has never move
    # directions in which nothing can vary, such as a shift of all logits of a state, are left out
    spread, axes = np.linalg.eigh(np.cov(gradients[:, live].T))
    axes, spread = axes[:, spread > 1e-9 * spread.max()], spread[spread > 1e-9 * spread.max()]
    free = len(spread)
    t_squared = count * float(((off[live] @ axes) ** 2 / spread).sum())
    chance = f_distribution.sf(t_squared * (count - free) / (free * (count - 1)), free, count - free)
    return Agreement(
        title,
        float(np.linalg.norm(off) / np.linalg.norm(expected)),
        float(np.abs(off[live] / error[live]).max()),
        float(chance),
    )
