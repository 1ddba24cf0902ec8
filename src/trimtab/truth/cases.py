"""What is trained in the small world, and how far from its known end it may stop."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from trimtab.methods import find
from trimtab.truth import optima, populations
from trimtab.truth.populations import Population
from trimtab.truth.world import Array, TabularPolicy, TabularScorer, World, distribution, total_variation

ROUNDS = 60  # of KTO's reference point; the others are there after a few
BOUND = 0.02


@dataclass(frozen=True)
class Case:
    """One method with its parameters, all feedback of the world, and the optimum.

    Attributes:
        known_from: how the optimum is known, for the table.
        optimum: [P, Y] distribution, or rewards for reward models.
    """

    method: str
    known_from: str
    population: Callable[[World], Population]
    optimum: Callable[[World], Array]
    parameters: dict[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return " ".join([self.method, *(f"{name}={value}" for name, value in self.parameters.items())])


CASES = [
    Case("sft", "the demonstrated distribution", lambda w: populations.demonstrations(w, _shown(w)), lambda w: _shown(w)),
    Case("dpo", "closed form: ref · exp(r/β)", populations.pairs, lambda w: optima.dpo(w, 0.5), {"beta": 0.5}),
    Case("dpo", "closed form: ref · exp(r/β)", populations.pairs, lambda w: optima.dpo(w, 2.0), {"beta": 2.0}),
    Case("dpo_kl", "scipy on enumerated distributions", populations.pairs, lambda w: optima.dpo_kl(w, 0.5, 0.1), {"beta": 0.5, "kl_weight": 0.1}),
    Case("ipo", "closed form: ref · exp(E p(y>y')/β)", populations.pairs, lambda w: optima.ipo(w, 0.2), {"beta": 0.2}),
    Case("ipo", "closed form with a price on length", populations.pairs, lambda w: optima.ipo_per_token(w, 0.5), {"beta": 0.5, "per_token": True}),
    Case("kto", "Lagrange, see below", populations.thumbs, lambda w: optima.kto(w, 1.0, 1.0), {"beta": 1.0}),
    Case("kto", "Lagrange, see below", populations.thumbs, lambda w: optima.kto(w, 1.0, 0.5), {"beta": 1.0, "undesirable_weight": 0.5}),
    Case("orpo", "scipy on enumerated distributions", populations.pairs, lambda w: optima.orpo(w, 0.5), {"beta": 0.5}),
    Case("score_weighted", "closed form: ref · max(0, 1+a(s-b))", populations.scored, lambda w: optima.score_weighted(w, 1.0), {"score_weight": 1.0}),
]
SCORER_CASES = [
    Case("reward_model", "the rewards", populations.pairs, lambda w: w.reward),
    Case("reward_ranking", "the rewards", lambda w: populations.rankings(w, 4), lambda w: w.reward),
]


def _shown(world: World) -> Array:
    return optima.tilted(world.reference, world.reward)


def fit(case: Case, world: World, learner: Any) -> None:
    """Minimises the case's expected loss exactly: no sampling, no learning rate."""
    method = find(case.method)(**case.parameters)
    population = case.population(world)
    optimiser = torch.optim.LBFGS(
        learner.parameters(), max_iter=20, tolerance_grad=1e-9, tolerance_change=0, line_search_fn="strong_wolfe"
    )
    batch = population.batch

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        losses, _ = method.loss(learner, batch)
        loss = (population.weights * losses).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    for _ in range(ROUNDS):
        with torch.no_grad():
            [batch] = method.prepare(learner, [population.batch])
        optimiser.step(closure)


def error(case: Case, world: World) -> float:
    """Total variation to the optimum; for reward models the largest error of centred scores."""
    optimum = case.optimum(world)
    if find(case.method).trains == "reward model":
        scorer = TabularScorer()
        fit(case, world, scorer)
        found = scorer.table.detach().numpy()
        return float(abs((found - found.mean(-1, keepdims=True)) - (optimum - optimum.mean(-1, keepdims=True))).max())
    policy = TabularPolicy(world)
    fit(case, world, policy)
    return total_variation(distribution(policy), optimum)
