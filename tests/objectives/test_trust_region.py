"""Trust-region steps against direct solution, closed forms and the true KL of a small policy."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from trimtab.objectives.distributions import categorical_fisher
from trimtab.objectives.trust_region import (
    conjugate_gradient,
    fisher_vector_product,
    line_search,
    natural_step,
)


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


class Counted:
    """v -> A v, and how often it was asked for."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix, self.calls = matrix, 0

    def __call__(self, vector: Tensor) -> Tensor:
        self.calls += 1
        return self.matrix @ vector


def random_system(seed: int, size: int = 12) -> tuple[Tensor, Tensor]:
    """A positive definite matrix [N, N] and a vector [N]."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(size, size, generator=generator, dtype=torch.float64)
    vector = torch.randn(size, generator=generator, dtype=torch.float64)
    return root @ root.T + torch.eye(size, dtype=torch.float64), vector


@pytest.mark.parametrize("seed", range(5))
def test_conjugate_gradient_solves(seed: int) -> None:
    matrix, b = random_system(seed)
    solution = conjugate_gradient(Counted(matrix), b, iterations=30, tolerance=1e-20)
    torch.testing.assert_close(solution, torch.linalg.solve(matrix, b), rtol=1e-7, atol=1e-9)


def test_conjugate_gradient_literals() -> None:
    """Steepest descent at first: 2/4 of (1, 1); exact after as many steps as there are eigenvalues."""
    product, b = Counted(torch.diag(tensor(1.0, 3.0))), tensor(1.0, 1.0)
    assert conjugate_gradient(product, b, iterations=1).tolist() == [0.5, 0.5]
    assert conjugate_gradient(product, b, iterations=2).tolist() == pytest.approx([1.0, 1 / 3])
    assert b.tolist() == [1.0, 1.0]  # left as it was


@pytest.mark.parametrize(
    ("diagonal", "products"),
    [((2.0, 2.0, 2.0, 2.0), 1), ((1.0, 3.0, 3.0, 1.0), 2), ((1.0, 2.0, 3.0, 1.0), 3)],
)
def test_conjugate_gradient_stops_when_it_is_there(diagonal: tuple[float, ...], products: int) -> None:
    product = Counted(torch.diag(tensor(*diagonal)))
    solution = conjugate_gradient(product, tensor(1.0, -2.0, 3.0, 4.0), iterations=10)
    expected = [b / a for a, b in zip(diagonal, (1.0, -2.0, 3.0, 4.0), strict=True)]
    assert solution.tolist() == pytest.approx(expected)
    assert product.calls == products


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_tolerance_is_a_share_of_the_right_hand_side(size: float) -> None:
    matrix, b = random_system(0)
    b = size * b
    loose, tight = Counted(matrix), Counted(matrix)
    solution = conjugate_gradient(loose, b, iterations=100, tolerance=1e-2)
    conjugate_gradient(tight, b, iterations=100, tolerance=1e-8)
    residual = b - matrix @ solution
    assert float(residual @ residual) <= 1e-2 * float(b @ b) * (1 + 1e-9)
    before = conjugate_gradient(Counted(matrix), b, iterations=loose.calls - 1, tolerance=0.0)
    residual = b - matrix @ before
    assert float(residual @ residual) > 1e-2 * float(b @ b)  # not an iteration too many
    assert loose.calls < tight.calls < 100


def test_natural_step_literal() -> None:
    """F^-1 g = (2, 1), whose curvature is 8: sqrt(2 * 0.01 / 8) = 0.05 of it, downhill."""
    fisher = Counted(torch.diag(tensor(1.0, 4.0)))
    step = natural_step(fisher, tensor(2.0, 4.0), max_kl=0.01, iterations=5)
    assert step.tolist() == pytest.approx([-0.1, -0.05])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("max_kl", [1e-3, 0.5])
def test_natural_step_is_along_the_natural_gradient_up_to_the_kl(seed: int, max_kl: float) -> None:
    fisher, slope = random_system(seed)
    step = natural_step(Counted(fisher), slope, max_kl=max_kl, iterations=30)
    natural = torch.linalg.solve(fisher, slope)
    assert float(step @ fisher @ step) / 2 == pytest.approx(max_kl)
    assert float(step @ natural / (step.norm() * natural.norm())) == pytest.approx(-1, abs=1e-6)
    steeper = natural_step(Counted(fisher), 1000 * slope, max_kl=max_kl, iterations=30)
    torch.testing.assert_close(steeper, step)  # the KL sets the length, not the gradient


def test_natural_step_stays_within_the_kl_when_conjugate_gradient_is_cut_short() -> None:
    fisher, slope = random_system(7)
    step = natural_step(Counted(fisher), slope, max_kl=0.02, iterations=2)
    assert float(step @ fisher @ step) / 2 == pytest.approx(0.02)
    assert float(step @ slope) < 0


def test_no_gradient_no_step_but_nan_is_seen() -> None:
    fisher = Counted(torch.diag(tensor(1.0, 4.0)))
    assert natural_step(fisher, tensor(0.0, 0.0), max_kl=0.01, iterations=5).tolist() == [0.0, 0.0]
    step = natural_step(fisher, tensor(1.0, math.nan), max_kl=0.01, iterations=5)
    assert all(math.isnan(x) for x in step.tolist())


def test_natural_step_moves_a_categorical_policy_by_its_kl() -> None:
    """F = diag(pi) - pi pi^T for logits; it is singular along (1, ..., 1), where the gradient is zero."""
    logits, advantages = tensor(0.3, -0.2, 0.7, 0.0, -1.0), tensor(1.0, -2.0, 0.5, 3.0, -0.7)
    pi = logits.softmax(-1)
    slope = -pi * (advantages - pi @ advantages)  # of the loss -E_pi[A]
    fisher = Counted(torch.diag(pi) - torch.outer(pi, pi))
    new = (logits + natural_step(fisher, slope, max_kl=1e-4, iterations=10)).softmax(-1)
    assert float((pi * (pi / new).log()).sum()) == pytest.approx(1e-4, rel=0.02)
    # the first-order gain is |g| in the norm of F^-1: sqrt(2 max_kl Var_pi[A])
    variance = float(pi @ (advantages - pi @ advantages).square())
    assert float((new - pi) @ advantages) == pytest.approx(math.sqrt(2e-4 * variance), rel=0.02)


def recorded(
    loss: Callable[[float], float], kl: Callable[[float], float]
) -> tuple[Callable[[Tensor], tuple[float, float]], list[float]]:
    """evaluate for `line_search`, and the first coordinates of the steps that it was asked about."""
    asked: list[float] = []

    def evaluate(step: Tensor) -> tuple[float, float]:
        x = float(step[0])
        asked.append(x)
        return loss(x), kl(x)

    return evaluate, asked


def test_line_search_takes_the_full_step_where_it_holds() -> None:
    evaluate, asked = recorded(lambda x: -x, lambda x: x / 10)
    result = line_search(evaluate, tensor(8.0, -4.0), loss=0.0, max_kl=1.0, halvings=5)
    assert result is not None
    assert result[0].tolist() == [8.0, -4.0]
    assert result[1] == 0.8
    assert asked == [8.0]


def test_line_search_halves_until_the_kl_holds() -> None:
    evaluate, asked = recorded(lambda x: -x, lambda x: x)
    result = line_search(evaluate, tensor(8.0, -4.0), loss=0.0, max_kl=2.0, halvings=5)
    assert result is not None
    assert (result[0].tolist(), result[1]) == ([2.0, -1.0], 2.0)
    assert asked == [8.0, 4.0, 2.0]


def test_line_search_halves_until_the_loss_falls() -> None:
    """(x - 1)^2 from x = 0: 49, 9, 1, which is no lower than at the start, 0."""
    evaluate, asked = recorded(lambda x: (x - 1) ** 2, lambda x: 0.25)
    result = line_search(evaluate, tensor(8.0), loss=1.0, max_kl=1.0, halvings=5)
    assert result is not None
    assert (result[0].tolist(), result[1]) == ([1.0], 0.25)
    assert asked == [8.0, 4.0, 2.0, 1.0]


@pytest.mark.parametrize(
    ("loss", "kl"),
    [(1.0, 0.0), (2.0, 0.0), (0.0, 1.1), (math.nan, 0.0), (0.0, math.nan), (-math.inf, math.inf)],
)
def test_line_search_gives_up(loss: float, kl: float) -> None:
    """Loss no lower, higher, KL too large, or either not a number: after `halvings` there is no step."""
    evaluate, asked = recorded(lambda x: loss, lambda x: kl)
    assert line_search(evaluate, tensor(8.0), loss=1.0, max_kl=1.0, halvings=2) is None
    assert asked == [8.0, 4.0, 2.0]


INPUTS = torch.tensor([[1.0, -0.5], [0.3, 2.0], [-1.2, 0.4]], dtype=torch.float64)  # [M, D]


def network(parameters: dict[str, Tensor]) -> Tensor:
    """[M, V] log-probs of three actions; `idle` plays no part in them."""
    return ((INPUTS @ parameters["first"]).tanh() @ parameters["second"]).log_softmax(-1)


def network_parameters(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"first": (2, 4), "second": (4, 3), "idle": (2,)}
    return {n: torch.randn(*s, generator=generator, dtype=torch.float64) for n, s in shapes.items()}


def fisher_of_network() -> tuple[Tensor, Tensor]:
    """F v flat, and v flat, at seed 0 along seed 1."""
    parameters = {n: p.requires_grad_() for n, p in network_parameters(0).items()}
    vector = network_parameters(1)
    product = fisher_vector_product(network, categorical_fisher, parameters, vector)
    assert {n: p.shape for n, p in product.items()} == {n: p.shape for n, p in parameters.items()}
    assert product["idle"].tolist() == [0.0, 0.0]
    flat = [torch.cat([d[n].flatten() for n in parameters]) for d in (product, vector)]
    return flat[0], flat[1]


def test_fisher_vector_product_is_the_sum_over_all_actions() -> None:
    """sum over rows and actions of p g (g . v), g = grad log p, one backward pass for each."""
    product, vector = fisher_of_network()
    parameters = {n: p.requires_grad_() for n, p in network_parameters(0).items()}
    logprobs = network(parameters)
    expected = torch.zeros_like(vector)
    for logprob in logprobs.flatten():
        leaves = list(parameters.values())
        grads = torch.autograd.grad(logprob, leaves, retain_graph=True, materialize_grads=True)
        flat = torch.cat([g.flatten() for g in grads])
        expected += logprob.exp().detach() * flat * (flat @ vector)
    torch.testing.assert_close(product, expected)


def test_fisher_vector_product_is_the_second_derivative_of_the_kl() -> None:
    """KL(pi, pi moved by h v) = h^2 v F v / 2 + O(h^3), summed over rows."""
    product, vector = fisher_of_network()
    here, direction = network_parameters(0), network_parameters(1)

    def kl(h: float) -> float:
        old, new = network(here), network({n: p + h * direction[n] for n, p in here.items()})
        return float((old.exp() * (old - new)).sum())

    h = 1e-3
    assert float(vector @ product) == pytest.approx((kl(h) + kl(-h)) / h**2, rel=1e-4)


def test_fisher_vector_product_of_logits() -> None:
    """(diag(p) - p p^T) v for each of the rows."""
    logits = tensor(0.25, 0.25, 0.5).log().expand(2, 3).clone().requires_grad_()
    vector = {"logits": torch.tensor([[4.0, 0.0, 0.0], [1.0, 1.0, 1.0]], dtype=torch.float64)}
    product = fisher_vector_product(
        lambda p: p["logits"].log_softmax(-1), categorical_fisher, {"logits": logits}, vector
    )
    # p . v = 1: 1/4 (4 - 1), 1/4 (0 - 1), 1/2 (0 - 1); a shift of all the logits changes nothing
    expected = torch.tensor([[0.75, -0.25, -0.5], [0.0, 0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(product["logits"], expected)
