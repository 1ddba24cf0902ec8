"""TRPO's step measured by enumeration, and its Fisher matrix on a transformer by another derivative."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trimtab.methods.trpo import TRPO
from trimtab.objectives.trust_region import fisher_vector_product
from trimtab.online import OnlineConfig, train_online
from trimtab.policies.actor_critic import ActorCritic
from trimtab.rollouts.rollout import Collection
from trimtab.truth.actor import EVERY, Drawn, TabularActor, experience
from trimtab.truth.gradients import Equality
from trimtab.truth.llama import tiny_llama
from trimtab.truth.measured import titled
from trimtab.truth.reinforcement import reference_of
from trimtab.truth.world import (
    GRAIN,
    LONGEST,
    PREFIXES,
    PROMPTS,
    RESPONSES,
    VOCABULARY,
    Array,
    World,
    code,
)

KL_ROUNDING, FISHER_BOUND = 1e-12, 1e-4
STEPS = [{"max_kl": 0.01}, {"max_kl": 0.001}, {"max_kl": 0.001, "damping": 0.0}]


class Replicated(Drawn):
    """Every response as often as its probability under the reference says, a multiple of 1/512: exactly."""

    def __init__(self, world: World, policy: Any) -> None:
        repeats = torch.tensor(np.rint(world.reference * GRAIN**LONGEST).astype(int).ravel())
        self.copies = torch.arange(len(repeats)).repeat_interleave(repeats)
        super().__init__(world, policy, len(self.copies))

    def collect(self, refresh: int) -> Collection:
        return Collection(experience(self.world, self.policy, self.copies), [])


@dataclass(frozen=True)
class Step:
    """TRPO's first step from the reference; KLs and gains are means over tokens.

    Attributes:
        reported: KL(old || new) as the method measured it.
        enumerated: the same, over all prefixes with their probabilities.
        gain: of the surrogate, enumerated.
        best: the largest gain, to first order, that any step of KL `max_kl` has.
    """

    parameters: dict[str, float]
    reported: float
    enumerated: float
    gain: float
    best: float

    @property
    def cells(self) -> tuple[str, ...]:
        kls = (f"{self.parameters['max_kl']:g}", f"{self.enumerated:.6f}", f"{self.reported:.6f}")
        return titled("trpo", self.parameters), *kls, f"{self.gain:.4f}", f"{self.best:.4f}"

    @property
    def missed(self) -> bool:
        agrees = abs(self.reported - self.enumerated) <= KL_ROUNDING
        return not (agrees and self.enumerated <= self.parameters["max_kl"] and self.gain > 0)


class Prefixes:
    """What the reference does after each prefix, in numpy: how often it comes by, and what a token earns."""

    def __init__(self, world: World) -> None:
        self.old = world.conditionals
        self.passed = np.zeros((PROMPTS, PREFIXES))
        earned = np.zeros((PROMPTS, PREFIXES, VOCABULARY))
        for y, chance, reward in zip(RESPONSES, world.reference.T, world.reward.T, strict=True):
            for t in range(len(y)):
                self.passed[:, code(y[:t])] += chance
                earned[:, code(y[:t]), y[t]] += chance * reward
        self.tokens = self.passed.sum()
        # [P, PREFIXES, V] the expected reward of a token; zero after prefixes that never come by
        self.worth = earned / np.maximum(self.passed[:, :, None] * self.old, 1e-12)

    def kl(self, new: Array) -> float:
        """KL(old || new), the mean over tokens."""
        return float((self.passed * (self.old * np.log(self.old / new)).sum(-1)).sum() / self.tokens)

    def gain(self, new: Array) -> float:
        """What the surrogate rises by from old to new."""
        return float((self.passed * ((new - self.old) * self.worth).sum(-1)).sum() / self.tokens)

    @cached_property
    def variance(self) -> float:
        """Of a token's worth after its prefix, the mean over tokens."""
        mean = (self.old * self.worth).sum(-1, keepdims=True)
        return float((self.passed * (self.old * (self.worth - mean) ** 2).sum(-1)).sum() / self.tokens)


def first_step(parameters: dict[str, float], world: World) -> Step:
    """One collection of TRPO through the loop. The price of KL is zero there: the rewards are the scores."""
    actor = TabularActor(world)
    method = TRPO(whiten=False, lam=1.0, **parameters)  # type: ignore[arg-type]
    run = OnlineConfig(refreshes=1, batch_tokens=10**6)
    [refresh] = train_online(method, actor, Replicated(world, actor.policy), run, reference_of(world))
    new = actor.policy.logits.detach().softmax(-1).numpy()
    prefixes = Prefixes(world)
    return Step(
        parameters,
        refresh.metrics["old_kl"],
        prefixes.kl(new),
        prefixes.gain(new),
        float(np.sqrt(2 * parameters["max_kl"] * prefixes.variance)),  # Cauchy-Schwarz
    )


def fisher_on_a_llama() -> Equality:
    """The Fisher matrix times a vector, against the KL differentiated twice, on all responses."""
    policy = ActorCritic(tiny_llama(seed=0))
    policy.actor.trunk.packed = False  # packed rows have no second derivatives
    parameters: dict[str, Tensor] = dict(policy.named_parameters())
    generator = torch.Generator().manual_seed(0)
    vector = {name: torch.randn(p.shape, generator=generator) for name, p in parameters.items()}
    product = fisher_vector_product(
        lambda p: policy.distributions_with(p, EVERY), policy.family.fisher, parameters, vector
    )
    logprobs = policy.distributions_with(parameters, EVERY)
    kl = (logprobs.detach().exp() * (logprobs.detach() - logprobs)).sum()
    leaves = list(parameters.values())
    slope = torch.autograd.grad(kl, leaves, create_graph=True)
    along = sum((s * vector[name]).sum() for name, s in zip(parameters, slope, strict=True))
    twice = torch.autograd.grad(along, leaves)  # type: ignore[arg-type]
    off = max(float((product[name] - t).abs().max()) for name, t in zip(parameters, twice, strict=True))
    return Equality("Fisher matrix, KL twice", off / max(float(t.abs().max()) for t in twice), FISHER_BOUND)
