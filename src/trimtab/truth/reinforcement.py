"""Reinforcement learning in the small world: the real loop, on all responses or on drawn ones."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from trimtab.methods.base import OnlineMethod
from trimtab.online import OnlineConfig, Reference, train_online
from trimtab.truth import optima
from trimtab.truth.actor import Drawn, Enumerated, Expectation, TabularActor, online_method
from trimtab.truth.cases import BOUND
from trimtab.truth.measured import figure, titled
from trimtab.truth.world import LENGTHS, Array, TabularPolicy, World, distribution, total_variation

BETA = 0.5
DRAWN_BOUND = 0.05  # what the chance in the answers leaves
DRAWN_ROWS = 4096  # answers in a collection
PAIRS, EIGHT = 2, 8  # responses to a prompt: as many as can be enumerated, as many as GRPO draws
REST = "at rest: ref · exp(f E[r] / β), from the last token backwards"


def regularised(world: World) -> Array:
    """[P, Y] the optimum of expected reward minus beta KL."""
    return optima.dpo(world, BETA)


@dataclass(frozen=True)
class OnlineCase:
    """A method at beta 0.5, and where it must end.

    Attributes:
        optimum: world -> [P, Y].
        group: responses to a prompt that are compared with each other.
    """

    method: str
    parameters: dict[str, Any] = field(default_factory=dict)
    group: int = 1
    optimum: Callable[[World], Array] = regularised
    known_from: str = "closed form: ref · exp(r / β)"

    @property
    def title(self) -> str:
        return titled(self.method, self.parameters)

    def made(self) -> OnlineMethod:
        return online_method(self.method, beta=BETA, **self.parameters)


COUNTS = {"grpo": 1 / LENGTHS, "dr_grpo": np.ones(len(LENGTHS)), "dapo": np.ones(len(LENGTHS))}
"""What a token of each response counts, by each of GRPO's means, up to a factor."""


def _grpo(group: int) -> list[OnlineCase]:
    """GRPO by each of its means: with the KL in the reward, then with the KL as a loss, as is its custom."""
    plain = [{"scale": False, "aggregation": aggregation} for aggregation in COUNTS]
    rests = [partial(optima.grpo, beta=BETA, group=group, weights=weights) for weights in COUNTS.values()]
    return [
        *(OnlineCase("grpo", {"kl": "reward", **p}, group) for p in plain),
        *(
            OnlineCase("grpo", {"kl": "loss", **p}, group, rest, REST)
            for p, rest in zip(plain, rests, strict=True)
        ),
    ]


ENUMERATED = [
    OnlineCase("reinforce", {"baseline": "none"}),
    OnlineCase("reinforce", {"baseline": "mean"}),
    OnlineCase("reinforce", {"baseline": "value"}),
    OnlineCase("a2c"),
    OnlineCase("ppo", {"whiten": False}),
    OnlineCase("ppo_kl", {"whiten": False, "old_kl_target": None}),
    OnlineCase("rloo", group=PAIRS),
    *_grpo(PAIRS),
]
DRAWN = [
    OnlineCase("reinforce", {"baseline": "none"}),
    OnlineCase("reinforce", {"baseline": "mean"}),
    OnlineCase("reinforce", {"baseline": "value"}),
    OnlineCase("a2c"),
    OnlineCase("ppo", {"whiten": False}),
    OnlineCase("ppo"),
    OnlineCase("ppo_kl", {"whiten": False}),
    OnlineCase("trpo", {"whiten": False, "max_kl": 0.001, "damping": 0.01}),
    OnlineCase("rloo", group=4),
    *_grpo(EIGHT),
    OnlineCase("grpo", {"kl": "reward"}, EIGHT),
]


@dataclass(frozen=True)
class OnlineResult:
    """Where a case stopped: total variation to its optimum, which must be within `bound`."""

    case: OnlineCase
    distance: float
    from_regularised: float
    bound: float
    seconds: float

    @property
    def cells(self) -> tuple[str, ...]:
        return self.case.title, self.case.known_from, figure(self.distance), figure(self.from_regularised)

    @property
    def missed(self) -> bool:
        return not self.distance <= self.bound


def solve_enumerated(case: OnlineCase, world: World, refreshes: int = 250) -> OnlineResult:
    """The loop on all responses, each loss weighted by the policy's own probability of it."""
    method = case.made()
    actor = TabularActor(world, critic=method.needs_critic)
    source = Enumerated(world, actor.policy, case.group)
    return _solved(case, world, actor, Expectation(method), source, refreshes=refreshes, bound=BOUND)


def solve_drawn(case: OnlineCase, world: World, refreshes: int = 100, seed: int = 0) -> OnlineResult:
    """The loop on responses that the policy draws, as users run it."""
    method = case.made()
    actor = TabularActor(world, critic=method.needs_critic)
    source = Drawn(world, actor.policy, DRAWN_ROWS, case.group, seed)
    return _solved(case, world, actor, method, source, refreshes=refreshes, bound=DRAWN_BOUND)


def reference_of(world: World) -> Reference:
    """The world's reference as the loop asks for it."""
    return torch.no_grad()(TabularPolicy(world).logprobs)


def _solved(
    case: OnlineCase,
    world: World,
    actor: TabularActor,
    method: Any,
    source: Drawn,
    *,
    refreshes: int,
    bound: float,
) -> OnlineResult:
    start = time.perf_counter()
    run = OnlineConfig(
        refreshes=refreshes,
        learning_rate=0.1,
        schedule="cosine",
        warmup=0.0,
        max_grad_norm=0.0,
        batch_tokens=10**6,
    )
    for _ in train_online(method, actor, source, run, reference_of(world)):
        pass
    found = distribution(actor.policy)
    return OnlineResult(
        case,
        total_variation(found, case.optimum(world)),
        total_variation(found, regularised(world)),
        bound,
        time.perf_counter() - start,
    )
