"""What is trained in the small world, and how far from its known end it stops."""

import time
from dataclasses import dataclass, field
from typing import Any

import torch

from trimtab.methods import find
from trimtab.truth import optima
from trimtab.truth.measured import figure, titled
from trimtab.truth.populations import POPULATIONS
from trimtab.truth.world import Array, TabularPolicy, TabularScorer, World, distribution, total_variation

STEPS = 600
BOUND = 0.02


@dataclass(frozen=True)
class Case:
    """A method with its parameters, and how its optimum (the function of its name in `optima`) is known."""

    method: str
    known_from: str
    parameters: dict[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return titled(self.method, self.parameters)

    def optimum(self, world: World) -> Array:
        """[P, Y] a distribution, or rewards for reward models."""
        return getattr(optima, self.method)(world, **self.parameters)


CASES = [
    Case("sft", "likelihood: what was demonstrated"),
    Case("reward_model", "Bradley-Terry: the rewards"),
    Case("reward_ranking", "Plackett-Luce: the rewards"),
    Case("dpo", "closed form: ref · exp(r / β)", {"beta": 0.5}),
    Case("dpo", "closed form: ref · exp(r / β)", {"beta": 2.0}),
    Case("dpo_kl", "scipy, over distributions", {"beta": 0.5, "kl_weight": 0.1}),
    Case("ipo", "closed form: ref · exp(E p(y > y') / β)", {"beta": 0.2}),
    Case("ipo", "closed form, with a price on length", {"beta": 0.5, "per_token": True}),
    Case("kto", "Lagrange: ref · max(0, √(s / m) − 1)", {"beta": 1.0}),
    Case("kto", "Lagrange: ref · max(0, √(s / m) − 1)", {"beta": 1.0, "undesirable_weight": 0.5}),
    Case("orpo", "scipy, over distributions", {"beta": 0.5}),
    Case("score_weighted", "closed form: ref · max(0, 1 + a(s − b))", {"score_weight": 1.0}),
]


@dataclass(frozen=True)
class Result:
    """How far a case stopped from its optimum.

    Attributes:
        distance: total variation; for reward models the largest error of a centred score.
        from_regularised: total variation to ref · exp(r / beta), where the method has a beta of that sense.
    """

    case: Case
    distance: float
    from_regularised: float | None
    seconds: float

    @property
    def cells(self) -> tuple[str, ...]:
        regularised = "" if self.from_regularised is None else figure(self.from_regularised)
        return self.case.title, self.case.known_from, figure(self.distance), regularised

    @property
    def missed(self) -> bool:
        return not self.distance <= BOUND


def solve(case: Case, world: World) -> Result:
    """Trains the real method on all feedback of the world, and measures."""
    start = time.perf_counter()
    optimum = case.optimum(world)
    if find(case.method).trains == "reward model":
        scorer = TabularScorer()
        minimise(case, world, scorer)
        error = _centred(scorer.table.detach().numpy()) - _centred(optimum)
        return Result(case, float(abs(error).max()), None, time.perf_counter() - start)
    policy = TabularPolicy(world)
    minimise(case, world, policy)
    found = distribution(policy)
    regularised = None
    if find(case.method).needs_reference:
        regularised = total_variation(found, optima.dpo(world, case.parameters["beta"]))
    return Result(case, total_variation(found, optimum), regularised, time.perf_counter() - start)


def minimise(case: Case, world: World, learner: Any) -> None:
    """Minimises the method's expected loss, without any sampling: Adam with a rate that falls to zero."""
    method = find(case.method)(**case.parameters)
    population = POPULATIONS[method.data](world)
    optimiser = torch.optim.Adam(learner.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)
    for _ in range(STEPS):
        with torch.no_grad():
            [batch] = method.prepare(learner, [population.batch])
        losses, _ = method.loss(learner, batch)
        optimiser.zero_grad()
        (population.weights * losses).sum().backward()
        optimiser.step()
        schedule.step()


def _centred(scores: Array) -> Array:
    return scores - scores.mean(-1, keepdims=True)
