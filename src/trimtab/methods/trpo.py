"""TRPO: the largest step that keeps to a bound on the KL."""

import math
import re
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from trimtab.errors import UserError
from trimtab.methods.base import CriticMethod, Metrics, method
from trimtab.objectives.policy_gradient import surrogate, value_loss
from trimtab.objectives.trust_region import Parameters, fisher_vector_product, line_search, natural_step
from trimtab.policies.base import Actor
from trimtab.rollouts.rollout import Rollout


@method("trpo")
@dataclass(frozen=True, kw_only=True)
class TRPO(CriticMethod):
    """One natural-gradient step for each collection; the critic then learns by the optimiser."""

    epochs = 4
    trains_actor = False
    learning_rate = 1e-4
    source = "Schulman et al. 2015, arXiv:1502.05477, eq. 14 and app. C"
    when = "Steps of a known size, without a learning rate for the policy; adapters or small models."

    max_kl: float = 0.01
    """Bound of KL(old || new), the mean over steps in nats."""
    cg_iterations: int = 10
    """Conjugate-gradient iterations for the direction."""
    fisher_every: int = 1
    """Compute the Fisher matrix on every n-th answer only: n times faster, a rougher direction."""
    damping: float = 0.1
    """Added to the Fisher matrix's diagonal."""
    halvings: int = 10
    """How often the step is halved until the bound holds and the surrogate improves."""
    parameters: str = ""
    """Regular expression for the names of the parameters that move; empty moves all that are trained."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(max_kl=(1e-9, 1e3), cg_iterations=(1, 1e3), fisher_every=(1, 1e6))
        self.check(damping=(0.0, 1e3), halvings=(0, 100))

    def loss(self, policy: Actor, batch: Rollout) -> tuple[Tensor, Metrics]:
        """The critic's: the policy has moved already."""
        values = policy.evaluate(batch.inputs).values
        return batch.chosen(value_loss(values, batch.values, batch.returns)), {}

    def whole_step(self, policy: Actor, parts: list[Rollout]) -> dict[str, float]:
        moving = self._moving(policy)
        before = parameters_to_vector(moving.values()).detach().clone()
        steps = sum(self.units(part) for part in parts)
        gradient, loss = self._gradient(policy, moving, parts, steps)
        if not math.isfinite(loss) or not bool(gradient.isfinite().all()):
            raise UserError("the surrogate loss or its gradient is not a finite number; try --precision fp32")

        some = self._some(parts)
        steps_of_some = sum(self.units(part) for part in some)

        def product(vector: Tensor) -> Tensor:
            return self._fisher(policy, moving, some, vector) / steps_of_some + self.damping * vector

        def after(step: Tensor) -> tuple[float, float]:
            _write(before + step, moving)
            return self._outcome(policy, _like(before, moving), parts, steps)

        step = natural_step(product, gradient, max_kl=self.max_kl, iterations=self.cg_iterations)
        taken = line_search(after, step, loss=loss, max_kl=self.max_kl, halvings=self.halvings)
        size, kl = (taken[0], taken[1]) if taken else (torch.zeros_like(step), 0.0)
        _write(before + size, moving)
        return {"old_kl": kl, "step_accepted": float(taken is not None), "step_norm": float(size.norm())}

    def _some(self, parts: list[Rollout]) -> list[Rollout]:
        """Every n-th answer, counted through all parts: where these are cut changes nothing."""
        counted = torch.arange(sum(part.size for part in parts)) % self.fisher_every == 0
        chosen = [of_part.nonzero()[:, 0] for of_part in counted.split([part.size for part in parts])]
        return [p.select(rows.to(p.mask.device)) for p, rows in zip(parts, chosen, strict=True) if len(rows)]

    def _moving(self, policy: Actor) -> Parameters:
        moving: Parameters = {
            n: p for n, p in policy.named_parameters().items() if re.search(self.parameters, n)
        }
        if not moving:
            names = ", ".join(list(policy.named_parameters())[:3])
            raise UserError(f"--parameters {self.parameters}: no trained parameter is named so; e.g. {names}")
        return moving

    def _gradient(
        self, policy: Actor, moving: Parameters, parts: list[Rollout], steps: int
    ) -> tuple[Tensor, float]:
        """Of the surrogate loss, at the old policy; and the loss."""
        gradient, loss = torch.zeros_like(parameters_to_vector(moving.values())), 0.0
        for part in parts:
            losses = surrogate(policy.evaluate(part.inputs).logprobs, part.old_logprobs, part.advantages)
            of_part = part.chosen(losses).sum() / steps
            grads = torch.autograd.grad(of_part, list(moving.values()), materialize_grads=True)
            gradient += torch.cat([g.flatten() for g in grads])
            loss += float(of_part.detach())
        return gradient, loss

    def _fisher(self, policy: Actor, moving: Parameters, parts: list[Rollout], vector: Tensor) -> Tensor:
        """F v, summed over all steps: [N] -> [N]."""
        total = torch.zeros_like(vector)
        for part in parts:
            distributions = partial(policy.distributions_with, inputs=part.inputs)
            of_part = fisher_vector_product(
                distributions, policy.family.fisher, moving, _like(vector, moving)
            )
            total += torch.cat([v.flatten() for v in of_part.values()])
        return total

    @torch.no_grad()
    def _outcome(
        self, policy: Actor, before: Parameters, parts: list[Rollout], steps: int
    ) -> tuple[float, float]:
        """(surrogate loss, exact KL from the policy before), means over all steps."""
        loss = kl = 0.0
        for part in parts:
            losses = surrogate(policy.evaluate(part.inputs).logprobs, part.old_logprobs, part.advantages)
            old, new = policy.distributions_with(before, part.inputs), policy.distributions(part.inputs)
            loss += float(part.chosen(losses).sum()) / steps
            kl += float(policy.family.kl(old, new).sum()) / steps
        return loss, kl


@torch.no_grad()
def _write(vector: Tensor, parameters: Parameters) -> None:
    """Sets the parameters in place: what else reads their memory sees the change."""
    for parameter, piece in zip(parameters.values(), _like(vector, parameters).values(), strict=True):
        parameter.copy_(piece)


def _like(vector: Tensor, parameters: Parameters) -> Parameters:
    """A flat vector cut into the shapes of the parameters."""
    pieces = vector.split([p.numel() for p in parameters.values()])
    return {n: v.view_as(p) for (n, p), v in zip(parameters.items(), pieces, strict=True)}
