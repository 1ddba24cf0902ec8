"""Trust-region steps: natural gradients by conjugate gradient, then a line search. Flat [N] vectors."""

from collections.abc import Callable

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]  # v -> A v
Parameters = dict[str, Tensor]
Metric = Callable[[Tensor, Tensor], Tensor]  # (distributions [M, K], v) -> F v [M, K]


def conjugate_gradient(
    product: Product, b: Tensor, *, iterations: int = 10, tolerance: float = 1e-10
) -> Tensor:
    """x with A x = b for a symmetric positive definite A (Hestenes & Stiefel 1952). [N] -> [N].

    Args:
        product: v -> A v; A itself is never held.
        tolerance: stops when the squared norm of the residual falls to this share of b's.
    """
    x = torch.zeros_like(b)
    residual, direction = b.clone(), b.clone()
    squared = start = residual @ residual
    for _ in range(iterations):
        if squared <= tolerance * start:
            break
        image = product(direction)
        step = squared / (direction @ image)
        x = x + step * direction
        residual = residual - step * image
        squared, before = residual @ residual, squared
        direction = residual + (squared / before) * direction
    return x


def natural_step(product: Product, gradient: Tensor, *, max_kl: float, iterations: int) -> Tensor:
    """The step along F^-1 g whose quadratic KL, d F d / 2, is max_kl (Schulman et al. 2015, app. C). [N].

    Args:
        product: v -> F v, F the Fisher matrix.
        gradient: of the loss; the step goes against it.
    """
    direction = conjugate_gradient(product, gradient, iterations=iterations)
    curvature = direction @ product(direction)
    if curvature <= 0:  # no gradient, no step; NaN goes on, to be seen
        return torch.zeros_like(gradient)
    return -direction * (2 * max_kl / curvature).sqrt()


def line_search(
    evaluate: Callable[[Tensor], tuple[float, float]],
    step: Tensor,
    *,
    loss: float,
    max_kl: float,
    halvings: int,
) -> tuple[Tensor, float] | None:
    """The largest of step, step/2, step/4, ... that lowers the loss and keeps to the KL; None if none does.

    Args:
        evaluate: step -> (loss, KL) after it.
        loss: before the step.
    Returns:
        the step that was taken, and its KL.
    """
    for halving in range(halvings + 1):
        candidate = step * 0.5**halving
        candidate_loss, kl = evaluate(candidate)
        if candidate_loss < loss and kl <= max_kl:
            return candidate, kl
    return None


def fisher_vector_product(
    distributions: Callable[[Parameters], Tensor], metric: Metric, parameters: Parameters, vector: Parameters
) -> Parameters:
    """F v, summed over rows: F = E_p[grad log p (grad log p)^T] over every action of every row.

    Forward differentiation carries v to the distributions, their own Fisher matrix weighs it, reverse
    differentiation brings it back: the Gauss-Newton form of the KL's second derivative, equal to it where
    the two policies are the same.

    Args:
        distributions: parameters -> [M, K] whole distributions.
        metric: their Fisher matrix, as in `distributions.Family`.
        parameters: leaves that require a gradient, by name; `vector` has the same names and shapes.
    """
    values, tangent = torch.func.jvp(distributions, (parameters,), (vector,))  # type: ignore[misc]
    weighted = metric(values, tangent).detach()
    grads = torch.autograd.grad((weighted * values).sum(), list(parameters.values()), materialize_grads=True)
    return dict(zip(parameters, grads, strict=True))
